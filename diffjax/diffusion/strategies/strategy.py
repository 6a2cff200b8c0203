"""What a strategy is: the state of a canvas between two steps, and what the loop asks of it.

A strategy is data: a frozen dataclass whose numbers are traced, so that another number of steps,
threshold or noise scale runs the same compiled program. It sees the canvas alone, as [B, C]
arrays in ascending order of position; slots where `canvas` is False are padding, or lie behind an
end that is decided. All that it decides, it decides row by row.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion.vocabulary import Prediction
from diffjax.types import Array

MAX_STEPS = 10_000  # a table of counts this long is still small


class State(NamedTuple):
  """A canvas between two steps."""

  tokens: Array  # int32[B, C]    meaningless where masked
  masked: Array  # bool[B, C]     False on padding slots
  scores: Array  # float32[B, C]  log-probability of the token when revealed; -inf where masked
  done: Array  # bool[B]        the row is final and is never written again
  memory: Any = ()  # what the strategy itself carries: arrays [B, ...]


class Strategy(Protocol):
  """What the loop of generation.py asks of a sampler."""

  num_steps: Array  # int32[]  the loop ends after so many steps at the latest; traced

  @property
  def needs(self) -> frozenset[str]:
    """What it reads of a prediction beside tokens and scores: of entropy, margin."""

  @property
  def settles(self) -> bool:
    """Whether a revealed token is final; where it may be revised, an end is none before the row is.

    A row that ended at each end it ever saw, while others are drawn again, would end too often.
    """

  @property
  def step_bucket(self) -> int:
    """A static bound on num_steps."""

  def init(self, canvas: Array, keys: Array) -> State:
    """The state before the first step, from bool[B, C] and the positions' keys [B, C]."""

  def waits(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array:
    """bool[B]: rows that step `number` leaves as they are, whatever the network would say."""

  def reads(self, state: State, *, canvas: Array, number: Array, keys: Array) -> Array | None:
    """bool[B, C], the positions whose prediction step `number` reads; None: all.

    Of an unchanged row the loop keeps what was predicted for an earlier step. So a step that reads
    fewer positions than the masked ones changes every row that does not wait.
    """

  def step(
    self, state: State, prediction: Prediction, *, canvas: Array, number: Array, keys: Array
  ) -> State:
    """One pure step; `number` counts from 0 and `keys` [B, C] belong to step and position.

    The loop keeps the old state of rows that are done or wait, so none is protected here.
    """


def all_masked(canvas: Array, memory: Any = ()) -> State:
  """The state most strategies begin with: canvas bool[B, C] -> State."""
  scores = jnp.where(canvas, -jnp.inf, 0.0).astype(jnp.float32)
  return State(jnp.zeros(canvas.shape, jnp.int32), canvas, scores, ~canvas.any(-1), memory)


def never(state: State) -> Array:
  """bool[B], no row: what a strategy answers whose rows wait in no step."""
  return jnp.zeros_like(state.done)


def places(canvas: Array) -> Array:
  """int32[B, C]: how many canvas positions of the row are before each."""
  return jnp.cumsum(canvas, axis=-1, dtype=jnp.int32) - 1


def ranks(values: Array, among: Array) -> Array:
  """int32[B, C]: places in ascending order among the positions `among`; ties by position.

  By rank and not by threshold: values that tie must not change how many are taken. Other positions
  rank behind all of them.
  """
  order = jnp.argsort(jnp.where(among, values, jnp.inf), axis=-1, stable=True)
  return jnp.argsort(order, axis=-1)


def reveal(state: State, prediction: Prediction, revealed: Array) -> State:
  """The state with the prediction at `revealed` bool[B, C]; done once nothing is masked."""
  masked = state.masked & ~revealed
  return state._replace(
    tokens=jnp.where(revealed, prediction.tokens, state.tokens),
    masked=masked,
    scores=jnp.where(revealed, prediction.scores, state.scores),
    done=~masked.any(-1),
  )


def uniforms(keys: Array) -> Array:
  """float32[B, C] in [0, 1), one of each of keys [B, C]."""
  return jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32)))(keys)


def gumbels(keys: Array) -> Array:
  """float32[B, C], standard Gumbel variables, one of each of keys [B, C]."""
  return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, dtype=jnp.float32)))(keys)


def bucket(num_steps: int) -> int:
  """The power of two, 16 or more, that tables of so many steps are padded to.

  A number of steps inside the bucket runs the same compiled program.
  """
  return max(16, 1 << (max(num_steps, 1) - 1).bit_length())


def pad_steps(table: np.ndarray, size: int, *, fill: float = 0) -> np.ndarray:
  """A table [S, ...] with rows of `fill` up to `size` steps."""
  padding = ((0, size - len(table)),) + ((0, 0),) * (table.ndim - 1)
  return np.pad(table, padding, constant_values=fill)
