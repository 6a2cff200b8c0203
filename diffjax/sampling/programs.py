"""The compiled programs: parameters and strategy are traced, so neither recompiles."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import io_callback

from diffjax.diffusion import generation, likelihood, strategies, vocabulary
from diffjax.model import Model
from diffjax.sampling.layout import Rows
from diffjax.types import Array, Params


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


def score(
  params: Params,
  rows: Rows,
  scored: Array,
  low: Array,
  high: Array,
  seed_key: Array,
  *,
  model: Model,
) -> Array:
  """One sample of the bound on a target's log-likelihood from every row, float32[B].

  Of a causal model without a mask, the exact log-likelihood.

  Args:
    params: the model's.
    rows: the target is in place on the canvas.
    scored, low, high: see likelihood.samples.
    seed_key: a row's key is this one, folded with its words.
    model: the network; its own parameters are not used.
  """
  contract, chunk = model.contract, model.compute.vocabulary_chunk
  denoiser = model.denoiser(rows.segments, params=params, canvas=rows.answer)
  if not contract.denoises:
    exact = likelihood.log_likelihoods(denoiser, rows.tokens, rows.tokens, scored, chunk=chunk)
    return exact.sum(-1)
  return likelihood.samples(
    denoiser, _row_keys(seed_key, rows.key_words), rows.tokens, scored, low, high,
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
