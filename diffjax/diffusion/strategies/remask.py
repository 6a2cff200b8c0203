"""Remasking: ancestral sampling that also takes revealed tokens back (ReMDM, 2503.00307)."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion.strategies.ancestral import time_grid
from diffjax.diffusion.strategies.strategy import (
  State,
  all_masked,
  bucket,
  pad_steps,
  uniforms,
)
from diffjax.diffusion.vocabulary import Prediction
from diffjax.types import Array

# The paper's loop: alpha rises to 0.9 until t = 0.55, stays until t = 0.05, then rises to 1.
_LOOP_FROM, _LOOP_TO, _LOOP_ALPHA = 0.55, 0.05, 0.9


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("reveals", "remasks", "num_steps"),
  meta_fields=("by_confidence",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Remask:
  """Reveals as ancestral sampling does, and masks revealed positions again (2503.00307).

  From time t to s a revealed position is masked with probability sigma, a masked one revealed with
  probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), which keeps the marginals of all but
  `confidence`, which masks too few or too many. sigma is at most
  sigma_max = min(1, (1 - alpha_s) / alpha_t):

    cap         sigma = min(eta, sigma_max)
    rescale     sigma = eta sigma_max
    confidence  sigma = sigma_max softmax(-p) over the revealed positions, p the probability of
                each token when it was revealed; 0 for the masked ones
    loop        as cap while alpha is held at 0.9 from t = 0.55 to 0.05; 0 before and after, and
                in steps that reach across either end of it; a few steps have no loop at all

  No row is done before the last step, which reveals what is masked: any may be masked again.
  """

  reveals: np.ndarray | Array  # float32[S']  the chance of a masked position; 1 in the last step
  remasks: np.ndarray | Array  # float32[S']  sigma, or sigma_max by confidence; 0 in the last step
  num_steps: np.ndarray | Array  # int32[]
  by_confidence: bool

  needs = frozenset()
  settles = False

  @property
  def step_bucket(self) -> int:
    """S', the length of the tables."""
    return self.reveals.shape[0]

  def init(self, canvas: Array, keys: Array) -> State:
    """Everything masked."""
    return all_masked(canvas)

  def waits(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """Rows of which this step neither reveals nor masks anything."""
    return ~self._changed(state, canvas, number, keys).any(-1)

  def reads(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """What this step reveals."""
    return state.masked & self._changed(state, canvas, number, keys)

  def step(
    self, state: State, prediction: Prediction, *, canvas: Array, number: Array, keys: Array
  ) -> State:
    """One step; keys [B, C] say which positions are revealed and which masked again."""
    changed = self._changed(state, canvas, number, keys)
    masked = state.masked ^ changed
    revealed = state.masked & changed
    scores = jnp.where(revealed, prediction.scores, state.scores)
    return state._replace(
      tokens=jnp.where(revealed, prediction.tokens, state.tokens),
      masked=masked,
      scores=jnp.where(masked, -jnp.inf, scores),
    )

  def _changed(self, state: State, canvas: Array, number: Array, keys: Array) -> Array:
    visible = canvas & ~state.masked
    sigma = jnp.asarray(self.remasks)[number]
    if self.by_confidence:
      share = jax.nn.softmax(-jnp.exp(state.scores), axis=-1, where=visible)
      sigma *= jnp.where(visible, share, 0)
    chance = jnp.where(state.masked, jnp.asarray(self.reveals)[number], sigma * visible)
    return uniforms(keys) < chance


def remask(
  *,
  rule: Literal["cap", "rescale", "confidence", "loop"],
  eta: float,
  grid: str,
  num_steps: int,
) -> Remask:
  """The strategy with a rule for sigma on a 'linear' or 'cosine' grid of times; eta in [0, 1]."""
  times = time_grid(grid, num_steps)
  alpha = _loop_alpha(times) if rule == "loop" else 1 - times
  alpha_t, alpha_s = alpha[:-1], alpha[1:]
  largest = np.minimum(1, (1 - alpha_s) / np.maximum(alpha_t, 1e-9))
  if rule == "confidence":
    sigma, remasks = np.zeros_like(largest), largest
  elif rule == "rescale":
    sigma = remasks = eta * largest
  else:
    sigma = np.minimum(eta, largest)
    if rule == "loop":
      sigma = sigma * ((times[:-1] <= _LOOP_FROM) & (times[1:] >= _LOOP_TO))
    remasks = sigma
  reveals = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
  reveals[-1] = 1
  size = bucket(num_steps)
  return Remask(
    reveals=pad_steps(reveals.astype(np.float32), size, fill=1),
    remasks=pad_steps(remasks.astype(np.float32), size),
    num_steps=np.int32(num_steps),
    by_confidence=rule == "confidence",
  )


def _loop_alpha(times: np.ndarray) -> np.ndarray:
  """alpha at falling times: 0 at t = 1, 0.9 from t = 0.55 to 0.05, 1 at t = 0."""
  return np.interp(times, [0, _LOOP_TO, _LOOP_FROM, 1], [1, _LOOP_ALPHA, _LOOP_ALPHA, 0])
