"""What a source holds, and what a plan makes of it, in numbers for people."""

from typing import NamedTuple

import numpy as np

from diffjax.data.plan import BAD, DROPPED, EXCLUDED, LengthIndex, Plan


class Share(NamedTuple):
  """How much of a run is one part's."""

  examples: float  # of all examples that a run reads
  tokens: float  # of all their tokens
  epochs: float  # how often the run reads each of its examples


class PartSummary(NamedTuple):
  """One part of a mixture, or a whole source."""

  name: str
  examples: int
  kept: int  # have a row
  tokens: int  # of all rows
  canvas: int  # of these
  dropped: int  # too long, and left out
  truncated: int  # too long, and cut
  excluded: int
  bad: int
  share: Share | None  # None without a plan


class Interval(NamedTuple):
  """How many examples have low .. high tokens."""

  low: int
  high: int
  examples: int


def summarise(index: LengthIndex, plan: Plan | None, *, steps: int) -> list[PartSummary]:
  """The parts of a source, one after the other.

  Args:
    index: how long its examples are.
    plan: of training batches; None for a source that none are made of.
    steps: batches of the run.
  """
  parts = [_count(part.name, index, slice(part.start, part.stop), None) for part in index.parts]
  if plan is None:
    return parts
  epochs = steps / plan.batches_per_epoch
  examples = np.array(plan.examples_per_epoch)
  kept = np.array([max(part.kept, 1) for part in parts])
  tokens = examples * np.array([part.tokens for part in parts]) / kept
  shares = zip(
    examples / examples.sum(), tokens / tokens.sum(), examples * epochs / kept, strict=True
  )
  return [
    part._replace(share=Share(*map(float, share)))
    for part, share in zip(parts, shares, strict=True)
  ]


def _count(name: str, index: LengthIndex, where: slice, share: Share | None) -> PartSummary:
  rows, full = index.rows[where], index.full[where]
  kept = rows >= 0
  return PartSummary(
    name=name,
    examples=len(rows),
    kept=int(kept.sum()),
    tokens=int(rows[kept].sum(dtype=np.int64)),
    canvas=int(index.canvas[where][kept].sum(dtype=np.int64)),
    dropped=int((rows == DROPPED).sum()),
    truncated=int((full[kept] > rows[kept]).sum()),
    excluded=int((rows == EXCLUDED).sum()),
    bad=int((rows == BAD).sum()),
    share=share,
  )


def histogram(index: LengthIndex, *, max_length: int, bins: int = 12) -> list[Interval]:
  """How long examples are before anything is cut, from the shortest on; the last are too long.

  Args:
    index: examples that were not measured (excluded, bad) are left out.
    max_length: of a row; longer ones make up a last interval of their own, if there are any.
    bins: intervals of equal width up to max_length, fewer where a width of 1 does.
  """
  full = index.full[index.full > 0]
  if not len(full):
    return []
  width = -(-max_length // bins)
  edges = np.append(np.arange(0, max_length, width), max_length)  # (low, high] each
  counts = np.histogram(full, bins=edges + 0.5)[0].tolist()
  intervals = [
    Interval(int(low) + 1, int(high), count)
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
  ]
  while intervals and not intervals[0].examples:
    intervals.pop(0)
  while intervals and not intervals[-1].examples:
    intervals.pop()
  longer = int((full > max_length).sum())
  if longer:
    intervals.append(Interval(max_length + 1, int(full.max()), longer))
  return intervals
