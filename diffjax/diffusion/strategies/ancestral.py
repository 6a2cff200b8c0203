"""Ancestral sampling: the reverse of the absorbing process, step by step (2406.04329)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion import schedules
from diffjax.diffusion.strategies.routing import rates
from diffjax.diffusion.strategies.strategy import (
  State,
  all_masked,
  bucket,
  pad_steps,
  reveal,
  uniforms,
)
from diffjax.diffusion.vocabulary import Prediction
from diffjax.types import Array

_LINEAR = schedules.make("linear")


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=("reveals", "num_steps"), meta_fields=()
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral:
  """Every masked position is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t).

  alpha = 1 - t at times t that fall from 1 to 0 in S steps: evenly (linear), or as
  cos(pi/2 (1 - u)) of an even u (cosine: few positions early; 2406.04329). Which positions are
  revealed is drawn before, and apart from, their tokens, so that no rare token competes with the
  tail of a position that stays masked; and a step that reveals nothing needs no network.
  """

  reveals: np.ndarray | Array  # float32[S']  the probability in each step; 1 in the last
  num_steps: np.ndarray | Array  # int32[]

  needs = frozenset()
  settles = True

  @property
  def step_bucket(self) -> int:
    """S', the length of the table."""
    return self.reveals.shape[0]

  def init(self, canvas: Array, keys: Array) -> State:
    """Everything masked."""
    return all_masked(canvas)

  def waits(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """Rows of which this step reveals nothing."""
    return ~self._revealed(state, number, keys).any(-1)

  def reads(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """What this step reveals."""
    return self._revealed(state, number, keys)

  def step(
    self, state: State, prediction: Prediction, *, canvas: Array, number: Array, keys: Array
  ) -> State:
    """One step; keys [B, C] say which positions are revealed."""
    return reveal(state, prediction, self._revealed(state, number, keys))

  def _revealed(self, state: State, number: Array, keys: Array) -> Array:
    return state.masked & (uniforms(keys) < jnp.asarray(self.reveals)[number])


def ancestral(*, grid: str, num_steps: int) -> Ancestral:
  """The strategy on a 'linear' or 'cosine' grid of times."""
  times = time_grid(grid, num_steps)
  reveals = schedules.reveal_prob(_LINEAR, times[1:], times[:-1]).astype(np.float32)
  return Ancestral(
    reveals=pad_steps(reveals, bucket(num_steps), fill=1), num_steps=np.int32(num_steps)
  )


def time_grid(grid: str, num_steps: int) -> np.ndarray:
  """float64[S + 1]: the times between the steps, from 1 to exactly 0."""
  return np.concatenate([[1.0], rates(grid, num_steps)])
