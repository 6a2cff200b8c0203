"""So many positions a step, the surest first, none ever revised (2502.09992, 2508.15487)."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion.strategies.strategy import (
  State,
  all_masked,
  bucket,
  gumbels,
  never,
  places,
  ranks,
  reveal,
)
from diffjax.diffusion.vocabulary import Prediction
from diffjax.types import Array


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("planned_steps", "num_steps", "block_size", "noise_scale"),
  meta_fields=("measure", "stochastic", "step_bucket"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ordered:
  """Reveals a planned number of positions in each step, in an order, and never revises any.

  The order: by the token's log-probability (confidence: LLaDA, 2502.09992), the least entropy, or
  the margin of the best token's probability over the second's (Dream, 2508.15487); or from left to
  right. Gumbel noise of scale z draws the positions from softmax(measure / z) instead.

  Semi-autoregressive blocks of K positions are filled from left to right. A row with N blocks
  spends max(1, S // N) steps on each, but no more than K; a block's positions are shared out
  evenly over its steps, what remains over the first ones. All of this is the row's own: it does
  not depend on the other rows.
  """

  planned_steps: np.ndarray | Array  # int32[]  S
  num_steps: np.ndarray | Array  # int32[]  S, or the number of blocks where that is more
  block_size: np.ndarray | Array  # int32[]  K, the largest canvas where there are no blocks
  noise_scale: np.ndarray | Array  # float32[]  z
  measure: Literal["confidence", "entropy", "margin", "position"]
  stochastic: bool
  step_bucket: int

  settles = True

  @property
  def needs(self) -> frozenset[str]:
    """What the order is by, where a prediction does not always hold it."""
    return frozenset({self.measure} & {"entropy", "margin"})

  def init(self, canvas: Array, keys: Array) -> State:
    """Everything masked; the memory holds |C| of each row, int32[B]: an end may cut the canvas."""
    return all_masked(canvas, canvas.sum(-1).astype(jnp.int32))

  def waits(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """No row waits: each step reveals something."""
    return never(state)

  def reads(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """The current block's masked positions; from left to right, what this step reveals."""
    eligible, count, place = self._eligible(state, canvas, number)
    return eligible & (ranks(place, eligible) < count) if self.measure == "position" else eligible

  def step(
    self, state: State, prediction: Prediction, *, canvas: Array, number: Array, keys: Array
  ) -> State:
    """One step on canvas bool[B, C]; keys [B, C] serve the noise on the order."""
    eligible, count, place = self._eligible(state, canvas, number)
    sure = {
      "confidence": prediction.scores,
      "entropy": prediction.entropy,
      "margin": prediction.margin,
      "position": -place,
    }[self.measure].astype(jnp.float32)
    sure = -sure if self.measure == "entropy" else sure
    if self.stochastic:
      sure += self.noise_scale * gumbels(keys)
    return reveal(state, prediction, eligible & (ranks(-sure, eligible) < count))

  def _eligible(self, state: State, canvas: Array, number: Array) -> tuple[Array, Array, Array]:
    """The current block's masked positions, how many to reveal [B, 1], and all places."""
    size, block = state.memory, jnp.asarray(self.block_size)
    blocks = jnp.maximum(1, -(-size // block))
    steps = jnp.clip(self.planned_steps // blocks, 1, block)  # of each block
    current = number // steps
    inside = jnp.clip(size - current * block, 0, block)
    count = inside // steps + (number % steps < inside % steps)

    place = places(canvas)
    return state.masked & (place // block == current[:, None]), count[:, None], place


def ordered(
  *,
  measure: Literal["confidence", "entropy", "margin", "position"],
  noise_scale: float | None,
  block_size: int | None,
  num_steps: int,
  canvas_size: int,
) -> Ordered:
  """The strategy for canvases up to canvas_size; noise_scale None: none, block_size None: one."""
  block = block_size or max(1, canvas_size)
  bound = max(num_steps, -(-canvas_size // block))
  return Ordered(
    planned_steps=np.int32(num_steps),
    num_steps=np.int32(bound),
    block_size=np.int32(block),
    noise_scale=np.float32(noise_scale or 0),
    measure=measure,
    stochastic=noise_scale is not None,
    step_bucket=bucket(bound),
  )
