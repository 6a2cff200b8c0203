"""What happened to every position in every step of a trace: the frames of an animation."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
  from diffjax.sampling import Step

Kind = Literal["masked", "remasked", "new", "replaced", "kept"]


class Cell(NamedTuple):
  """One position after one step. `remasked` and `replaced` are so in the step that did it only."""

  kind: Kind
  token: str  # as it is spelt, "" for a special one; of `remasked` the one that was lost
  probability: float  # that the model gave it when it was revealed; 0 where masked
  step: int  # in which it was revealed, from 1; 0 where masked


def frames(steps: Iterable["Step"]) -> Iterator[list[Cell]]:
  """The cells of each step, as the steps come; before the first, every position was masked."""
  previous: Iterable[Cell] = itertools.repeat(Cell("masked", "", 0.0, 0))
  for number, step in enumerate(steps, 1):
    positions = zip(previous, step.tokens, step.masked, step.scores, strict=False)
    previous = [_cell(number, *position) for position in positions]
    yield previous


def _cell(number: int, before: Cell, token: str, masked: bool, score: float) -> Cell:
  hidden = before.kind in ("masked", "remasked")
  if masked:
    return Cell("masked" if hidden else "remasked", "" if hidden else before.token, 0.0, 0)
  if not hidden and token == before.token:
    return before._replace(kind="kept", probability=_probability(score))
  return Cell("new" if hidden else "replaced", token, _probability(score), number)


def _probability(score: float) -> float:
  return min(1.0, math.exp(score)) if score < 0 else 1.0
