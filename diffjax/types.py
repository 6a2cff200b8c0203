"""The nouns that every layer shares, and the legend of dimension letters.

  B  rows            L  positions        V  vocabulary rows    D  width
  H  heads           K  head width       N  layers             C  canvas positions of a row
  T  timesteps       S  decoding steps   P  positions of a flattened batch

Imports nothing else of diffjax.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

Array = jax.Array

# Named everywhere: with the hardware generators that JAX can be configured to, a row's draws under
# `vmap` would depend on the other rows.
GENERATOR = "threefry2x32"
Params = Mapping[str, Any]


class UserError(ValueError):
  """A mistake that the user can mend: one line naming the thing, the value and what to do.

  Commands print the line and exit with `exit`; nothing else in the package catches it.
  """

  exit = 64  # diffjax/exits.py has them all


class BadData(UserError):
  """A record, or a file of records, that is not what its source says."""

  exit = 65


class MissingInput(UserError):
  """Weights, a checkpoint, a model's file or a file of data: not there, or damaged."""

  exit = 66


class Ended(Exception):
  """What ends a run though nobody made a mistake: one line. Commands exit with `exit`."""

  exit = 70


class Unavailable(Ended):
  """A device, or another process of the run, is not there."""

  exit = 69


class Preempted(Ended):
  """A signal asked the run to stop, and what was trained is saved."""

  exit = 75


class Diverged(Ended):
  """Training computed numbers that are not finite; nothing of them is saved."""

  exit = 76


class Example(NamedTuple):
  """One piece of text data before tokenisation."""

  inputs: str  # the prompt; empty in plain text
  targets: str  # what the model is to produce
  task: str = ""  # groups scores in an evaluation


class Batch(NamedTuple):
  """Rows of clean tokens, and which of their positions the process may noise."""

  tokens: Array  # int32[B, L]  clean ids x0
  segments: Array  # int32[B, L]  1, 2, ... number the examples packed into a row; 0 is padding
  canvas: Array  # bool[B, L]   positions the process may noise and the loss scores
  index: Array  # int32[B]     the row's number in the global batch; with the step it keys the noise


class Layout(NamedTuple):
  """Who sees whom: a query sees the keys of its own segment whose order is <= its own."""

  segments: Array  # int32[B, L]
  positions: Array  # int32[B, L]  restart in every segment
  order: Array  # int32[B, L]  0 everywhere is full attention; the position is causal attention
  opened: Array | None = None  # bool[L, L]  [query, key]: seen whatever the order


class Shards(NamedTuple):
  """The mesh, and which of its axes split which dimension; diffjax/sharding.py makes it.

  Rows may be split over axes that split the vocabulary too: a device then holds some rows of the
  batch and some of the table, and meets the other rows of either only through collectives.
  """

  mesh: Mesh
  rows: tuple[str, ...]  # B
  sequence: str  # L, of hidden states; tokens [B, L] are split by rows alone
  heads: str  # H, and inner widths
  vocabulary: tuple[str, ...]  # V of the table


class Head(NamedTuple):
  """Hidden states to logits: `transform(params, hidden) @ table.T + bias`, as arrays.

  Arrays and not a closure, because diffusion/vocabulary.py differentiates and shards them.
  """

  transform: Callable[[Params, Array], Array]  # (params, hidden [..., D]) -> features [..., D]
  params: Params
  table: Array  # [V, D]   rows padded to a multiple of 256
  bias: Array  # float32[V]
  allowed: Array  # bool[V]  False for the mask id and padding rows: never predicted, never counted


class Cache(NamedTuple):
  """What later positions of a row need of those that will not change again, each at its place."""

  keys: Array  # [N, B, L, key heads, K]
  values: Array  # [N, B, L, key heads, K]
  hidden: Array  # [B, L, D]  the trunk's outputs, an output shift not undone
  stored: Array  # bool[B, L]  which places are filled


class Denoiser(NamedTuple):
  """A network bound to its parameters, layout, dropout keys and sharding constraints."""

  trunk: Callable[[Array, Array | None], Array]  # (xt int32[B, L], t or None) -> hidden [B, L, D]
  head: Head
  # (tokens int32[B, L], stored bool[B, L]) -> Cache of these places. None, as is `extend`, where a
  # position's keys and values depend on later ones, so that nothing can be kept.
  prefill: Callable[[Array, Array], Cache] | None = None
  # (tokens int32[B, Q], places int32[B, Q], real bool[B, Q], cache) -> (hidden [B, Q, D], the cache
  # with these places stored); the Q positions see the cache and one another, as the layout orders.
  extend: Callable[[Array, Array, Array, Cache], tuple[Array, Cache]] | None = None
  output_shift: int = 0  # 1: output n - 1 predicts token n; undone in `trunk` and `extend`
