"""What may interrupt a run from outside, and what the run does about it."""

import _thread
import contextlib
import faulthandler
import fcntl
import math
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffjax import hosts
from diffjax.exits import Exit
from diffjax.training.step import Updates
from diffjax.types import Diverged, Preempted, UserError

LOCK = "lock"  # in the workdir: which process trains there

Ended = Callable[[int, str], None]  # is told the exit code and the cause


class Stop:
  """SIGINT or SIGTERM in any process stops all of them after the same step.

  Before the first step it raises Preempted, at once; then `after` says when. The second SIGINT is a
  KeyboardInterrupt, and the second SIGTERM ends the process. A context manager.
  """

  def __init__(self, ended: Ended | None = None):
    """Nothing asked for yet; the handlers are set on entering.

    Args:
      ended: is told of an end that no exception reports.
    """
    self._ended = ended
    self._asked = ""  # the signal's name, once there was one here
    self._begun = -1  # the last step after which `after` was called; -1: none yet
    self._last: int | None = None  # the step after which all stop, once agreed upon
    self._lock = threading.Lock()
    self._before: dict[int, Any] = {}
    self._peers = hosts.Peers(hear=self._hear, ended=ended)
    self._several = False

  def __enter__(self) -> "Stop":
    self._several = hosts.several()
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._before[number] = signal.signal(number, self._ask)
    self._peers.__enter__()
    return self

  def __exit__(self, *raised: Any) -> None:
    self._peers.__exit__(*raised)
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def after(self, step: int) -> bool:
    """Whether to stop after this step, the same in all processes. Takes a microsecond."""
    with self._lock:
      self._begun = step
      if not self._several:
        return bool(self._asked)
      return self._last is not None and step >= self._last

  def _ask(self, number: int, frame: Any) -> None:
    del frame
    if self._last == 0 and self._begun < 0:  # agreed upon by all; see _hear
      raise Preempted(f"stopped before the first step; {_AGAIN}")
    if not self._asked:
      self._asked = signal.Signals(number).name
      if self._several:
        self._peers.say("stop")
      elif self._begun < 0:
        raise Preempted(f"stopped by {self._asked} before the first step; {_AGAIN}")
    elif number == signal.SIGINT:
      raise KeyboardInterrupt
    else:
      _leave(Exit.TERMINATED, "SIGTERM again: ended at once; " + _AGAIN, self._ended)

  def _hear(self, heard: Mapping[int, Sequence[str]]) -> None:
    """In all processes together: no step begins until they agree on the last one."""
    if self._last is not None or not any("stop" in words for words in heard.values()):
      return
    with self._lock:
      begun = self._peers.exchange("begun", str(self._begun))
      self._last = max(map(int, begun)) + 1
    if self._last == 0:
      _thread.interrupt_main(signal.SIGTERM)


_AGAIN = "the same command resumes"


class Watchdog:
  """Ends a process in which nothing goes on: stacks of all threads, the cause, Exit.STALLED.

  A step may take `seconds`, or by default 30 usual ones and at least two minutes; what compiles,
  saves, validates or restores may take a quarter of an hour. A context manager.
  """

  def __init__(self, seconds: float = 0.0, ended: Ended | None = None, *, patience: float = 900.0):
    """Watches nothing before it is entered.

    Args:
      seconds: config.training.stall_seconds; 0: as usual steps say.
      ended: is told before the process ends.
      patience: for all that is no step.
    """
    self._seconds, self._ended, self._patience = seconds, ended, max(patience, seconds)
    self._lock, self._left = threading.Lock(), threading.Event()
    self._usual: deque[float] = deque(maxlen=101)
    self._what, self._limit, self._since = "", math.inf, time.monotonic()
    self._compiling, self._whole = 0, False

  def __enter__(self) -> "Watchdog":
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._left.set()
    self._thread.join()

  def step(self, *, compiles: bool) -> None:
    """A step begins, and with it the one before last has ended.

    Args:
      compiles: whether it is the first of its shape. Processes compile for as long as they like, so
        the step after it may wait for others too.
    """
    now = time.monotonic()
    with self._lock:
      if self._whole and not self._compiling:
        self._usual.append(now - self._since)
      self._compiling = 2 if compiles else max(0, self._compiling - 1)
      self._whole = True
      self._begin("step", self._patience if self._compiling else self._step_limit())

  @contextlib.contextmanager
  def inside(self, what: Literal["restoring", "validating", "saving"]) -> Iterator[None]:
    """Allows for something that is no step."""
    with self._lock:
      before = self._what, self._limit
      self._begin(what, self._patience)
    try:
      yield
    finally:
      with self._lock:
        self._begin(*before)
        self._whole = False  # the time of this step is none to compare with

  def _begin(self, what: str, limit: float) -> None:
    self._what, self._limit, self._since = what, limit, time.monotonic()

  def _step_limit(self) -> float:
    if self._seconds:
      return self._seconds
    return max(120.0, 30 * statistics.median(self._usual)) if self._usual else 120.0

  def _watch(self) -> None:
    while not self._left.wait(min(1.0, (self._seconds or 120.0) / 20)):
      with self._lock:
        took = time.monotonic() - self._since
        late = took > self._limit
        what, usual = self._what, statistics.median(self._usual) if self._usual else None
      if late:
        self._end(what, took, usual)

  def _end(self, what: str, took: float, usual: float | None) -> None:
    stream = sys.stderr if _has_number(sys.stderr) else sys.__stderr__
    faulthandler.dump_traceback(stream, all_threads=True)
    told = f" (usual {usual:.3g} s)" if usual is not None else ""
    cause = f"no step for {took:.0f} s{told}" if what == "step" else f"{what} for {took:.0f} s"
    _leave(Exit.STALLED, f"{cause}: stalled; {_AGAIN}", self._ended)


def _has_number(stream: Any) -> bool:
  try:
    return stream.fileno() >= 0
  except (AttributeError, OSError, ValueError):
    return False


def _leave(code: Exit, line: str, ended: Ended | None) -> None:
  """Ends the process from any thread; the cause is the last line, whatever the disk does."""
  if ended is not None:

    def tell() -> None:
      with contextlib.suppress(Exception):
        ended(code, line)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    teller.join(2.0)
  sys.stdout.flush()
  print(f"diffjax: {line}", file=sys.stderr, flush=True)
  os._exit(code)


def check_finite(step: int, updates: Updates, last_saved: int | None) -> None:
  """Raises Diverged where the loss or the gradient of a step is not finite."""
  losses = [sums.loss for sums in (updates.sums, updates.length) if sums is not None]
  loss, norm = float(sum(map(np.asarray, losses))), float(updates.gradient_norm)
  if not (math.isfinite(loss) and math.isfinite(norm)):
    kept = "there is no checkpoint" if last_saved is None else f"checkpoint {last_saved} is good"
    raise Diverged(
      f"step {step}: the loss sums to {loss:g} and the gradient's norm is {norm:g}; this state is "
      f"not saved, {kept}; lower config.optimizer.learning_rate, or look at the data of this step"
    )


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
  """Keeps every other run out of the workdir until left; the first process takes the lock.

  Raises:
    UserError: another process, which is named, trains there.
  """
  if not hosts.is_first():
    yield
    return
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / LOCK).open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it when the process ends
    except BlockingIOError:
      file.seek(0)
      raise UserError(
        f"{workdir} is in use: {file.read().strip() or 'another process'} trains there; wait for "
        f"it, stop it, or choose another workdir"
      ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    yield
