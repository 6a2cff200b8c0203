"""What a run measures of itself, against sums by hand."""

import numpy as np
import pytest

from diffjax.config import Contract
from diffjax.training import metrics
from diffjax.types import Batch

IDS = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "mask_id": 3}


def packed():
  """Segments of 5 (2 prompt, 3 canvas), 2 (canvas) and 8 (4 prompt, 4 canvas) positions."""
  segments = np.array([[1] * 5 + [2] * 2 + [0], [1] * 8])
  canvas = np.array([[0, 0, 1, 1, 1, 1, 1, 0], [0] * 4 + [1] * 4], bool)
  return Batch(np.zeros_like(segments), segments, canvas, np.arange(2))


def pairs_one_by_one(batch, attention, block_size):
  count = 0
  for segments, canvas in zip(batch.segments, batch.canvas, strict=True):
    for segment in set(segments.tolist()) - {0}:
      inside = canvas[segments == segment]
      p = int((~inside).sum())
      order = {
        "full": lambda n, p: 0,
        "causal": lambda n, p: n,
        "prefix": lambda n, p: int(n >= p),
        "blocks": lambda n, p: 0 if n < p else 1 + (n - p) // block_size,
      }[attention]
      orders = [order(n, p) for n in range(len(inside))]
      count += sum(key <= query for query in orders for key in orders)
  return count


@pytest.mark.parametrize("attention", ["full", "causal", "prefix", "blocks"])
def test_attention_pairs_are_those_that_are_seen(attention):
  size = 1 if attention == "blocks" else 0
  blocks = {"block_size": size, "end": "predicted", "end_padding": size} if size else {}
  contract = Contract(**IDS, attention=attention, **blocks)
  want = pairs_one_by_one(packed(), attention, size)
  assert metrics.attention_pairs(packed(), contract) == want


def test_blocks_that_divide_the_canvas_are_exact():
  contract = Contract(**IDS, attention="blocks", block_size=2, end="predicted", end_padding=2)
  batch = packed()._replace(segments=np.array([[0] * 8, [1] * 8]))
  assert metrics.attention_pairs(batch, contract) == pairs_one_by_one(batch, "blocks", 2)


def test_speed_is_of_the_steps_since_it_was_asked():
  meter = metrics.Meter(chips=4, peak=1000.0)
  assert meter.eta(5) is None
  assert meter.take() == {}
  for seconds in (1.0, 3.0):
    meter.add(seconds=seconds, waited=0.5, tokens=100, flops=800.0)
  measured = meter.take()
  assert measured["tokens_per_second"] == pytest.approx(50)
  assert measured["tokens_per_second_per_chip"] == pytest.approx(12.5)
  assert measured["step_seconds"] == pytest.approx(2)
  assert measured["input_wait"] == pytest.approx(25)
  assert measured["mfu"] == pytest.approx(100 * 1600 / 4 / 1000)
  assert meter.eta(5) == pytest.approx(10)
  assert meter.take() == {}
  meter.add(seconds=2.0, waited=0.0, tokens=10)
  slow = meter.take()
  assert "mfu" not in slow  # of what no FLOPs are known
  assert slow["step_seconds"] == 2
  assert slow["step_seconds_p99"] > 2.9  # remembers the slow one
  assert meter.eta(0) == 0


def test_no_mfu_on_an_unknown_chip():
  meter = metrics.Meter(chips=1, peak=None)
  meter.add(seconds=1.0, waited=0.0, tokens=10, flops=5.0)
  assert "mfu" not in meter.take()


def test_memory_is_of_the_fullest_device():
  stats = [
    {"bytes_in_use": 3, "peak_bytes_in_use": 9, "bytes_limit": 16},
    {"bytes_in_use": 5, "peak_bytes_in_use": 6, "bytes_limit": 16},
  ]
  assert metrics.memory(stats) == {
    "hbm_used_bytes": 5, "hbm_peak_bytes": 9, "hbm_limit_bytes": 16,
  }  # fmt: skip
  assert metrics.memory([None, None]) == {}  # a CPU
