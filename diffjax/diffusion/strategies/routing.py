"""Top-k routing: after a step, so many positions of lowest confidence are masked, all others not.

The reparameterised sampler, mask-predict and DNDM-k differ in how many, and in whose confidence.
"""

import jax.numpy as jnp
import numpy as np

from diffjax.diffusion.strategies.strategy import State, ranks
from diffjax.diffusion.vocabulary import Prediction
from diffjax.types import Array


def route(
  state: State,
  prediction: Prediction,
  confidence: Array,
  left: Array,
  *,
  canvas: Array,
  conditional: bool = False,
) -> State:
  """Masks the `left` positions of lowest confidence and reveals or keeps the others.

  A kept position keeps its token and score, whatever the prediction says of it now.

  Args:
    state: the canvas before the step.
    prediction: read where a position is masked; everywhere if `conditional`.
    confidence: float32[B, C], what is ranked; ties fall by position.
    left: int32[B], the masked positions after the step. Rows with 0 are done.
    canvas: bool[B, C].
    conditional: a revealed position is masked again only if the prediction repeats its token with
      a lower score; fewer than `left` may then be masked.
  """
  scores = prediction.scores.astype(jnp.float32)
  lowest = (ranks(confidence, canvas) < left[:, None]) & canvas
  again = lowest  # revealed positions that go back to the mask
  if conditional:
    again &= (prediction.tokens == state.tokens) & (scores < state.scores)
  masked = jnp.where(state.masked, lowest, again)
  revealed = state.masked & ~masked
  return state._replace(
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
  """float64[S]: the share of the canvas that stays masked after steps 1 .. S, 0 after the last."""
  steps = np.arange(1, num_steps + 1)
  if schedule == "linear":
    return 1 - steps / num_steps
  rates = np.cos(np.pi * steps / (2 * num_steps))
  rates[3 * steps == 2 * num_steps] = 0.5
  rates[-1] = 0.0
  return rates
