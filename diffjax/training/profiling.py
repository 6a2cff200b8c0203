"""A few steps in the profiler: those of the config, and more when WORKDIR/profile is touched."""

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import jax

REQUEST = "profile"  # the file in the workdir that asks for it
FOLDER = "profiles"
_ASK_SECONDS = 5.0  # between two looks for it: the workdir may be far away


class Report(Protocol):
  """What a profiler asks of the run's Reporter."""

  def say(self, line: str) -> None:
    """Takes a line for the user."""

  def inside(self, phase: str) -> AbstractContextManager[None]:
    """Counts the time inside for a bucket of goodput."""


class Profiler:
  """Traces windows of steps into WORKDIR/profiles/step_N, in the first process alone.

  It waits for the device where a window begins and ends, and changes no number.
  """

  def __init__(self, workdir: Path, *, start: int, first: int, steps: int, report: Report):
    """Nothing is traced yet.

    Args:
      workdir: the run's folder.
      start: the step that the run goes on after. Its first step compiles and is never traced.
      first: the first step of a window; 0, or one that is done: none.
      steps: of a window.
      report: is told where a profile lies; its time counts as `other`.
    """
    self._workdir, self._steps, self._report = workdir, steps, report
    self._compiling = start + 1
    self._first = max(first, start + 2) if first > start else 0
    self._folder: Path | None = None  # of the window that is open
    self._begin = 0
    self._looked = -_ASK_SECONDS  # when, by the clock that does not jump
    self._leads = jax.process_index() == 0

  def __enter__(self) -> "Profiler":
    return self

  def __exit__(self, *_) -> None:
    if self._folder:
      self._close(None)

  def before(self, step: int, state: Any) -> None:
    """Opens or closes a window, where that is due before `step`.

    Args:
      step: about to be made.
      state: arrays that the steps before it return.
    """
    if not self._leads:
      return
    if self._folder and step >= self._begin + self._steps:
      jax.block_until_ready(state)
      self._close(step - 1)
    if self._folder is None and step != self._compiling:
      asked = self._asked()
      if asked or step == self._first:
        jax.block_until_ready(state)
        self._begin, self._folder = step, self._workdir / FOLDER / f"step_{step}"
        with self._report.inside("other"):
          jax.profiler.start_trace(str(self._folder))

  def _asked(self) -> bool:
    now = time.monotonic()
    if now - self._looked < _ASK_SECONDS:
      return False
    self._looked = now
    request = self._workdir / REQUEST
    found = request.exists()
    if found:
      request.unlink(missing_ok=True)
    return found

  def _close(self, last: int | None) -> None:
    with self._report.inside("other"):
      jax.profiler.stop_trace()
    until = "" if last is None else f" to {last}"
    self._report.say(
      f"profile of steps {self._begin}{until} in {self._folder}; to see it: pip install xprof, "
      f"then xprof --logdir={self._folder}"
    )
    self._folder = None
