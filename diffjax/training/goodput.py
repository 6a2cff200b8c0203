"""Where the wall time of a run goes, over all of its processes' lives, from its folder alone.

A life appends lines to WORKDIR/goodput.jsonl, each with all seconds of the life so far by bucket,
so that the last line before a kill -9 says all that is known. Readers need no JAX.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

FILE = "goodput.jsonl"
STATUS = "status.json"
CHECKPOINTS = "checkpoints"  # the folder of a run that holds them, one folder a step

# Bucket -> what its seconds went to. The first is what a run is for.
BUCKETS = {
  "step": "training steps",
  "input_wait": "waiting for the next batch",
  "validation": "validation",
  "save": "saving, as far as training stood still",
  "init": "weights, devices",
  "data": "reading and planning the data",
  "restore": "restoring a checkpoint, placing weights",
  "compile": "compiling",
  "lost": "steps that a later start made again",
  "down": "between two starts",
  "other": "everything else",
}


class Compiling(Protocol):
  """What the clock asks of training/compiles.py."""

  seconds: float
  count: int


class _Stay(NamedTuple):
  """In a bucket, since it was entered."""

  bucket: str
  since: float
  compiled: float  # seconds of compiling until then
  spent: Mapping[str, float]  # by bucket until then

  def spread(self, now: float, compiled: float) -> dict[str, float]:
    """Seconds by bucket until `now`, when so many went into compiling."""
    spent, took = dict(self.spent), now - self.since
    compiling = min(max(compiled - self.compiled, 0.0), took)
    for bucket, seconds in (("compile", compiling), (self.bucket, took - compiling)):
      spent[bucket] = spent.get(bucket, 0.0) + seconds
    return spent


class Clock:
  """Puts every second since it was made into the bucket of that time; what compiled, in its own."""

  def __init__(self, compiles: Compiling):
    """Starts in the bucket `init`."""
    self.started = time.time()
    self.programs: dict[str, int] = {}  # compiled in each bucket, the present one left out
    self._compiles, self._counted = compiles, compiles.count
    self._begin = time.monotonic()
    self._now = _Stay("init", self._begin, compiles.seconds, {})

  def enter(self, bucket: str) -> None:
    """From now on time belongs to `bucket`."""
    made = self._compiles.count - self._counted
    self.programs[self._now.bucket] = self.programs.get(self._now.bucket, 0) + made
    self._counted += made
    now, compiled = time.monotonic(), self._compiles.seconds
    # Replaced at once: another thread that asks sees the one stay or the other.
    self._now = _Stay(bucket, now, compiled, self._now.spread(now, compiled))

  @contextlib.contextmanager
  def inside(self, bucket: str) -> Iterator[None]:
    """Time inside belongs to `bucket`, and afterwards to the one before."""
    before = self._now.bucket
    self.enter(bucket)
    try:
      yield
    finally:
      self.enter(before)

  def spent(self) -> dict[str, float]:
    """Seconds by bucket until now. Other threads may ask."""
    return self._now.spread(time.monotonic(), self._compiles.seconds)

  @property
  def phase(self) -> tuple[str, float]:
    """The present bucket, and the seconds since it was entered. Other threads may ask."""
    stay = self._now
    return stay.bucket, time.monotonic() - stay.since

  @property
  def seconds(self) -> float:
    """Since the clock was made."""
    return time.monotonic() - self._begin


class Life(NamedTuple):
  """One process from its start to the last that was heard of it."""

  number: int  # 0, 1, ...
  start: float  # unix time
  seconds: float  # until its last line
  first: int | None  # the step that it began after; None where it did not come so far
  step: int | None  # the last step of its last line
  spent: Mapping[str, float]  # by bucket
  windows: Sequence[tuple[int, int, float]]  # steps (after, until], seconds of bucket `step`
  exit: int | None  # None: it did not say that it ended
  reason: str

  @property
  def end(self) -> float:
    """Unix time of its last line."""
    return self.start + self.seconds

  @classmethod
  def begun(cls, start: float, step: int) -> "Life":
    """One that goes on after `step`, with nothing spent yet."""
    return cls(-1, start, 0.0, step, step, {}, [], None, "")


def append(
  workdir: Path,
  *,
  life: int,
  clock: Clock,
  step: int | None,
  exit: int | None = None,
  reason: str = "",
) -> None:
  """Adds a line to WORKDIR/goodput.jsonl.

  Args:
    workdir: the run's folder.
    life: which of its processes' lives.
    clock: of this one.
    step: done by now; None before it is known where the run goes on.
    exit: with the last line, why it ends: see diffjax/exits.py.
    reason: the same in words.
  """
  record = {
    "life": life,
    "start": round(clock.started, 3),
    "seconds": round(clock.seconds, 3),
    "step": step,
    "spent": {name: round(seconds, 3) for name, seconds in clock.spent().items()},
  }
  if exit is not None:
    record |= {"exit": exit, "reason": reason}
  # It begins with the end of a line, so that one which a crash left unfinished spoils no other.
  with (workdir / FILE).open("a") as file:
    file.write(f"\n{json.dumps(record)}")


def read(workdir: Path) -> list[dict[str, Any]]:
  """The records of a run, unfinished lines left out; [] where there are none."""
  file = workdir / FILE
  if not file.is_file():
    return []
  records = []
  for line in file.read_text(errors="replace").splitlines():
    with contextlib.suppress(ValueError):
      record = json.loads(line)
      if isinstance(record, dict) and {"life", "start", "seconds", "spent"} <= record.keys():
        records.append(record)
  return records


def lives(records: Iterable[Mapping[str, Any]]) -> list[Life]:
  """The records of a run by life, the oldest first.

  A record has `life` (its number), `start` (unix time of the life's), `seconds` (since then, by a
  clock that does not jump), `step` (done by now; None before the first is known), `spent`
  (seconds by bucket so far), and in the last line of a life that said goodbye `exit` and `reason`.
  """
  grouped: dict[int, list[Mapping[str, Any]]] = {}
  for record in records:
    grouped.setdefault(record["life"], []).append(record)
  return [_life(number, lines) for number, lines in sorted(grouped.items())]


def _life(number: int, lines: Sequence[Mapping[str, Any]]) -> Life:
  last = lines[-1]
  known = [line for line in lines if line.get("step") is not None]
  steps = [(line["step"], line["spent"].get("step", 0.0)) for line in known]
  windows = [
    (before, after, seconds - already)
    for (before, already), (after, seconds) in itertools.pairwise(steps)
    if after > before
  ]
  return Life(
    number=number,
    start=last["start"],
    seconds=last["seconds"],
    first=steps[0][0] if steps else None,
    step=steps[-1][0] if steps else None,
    spent=last["spent"],
    windows=windows,
    exit=last.get("exit"),
    reason=last.get("reason") or "",
  )


def table(history: Sequence[Life]) -> dict[str, float]:
  """Seconds of wall time by bucket, from the first start to the last line of the last life.

  A step counts in the last life that made it, and as `lost` in those before. What passes between
  the last line of a life and the next start is `down`.
  """
  result = dict.fromkeys(BUCKETS, 0.0)
  for number, life in enumerate(history):
    later = [after.first for after in history[number + 1 :] if after.first is not None]
    kept = min(later, default=None)
    result = together(result, life.spent)
    result["other"] += max(life.seconds - sum(life.spent.values()), 0.0)
    lost = 0.0
    if kept is not None:
      for before, after, seconds in life.windows:
        lost += seconds * min(max(after - kept, 0) / (after - before), 1.0)
    result["step"] -= lost
    result["lost"] += lost
  for life, after in itertools.pairwise(history):
    result["down"] += max(after.start - life.end, 0.0)
  return result


def together(spent: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
  """The sums by bucket; what is no bucket is `other`."""
  result = dict(spent)
  for bucket, seconds in more.items():
    result[bucket if bucket in BUCKETS else "other"] += seconds
  return result


def share(spent: Mapping[str, float]) -> float:
  """Goodput: percent of the wall time that went into steps which count; 0 without any time."""
  total = sum(spent.values())
  return 100 * spent["step"] / total if total else 0.0


def last_checkpoint(workdir: Path) -> tuple[int, float] | None:
  """The newest checkpoint that is wholly written: its step, and when (unix time)."""
  folder = workdir / CHECKPOINTS
  if not folder.is_dir():
    return None
  steps = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]
  if not steps:
    return None
  try:
    return max(steps), (folder / str(max(steps))).stat().st_mtime
  except FileNotFoundError:  # it was removed just now
    return None
