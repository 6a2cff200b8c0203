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
from typing import Any

import numpy as np

from diffjax import hosts
from diffjax.exits import Exit
from diffjax.training.step import Updates
from diffjax.types import Diverged, Preempted, Unavailable, UserError

_SLOW_BYTES = 20e6  # a second, of the slowest storage that is no fault
LOCK = "lock"  # in the workdir: which process trains there

Ended = Callable[[int, str], None]  # is told the exit code and the cause


class Stop:
  """SIGINT or SIGTERM in any process stops all of them at the same place.

  Before the first step it raises Preempted, at once; then `due` says when. What comes within
  three seconds of the first signal is the same one: a terminal and a launcher may both send it. A
  later SIGINT is a KeyboardInterrupt, and a later SIGTERM ends the process. A context manager.
  """

  def __init__(self, ended: Ended | None = None):
    """Nothing asked for yet; the handlers are set on entering.

    Args:
      ended: is told of an end that no exception reports.
    """
    self._ended = ended
    self._asked = ""  # the signal's name, once there was one here
    self._since = 0.0  # when it came
    self._passed = -1  # so many times `due` was called, less one
    self._last: int | None = None  # the time at which `due` is true in all, once agreed upon
    self._lock = threading.Lock()
    self._own = False  # whether the next signal is the one that `_hear` sends
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

  def due(self) -> bool:
    """Whether to stop here: the same in all processes, which ask equally often.

    The first step may begin once it was asked. Takes a microsecond.
    """
    with self._lock:
      self._passed += 1
      if not self._several:
        return bool(self._asked)
      return self._last is not None and self._passed >= self._last

  def _ask(self, number: int, frame: Any) -> None:
    del frame
    begun, now = self._passed >= 0, time.monotonic()
    if self._own:  # agreed upon by all; see _hear
      self._own = False
      if not begun:
        raise Preempted(f"stopped before the first step; {_AGAIN}")
    elif not self._asked:
      self._asked, self._since = signal.Signals(number).name, now
      if self._several:
        self._peers.say("stop")
      elif not begun:
        raise Preempted(f"stopped by {self._asked} before the first step; {_AGAIN}")
    elif now - self._since < _SAME_SECONDS:
      pass
    elif number == signal.SIGINT:
      raise KeyboardInterrupt
    else:
      hosts.leave(Exit.TERMINATED, f"SIGTERM again: ended at once; {_AGAIN}", self._ended)

  def _hear(self, heard: Mapping[int, Sequence[str]]) -> None:
    """In all processes together: none goes on until they agree on where to stop."""
    if self._last is not None or not any("stop" in words for words in heard.values()):
      return
    with self._lock:
      passed = self._peers.exchange("passed", str(self._passed))
      self._last = max(map(int, passed)) + 1
    if self._last == 0:
      self._own = True
      _thread.interrupt_main(signal.SIGTERM)


_AGAIN = "the same command resumes"
_SAME_SECONDS = 3.0


class Watchdog:
  """Ends a process in which nothing goes on: stacks of all threads, the cause, Exit.STALLED.

  A step may take `seconds`, or by default 30 usual ones and at least two minutes. A quarter of an
  hour is for a step before any usual one, for a batch of a validation, and for what compiles, saves
  or restores, and as long again as its bytes take at 20 MB/s. A context manager.
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
  def inside(self, what: str, *, size: int = 0) -> Iterator[None]:
    """Allows for something that is no step.

    Args:
      what: it is, such as "saving".
      size: bytes that it reads or writes.
    """
    with self._lock:
      before = self._what, self._limit
      self._begin(what, self._patience + size / _SLOW_BYTES)
    try:
      yield
    finally:
      with self._lock:
        self._begin(*before)
        self._whole = False  # the time of this step is none to compare with

  def beat(self) -> None:
    """What goes on does so: its time begins anew."""
    with self._lock:
      self._since = time.monotonic()

  def _begin(self, what: str, limit: float) -> None:
    self._what, self._limit, self._since = what, limit, time.monotonic()

  def _step_limit(self) -> float:
    if self._seconds:
      return self._seconds
    return max(120.0, 30 * statistics.median(self._usual)) if self._usual else self._patience

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
    cause = f"{what} for {took:.0f} s; its device, network or file system hangs"
    if what == "step":
      cause = (
        f"no step for {took:.0f} s{told}; raise config.training.stall_seconds if a step may take "
        f"as long"
      )
    hosts.leave(Exit.STALLED, f"stalled: {cause}; {_AGAIN}", self._ended)


def _has_number(stream: Any) -> bool:
  try:
    return stream.fileno() >= 0
  except (AttributeError, OSError, ValueError):
    return False


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
    UserError: another process of this host, which is named, trains there.
    Unavailable: one of another host does, or the file system does not know yet that it is gone.
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
      holder = file.read().strip() or "another process"
      error = UserError if holder.endswith(f" on {socket.gethostname()}") else Unavailable
      raise error(
        f"{workdir} is in use: {holder} trains there; wait for it, stop it, or choose another "
        f"workdir"
      ) from None
    except OSError as error:  # a file system that has no locks
      reason = f"{file.name} cannot be locked ({error.strerror})"
      print(f"diffjax: {reason}; let no other run use this workdir", file=sys.stderr)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    yield
