"""What a source holds, in numbers: they add up, and agree with the batches that are read."""

import numpy as np

from diffjax.config import DataConfig
from diffjax.data import plan, sources, summary

FULL = np.random.default_rng(0).integers(3, 60, 400).astype(np.int32)
ROWS = np.minimum(FULL, 40)
ROWS[FULL > 55] = plan.DROPPED
ROWS[7], FULL[7] = plan.EXCLUDED, 0
ROWS[8], FULL[8] = plan.BAD, 0
PARTS = (sources.Part("a", 0, 300, 1.0, 1.0, 0), sources.Part("b", 300, 400, 3.0, 1.0, 0))
INDEX = plan.LengthIndex(ROWS, FULL, np.minimum(ROWS.clip(0), 5), PARTS)


def test_every_example_is_counted_once():
  for part, where in zip(summary.summarise(INDEX, None, steps=1), PARTS, strict=True):
    assert part.examples == where.stop - where.start
    assert part.examples == part.kept + part.dropped + part.excluded + part.bad
    assert part.share is None
  both = summary.summarise(INDEX, None, steps=1)
  assert sum(part.dropped for part in both) == (FULL > 55).sum()
  assert sum(part.truncated for part in both) == ((FULL > 40) & (FULL <= 55)).sum()
  assert (both[0].excluded, both[0].bad, both[1].excluded, both[1].bad) == (1, 1, 0, 0)
  assert sum(part.tokens for part in both) == ROWS[ROWS > 0].sum()


def test_shares_and_epochs_are_those_of_the_batches_of_the_run():
  section = DataConfig(max_length=40, batch_size=8)
  chosen = plan.Plan(INDEX, section, 0)
  steps = 10 * chosen.batches_per_epoch
  seen = np.bincount(
    np.concatenate([chosen.batch(number).examples for number in range(steps)]), minlength=400
  )
  tokens = seen * ROWS
  for part, where in zip(summary.summarise(INDEX, chosen, steps=steps), PARTS, strict=True):
    own = slice(where.start, where.stop)
    np.testing.assert_allclose(part.share.examples, seen[own].sum() / seen.sum(), atol=0.005)
    np.testing.assert_allclose(part.share.tokens, tokens[own].sum() / tokens.sum(), atol=0.01)
    np.testing.assert_allclose(part.share.epochs, seen[own].sum() / part.kept, rtol=0.01)


def test_the_histogram_has_every_measured_example_in_its_interval():
  for bins in (1, 7, 12, 100):
    intervals = summary.histogram(INDEX, max_length=40, bins=bins)
    for low, high, examples in intervals:
      assert examples == np.isin(FULL, range(low, high + 1)).sum()
    assert sum(interval.examples for interval in intervals) == (FULL > 0).sum()
    assert intervals[-1].low == 41
    assert len(intervals) <= bins + 1
    assert intervals[0].examples
