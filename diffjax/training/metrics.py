"""What a run tells: a live line, JSON lines always, TensorBoard where it is installed."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diffjax.training.length import LengthSums
from diffjax.training.step import NOISE_BINS, Sums, Updates
from diffjax.types import Batch

FILE = "metrics.jsonl"


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


class Reporter:
  """Writes metrics of a run; a context manager that owns the live line.

  On a terminal the line is redrawn; elsewhere every logged step is a line of its own.
  """

  def __init__(self, workdir: Path, *, start: int, steps: int, length_weight: float = 0.0):
    """Opens workdir/metrics.jsonl for appending; progress runs from `start` to `steps`."""
    _forget_after(workdir / FILE, start)
    self._file = (workdir / FILE).open("a")
    self._writer = _tensorboard(workdir)
    self._console = Console()
    self._steps, self._length_weight = steps, length_weight
    self._clock = time.monotonic()
    self._start, self._tokens, self._tokens_clock, self._waited = start, 0.0, self._clock, 0.0
    self._progress = Progress(
      TextColumn("step {task.completed}/{task.total}"),
      BarColumn(bar_width=20),
      TextColumn("{task.description}"),
      TimeElapsedColumn(),
      TextColumn("ETA"),
      TimeRemainingColumn(),
      console=self._console,
      disable=not self._console.is_terminal,
    )
    self._task = self._progress.add_task("compiling", total=steps, completed=start)

  def __enter__(self) -> "Reporter":
    self._progress.start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._progress.stop()
    self._file.close()
    if self._writer:
      self._writer.close()

  def step(self, step: int, updates: Updates, write: bool) -> None:
    """Reports a finished step; reading `updates` waits for it."""
    self._tokens += float((updates.sums or updates.length).tokens)
    if step == self._start + 1:  # the first step of a process compiles
      self._clock = time.monotonic()
      self.resume_clock()
    if not write:
      self._progress.update(self._task, completed=step)
      return
    now = time.monotonic()
    measured = values(updates.sums, updates.length, length_weight=self._length_weight)
    measured["gradient_norm"] = float(updates.gradient_norm)
    measured["learning_rate"] = float(updates.learning_rate)
    if now > self._tokens_clock:
      measured["tokens_per_second"] = self._tokens / (now - self._tokens_clock)
      measured["input_wait"] = 100 * self._waited / (now - self._tokens_clock)
    self.resume_clock()
    self.write(step, "train", measured)
    line = f"loss {measured['loss']:.4f}"
    if updates.sums is not None:
      line += f"  nll {measured['nll']:.3f}"
    if updates.length is not None:
      line += f"  length {measured['length_accuracy']:.1f} %"
    line += f"  {measured.get('tokens_per_second', 0):,.0f} tokens/s"
    self._progress.update(self._task, completed=step, description=line)
    if not self._console.is_terminal:
      self.say(f"step {step}/{self._steps}  {line}  ETA {self._eta(step, now)}")

  def waiting_for(self, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; how long they were waited for is told as input_wait, percent of the time."""
    while True:
      asked = time.monotonic()
      batch = next(batches, None)
      self._waited += time.monotonic() - asked
      if batch is None:
        return
      yield batch

  def resume_clock(self) -> None:
    """Starts measuring speed anew, after something that was no training."""
    self._tokens, self._tokens_clock, self._waited = 0.0, time.monotonic(), 0.0

  def write(self, step: int, split: str, measured: dict[str, Any]) -> None:
    """Appends one JSON line and the same numbers to TensorBoard."""
    self._file.write(json.dumps({"step": step, "split": split, **measured}) + "\n")
    self._file.flush()
    if self._writer:
      for name, value in measured.items():
        if isinstance(value, int | float):
          self._writer.add_scalar(f"{split}/{name}", value, step)

  def say(self, line: str) -> None:
    """Prints a line above the live one."""
    self._console.print(line, highlight=False, markup=False, soft_wrap=True)

  def status(self, text: str) -> None:
    """Names what the run is doing while no step is made."""
    self._progress.update(self._task, description=text)

  def _eta(self, step: int, now: float) -> str:
    done = step - self._start - 1  # since the clock started, after the compiled step
    if done <= 0:
      return "-"
    seconds = int((now - self._clock) / done * (self._steps - step))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _forget_after(file: Path, step: int) -> None:
  """Drops the lines of steps that a killed run had made and a resumed one makes again."""
  if file.is_file():
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))


def _tensorboard(workdir: Path) -> Any:
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    return None
  return SummaryWriter(str(workdir / "tensorboard"))
