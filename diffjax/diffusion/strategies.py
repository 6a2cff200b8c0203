"""One reverse step each: which canvas positions are committed, re-noised or kept.

A strategy is data: a frozen dataclass whose numbers are traced, so that another number of steps,
temperature or noise scale runs the same compiled program. It sees the canvas alone, as
[B, C] arrays in ascending order of position; slots where `canvas` is False are padding.
"""

import dataclasses
import difflib
import functools
import itertools
import re
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import Array, UserError

MAX_STEPS = 10_000  # a table of counts this long is still small


class State(NamedTuple):
  """A canvas between two steps."""

  tokens: Array  # int32[B, C]    meaningless where masked
  masked: Array  # bool[B, C]     False on padding slots
  scores: Array  # float32[B, C]  log-probability of the token when revealed; -inf where masked
  done: Array  # bool[B]        the row is final and is never written again


class Prediction(NamedTuple):
  """What the network says about every canvas position, revealed ones included."""

  tokens: Array  # int32[B, C]
  scores: Array  # float32[B, C]  untempered log-probability of that token


class Strategy(Protocol):
  """What the loop of generation.py asks of a sampler."""

  num_steps: Array  # int32[]    S; traced
  temperature: Array  # float32[]  of the sampled tokens; traced

  @property
  def needs(self) -> frozenset[str]:
    """What the projection must return: of argmax, sample, log_prob."""

  @property
  def step_bucket(self) -> int:
    """A static bound on num_steps."""

  def init(self, canvas: Array) -> State:
    """The state before the first step."""

  def step(
    self, state: State, prediction: Prediction, *, canvas: Array, number: Array, keys: Array
  ) -> State:
    """One pure step; `number` counts from 0 and `keys` [B, C] belong to the positions."""


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("counts", "rates", "noise_scale", "temperature", "num_steps"),
  meta_fields=("conditional", "stochastic", "sampled"),
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
  temperature: np.ndarray | Array  # float32[]
  num_steps: np.ndarray | Array  # int32[]
  conditional: bool
  stochastic: bool
  sampled: bool

  @property
  def needs(self) -> frozenset[str]:
    """The argmax or a sample, and its log-probability."""
    return frozenset({"sample" if self.sampled else "argmax", "log_prob"})

  @property
  def step_bucket(self) -> int:
    """S', the length of the tables."""
    return self.counts.shape[0]

  def init(self, canvas: Array) -> State:
    """Everything masked: canvas bool[B, C] -> State."""
    scores = jnp.where(canvas, -jnp.inf, 0.0).astype(jnp.float32)
    return State(jnp.zeros(canvas.shape, jnp.int32), canvas, scores, ~canvas.any(-1))

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
    # By rank and not by threshold: scores that tie must not change how many stay masked.
    order = jnp.argsort(jnp.where(canvas, confidence, jnp.inf), axis=-1, stable=True)
    rank = jnp.argsort(order, axis=-1)
    lowest = (rank < left[:, None]) & canvas

    again = lowest  # revealed positions that go back to the mask
    if self.conditional:
      again &= (prediction.tokens == state.tokens) & (scores < state.scores)
    masked = jnp.where(state.masked, lowest, again)
    revealed = state.masked & ~masked
    stepped = State(
      tokens=jnp.where(revealed, prediction.tokens, state.tokens),
      masked=masked,
      scores=jnp.where(masked, -jnp.inf, jnp.where(revealed, scores, state.scores)),
      done=left == 0,
    )
    keep = lambda old, new: jnp.where(state.done.reshape((-1,) + (1,) * (new.ndim - 1)), old, new)
    return jax.tree.map(keep, state, stepped)


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
  return np.floor(sizes * _rates("cosine", num_steps)[:, None]).astype(np.int32)


def _rates(schedule: str, num_steps: int) -> np.ndarray:
  """float64[S]: the share of the canvas that stays masked after steps 1 .. S."""
  steps = np.arange(1, num_steps + 1)
  if schedule == "linear":
    return 1 - steps / num_steps
  rates = np.cos(np.pi * steps / (2 * num_steps))
  rates[3 * steps == 2 * num_steps] = 0.5
  rates[-1] = 0.0
  return rates


def parse(name: str, *, num_steps: int, canvas_size: int, temperature: float) -> Reparam:
  """Builds the strategy that a name such as `reparam-uncond-deterministic-cosine` stands for.

  Args:
    name: `reparam-<cond|uncond>-<deterministic|stochastic<z>>-<linear|cosine>`; z scales the
      Gumbel noise that is added to the scores before they are ranked.
    num_steps: S; its tables are padded to a power of two, so that S does not recompile.
    canvas_size: C, the largest canvas.
    temperature: 0 takes the argmax, above 0 samples.

  Raises:
    UserError: for an illegal name, number of steps or temperature.
  """
  form = r"reparam-(cond|uncond)-(?:deterministic|stochastic(\d+(?:\.\d+)?))-(linear|cosine)"
  match = re.fullmatch(form, name, re.ASCII)
  if match is None:
    kinds = itertools.product(
      ("uncond", "cond"), ("deterministic", "stochastic1.0"), ("cosine", "linear")
    )
    legal = ["-".join(("reparam", *kind)) for kind in kinds]
    near = difflib.get_close_matches(name, legal, n=1, cutoff=0.0)[0]
    raise UserError(
      f"strategy = {name!r} is none of reparam-<cond|uncond>-<deterministic|stochastic<z>>-"
      f"<linear|cosine> (z a number, such as 1.0); did you mean {near!r}?"
    )
  if not 1 <= num_steps <= MAX_STEPS:
    raise UserError(f"num_steps = {num_steps} must be between 1 and {MAX_STEPS}")
  if not 0 <= temperature < float("inf"):
    raise UserError(f"temperature = {temperature} must be a number >= 0 (0 is argmax)")
  condition, noise, schedule = match.groups()
  padding = max(16, 1 << (num_steps - 1).bit_length()) - num_steps
  return Reparam(
    counts=np.pad(masked_counts(schedule, num_steps, canvas_size), ((0, padding), (0, 0))),
    rates=np.pad(_rates(schedule, num_steps), (0, padding)).astype(np.float32),
    noise_scale=np.float32(noise or 0),
    temperature=np.float32(temperature),
    num_steps=np.int32(num_steps),
    conditional=condition == "cond",
    stochastic=noise is not None,
    sampled=temperature > 0,
  )
