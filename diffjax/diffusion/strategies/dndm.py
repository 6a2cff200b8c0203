"""Transition times drawn in advance: the network is called at these alone (DNDM, 2312.09193)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion.strategies.routing import rates, route
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


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("passed", "num_steps"),
  meta_fields=("by_rank",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dndm:
  """Every position has a transition step, drawn before the first one (arXiv 2312.09193).

  P(step = n) = alpha at its end less alpha at its start. In its step a position is revealed for
  good. By rank (DNDM-k), only the number of transitions so far counts: that many positions, the
  most confident ones, are kept or revealed and the others masked. A row calls the network as often
  as it has distinct transition steps, at most min(|C|, S) times.
  """

  passed: np.ndarray | Array  # float32[S']  alpha at the end of each step, 1 from the last on
  num_steps: np.ndarray | Array  # int32[]
  by_rank: bool

  needs = frozenset()

  @property
  def settles(self) -> bool:
    """By rank, revealed positions are compared anew."""
    return not self.by_rank

  @property
  def step_bucket(self) -> int:
    """S', the length of the table."""
    return self.passed.shape[0]

  def init(self, canvas: Array, keys: Array) -> State:
    """Everything masked; the memory holds each position's transition step, int32[B, C]."""
    steps = jnp.searchsorted(jnp.asarray(self.passed), uniforms(keys), side="right")
    return all_masked(canvas, steps.astype(jnp.int32))

  def waits(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """Rows without a transition in this step."""
    return ~self._due(state, canvas, number)

  def reads(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array | None:
    """What this step reveals; by rank, all positions."""
    return None if self.by_rank else state.masked & (state.memory == number)

  def step(
    self, state: State, prediction: Prediction, *, canvas: Array, number: Array, keys: Array
  ) -> State:
    """One step of the rows that have a transition in it."""
    if not self.by_rank:
      return reveal(state, prediction, state.masked & (state.memory == number))
    scores = prediction.scores.astype(jnp.float32)
    left = (canvas & (state.memory > number)).sum(-1)
    routed = route(state, prediction, scores, left, canvas=canvas)
    due = self._due(state, canvas, number)
    keep = lambda new, old: jnp.where(due.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
    return jax.tree.map(keep, routed, state)

  def _due(self, state: State, canvas: Array, number: Array) -> Array:
    return (canvas & (state.memory == number)).any(-1)


def dndm(*, by_rank: bool, grid: str, num_steps: int) -> Dndm:
  """The strategy on a 'linear' or 'cosine' grid of times."""
  passed = (1 - rates(grid, num_steps)).astype(np.float32)
  return Dndm(
    passed=pad_steps(passed, bucket(num_steps), fill=1),
    num_steps=np.int32(num_steps),
    by_rank=by_rank,
  )
