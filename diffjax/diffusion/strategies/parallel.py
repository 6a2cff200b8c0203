"""As many positions a step as are sure: the parallel commits of Fast-dLLM (2505.22618)."""

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
  never,
  places,
  ranks,
  reveal,
)
from diffjax.diffusion.vocabulary import Prediction
from diffjax.types import Array


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("bound", "block_size", "num_steps"),
  meta_fields=("rule", "step_bucket"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
  """Reveals every position that is sure enough, at least one a step, and never revises any.

  With the probabilities c_1 >= c_2 >= ... of the masked positions' tokens (arXiv 2505.22618):

    threshold  those with c_n >= tau
    factor     the first n, the largest n with (n + 1) (1 - c_n) < f

  Blocks of K positions are filled from left to right. The data decide the number of steps, which
  is at most |C|.
  """

  bound: np.ndarray | Array  # float32[]  tau or f
  block_size: np.ndarray | Array  # int32[]  K, the largest canvas where there are no blocks
  num_steps: np.ndarray | Array  # int32[]  the largest canvas
  rule: Literal["threshold", "factor"]
  step_bucket: int

  needs = frozenset()
  settles = True

  def init(self, canvas: Array, keys: Array) -> State:
    """Everything masked."""
    return all_masked(canvas)

  def waits(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """No row waits: each step reveals something."""
    return never(state)

  def reads(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """The current block's masked positions."""
    block = places(canvas) // self.block_size
    current = jnp.where(state.masked, block, canvas.shape[-1]).min(-1, keepdims=True)
    return state.masked & (block == current)

  def step(
    self, state: State, prediction: Prediction, *, canvas: Array, number: Array, keys: Array
  ) -> State:
    """One step on canvas bool[B, C]; without noise of its own."""
    eligible = self.reads(state, canvas=canvas, number=number, keys=keys)
    scores = prediction.scores.astype(jnp.float32)
    rank = ranks(-scores, eligible)
    if self.rule == "threshold":
      sure = jnp.exp(scores) >= self.bound
    else:
      sure = (rank + 2) * -jnp.expm1(scores) < self.bound
    return reveal(state, prediction, eligible & (sure | (rank == 0)))


def parallel(
  *,
  rule: Literal["threshold", "factor"],
  bound: float,
  block_size: int | None,
  canvas_size: int,
) -> Parallel:
  """The strategy for canvases up to canvas_size; block_size None: one block."""
  return Parallel(
    bound=np.float32(bound),
    block_size=np.int32(block_size or max(1, canvas_size)),
    num_steps=np.int32(canvas_size),
    rule=rule,
    step_bucket=bucket(canvas_size),
  )
