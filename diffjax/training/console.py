"""The words of a run's lines on the console."""

import importlib.metadata
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import jax

from diffjax import sharding
from diffjax.config import ExperimentConfig, ModelConfig
from diffjax.models import attention

_DAY = 24 * 3600


def opening(
  config: ExperimentConfig,
  model: ModelConfig,
  mesh: jax.sharding.Mesh,
  *,
  parameters: int,
  workdir: Path,
) -> list[str]:
  """The first lines of a run: with what, on what, how much, where, and how to stop it.

  Args:
    config: the experiment.
    model: the architecture.
    mesh: of the devices it runs on.
    parameters: numbers of the model.
    workdir: the run's folder.
  """
  code = " ".join(filter(None, (version(), revision(Path(__file__).parents[2]))))
  device = mesh.devices.flat[0]
  where = f"{mesh.size} x {device.device_kind}" if mesh.size > 1 else device.device_kind
  axes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in sharding.AXES if mesh.shape[axis] > 1)
  processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
  length = config.data.max_length
  rows = config.data.rows(length)
  kernel = attention.chosen(
    model,
    config.compute,
    length=length,
    shards=sharding.shards(mesh),
    training=True,
    opened=config.adaptation.anneal_steps > 0,
  )
  frozen = config.lora.frozen_dtype if config.lora.rank else "float32"
  also = f" (frozen ones in {frozen})" if frozen != "float32" else ""
  packed = f"{rows} rows of {length}" + " at most" * (len(config.data.lengths) > 1)
  return [
    f"diffjax {code}, jax {jax.__version__}, on {where}"
    + (f": mesh {axes}" if axes else "")
    + processes,
    f"{parameters:,} parameters in float32{also}, computed in {config.compute.dtype}; attention "
    f"{kernel}; a batch is {packed}, {rows * length:,} tokens",
    f"output in {workdir}; Ctrl-C stops and saves, the same command goes on",
  ]


def version() -> str:
  """Of the installed package; empty where its code is used without being installed."""
  try:
    return importlib.metadata.version("diffjax")
  except importlib.metadata.PackageNotFoundError:
    return ""


def revision(folder: Path) -> str:
  """(commit of the code, changed or not); empty where it is in no repository."""
  if not (folder / ".git").exists():
    return ""
  git = ["git", "-C", str(folder)]
  try:
    commit = subprocess.run(
      [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, timeout=5
    ).stdout.strip()
    changed = subprocess.run(
      [*git, "status", "--porcelain", "--untracked-files=no"],
      capture_output=True, text=True, check=True, timeout=5,
    ).stdout  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return ""
  return f"({commit}{', changed' * bool(changed)})"


def describe(
  measured: Mapping[str, float],
  *,
  checkpoint: int | None,
  eta: float | None,
  now: float,
) -> str:
  """The values of a log line in words; what is not known is left out.

  Args:
    measured: as metrics.jsonl has it.
    checkpoint: the newest one's step.
    eta: seconds to the end.
    now: unix time.
  """
  parts = [f"loss {measured['loss']:.4f}"]
  if "nll" in measured:
    parts.append(f"nll {measured['nll']:.3f}")
  if "length_accuracy" in measured:
    parts.append(f"length {measured['length_accuracy']:.1f} %")
  if "step_seconds" in measured:
    if "hbm_limit_bytes" in measured:  # an accelerator
      parts.append(f"{measured['tokens_per_second_per_chip']:,.0f} tokens/s a chip")
    else:
      parts.append(f"{measured['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in measured:
      parts.append(f"MFU {measured['mfu']:.1f} %")
    slowest = f" (p99 {milliseconds(measured['step_seconds_p99'])})"
    parts.append(f"step {milliseconds(measured['step_seconds'])} ms{slowest}")
    if measured["input_wait"] >= 1:
      parts.append(f"input {measured['input_wait']:.0f} %")
  if "hbm_limit_bytes" in measured:
    parts.append(f"HBM {100 * measured['hbm_used_bytes'] / measured['hbm_limit_bytes']:.0f} %")
  if checkpoint is not None and "checkpoint_age_seconds" in measured:
    parts.append(f"checkpoint {checkpoint} ({duration(measured['checkpoint_age_seconds'])} ago)")
  if measured.get("restarts"):
    parts.append(f"restarts {measured['restarts']:.0f}")
  if eta is None:
    parts.append("ETA -")
  elif eta:
    parts.append(f"ETA {duration(eta)}, end {clock_time(now + eta, now)}")
  else:
    parts.append("ETA 0")
  return "  ".join(parts)


def milliseconds(seconds: float) -> str:
  """Three digits of it."""
  return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def duration(seconds: float) -> str:
  """8 s, 12 m 05 s, 4 h 12 m, 3 d 4 h."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} m {seconds % 60:02d} s"
  if seconds < _DAY:
    return f"{seconds // 3600} h {seconds // 60 % 60:02d} m"
  return f"{seconds // _DAY} d {seconds // 3600 % 24} h"


def clock_time(then: float, now: float) -> str:
  """The local time, with the day where that is another one."""
  there, here = time.localtime(then), time.localtime(now)
  if there[:3] == here[:3]:
    return time.strftime("%H:%M", there)
  week = abs(then - now) < 6 * _DAY
  return time.strftime("%a %H:%M" if week else "%Y-%m-%d %H:%M", there)
