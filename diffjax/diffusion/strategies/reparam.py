"""Routing by top-k confidence: the sampler of the paper (2308.12219) and of RDM (2302.05737)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion.strategies.routing import masked_counts, rates, route
from diffjax.diffusion.strategies.strategy import (
  State,
  all_masked,
  bucket,
  gumbels,
  never,
  pad_steps,
)
from diffjax.diffusion.vocabulary import Prediction
from diffjax.types import Array


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("counts", "rates", "noise_scale", "num_steps"),
  meta_fields=("conditional", "stochastic"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reparam:
  """Routing by top-k confidence: the reparameterised sampler of RDM (arXiv 2302.05737).

  After step s exactly k(|C|, s) = floor(|C| rate(s)) positions are masked in the unconditional
  form: those of lowest confidence, whether or not they had been revealed. The conditional form
  masks a revealed position again only if the network repeats its token with a lower score.
  """

  counts: np.ndarray | Array  # int32[S', C+1]  k(|C|, s) at [s - 1, |C|]; 0 from s = S on
  rates: np.ndarray | Array  # float32[S']      rate(s), which anneals the noise on the ranks
  noise_scale: np.ndarray | Array  # float32[]
  num_steps: np.ndarray | Array  # int32[]
  conditional: bool
  stochastic: bool

  needs = frozenset()
  settles = False

  @property
  def step_bucket(self) -> int:
    """S', the length of the tables."""
    return self.counts.shape[0]

  def init(self, canvas: Array, keys: Array) -> State:
    """Everything masked."""
    return all_masked(canvas)

  def waits(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """No row waits: every step compares all positions anew."""
    return never(state)

  def reads(self, state: State, *, canvas: Array, number: Array, keys: Array) -> None:
    """All positions."""

  def step(
    self, state: State, prediction: Prediction, *, canvas: Array, number: Array, keys: Array
  ) -> State:
    """Step s = number + 1 on canvas bool[B, C]; keys [B, C] serve the noise on the ranks."""
    confidence = prediction.scores.astype(jnp.float32)
    if self.stochastic:
      confidence += self.noise_scale * jnp.asarray(self.rates)[number] * gumbels(keys)
    left = jnp.asarray(self.counts)[number, canvas.sum(-1)]  # [B]
    return route(state, prediction, confidence, left, canvas=canvas, conditional=self.conditional)


def reparam(
  *,
  conditional: bool,
  noise_scale: float | None,
  schedule: str,
  num_steps: int,
  canvas_size: int,
) -> Reparam:
  """The strategy for canvases up to canvas_size; noise_scale None: deterministic."""
  size = bucket(num_steps)
  return Reparam(
    counts=pad_steps(masked_counts(schedule, num_steps, canvas_size), size),
    rates=pad_steps(rates(schedule, num_steps).astype(np.float32), size),
    noise_scale=np.float32(noise_scale or 0),
    num_steps=np.int32(num_steps),
    conditional=conditional,
    stochastic=noise_scale is not None,
  )
