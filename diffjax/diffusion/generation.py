"""The compiled loop over decoding steps: no return to the host until every row is final."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax.diffusion import vocabulary
from diffjax.diffusion.strategies import Prediction, State, Strategy
from diffjax.types import Array, Denoiser

_TOKEN_NOISE, _STEP_NOISE = range(2)  # what a position's key is folded with


class Trace(NamedTuple):
  """The canvas after every step; rows from a row's own number of steps on are not filled in."""

  tokens: Array  # int32[S', B, C]  meaningless where masked
  masked: Array  # bool[S', B, C]


class Decoded(NamedTuple):
  """What the loop returns."""

  tokens: Array  # int32[B, L]    the rows with their canvas filled
  scores: Array  # float32[B, C]  log-probability of each token at the step that revealed it
  steps: Array  # int32[B]       steps until the row was final: the calls it would need alone
  network_calls: Array  # int32[]        the largest of them
  trace: Trace | None


class _Carry(NamedTuple):
  number: Array
  state: State
  steps: Array
  trace: Trace | None


def generate(
  tokens: Array,
  canvas: Array,
  canvas_mask: Array,
  keys: Array,
  strategy: Strategy,
  *,
  denoiser: Denoiser,
  mask_id: int,
  chunk: int,
  keep_trace: bool = False,
) -> Decoded:
  """Fills the canvas of every row by a strategy's steps, and writes nothing else.

  Noise is keyed by row, step and position in the row, so that neither the batch mates nor the
  sizes that the row and its canvas are padded to change it.

  Args:
    tokens: int32[B, L]; what the canvas holds at the start does not matter.
    canvas: int32[B, C], ascending positions of the canvas in the row.
    canvas_mask: bool[B, C], False on the padding slots of `canvas`.
    keys: a key for every row [B].
    strategy: as strategies.parse makes them, for canvases of at least C.
    denoiser: bound to the rows' segments.
    mask_id: stands for a masked position in what the network sees.
    chunk: positions whose logits exist at one time.
    keep_trace: whether every step is returned; static.
  """
  length = tokens.shape[1]
  written = jnp.where(canvas_mask, canvas, length)  # out of range, hence dropped, on padding
  read = jnp.where(canvas_mask, canvas, 0)[..., None]

  def write(values: Array) -> Array:
    one = lambda row, places, value: row.at[places].set(value, mode="drop")
    return jax.vmap(one)(tokens, written, values)

  def predict(state: State, noise: Array) -> Prediction:
    hidden = denoiser.trunk(write(jnp.where(state.masked, mask_id, state.tokens)), None)
    hidden = jnp.take_along_axis(hidden, read, axis=1)  # [B, C, D]
    sampling = {}
    if "sample" in strategy.needs:
      sampling = {"keys": _fold(noise, _TOKEN_NOISE).reshape(-1)}
      sampling["temperature"] = strategy.temperature
    flat = hidden.reshape(-1, hidden.shape[-1])
    outputs = vocabulary.predict(denoiser.head, flat, chunk=chunk, **sampling)
    return Prediction(*(x.reshape(canvas.shape) for x in outputs))

  def body(carry: _Carry) -> _Carry:
    noise = _position_keys(keys, carry.number, canvas)
    state = strategy.step(
      carry.state,
      predict(carry.state, noise),
      canvas=canvas_mask,
      number=carry.number,
      keys=_fold(noise, _STEP_NOISE),
    )
    trace = carry.trace
    if keep_trace:
      trace = Trace(
        trace.tokens.at[carry.number].set(state.tokens),
        trace.masked.at[carry.number].set(state.masked),
      )
    return _Carry(carry.number + 1, state, carry.steps + ~carry.state.done, trace)

  def unfinished(carry: _Carry) -> Array:
    return ~carry.state.done.all() & (carry.number < strategy.num_steps)

  trace = None
  if keep_trace:
    shape = (strategy.step_bucket, *canvas.shape)
    trace = Trace(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool))
  steps = jnp.zeros(len(tokens), jnp.int32)
  start = _Carry(jnp.int32(0), strategy.init(canvas_mask), steps, trace)
  end = jax.lax.while_loop(unfinished, body, start)
  return Decoded(write(end.state.tokens), end.state.scores, end.steps, end.number, end.trace)


def _position_keys(keys: Array, number: Array, positions: Array) -> Array:
  """The key of every position of positions int32[B, C] at one step, from the rows' keys [B]."""
  at_step = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
  return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(at_step, positions)


def _fold(keys: Array, purpose: int) -> Array:
  return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, purpose)))(keys)


def candidate_score(ids: Sequence[int], scores: Sequence[float], special: Sequence[int]) -> float:
  """Mean reveal-time log-probability of the tokens that are kept, by which candidates compare.

  Args:
    ids: the canvas.
    scores: as many.
    special: ids that do not become text and do not count.

  Returns:
    The mean; -inf if nothing is kept, so that an empty candidate is never chosen.
  """
  kept = [score for id_, score in zip(ids, scores, strict=True) if id_ not in special]
  return sum(kept) / len(kept) if kept else float("-inf")
