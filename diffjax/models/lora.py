"""Trained leaves beside frozen ones: apart, joined; and low-rank adapters merged into the weights.

An adapter is the pair `lora_a`, `lora_b` beside a `kernel`; `layers.Project` applies it. A length
head stands over a trunk whose weights may all be frozen.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffjax.config import LoraConfig
from diffjax.types import Array, Params

_ADAPTER = ("lora_a", "lora_b")
_LENGTH_HEAD = "length_head"


def join(frozen: Params, trained: Params) -> dict[str, Any]:
  """One nested dict of the leaves of two that share none; leaves may be of any kind.

  Raises:
    ValueError: a leaf stands in both.
  """
  joined = dict(frozen)
  for name, part in trained.items():
    if name not in joined:
      joined[name] = part
    elif isinstance(part, Mapping) and isinstance(joined[name], Mapping):
      joined[name] = join(joined[name], part)
    else:
      raise ValueError(f"{name} is among the frozen and the trained parameters")
  return joined


def split(params: Params, *, length_head: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
  """(all but the adapters, the adapters), neither with empty dicts; `join` is the inverse.

  Args:
    params: nested dict; leaves may be of any kind.
    length_head: whether a length head is on the adapters' side, as in a run that trains it.
  """
  frozen: dict[str, Any] = {}
  adapters: dict[str, Any] = {}
  for name, part in params.items():
    if name in _ADAPTER or (length_head and name == _LENGTH_HEAD):
      parts = (None, part)
    else:
      parts = split(part) if isinstance(part, Mapping) else (part, None)
    for side, kept in zip((frozen, adapters), parts, strict=True):
      if kept is not None and not (isinstance(kept, Mapping) and not kept):
        side[name] = kept
  return frozen, adapters


def merge(params: Params, lora: LoraConfig) -> dict[str, Any]:
  """Parameters without adapters that compute the same: W + (alpha / rank) A B (2106.09685).

  Args:
    params: with adapters of `lora`; each kernel keeps its dtype, the sum is made in float32.
    lora: the rank and alpha that they were trained with.
  """
  merged = {}
  for name, part in params.items():
    if isinstance(part, Mapping):
      merged[name] = merge(part, lora)
    elif name == "kernel" and "lora_a" in params:
      a, b = (params[side] for side in _ADAPTER)
      merged[name] = _merge_kernel(part, a, b, lora.alpha / lora.rank)
    elif name not in _ADAPTER:
      merged[name] = part
  return merged


def _merge_kernel(kernel: Array, a: Array, b: Array, scale: float) -> Array:
  """kernel [N, *inputs, *outputs] + scale a [N, *inputs, r] b [N, r, *outputs], layer by layer."""

  def add(parts: tuple[Array, Array, Array]) -> Array:
    weight, a, b = (part.astype(jnp.float32) for part in parts)
    change = jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)
    return (weight + scale * change).astype(kernel.dtype)

  return jax.lax.map(add, (jnp.asarray(kernel), jnp.asarray(a), jnp.asarray(b)))
