"""Mask-predict: all is revealed, and the least probable is predicted again (1904.09324)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion.strategies.routing import masked_counts, route
from diffjax.diffusion.strategies.strategy import State, all_masked, bucket, never, pad_steps
from diffjax.diffusion.vocabulary import Prediction
from diffjax.types import Array


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=("counts", "num_steps"), meta_fields=()
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskPredict:
  """Routing by probabilities that persist: the sampler of CMLM (arXiv 1904.09324).

  After step s < S exactly max(1, floor(|C| (1 - s/S))) positions are masked: those whose token had
  the lowest probability when it was predicted; after step S none.
  """

  counts: np.ndarray | Array  # int32[S', C+1]  at [s - 1, |C|]; 0 from s = S on
  num_steps: np.ndarray | Array  # int32[]

  needs = frozenset()
  settles = False

  @property
  def step_bucket(self) -> int:
    """S', the length of the table."""
    return self.counts.shape[0]

  def init(self, canvas: Array, keys: Array) -> State:
    """Everything masked."""
    return all_masked(canvas)

  def waits(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """No row waits: what is masked is predicted in every step."""
    return never(state)

  def reads(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """What is masked."""
    return state.masked

  def step(
    self, state: State, prediction: Prediction, *, canvas: Array, number: Array, keys: Array
  ) -> State:
    """Step s = number + 1 on canvas bool[B, C]; without noise of its own."""
    confidence = jnp.where(state.masked, prediction.scores.astype(jnp.float32), state.scores)
    left = jnp.asarray(self.counts)[number, canvas.sum(-1)]  # [B]
    return route(state, prediction, confidence, left, canvas=canvas)


def mask_predict(*, num_steps: int, canvas_size: int) -> MaskPredict:
  """The strategy for canvases up to canvas_size."""
  counts = masked_counts("linear", num_steps, canvas_size)
  counts[:-1, 1:] = np.maximum(counts[:-1, 1:], 1)
  return MaskPredict(counts=pad_steps(counts, bucket(num_steps)), num_steps=np.int32(num_steps))
