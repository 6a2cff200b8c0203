"""`diffjax status RUN`: how a run is, why it stopped, how it goes on, where its time went."""

import argparse
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffjax import exits
from diffjax.training import goodput
from diffjax.types import MissingInput

_SILENT = 75.0  # seconds without a sign of life (they come every 30), after which a run is gone


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument("run", type=Path, help="the workdir of a run")


def run(arguments: argparse.Namespace) -> None:
  """Reads the folder alone, so that it works beside a live run and after it."""
  workdir = arguments.run
  history = goodput.lives(goodput.read(workdir))
  try:
    status = json.loads((workdir / goodput.STATUS).read_text())
  except (OSError, ValueError) as error:
    from diffjax.training.start import CACHE

    if (workdir / CACHE).is_dir():
      raise MissingInput(
        f"{workdir} has no {goodput.STATUS} yet: the data is being measured, or a start ended there"
      ) from error
    raise MissingInput(
      f"{workdir} has no {goodput.STATUS} that can be read ({error}); give the workdir of a run "
      f"that was started"
    ) from error
  checkpoint = goodput.last_checkpoint(workdir)
  for line in describe(workdir, status, history, checkpoint=checkpoint, now=time.time()):
    print(line)


def describe(
  workdir: Path,
  status: Mapping[str, Any],
  history: Sequence[goodput.Life],
  *,
  checkpoint: tuple[int, float] | None,
  now: float,
) -> list[str]:
  """The lines of the command.

  Args:
    workdir: the run's folder.
    status: its status.json.
    history: the lives of its processes.
    checkpoint: the newest one's step and unix time.
    now: unix time.
  """
  from diffjax.training.console import clock_time, duration, milliseconds

  code, heard = status["exit"], max([status["time"], *(life.end for life in history[-1:])])
  silent = now - heard
  step, steps = status["step"], status["steps"]
  if code is not None:
    state = f"ended {clock_time(heard, now)}: {cause(code, status['reason'])}"
  elif silent <= _SILENT:
    state = f"running, last line {duration(max(now - status['time'], 0))} ago"
  else:
    state = f"gone: not heard of for {duration(silent)}; it was killed, or its machine is lost"
  lines = [f"{workdir}: {state}"]
  if step is not None:
    lines.append(f"step        {step} of {steps} ({100 * step // steps} %)")
  if status["step_seconds"]:
    rate = f"rate        {milliseconds(status['step_seconds'])} ms a step"
    eta = status["eta_seconds"]
    if code is None and silent <= _SILENT and eta:
      rate += f", {duration(eta)} to go, end {clock_time(status['time'] + eta, now)}"
    lines.append(rate)
  if checkpoint is None:
    lines.append("checkpoint  none yet")
  else:
    lines.append(f"checkpoint  {checkpoint[0]}, {duration(max(now - checkpoint[1], 0))} old")
  if len(history) > 1:
    lines.append(f"restarts    {status['restarts']}")
  for life in history[:-1]:
    reached = "before its first step" if life.step is None else f"at step {life.step}"
    why = "without a word" if life.exit is None else cause(life.exit, life.reason)
    lines.append(f"  {clock_time(life.end, now):>11}  {reached}: {why}")
  lines += ["", *time_table(goodput.table(history))]
  if code != exits.Exit.DONE and (code is not None or silent > _SILENT):
    mend = code is not None and code not in exits.RESTARTABLE and code != exits.Exit.INTERRUPTED
    folder = shlex.quote(str(workdir))
    command = f"diffjax train --config={folder}/config.json --workdir={folder}"
    lines += ["", f"{'when that is mended' if mend else 'to go on'}: {command}"]
  return lines


def cause(code: int, reason: str) -> str:
  """Why a process ended: what it said, else what its exit code means."""
  known = code in {int(member) for member in exits.Exit}
  return f"{reason or (exits.Exit(code).text if known else 'no cause is known')} (exit {code})"


def time_table(spent: Mapping[str, float]) -> list[str]:
  """Wall time by bucket, the largest first."""
  from diffjax.training.console import duration

  total = sum(spent.values())
  if not total:
    return []
  lines = [f"goodput {goodput.share(spent):.1f} % of {duration(total)}"]
  for bucket, seconds in sorted(spent.items(), key=lambda item: -item[1]):
    if seconds >= 0.5:
      part = 100 * seconds / total
      lines.append(
        f"  {bucket:<10} {duration(seconds):>10} {part:>5.1f} %  {goodput.BUCKETS[bucket]}"
      )
  return lines
