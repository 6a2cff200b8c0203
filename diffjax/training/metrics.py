"""What a run measures of itself: sums, times and counters become named values."""

import collections
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from diffjax.config import Contract
from diffjax.training.length import LengthSums
from diffjax.training.step import NOISE_BINS, Sums
from diffjax.types import Batch

FILE = "metrics.jsonl"
_RECENT = 200  # steps whose times tell the slowest one and the time of arrival


def values(
  sums: Sums | None, length: LengthSums | None = None, *, length_weight: float = 0.0
) -> dict[str, float]:
  """Sums of one step or of a whole validation, divided at last.

  loss is the objective; nll the mean -log p of a scored token; nll_0.3 the same where 30 to 40 %
  of the canvas was masked. Of a length head, length_loss is the mean cross entropy in nats, which
  is in the loss with `length_weight`; length_accuracy and length_top5 are percentages of the
  examples whose length is the most probable one, and among the five most probable.

  Args:
    sums: None where the length head alone is trained.
    length: None where none is.
    length_weight: config.length.weight.
  """
  result = {"loss": 0.0} if sums is None else _diffusion_values(sums)
  if length is not None:
    examples = max(float(length.examples), 1.0)
    result["length_loss"] = float(length.loss) / examples
    result["length_accuracy"] = 100 * float(length.correct) / examples
    result["length_top5"] = 100 * float(length.near) / examples
    result["loss"] += length_weight * result["length_loss"]
  return result


def _diffusion_values(sums: Sums) -> dict[str, float]:
  sums = Sums(*(np.asarray(x, np.float64) for x in sums))
  result = {
    "loss": float(sums.loss / max(sums.weight, 1e-30)),
    "nll": float(sums.nll.sum() / max(sums.scored.sum(), 1)),
  }
  for number in range(NOISE_BINS):
    if sums.scored[number]:
      result[f"nll_{number / NOISE_BINS:.1f}"] = float(sums.nll[number] / sums.scored[number])
  return result


def attention_pairs(batch: Batch, contract: Contract) -> float:
  """(query, key) pairs that attention sees in one layer of a batch of NumPy arrays.

  Of an example of p prompt and c canvas positions, n in all: n^2 where attention is full;
  n (n + 1) / 2 where it is causal; p^2 + c n behind a prefix; and p^2 + c (p + b / 2) + c^2 / 2 for
  blocks of b, which is exact where b divides c.
  """
  segments = np.asarray(batch.segments)
  count = int(segments.max(initial=0)) + 1
  place = np.arange(len(segments))[:, None] * count + segments
  lengths = lambda chosen: np.bincount(place[chosen], minlength=1).astype(np.float64)
  n = lengths(segments > 0)
  if contract.attention == "full":
    return float((n * n).sum())
  if contract.attention == "causal":
    return float((n * (n + 1) / 2).sum())
  c = np.zeros_like(n)
  canvas = lengths(np.asarray(batch.canvas) & (segments > 0))
  c[: len(canvas)] = canvas
  p = n - c
  if contract.attention == "prefix":
    return float((p * p + c * n).sum())
  return float((p * p + c * (p + contract.block_size / 2) + c * c / 2).sum())


class Meter:
  """How fast steps are: since the last line, and lately."""

  def __init__(self, *, chips: int = 1, peak: float | None = None):
    """Nothing measured yet.

    Args:
      chips: that share the work.
      peak: FLOP/s of all of them together; None: unknown, and so is the MFU.
    """
    self._chips, self._peak = chips, peak
    self._recent: collections.deque[float] = collections.deque(maxlen=_RECENT)
    self._forget()

  def _forget(self) -> None:
    self._count, self._seconds = 0, 0.0
    self.waited = 0.0  # seconds since the last line
    self._tokens, self._flops = 0.0, 0.0

  def add(self, *, seconds: float, waited: float, tokens: float, flops: float = 0.0) -> None:
    """A step: its time without compiling, validation and saving, and how much of it was waiting.

    Args:
      seconds: of the whole step.
      waited: for its batch.
      tokens: that it read.
      flops: of its mathematics (arithmetic.step_flops); 0: unknown.
    """
    self._recent.append(seconds)
    self._count += 1
    self._seconds += seconds
    self.waited += waited
    self._tokens += tokens
    self._flops += flops

  def take(self) -> dict[str, float]:
    """The speed since it was last asked for; {} without steps."""
    seconds, count = self._seconds, self._count
    result = {}
    if seconds:
      result = {
        "tokens_per_second": self._tokens / seconds,
        "tokens_per_second_per_chip": self._tokens / seconds / self._chips,
        "step_seconds": seconds / count,
        "step_seconds_p99": float(np.percentile(self._recent, 99)),
        "input_wait": 100 * min(self.waited / seconds, 1.0),
      }
      if self._flops and self._peak:
        result["mfu"] = 100 * self._flops / seconds / self._peak
    self._forget()
    return result

  def eta(self, steps: int) -> float | None:
    """Seconds for so many steps, by the recent ones; None before there are any."""
    if not steps:
      return 0.0
    return sum(self._recent) / len(self._recent) * steps if self._recent else None


def memory(stats: Iterable[Mapping[str, Any] | None]) -> dict[str, float]:
  """The fullest device's bytes, from `Device.memory_stats()` of each; {} where there are none."""
  known = [s for s in stats if s and s.get("bytes_limit")]
  if not known:
    return {}
  return {
    "hbm_used_bytes": max(s["bytes_in_use"] for s in known),
    "hbm_peak_bytes": max(s.get("peak_bytes_in_use", s["bytes_in_use"]) for s in known),
    "hbm_limit_bytes": min(s["bytes_limit"] for s in known),
  }
