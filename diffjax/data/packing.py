"""Which examples share a row: best fit, the longest first, over a whole epoch at once."""

import numpy as np


def assign_rows(lengths: np.ndarray, capacity: int) -> np.ndarray:
  """Puts every item into the row with the least room that still holds it, the longest items first.

  That is best-fit decreasing. Items of one length are placed together, so that the cost grows with
  the number of distinct lengths more than with the number of items.

  Args:
    lengths: int[n], of the items, 1 .. capacity.
    capacity: of a row.

  Returns:
    int64[n], the row of every item; rows are numbered from 0 without gaps.
  """
  rows = np.empty(len(lengths), np.int64)
  by_length = np.argsort(-lengths, kind="stable")
  distinct, counts = np.unique(lengths, return_counts=True)
  room: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]  # rows by what is left in them
  opened = used = 0
  for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
    items = by_length[used : used + count]
    used += count
    while len(items):
      left = next((n for n in range(length, capacity + 1) if room[n]), capacity)
      each = left // length  # items of this length that such a row takes
      need = -(-len(items) // each)
      if room[left]:
        chosen = room[left].pop()
        if len(chosen) > need:
          room[left].append(chosen[need:])
          chosen = chosen[:need]
      else:
        chosen = np.arange(opened, opened + need)
        opened += need
      placed = np.repeat(chosen, each)[: len(items)]
      rows[items[: len(placed)]] = placed
      items = items[len(placed) :]
      full, rest = divmod(len(placed), each)  # the last row may have got fewer
      if full:
        room[left - each * length].append(chosen[:full])
      if rest:
        room[left - rest * length].append(chosen[full:])
  return rows


def split_rows(bounds: np.ndarray, count: int) -> np.ndarray:
  """Takes the first example of rows with several into a row of its own, until there are `count`.

  Args:
    bounds: int64[R + 1]; row n holds the examples bounds[n] .. bounds[n + 1] - 1.
    count: at most the number of examples.

  Returns:
    The bounds of max(R, count) rows.
  """
  while (missing := count - (len(bounds) - 1)) > 0:
    several = np.flatnonzero(np.diff(bounds) > 1)[:missing]
    bounds = np.sort(np.concatenate([bounds, bounds[several] + 1]))
  return bounds
