"""Classifier-free guidance: away from what the network would say without the prompt."""

from collections.abc import Callable

import jax.numpy as jnp

from diffjax.types import Array, Head, Params


def guide(
  conditional: tuple[Callable[[Array], Array], Head],
  unconditional: tuple[Callable[[Array], Array], Head],
  weight: Array,
) -> tuple[Callable[[Array], Array], Head]:
  """Views (see, head) of the same canvas, with and without its prompt, become one.

  logits = (1 + w) conditional - w unconditional (2207.12598; for masked diffusion 2410.18514).
  Logits are linear in the head's features, so the features are combined, and the vocabulary is
  visited once.

  Args:
    conditional, unconditional: generation.View, of one model.
    weight: float32[], w; 0 changes nothing.
  """
  see, head = conditional
  see_without, _ = unconditional

  def see_both(said: Array) -> Array:
    return jnp.concatenate([see(said), see_without(said)], axis=-1)

  def transform(params: Params, both: Array) -> Array:
    with_prompt, without = (head.transform(params, half) for half in jnp.split(both, 2, axis=-1))
    return ((1 + weight) * with_prompt - weight * without).astype(with_prompt.dtype)

  return see_both, head._replace(transform=transform)
