"""Rows around canvases, and the few shapes in which they are computed.

All that decides whether a row's result depends on its batch is to be read here: the shape that it
is computed in, and the words that key its noise.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffjax.config import Contract

SHORTEST_ROW, SHORTEST_CANVAS = 32, 8  # smallest buckets


class Request(NamedTuple):
  """One canvas to fill."""

  ids: list[int]  # the row; what its canvas holds does not matter
  canvas: np.ndarray  # ascending places in the row
  key_words: np.ndarray  # uint32[4]  folded into the seed, one after the other
  closed: bool  # whether </s> stands right behind the canvas, and was diffused with it in training


class Shape(NamedTuple):
  """What a compiled program is keyed by, next to the kind of strategy."""

  rows: int
  length: int
  canvas: int


class Rows(NamedTuple):
  """A batch as the compiled programs take it."""

  tokens: np.ndarray  # int32[B, L]
  segments: np.ndarray  # int32[B, L]
  answer: np.ndarray  # bool[B, L]   the canvas, with a </s> that closes it
  places: np.ndarray  # int32[B, C]  of the canvas
  real: np.ndarray  # bool[B, C]
  closing: np.ndarray | None  # int32[B]  the place of that </s>
  key_words: np.ndarray  # uint32[B, 4]


class Scored(NamedTuple):
  """Rows as the program takes them that says how likely their canvases are as they stand."""

  tokens: np.ndarray  # int32[B, L]
  segments: np.ndarray  # int32[B, L]
  answer: np.ndarray  # bool[B, L]   the canvas
  scored: np.ndarray  # bool[B, L]   what of it may be masked in this row, see likelihood.samples
  low: np.ndarray  # float32[B]
  high: np.ndarray  # float32[B]
  key_words: np.ndarray  # uint32[B, 4]


def framed(prompt: Sequence[int], size: int, contract: Contract) -> tuple[list[int], np.ndarray]:
  """`<s> prompt canvas </s>`, without </s> where the model predicts the end; and the canvas."""
  end = [contract.eos_id] if contract.end == "given" else []
  ids = [contract.bos_id, *prompt, *[contract.eos_id] * size, *end]
  return ids, np.arange(1 + len(prompt), 1 + len(prompt) + size)


def lay_out(requests: Sequence[Request], shape: Shape, *, pad_id: int) -> Rows:
  """Stacks requests to one shape; rows and slots beyond them are padding."""
  rows = Rows(
    tokens=np.full((shape.rows, shape.length), pad_id, np.int32),
    segments=np.zeros((shape.rows, shape.length), np.int32),
    answer=np.zeros((shape.rows, shape.length), bool),
    places=np.zeros((shape.rows, shape.canvas), np.int32),
    real=np.zeros((shape.rows, shape.canvas), bool),
    closing=np.zeros(shape.rows, np.int32) if requests[0].closed else None,
    key_words=np.zeros((shape.rows, 4), np.uint32),
  )
  for row, request in enumerate(requests):
    rows.tokens[row, : len(request.ids)] = request.ids
    rows.segments[row, : len(request.ids)] = 1
    rows.answer[row, request.canvas] = True
    rows.places[row, : len(request.canvas)] = request.canvas
    rows.real[row, : len(request.canvas)] = True
    rows.key_words[row] = request.key_words
    if request.closed:
      rows.closing[row] = request.canvas[-1] + 1
      rows.answer[row, request.canvas[-1] + 1] = True
  return rows


def blank_scored(shape: Shape, *, pad_id: int) -> Scored:
  """Rows of padding alone, to be written over."""
  grid = (shape.rows, shape.length)
  return Scored(
    tokens=np.full(grid, pad_id, np.int32),
    segments=np.zeros(grid, np.int32),
    answer=np.zeros(grid, bool),
    scored=np.zeros(grid, bool),
    low=np.zeros(shape.rows, np.float32),
    high=np.zeros(shape.rows, np.float32),
    key_words=np.zeros((shape.rows, 4), np.uint32),
  )


def plan_batches(
  lengths: Sequence[int],
  canvases: Sequence[int],
  *,
  batch_size: int,
  max_positions: int,
  strict: bool,
  multiple: int = 1,
  devices: int = 1,
  parts: int = 1,
) -> list[tuple[list[int], Shape]]:
  """Groups rows of given lengths and canvas sizes into batches of few shapes.

  Args:
    lengths: tokens of each row, at most max_positions.
    canvases: canvas positions of each row.
    batch_size: rows of a batch at most.
    max_positions: the model's longest row.
    strict: whether a row keeps to its own buckets and every batch has batch_size rows, so that a
      row's shape depends on nothing but itself.
    multiple: of a shape's canvas, where it is filled in blocks.
    devices: that share the rows of a batch, if there is at least one row for each; its rows are
      then a multiple of them.
    parts: that the rows of every batch are split into; they are a multiple of them.

  Returns:
    The rows of each batch, as indices into `lengths`, and its shape. Every row occurs once.
  """
  buckets = [
    (
      min(_power_of_two(n, SHORTEST_ROW), max_positions),
      -(-_power_of_two(c, SHORTEST_CANVAS) // multiple) * multiple,
    )
    for n, c in zip(lengths, canvases, strict=True)
  ]
  order = sorted(range(len(buckets)), key=buckets.__getitem__)
  groups = [order]
  if strict:
    groups = [list(group) for _, group in itertools.groupby(order, key=buckets.__getitem__)]
  batches = []
  for group in groups:
    for start in range(0, len(group), batch_size):
      members = group[start : start + batch_size]
      # A last batch that is not full reuses the program of the others.
      full = strict or len(group) > batch_size
      rows = batch_size if full else min(batch_size, _power_of_two(len(members), 1))
      if rows > devices:
        rows = -(-rows // devices) * devices
      rows = -(-rows // parts) * parts
      length, canvas = (max(buckets[i][axis] for i in members) for axis in (0, 1))
      batches.append((members, Shape(rows, length, canvas)))
  return batches


def key_words(prompts: Sequence[Sequence[int]], repeats: Sequence[int] | None = None) -> np.ndarray:
  """uint32[rows, 4]: two words of the prompt's hash, the sample's number (0), equal prompts before.

  By this rule a row's noise can be made again. Candidates of other lengths share their sample's.

  Args:
    prompts: the ids of each.
    repeats: of each prompt, how many equal ones came before the first of these; default none.
  """
  seen: Counter[bytes] = Counter()
  words = np.zeros((len(prompts), 4), np.uint32)
  for row, prompt in enumerate(prompts):
    data = np.asarray(prompt, "<i4").tobytes()
    words[row, :2] = np.frombuffer(hashlib.sha256(data).digest()[:8], "<u4")
    words[row, 3] = seen[data] + (repeats[row] if repeats is not None else 0)
    seen[data] += 1
  return words


def sample_words(words: np.ndarray, sample: int) -> np.ndarray:
  """The words of one prompt uint32[4] for its sample of that number."""
  return np.asarray([*words[:2], sample, words[3]], np.uint32)


def _power_of_two(number: int, least: int) -> int:
  return max(least, 1 << (int(number) - 1).bit_length())
