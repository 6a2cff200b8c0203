"""How often the parts of a mixture are drawn, and which of their examples is whose n-th draw.

Every part goes through shuffles of its own examples, one after the other, so that none of them
comes a second time before all others of its part have come once. All is a function of (seed, n).
"""

from collections.abc import Sequence

import numpy as np

from diffjax.data.sources import Part

_GOLDEN = (5**0.5 - 1) / 2
_DRAWS = 2  # the purpose of a draw, as in plan.py
_BLOCK = 65536  # draws of a small part that are shuffled together, so that few generators are made


def shares(parts: Sequence[Part], counts: np.ndarray, temperature: float) -> np.ndarray:
  """The share of each part, float64[parts], of sum 1.

  The weights where they are given, else (epochs x min(examples, cap))^(1 / temperature), which is
  examples-proportional mixing (1910.10683, section 3.5.2) with epochs.

  Args:
    parts: of the mixture.
    counts: int[parts], their examples that have a row, 1 or more of each.
    temperature: 1 is proportional; more of it brings the shares together.
  """
  if parts[0].weight:
    raw = np.array([part.weight for part in parts])
  else:
    counted = [min(n, part.cap or n) for part, n in zip(parts, counts.tolist(), strict=True)]
    epochs = np.array([part.epochs for part in parts])
    raw = (epochs * counted) ** (1 / temperature)
  return raw / raw.sum()


def shared_out(count: int, weights: np.ndarray, epochs: np.ndarray) -> np.ndarray:
  """How many of an epoch's `count` draws fall to each part: int64[epochs, parts].

  Each has its share of them, rounded down or up, and over the epochs the right number: evenly
  spaced points are counted in intervals as wide as the shares, shifted a little every epoch.

  Args:
    count: draws of an epoch.
    weights: float64[parts], in proportion to the shares.
    epochs: int[epochs], their numbers.
  """
  ends = np.concatenate([[0], np.cumsum(weights)])
  ends = count * (ends / max(ends[-1], 1e-300))  # the last is count exactly
  shift = (_GOLDEN * (1 + np.asarray(epochs))) % 1
  return np.diff(np.ceil(ends - shift[:, None]).astype(np.int64), axis=1)


def drawn(members: np.ndarray, start: int, stop: int, *, seed: Sequence[int]) -> np.ndarray:
  """Draws start .. stop - 1 from shuffles of `members`, one after the other.

  Args:
    members: int64[n].
    start, stop: numbers of the draws, from 0.
    seed: keys the shuffles.
  """
  if start == stop:
    return members[:0]  # of a part that has none of this length, for one
  shuffles = max(1, _BLOCK // len(members))
  size = shuffles * len(members)
  first, last = start // size, -(-stop // size)
  blocks = [
    np.random.default_rng((*seed, block, _DRAWS))
    .permuted(np.tile(members, (shuffles, 1)), axis=1)
    .reshape(-1)
    for block in range(first, last)
  ]
  return np.concatenate(blocks)[start - first * size : stop - first * size]
