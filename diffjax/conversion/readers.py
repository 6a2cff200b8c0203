"""The only place that parses bytes from elsewhere: JSON and safetensors, and never a pickle."""

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes  # noqa: F401  safetensors finds bfloat16 only when NumPy knows it
import numpy as np
from safetensors import SafetensorError, safe_open

from diffjax.types import UserError

WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FLOATS = ("F32", "BF16", "F16")
_JSON_BYTES = 16 * 2**20
_SHOWN_ROWS = 10


class WeightsError(UserError):
  """Weights that cannot be read, or that are not what their config says."""


def read_json(file: Path) -> dict[str, Any]:
  """A JSON object from a file of at most 16 MiB. Raises WeightsError naming the file."""
  if not file.is_file():
    raise WeightsError(f"{file} does not exist; give a directory that has a {file.name}")
  try:
    size = file.stat().st_size
    if size > _JSON_BYTES:
      raise WeightsError(f"{file} has {size} bytes; a {file.name} has at most {_JSON_BYTES}")
    values = json.loads(file.read_bytes())
  except OSError as error:
    raise WeightsError(f"{file} cannot be read: {error.strerror}") from error
  except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested without end
    raise WeightsError(f"{file} is not valid JSON ({error}); copy the directory again") from error
  if not isinstance(values, dict):
    raise WeightsError(f"{file} holds a JSON {type(values).__name__}, not an object")
  return values


class Weights:
  """The tensors of a directory by name; a tensor's bytes are read when it is asked for.

  The directory holds model.safetensors, or shards under a model.safetensors.index.json.
  """

  def __init__(self, directory: Path):
    """Opens the files and reads their headers. Raises WeightsError naming the file at fault."""
    self._directory = directory
    if (directory / WEIGHTS_FILE).is_file():
      file = _open(directory / WEIGHTS_FILE)
      self._files = dict.fromkeys(file.keys(), file)
    elif (directory / _INDEX_FILE).is_file():
      self._files = _open_shards(directory)
    else:
      raise WeightsError(_no_weights(directory))

  def __contains__(self, name: str) -> bool:
    """Whether there is a tensor of this name."""
    return name in self._files

  def __len__(self) -> int:
    """The number of tensors."""
    return len(self._files)

  def read(self, name: str) -> np.ndarray:
    """One tensor, copied from its file: float32, float16 or ml_dtypes.bfloat16."""
    try:
      return self._files[name].get_tensor(name)
    except (SafetensorError, OSError) as error:
      raise WeightsError(f"{self._directory}: tensor {name} cannot be read: {error}") from error

  def check(self, expected: Mapping[str, tuple[int, ...]], *, ignored: Sequence[str] = ()) -> None:
    """Compares names, shapes and dtypes with what is wanted, before anything is allocated.

    Args:
      expected: tensor name -> shape; every one must be there, as floating point.
      ignored: patterns (as of file names) of further names that may be there.

    Raises:
      WeightsError: a table of name, expected and found, the first rows of it.
    """
    rows = []
    for name, shape in expected.items():
      found = self._describe(name) if name in self else "missing"
      if found not in {f"{kind} {list(shape)}" for kind in _FLOATS}:
        rows.append((name, f"float {list(shape)}", found))
    for name in self._files:
      if name not in expected and not any(fnmatch.fnmatchcase(name, one) for one in ignored):
        rows.append((name, "no such tensor", self._describe(name)))
    if rows:
      noun = "tensor differs" if len(rows) == 1 else "tensors differ"
      raise WeightsError(
        f"{self._directory}: the weights do not fit config.json, {len(rows)} {noun}; give the "
        f"config.json that belongs to them\n"
        + _columns([("name", "expected", "found"), *rows[:_SHOWN_ROWS]])
        + (f"\n... and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else "")
      )

  def _describe(self, name: str) -> str:
    part = self._files[name].get_slice(name)
    return f"{part.get_dtype()} {list(part.get_shape())}"


def _open(file: Path) -> Any:
  try:
    return safe_open(file, framework="np")
  except (SafetensorError, OSError) as error:
    raise WeightsError(
      f"{file} is truncated or no safetensors file ({error}); copy it again"
    ) from error


def _open_shards(directory: Path) -> dict[str, Any]:
  """Tensor name -> open shard, where the index and the shards say the same."""
  index = directory / _INDEX_FILE
  places = read_json(index).get("weight_map")
  if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
    raise WeightsError(f"{index}: weight_map must map the names of tensors to those of files")
  files: dict[str, Any] = {}
  for shard in sorted(set(places.values())):
    # A bare name: no folder, no way up, no absolute path on any system.
    if shard in ("", "..") or PurePosixPath(shard).name != shard or set(shard) & set("\\:\0"):
      raise WeightsError(f"{index}: shard {shard!r} must be the name of a file beside the index")
    if not (directory / shard).is_file():
      raise WeightsError(f"{index}: shard {shard} is missing; copy it into {directory}")
    file = _open(directory / shard)
    listed = {name for name, place in places.items() if place == shard}
    for name in sorted(listed ^ set(file.keys())):
      fault = "is listed in the index but not in the shard" if name in listed else "is not listed"
      raise WeightsError(f"{index}: tensor {name} of shard {shard} {fault}; copy both again")
    files |= dict.fromkeys(listed, file)
  return files


def _no_weights(directory: Path) -> str:
  pickles = sorted(
    file.name
    for file in (directory.iterdir() if directory.is_dir() else ())
    if any(file.match(pattern) for pattern in _PICKLES)
  )
  if not pickles:
    return f"{directory} has no {WEIGHTS_FILE} and no {_INDEX_FILE}; give a directory with weights"
  return (
    f"{directory / pickles[0]} is not read: loading a pickle can run code; rewrite it as "
    f"safetensors where torch and transformers are: save_pretrained(DIR, safe_serialization=True)"
  )


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = (
    "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
  )
  return "\n".join(line.rstrip() for line in lines)
