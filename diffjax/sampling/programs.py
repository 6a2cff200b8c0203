"""The compiled programs: parameters and strategy are traced, so neither recompiles.

Where there are several devices, each runs a program of its own on its share of the rows, with a
whole copy of the parameters: rows need nothing of each other, and a device whose rows are final
waits for nobody.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import io_callback
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from diffjax.diffusion import generation, likelihood, strategies, vocabulary
from diffjax.model import Model
from diffjax.sampling.layout import Rows, Scored
from diffjax.sharding import ROWS
from diffjax.types import Array, Params

_BY_ROW = P(ROWS)
SPLIT_DECODED = generation.Decoded(_BY_ROW, _BY_ROW, _BY_ROW, P(), P(None, ROWS))
SPLIT_SCORES = _BY_ROW
SPLIT_LENGTHS = (_BY_ROW, _BY_ROW)


def devices_for(params: Params) -> list[jax.Device]:
  """Those that can share the rows: all local ones of the kind that the parameters lie on.

  Parameters that already lie on several devices, as in training, stay as they are, and XLA
  arranges the work: then it is one.
  """
  leaf = jax.tree.leaves(params)[0]
  lie_on = leaf.devices() if isinstance(leaf, jax.Array) else {jax.local_devices()[0]}
  home = next(iter(lie_on))
  return [home] if len(lie_on) > 1 else jax.local_devices(backend=home.platform)


def over_devices(
  program: Callable[..., Any], *, split: tuple[int, ...], out_specs: Any
) -> Callable[..., Any]:
  """A program that takes a static `mesh` too, over whose devices its rows are split; None: one.

  Args:
    program: of positional arrays, and static arguments by name.
    split: which of its arguments have rows, on their leading axes; the others are whole everywhere.
    out_specs: how what it returns is split.
  """

  def run(*arguments: Any, mesh: Mesh | None, **static: Any) -> Any:
    bound = functools.partial(program, **static)
    if mesh is None:
      return bound(*arguments)
    specs = tuple(_BY_ROW if n in split else P() for n in range(len(arguments)))
    # What is whole everywhere is carried through loops beside what is split: nothing to check.
    mapped = jax.shard_map(bound, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
    return mapped(*arguments)

  return run


class Pattern(NamedTuple):
  """What of a decoding is static, beside its shape and strategy."""

  ends: bool = False  # whether a revealed </s> ends its row
  cached: bool = False  # whether what is not canvas is computed once and read from a cache
  block_size: int = 0  # see generation.generate
  keep_trace: bool = False
  watched: bool = False  # whether every step is handed to the host


def decode(
  params: Params,
  sides: tuple[Rows, ...],
  seed_key: Array,
  strategy: strategies.Strategy,
  draw: vocabulary.Draw,
  guidance: Array | None,
  watcher: Array,
  *,
  model: Model,
  pattern: Pattern,
  watch: Callable[[Array, generation.Trace], None],
) -> generation.Decoded:
  """Fills the canvases of one batch.

  Args:
    params: the model's, or others for the same network.
    sides: the rows, and under guidance those without their prompt.
    seed_key: a row's key is this one, folded with its words.
    strategy, draw, guidance: see generation.generate.
    watcher: int32[], whom `watch` hands the steps to.
    model: the network; its own parameters are not used.
    pattern: static.
    watch: called on the host with (watcher, step) where the pattern is watched.

  Returns:
    What was decoded; its `network_calls` are those of one device.
  """
  contract = model.contract
  keys = _row_keys(seed_key, sides[0].key_words)

  def side(rows: Rows) -> generation.Side:
    denoiser = model.denoiser(rows.segments, params=params, canvas=rows.answer)
    canvas = generation.Canvas(jnp.asarray(rows.places), jnp.asarray(rows.real))
    return generation.Side(denoiser, rows.tokens, canvas, rows.closing)

  stored = None
  if pattern.cached:
    stored = [(rows.segments > 0) & ~rows.answer for rows in sides]
  emit = None
  if pattern.watched:
    emit = lambda step: io_callback(watch, None, watcher, step, ordered=True)
  return generation.generate(
    [side(rows) for rows in sides],
    keys,
    strategy,
    draw,
    # A causal model without a mask never sees what stands there.
    mask_id=contract.mask_id if contract.denoises else contract.eos_id,
    chunk=model.compute.vocabulary_chunk,
    guidance=guidance,
    stored=stored,
    block_size=pattern.block_size,
    end_id=contract.eos_id if pattern.ends else None,
    keep_trace=pattern.keep_trace,
    on_step=emit,
  )


def can_store(params: Params, rows: Rows, *, model: Model) -> bool:
  """Whether the network offers a cache of what will not change again.

  Asked of the network itself, as parameters may come with attention that is still being opened.
  """
  offers: list[bool] = []

  def bind(params: Params, rows: Rows) -> None:
    denoiser = model.denoiser(rows.segments, params=params, canvas=rows.answer)
    offers.append(denoiser.prefill is not None)

  jax.eval_shape(bind, params, rows)  # computes nothing
  return offers[0]


def score(params: Params, rows: Scored, seed_key: Array, *, model: Model) -> Array:
  """One sample of the bound on a target's log-likelihood from every row, float32[B].

  Of a causal model without a mask, the exact log-likelihood.

  Args:
    params: the model's, or others for the same network.
    rows: their canvases hold the targets.
    seed_key: a row's key is this one, folded with its words.
    model: the network; its own parameters are not used.
  """
  contract, chunk = model.contract, model.compute.vocabulary_chunk
  denoiser = model.denoiser(rows.segments, params=params, canvas=rows.answer)
  if not contract.denoises:
    tokens = rows.tokens
    exact = likelihood.log_likelihoods(denoiser, tokens, tokens, rows.scored, chunk=chunk)
    return exact.sum(-1)
  return likelihood.samples(
    denoiser, _row_keys(seed_key, rows.key_words), rows.tokens, rows.scored, rows.low, rows.high,
    mask_id=contract.mask_id, chunk=chunk,
  )  # fmt: skip


def _row_keys(seed_key: Array, words: Array) -> Array:
  fold_all = lambda row: functools.reduce(jax.random.fold_in, row, seed_key)
  return jax.vmap(fold_all)(jnp.asarray(words))


def predict_lengths(
  params: Params, tokens: Array, segments: Array, room: Array, *, model: Model, beam: int
) -> tuple[Array, Array]:
  """The likeliest answer lengths, best first, and how many of them there is room for.

  Args:
    params: the model's, or others for the same network.
    tokens: int32[B, L], `<s> prompt`.
    segments: int32[B, L].
    room: int32[B], the longest answer that fits.
    model: with a length head.
    beam: how many.

  Returns:
    int32[B, beam] of which the first of each row's int32[B] are legal.
  """
  logits = model.length_logits(tokens, segments, params=params)  # class n - 1 is length n
  fits = jnp.arange(1, logits.shape[-1] + 1) <= room[:, None]
  _, classes = jax.lax.top_k(jnp.where(fits, logits, -jnp.inf), beam)
  return classes + 1, jnp.minimum(fits.sum(-1), beam)
