"""DIRECTORY/report.json: which model, on what machine, with which results.

A result replaces only that of the same evaluation: the same model, questions, settings, metric. The
report of another model is set aside as report.HASH.json, and is the report again when that model
is evaluated there again.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffjax import model as models
from diffjax import sharding
from diffjax.config import SourceConfig, load_config
from diffjax.data import generator
from diffjax.sampling import programs

FILE = "report.json"
_KEY = ("predictions", "metric")  # a file of predictions is named after all that decides its lines
_SAMPLED = 4096  # entries of a parameter that tell it from others
_LIBRARIES = ("diffjax", "jax", "sacrebleu", "rouge-score")


def fingerprint(model: models.Model) -> str:
  """SHA-256 of a model's shape, contract, tokenizer, and of some entries of every parameter."""

  def some(x: jax.Array) -> jax.Array:  # entry by entry, so that no shard has to travel
    return x[np.unravel_index(np.arange(0, x.size, -(-x.size // _SAMPLED)), x.shape)]

  mesh = programs.mesh_of(model.params)
  read = jax.jit(
    lambda params: [some(x) for x in params],
    out_shardings=None if mesh is None else sharding.replicated(mesh),
  )
  digest = hashlib.sha256(json.dumps(model.meta(), sort_keys=True, default=str).encode())
  for entries in jax.device_get(read(jax.tree.leaves(dict(model.params)))):
    digest.update(np.ascontiguousarray(entries, np.float32).tobytes())
  return digest.hexdigest()


def describe(model: models.Model, path: Path) -> dict[str, Any]:
  """The model as a report has it.

  Args:
    model: loaded from there.
    path: a run, a checkpoint of one, or any directory with a model.

  Raises:
    UserError: the run's files cannot be read.
  """
  directory = models.resolve(path)
  config, step = None, None
  if models.kind_of(directory) in ("run", "checkpoint"):
    found = models.checkpoint_of(directory)
    config, step = load_config(found.workdir / models.CONFIG_FILE), found.step
  return {
    "path": str(path),
    "parameters": sum(int(x.size) for x in jax.tree.leaves(dict(model.params))),
    "width": model.config.width,
    "layers": model.config.layers,
    "process": "absorbing" if model.contract.denoises else "next_token",
    "init_from": config.init_from if config else "",
    "training_steps": step,
    "mixture": _mixture(config.data.train) if config else [],
    "fingerprint": fingerprint(model),
  }


def _mixture(section: SourceConfig) -> list[str]:
  """What a source is made of: its parts, a generator's families, or itself."""
  if section.kind == "mixture":
    return [name for part in section.parts for name in _mixture(part)]
  if section.kind == "generator":
    return list(section.families or generator.TASKS)
  return [section.name or Path(section.path).name.partition(".")[0] or section.kind]


def save(
  directory: Path, result: Mapping[str, Any], *, model: Mapping[str, Any], command: str
) -> None:
  """Puts a result into DIRECTORY/report.json, with what made it; see above for what it replaces.

  One of fewer examples does not replace one of more: it is a part of that.

  Args:
    directory: made if it is not there.
    result: of `runner.run`.
    model: of `describe`.
    command: the line that made the result.
  """
  directory.mkdir(parents=True, exist_ok=True)
  made = {
    "command": command,
    "versions": versions(),
    "device": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
  }
  with _alone_in(directory):
    file, aside = directory / FILE, _aside(directory, model["fingerprint"])
    results = _earlier(file, model) or (_read(aside)[1] if aside.is_file() else [])
    key = lambda one: [one.get(name) for name in _KEY]
    same = [one for one in results if key(one) == key(result)]
    if any(one["examples"] > result["examples"] for one in same):
      most = max(one["examples"] for one in same)
      print(f"{file} keeps the result of {most} examples, these among them", file=sys.stderr)
    else:
      results = [*(one for one in results if one not in same), {**result, **made}]
    report = {**made, "model": dict(model), "results": results}
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
    aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
  """No other process is in here for this directory, where its file system can lock."""
  handle = os.open(directory, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(handle, fcntl.LOCK_EX)
    yield
  finally:
    os.close(handle)


def _aside(directory: Path, fingerprint: str) -> Path:
  return directory / f"report.{fingerprint[:8]}.json"


def _earlier(file: Path, model: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The results of a report of this model; a report of another one is set aside."""
  if not file.is_file():
    return []
  made_by, results = _read(file)
  if made_by == model["fingerprint"]:
    return results
  aside = _aside(file.parent, made_by)
  file.replace(aside)
  print(f"{file} was of another model: it is {aside.name} now", file=sys.stderr)
  return []


def _read(file: Path) -> tuple[str, list[dict[str, Any]]]:
  """The model's fingerprint and the results."""
  try:
    report = json.loads(file.read_text(encoding="utf-8"))
    return report["model"]["fingerprint"], report["results"]
  except (ValueError, KeyError, TypeError):
    return "unreadable", []


def versions() -> dict[str, str]:
  """Of Python, of libraries that decide scores, and of the checkout where this runs from one."""
  found = {"python": platform.python_version()}
  for name in _LIBRARIES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "not installed"  # run from a checkout
  root = Path(__file__).parents[2]
  if (root / ".git").exists():
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):  # no git
      said = subprocess.run(asked, capture_output=True, text=True, check=False)
      if said.returncode == 0:
        found["revision"] = said.stdout.strip()
  return found
