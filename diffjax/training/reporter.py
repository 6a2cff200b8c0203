"""What a run tells: lines on the console, metrics.jsonl, status.json, goodput.jsonl, TensorBoard.

Observers change nothing: all is read from what a step returns anyway, and from clocks.
"""

import collections
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from diffjax import arithmetic, chips, exits
from diffjax.config import ExperimentConfig
from diffjax.model import Model
from diffjax.training import console, goodput, metrics
from diffjax.training.compiles import Compiles
from diffjax.training.step import Updates
from diffjax.types import Batch

_PULSE = 30.0  # seconds between signs of life
_WAITS = 20.0  # percent of the time spent waiting for data, above which it is said
_PHASES = {
  "init": "opening the weights",
  "data": "preparing the data",
  "restore": "placing the weights",
  "compile": "compiling",
  "input_wait": "waiting for data",
  "validation": "validating",
  "save": "saving",
  "other": "profiling",
}


class Reporter:
  """Measures a run from its making on; writes from entering on, in the first process alone."""

  def __init__(self, workdir: Path, config: ExperimentConfig):
    """Starts the clock, in the phase `init`. Writes nothing."""
    self._workdir, self._config, self._steps = workdir, config, config.training.steps
    self._compiles = Compiles()
    self._clock = goodput.Clock(self._compiles)
    self._meter = metrics.Meter()
    self._start = self._step = None
    self._step_seconds: float | None = None
    self._exit: int | None = None  # once it is written: nothing comes after it
    self._writing = threading.RLock()  # status and goodput: watchdog and peers write too
    self._busy, self._input = 0.0, 0.0  # seconds of steps and of waiting, until the last step
    self._pairs: collections.deque[float] = collections.deque()  # of the steps under way
    self._model: Model | None = None
    self._shapes: set[tuple[int, ...]] = set()  # of the batches so far
    self._new_shape, self._programs = True, 0
    self._warned: set[str] = set()
    self._writes = False  # until it is entered

  def __enter__(self) -> "Reporter":
    self._writes = jax.process_index() == 0
    self._compiles.__enter__()
    self._console = Console(quiet=not self._writes)
    self._progress = Progress(
      TextColumn("step {task.completed}/{task.total}"),
      BarColumn(bar_width=20),
      TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
      TimeElapsedColumn(),
      console=self._console,
      disable=not (self._writes and self._console.is_terminal),
    )
    self._task = self._progress.add_task(_PHASES["restore"], total=self._steps)
    self._writer = _tensorboard(self._workdir) if self._writes else None
    self._past = goodput.lives(goodput.read(self._workdir)) if self._writes else []
    self._life = self._past[-1].number + 1 if self._past else 0
    self._beat()
    self._write_status()
    self._left = threading.Event()
    self._pulse = threading.Thread(target=self._give_signs_of_life, daemon=True)
    self._pulse.start()
    self._progress.start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._left.set()
    self._pulse.join()
    self._progress.stop()
    if error is None:
      self.ended(exits.Exit.DONE, exits.Exit.DONE.text)
    else:
      self.ended(*exits.explain(error))
    self._compiles.__exit__()
    if self._writer:
      self._writer.close()

  def enter(self, phase: str) -> None:
    """From now on time is counted for `phase`, a bucket of goodput."""
    self._clock.enter(phase)

  def inside(self, phase: str) -> AbstractContextManager[None]:
    """Counts the time inside for `phase`, a bucket of goodput, and names it on a terminal."""
    self._progress.update(self._task, description=_PHASES[phase])
    return self._clock.inside(phase)

  def introduce(self, model: Model, *, parameters: int, mesh: jax.sharding.Mesh) -> None:
    """Says what will be trained, and on what.

    Args:
      model: its architecture and contract.
      parameters: how many numbers it has.
      mesh: that it lies on.
    """
    self._model = model
    chip = chips.of_device(mesh.devices.flat[0])
    # Of bfloat16 products, and no measure of others.
    known = chip and self._config.compute.dtype == "bfloat16"
    self._peak = mesh.size * chip.device_flops if known else None
    devices = chip.devices if chip else 1
    self._meter = metrics.Meter(chips=max(1, mesh.size // devices), peak=self._peak)
    lines = console.opening(
      self._config, model.config, mesh, parameters=parameters, workdir=self._workdir
    )
    for line in lines:
      self.say(line)

  def begin(self, start: int) -> None:
    """Steps follow, of which the first one compiles.

    Args:
      start: the step to go on after; later lines of metrics.jsonl are dropped.
    """
    self._start = self._step = start
    self._base = goodput.table([*self._past, goodput.Life.begun(self._clock.started, start)])
    if self._writes:
      _forget_after(self._workdir / metrics.FILE, start)
    if start:
      self.say(f"resuming {self._workdir} at step {start} of {self._steps}")
    self._progress.update(self._task, completed=start, description="compiling")
    self._beat()
    self._clock.enter("compile")

  def step(self, step: int, updates: Updates, write: bool) -> None:
    """Reports a finished step; reading `updates` waits for it.

    Args:
      step: its number.
      updates: what it returned.
      write: whether a line is due.
    """
    sums = updates.sums or updates.length
    tokens = float(sums.tokens)  # waits
    spent = self._clock.spent()
    waited = spent.get("input_wait", 0.0)
    busy = spent.get("step", 0.0) + waited
    flops = self._flops(updates, tokens)
    self._step = step
    if step == self._start + 1:  # it compiled, and is no measure of the others
      self._say_phases(spent)
      self._clock.enter("step")
    else:
      self._meter.add(
        seconds=busy - self._busy, waited=waited - self._input, tokens=tokens, flops=flops
      )
    self._busy, self._input = busy, waited
    self._progress.update(self._task, completed=step)
    if write:
      self._tell(step, updates)

  def waiting_for(self, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, and how long they were waited for is counted as input_wait."""
    while True:
      with self._clock.inside("input_wait"):
        batch = next(batches, None)
      self._watch_programs()
      if batch is None:
        return
      self._new_shape = batch.tokens.shape not in self._shapes
      self._shapes.add(batch.tokens.shape)
      if self._peak:
        pairs = metrics.attention_pairs(batch, self._model.contract)
        here, length = batch.tokens.shape  # the rows of this process, which are like the others
        self._pairs.append(pairs * self._config.data.rows(length) / here)
      yield batch

  def write(self, step: int, split: str, measured: dict[str, Any]) -> None:
    """Appends one JSON line and the same numbers to TensorBoard."""
    if not self._writes:
      return
    with (self._workdir / metrics.FILE).open("a") as file:
      file.write(json.dumps({"step": step, "split": split, **measured}) + "\n")
    if self._writer:
      for name, value in measured.items():
        if isinstance(value, int | float):
          self._writer.add_scalar(f"{split}/{name}", value, step)

  def say(self, line: str) -> None:
    """Prints a line above the live one."""
    self._console.print(line, highlight=False, markup=False, soft_wrap=True)

  def ended(self, code: int, reason: str) -> None:
    """Writes why the run ends, the last thing it writes; any thread may say so, the first counts.

    Without it, leaving says what is to see.
    """
    with self._writing:
      if self._exit is not None:
        return
      try:
        self._beat(exit=int(code), reason=reason)
        self._write_status(exit=int(code), reason=reason)
      except OSError as error:  # a full disk may be the very reason, and the exit code tells it
        self.say(f"{self._workdir / goodput.STATUS} is not up to date: {error}")
      self._exit = int(code)

  def _flops(self, updates: Updates, tokens: float) -> float:
    pairs = self._pairs.popleft() if self._pairs else 0.0
    if updates.sums is None or not self._peak:
      return 0.0
    twins = 2 if self._config.diffusion.coupled else 1
    return arithmetic.step_flops(
      self._model.config,
      tokens=twins * tokens,
      pairs=twins * pairs,
      # In NumPy: a sum by JAX is one more program, which waits for the step under way.
      scored=float(np.asarray(updates.sums.scored).sum()),
      lora=self._config.lora,
    )

  def _tell(self, step: int, updates: Updates) -> None:
    measured: dict[str, Any] = metrics.values(
      updates.sums, updates.length, length_weight=self._config.length.weight
    )
    measured["gradient_norm"] = float(updates.gradient_norm)
    measured["learning_rate"] = float(updates.learning_rate)
    waited = self._meter.waited
    measured |= self._meter.take()
    measured |= metrics.memory(device.memory_stats() for device in jax.local_devices())
    checkpoint = goodput.last_checkpoint(self._workdir)
    if checkpoint:
      measured["checkpoint_age_seconds"] = max(time.time() - checkpoint[1], 0.0)
    measured["restarts"], measured["compiles"] = self._life, self._compiles.count
    measured["goodput"] = goodput.share(goodput.together(self._base, self._clock.spent()))
    self._step_seconds = measured.get("step_seconds", self._step_seconds)
    self.write(step, "train", measured)
    line = console.describe(
      measured,
      checkpoint=checkpoint and checkpoint[0],
      eta=self._meter.eta(self._steps - step),
      now=time.time(),
    )
    self._progress.update(self._task, description=line)
    if not self._console.is_terminal:
      self.say(f"step {step}/{self._steps} {100 * step // self._steps} %  {line}")
    if measured.get("input_wait", 0) > _WAITS and waited > 1:
      self._warn(
        "input",
        f"{measured['input_wait']:.0f} % of the time since the last line went into waiting for "
        f"data; raise data.workers (diffjax data measures how fast it is read)",
      )
    self._beat()
    self._write_status()

  def _say_phases(self, spent: dict[str, float]) -> None:
    names = ("init", "data", "restore", "compile")
    took = [f"{name} {spent[name]:.0f} s" for name in names if spent.get(name, 0) >= 0.5]
    found, made = self._compiles.found, self._compiles.made
    if found or made:
      took.append(f"compile cache: {found} programs found, {made} new")
    if took:
      self.say(", ".join(took))

  def _watch_programs(self) -> None:
    """Every shape of batch compiles once, with its first step; a later one is a fault."""
    programs = self._clock.programs.get("step", 0)
    if programs > self._programs and not self._new_shape:
      self._warn("compiled", f"a step after {self._step} compiled again, of a shape seen before")
    self._programs = programs

  def _warn(self, topic: str, text: str) -> None:
    if topic not in self._warned:
      self._warned.add(topic)
      self.say(f"warning: {text}")

  def _give_signs_of_life(self) -> None:
    while not self._left.wait(_PULSE):
      phase, took = self._clock.phase
      if phase in _PHASES and took >= _PULSE:
        self.say(f"still {_PHASES[phase]}, {took:.0f} s")
      self._beat()

  def _beat(self, **ending: Any) -> None:
    with self._writing:
      if self._writes and self._exit is None:
        goodput.append(self._workdir, life=self._life, clock=self._clock, step=self._step, **ending)

  def _write_status(self, *, exit: int | None = None, reason: str = "") -> None:
    with self._writing:
      if not self._writes or self._exit is not None:
        return
      checkpoint = goodput.last_checkpoint(self._workdir)
      values = {
        "step": self._step,
        "steps": self._steps,
        "time": time.time(),
        "step_seconds": self._step_seconds,
        "eta_seconds": None if self._step is None else self._meter.eta(self._steps - self._step),
        "last_checkpoint": checkpoint and checkpoint[0],
        "restarts": self._life,
        "exit": exit,
        "reason": reason,
      }
      temporary = self._workdir / f"{goodput.STATUS}.tmp"
      temporary.write_text(json.dumps(values) + "\n")
      os.replace(temporary, self._workdir / goodput.STATUS)


def _forget_after(file: Path, step: int) -> None:
  """Drops the lines of steps that a killed run had made and a resumed one makes again."""
  if not file.is_file():
    return
  kept = []
  for line in file.read_text(errors="replace").splitlines():
    try:
      if json.loads(line)["step"] <= step:
        kept.append(line + "\n")
    except (ValueError, KeyError, TypeError):
      continue  # the process was killed while writing it
  temporary = file.with_suffix(".tmp")
  temporary.write_text("".join(kept))
  os.replace(temporary, file)


def _tensorboard(workdir: Path) -> Any:
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    return None
  return SummaryWriter(str(workdir / "tensorboard"))
