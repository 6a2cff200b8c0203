"""Routing by top-k confidence: the sampler of the paper (2308.12219) and of RDM (2302.05737)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion.strategies.strategy import State, all_masked, ranks
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
  revises = True

  @property
  def step_bucket(self) -> int:
    """S', the length of the tables."""
    return self.counts.shape[0]

  def init(self, canvas: Array, keys: Array) -> State:
    """Everything masked."""
    return all_masked(canvas)

  def waits(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """No row waits: every step compares all positions anew."""
    return jnp.zeros_like(state.done)

  def step(
    self, state: State, prediction: Prediction, *, canvas: Array, number: Array, keys: Array
  ) -> State:
    """Step s = number + 1 on canvas bool[B, C]; keys [B, C] serve the noise on the ranks."""
    counts, rates = jnp.asarray(self.counts), jnp.asarray(self.rates)
    scores = prediction.scores.astype(jnp.float32)
    confidence = scores
    if self.stochastic:
      gumbel = jax.vmap(jax.vmap(jax.random.gumbel))(keys)
      confidence = scores + self.noise_scale * rates[number] * gumbel
    left = counts[number, canvas.sum(-1)]  # [B]
    lowest = (ranks(confidence, canvas) < left[:, None]) & canvas

    again = lowest  # revealed positions that go back to the mask
    if self.conditional:
      again &= (prediction.tokens == state.tokens) & (scores < state.scores)
    masked = jnp.where(state.masked, lowest, again)
    revealed = state.masked & ~masked
    return State(
      tokens=jnp.where(revealed, prediction.tokens, state.tokens),
      masked=masked,
      scores=jnp.where(masked, -jnp.inf, jnp.where(revealed, scores, state.scores)),
      done=left == 0,
    )


def masked_counts(schedule: str, num_steps: int, canvas_size: int) -> np.ndarray:
  """k(|C|, s) = floor(|C| rate(s)), the canvas positions masked after step s.

  linear: rate = 1 - s/S, in whole numbers. cosine: rate = cos(pi s / 2S), in float64; it is
  rational only at s/S = 2/3 and 1, so that with those two exact no product lies on a whole number
  by anything but rounding.

  Args:
    schedule: 'linear' or 'cosine'.
    num_steps: S.
    canvas_size: the largest |C|.

  Returns:
    int32[S, canvas_size + 1], row s - 1 for step s.
  """
  sizes = np.arange(canvas_size + 1)
  if schedule == "linear":
    left = num_steps - np.arange(1, num_steps + 1)
    return (sizes * left[:, None] // num_steps).astype(np.int32)
  return np.floor(sizes * rates("cosine", num_steps)[:, None]).astype(np.int32)


def rates(schedule: str, num_steps: int) -> np.ndarray:
  """float64[S]: the share of the canvas that stays masked after steps 1 .. S."""
  steps = np.arange(1, num_steps + 1)
  if schedule == "linear":
    return 1 - steps / num_steps
  rates = np.cos(np.pi * steps / (2 * num_steps))
  rates[3 * steps == 2 * num_steps] = 0.5
  rates[-1] = 0.0
  return rates
