"""What a training step minimises: the times, the weights w(t), and how scored positions are summed.

A loss is a sum and a total until the last division, so that microbatches, shards and hosts add up:
  loss = sum(nll * CE + smooth * mean over allowed ids of -log p) / total
with CE = -log p(x0 | xt) in nats; `nll`, `smooth` and `total` come from here, the log-probabilities
from vocabulary.py. Sums and totals of microbatches are added before they are divided.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion import processes
from diffjax.diffusion.schedules import Schedule, reveal_prob
from diffjax.types import GENERATOR, Array, Batch, UserError

# Every use of random numbers in training has a purpose of its own; a number is never given twice.
TIMES = 0  # the noise level of each example
NOISE = 1  # which positions are noised
TIED_NOISE = 2  # the same for the second twin of a pair whose times are equal
DROPOUT = 3  # the network's hidden states
OPENING = 4  # which later positions a query sees, while attention is annealed
BLOCK = 5  # which block of each answer is noised

# Times are fractions of 2^32 in uint32, whose overflow is frac(): exact, so equal on any mesh.
_GOLDEN = np.uint32(round((5**0.5 - 1) / 2 * 2**32))  # 0.618..., sets packed examples apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """The settings of the forward process and of the loss (hashable: a static argument)."""

  schedule: Schedule
  num_timesteps: int  # T; 0 is continuous time
  weight: Literal["linear", "elbo", "constant"]
  normalizer: Literal["canvas", "tokens", "corrupted"]
  times: Literal["stratified", "independent", "fixed"]
  mask_ratio: float  # of times = 'fixed' alone
  coupled: bool  # two corruptions of every row
  label_smoothing: float  # in [0, 1)
  seed: int
  block_size: int = 0  # of every answer one block of so many positions is noised; 0: all of it
  process: Literal["absorbing", "next_token"] = "absorbing"  # next_token: no noise, t is 0


class ScoreWeights(NamedTuple):
  """How much each position counts, before the one division by `total`."""

  nll: Array  # float32[B, L]  of the cross entropy; 0 where nothing is scored
  smooth: Array  # float32[B, L]  of the mean -log p over the allowed ids
  total: Array  # float32[]     what the sum is divided by; 0 when nothing counts


class Noised(NamedTuple):
  """A batch after the forward process; B counts twins as rows of their own."""

  batch: Batch  # the clean rows, each twice when coupled; its canvas is what could be noised
  answer: Array  # bool[B, L]  the whole canvas, which attention goes by
  xt: Array  # int32[B, L]    the network's input
  t: Array  # float32[B, L]  the time of each position's example
  corrupted: Array  # bool[B, L]
  scored: Array  # bool[B, L]
  weights: ScoreWeights


def noised(
  batch: Batch, step: Array | int, *, objective: Objective, rows: int, mask_id: int
) -> Noised:
  """Draws the times, corrupts the rows and weighs their positions, for one step of training.

  The noise is a function of (seed, step, row number, segment) alone, so any slice of the rows
  gives that slice of the result; the weights' total is the slice's own. Evaluation calls this with
  a fixed step.

  The canvas is narrowed to what can be noised and scored: not to the mask id itself, which may
  stand in the data where a known id is reused; and under `block_size` to one block of each
  example, drawn uniformly, the same for twins. An example's weights are then those of its block.

  Args:
    batch: rows before twins; `index` numbers them in the global batch.
    step: the training step, may be traced.
    objective: the settings.
    rows: rows of the global batch, before twins.
    mask_id: the id that noised positions take.
  """
  if objective.process == "next_token":
    return _clean(batch, objective)
  if objective.coupled:
    batch = processes.twins(batch)
  answer = canvas = batch.canvas
  if objective.block_size:
    row = batch.index // 2 if objective.coupled else batch.index
    bits = _example_bits(purpose_key(objective.seed, BLOCK, step), row, batch.segments)
    canvas = processes.one_block(
      _fraction(bits), answer, batch.segments, block_size=objective.block_size
    )
  batch = batch._replace(canvas=canvas & (batch.tokens != mask_id))
  times_key = purpose_key(objective.seed, TIMES, step)

  def times(index: Array) -> Array:
    return sample_times(
      times_key, index, batch.segments, rows=rows, kind=objective.times,
      schedule=objective.schedule, mask_ratio=objective.mask_ratio,
      num_timesteps=objective.num_timesteps, coupled=objective.coupled,
    )  # fmt: skip

  def uniform(purpose: int, index: Array) -> Array:
    key = purpose_key(objective.seed, purpose, step)
    return processes.row_uniform(key, index, batch.tokens.shape[1])

  t = times(batch.index)
  if objective.coupled:
    # Nested corruptions of one level would be the same corruption twice: the second is drawn anew.
    tied = (t == times(batch.index ^ 1)) & (batch.index % 2 == 1)[:, None]
    pair = batch.index // 2
    draws = jnp.where(tied, uniform(TIED_NOISE, pair), uniform(NOISE, pair))
  else:
    draws = uniform(NOISE, batch.index)
  xt, corrupted, scored = processes.corrupt(
    draws, batch.tokens, batch.canvas, objective.schedule.alpha(t), mask_id=mask_id
  )
  w = weights(
    t, schedule=objective.schedule, num_timesteps=objective.num_timesteps, kind=objective.weight
  )
  score = score_weights(
    scored, batch.canvas, batch.segments, w,
    normalizer=objective.normalizer, label_smoothing=objective.label_smoothing,
  )  # fmt: skip
  return Noised(batch, answer, xt, t, corrupted, scored, score)


def _clean(batch: Batch, objective: Objective) -> Noised:
  """The batch of the autoregressive control, every canvas position of which counts alike."""
  xt, corrupted, scored = processes.next_token(batch.tokens, batch.canvas)
  t = jnp.zeros(batch.tokens.shape, jnp.float32)
  score = score_weights(
    scored, batch.canvas, batch.segments, jnp.ones_like(t),
    normalizer=objective.normalizer, label_smoothing=objective.label_smoothing,
  )  # fmt: skip
  return Noised(batch, batch.canvas, xt, t, corrupted, scored, score)


def purpose_key(seed: int, purpose: int, step: Array | int) -> Array:
  """The key of one purpose (TIMES, NOISE, ...) at one step, which may be traced."""
  key = jax.random.key(seed, impl=GENERATOR)
  return jax.random.fold_in(jax.random.fold_in(key, purpose), step)


def sample_times(
  key: Array,
  index: Array,
  segments: Array,
  *,
  rows: int,
  kind: str,
  schedule: Schedule,
  mask_ratio: float,
  num_timesteps: int,
  coupled: bool,
) -> Array:
  """The time of every position float32[B, L], equal within an example.

  stratified:   t from u = frac(u0 + index / rows + 0.618 (segment - 1)), one draw u0 for the whole
                batch, so that the first examples of the rows fall one into each 1/rows of [0, 1)
                (after 2406.04329). The second twin of a pair has its own u0 and the
                pairs in a shuffled order, so that the two times are independent.
  independent:  one draw for every (row, segment).
  fixed:        the time whose corruption rate is `mask_ratio`, on the grid the next one up.

  Discrete time has t = i/T with i = floor(u T) + 1 in 1..T; continuous time (T = 0) t = 1 - u in
  (0, 1].

  Args:
    key: of purpose TIMES and this step.
    index: int32[B], row numbers in the global batch; of the twins when coupled.
    segments: int32[B, L].
    rows: rows of the global batch; pairs of rows when coupled.
    kind: 'stratified', 'independent' or 'fixed'.
    schedule, mask_ratio: used by 'fixed'.
    num_timesteps: T, 0 for continuous time.
    coupled: whether rows 2i and 2i + 1 are twins.

  Raises:
    UserError: for a `kind` that is none of these.
  """
  if kind == "fixed":
    t = float(schedule.time_of(mask_ratio))
    if num_timesteps:
      # Rounded first: 0.14 * 50 is 7.000000000000001 and means 7.
      t = max(np.ceil(round(t * num_timesteps, 6)), 1.0) / num_timesteps
    return jnp.full(segments.shape, t, jnp.float32)
  if kind == "stratified":
    phase = _stratified_phase(key, index, rows=rows, coupled=coupled)
    bits = phase[:, None] + _example(segments) * _GOLDEN
  elif kind == "independent":
    bits = _example_bits(key, index, segments)
  else:
    raise UserError(f"times {kind!r} is none of 'stratified', 'independent', 'fixed'")
  u = _fraction(bits)
  if num_timesteps:
    return _grid(num_timesteps)[jnp.floor(u * num_timesteps).astype(jnp.int32) + 1]
  return 1 - u


def _example(segments: Array) -> Array:
  """The number of each position's example in its row, from 0: uint32[B, L]; padding has 0."""
  return jnp.maximum(segments, 1).astype(jnp.uint32) - 1


def _example_bits(key: Array, index: Array, segments: Array) -> Array:
  """One draw for every (row number, example), at each of its positions: uint32[B, L]."""
  fold_in = jax.vmap(jax.random.fold_in, (None, 0))
  keys = jax.vmap(fold_in)(fold_in(key, index), _example(segments))
  return jax.vmap(jax.vmap(jax.random.bits))(keys)


def _fraction(bits: Array) -> Array:
  """uint32 as float32 in [0, 1), exact."""
  return (bits >> 8).astype(jnp.float32) * 2.0**-24


def _grid(num_timesteps: int) -> Array:
  """The times i/T float32[T + 1]: a table, because XLA may divide by multiplying with 1/T."""
  return jnp.asarray(np.arange(num_timesteps + 1) / num_timesteps, jnp.float32)


def _stratified_phase(key: Array, index: Array, *, rows: int, coupled: bool) -> Array:
  """Each row's place in [0, 1), as uint32[B] fractions of 2^32."""
  offset_key, order_key = jax.random.split(key)
  offsets = jax.random.bits(offset_key, (2,))
  width = np.uint32(2**32 // rows) if rows > 1 else np.uint32(0)
  if not coupled:
    return offsets[0] + index.astype(jnp.uint32) * width
  pair = index // 2
  shuffled = jax.random.permutation(order_key, rows)[pair]
  first = offsets[0] + pair.astype(jnp.uint32) * width
  second = offsets[1] + shuffled.astype(jnp.uint32) * width
  return jnp.where(index % 2 == 0, first, second)


def weights(t: Array, *, schedule: Schedule, num_timesteps: int, kind: str) -> Array:
  """The weight w(t) of the cross entropy of a noised position; t float32[...] in (0, 1].

  linear:    alpha_{t-1}; in continuous time alpha_t (2308.12219, section 3, divided by its T)
  elbo:      T (alpha_{t-1} - alpha_t) / (1 - alpha_t); in continuous time -alpha'_t / (1 - alpha_t)
             (2406.07524): the mean over t of the summed loss bounds -log p(x0)
  constant:  1

  Finite everywhere: 0 where 1 - alpha_t rounds to 0, since nothing is noised there.

  Raises:
    UserError: for a `kind` that is none of these.
  """
  if kind == "constant":
    return jnp.ones_like(t)
  if kind not in ("linear", "elbo"):
    raise UserError(f"weight {kind!r} is none of 'linear', 'elbo', 'constant'")
  if num_timesteps:
    previous = _grid(num_timesteps)[jnp.round(t * num_timesteps).astype(jnp.int32) - 1]
    if kind == "linear":
      return schedule.alpha(previous)
    return num_timesteps * reveal_prob(schedule, previous, t)
  if kind == "linear":
    return schedule.alpha(t)
  rate = 1 - schedule.alpha(t)
  return jnp.where(rate > 0, -schedule.derivative(t) / jnp.where(rate > 0, rate, 1), 0)


def score_weights(
  scored: Array,
  canvas: Array,
  segments: Array,
  w: Array,
  *,
  normalizer: str,
  label_smoothing: float,
) -> ScoreWeights:
  """Turns w(t) into the weights of the summed loss, and what that sum is divided by.

  canvas:     each example's sum over its N canvas positions, then the mean over examples that have
              any (2308.12219's own code)
  tokens:     the mean over the canvas positions of the batch
  corrupted:  the mean over the scored positions of the batch

  Label smoothing is (1 - ls) L_nll + ls L_smooth; L_smooth has the same normaliser and weight 1 in
  place of w(t), as the paper's code has it.

  Args:
    scored: bool[B, L], positions whose prediction counts.
    canvas: bool[B, L].
    segments: int32[B, L], examples of a row; values up to L.
    w: float32[B, L].
    normalizer: 'canvas', 'tokens' or 'corrupted'.
    label_smoothing: ls in [0, 1).

  Raises:
    UserError: for a `normalizer` that is none of these.
  """
  scale: Array | float = 1.0
  if normalizer == "canvas":
    counts = jax.vmap(processes.example_counts)(canvas, segments)  # [B, L + 1]
    scale = 1 / jnp.maximum(jnp.take_along_axis(counts, segments, axis=1), 1)
    total = jnp.sum(counts > 0)
  elif normalizer == "tokens":
    total = jnp.sum(canvas)
  elif normalizer == "corrupted":
    total = jnp.sum(scored)
  else:
    raise UserError(f"normalizer {normalizer!r} is none of 'canvas', 'tokens', 'corrupted'")
  nll = jnp.where(scored, (1 - label_smoothing) * scale * w, 0.0)
  smooth = jnp.where(scored, label_smoothing * scale * jnp.ones_like(w), 0.0)
  return ScoreWeights(nll, smooth, total.astype(jnp.float32))
