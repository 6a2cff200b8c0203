"""The only place that parses weights from elsewhere: JSON and safetensors, and never a pickle.

JSON is parsed by the reader of a tokenizer's files, with the same limits.
"""

import fnmatch
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import ml_dtypes  # safetensors finds bfloat16 only when NumPy knows it
import numpy as np
from safetensors import SafetensorError, safe_open

from diffjax.tokenizers.files import parse_json
from diffjax.types import MissingInput, UserError

WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_FLOATS = {
  "F32": np.dtype(np.float32),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F16": np.dtype(np.float16),
}
_FLOAT_NAMES = "F32, BF16 or F16"
_JSON_BYTES = 16 * 2**20
_MOST_SHARDS = 10_000
_SHOWN_ROWS = 10
_SHOWN_CHARACTERS = 120

# Why weights do not fit, and what to do.
_NO_FIT = "give the config.json that belongs to them"
_NO_FLOATS = "store them as float32 or bfloat16"
_UNKNOWN = (
  "if this is another kind of model (a classifier, say), save its masked or causal LM, or the base "
  "model"
)

# Formats that are not read, and the command, to be run elsewhere, that makes safetensors of a file.
_TORCH = (
  """python -c "import torch, safetensors.torch as s; s.save_file({name: t.contiguous().clone() """
  """for name, t in torch.load('FILE', weights_only=True).items()}, 'model.safetensors')\""""
)
_NUMPY = (
  """python -c "import numpy, safetensors.numpy as s; s.save_file({name: """
  """numpy.ascontiguousarray(a) for name, a in numpy.load('FILE').items()}, """
  """'model.safetensors')\""""
)
_FLAX, _TENSORFLOW = (
  f"""python -c "import transformers; transformers.AutoModel.from_pretrained('.', {option}=True)"""
  """.save_pretrained('converted', safe_serialization=True)" (with transformers 4)"""
  for option in ("from_flax", "from_tf")
)
_COMMANDS = {
  **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"), _TORCH),
  **dict.fromkeys((".npy", ".npz"), _NUMPY),
  ".msgpack": _FLAX,
  ".h5": _TENSORFLOW,
}


class WeightsError(MissingInput):
  """Weights that cannot be read, or that are not what their config says."""


def read_json(file: Path) -> dict[str, Any]:
  """A JSON object from a file of at most 16 MiB and 64 levels. Raises WeightsError naming it."""
  if not file.is_file():
    raise WeightsError(f"{file} does not exist; give a directory that has a {file.name}")
  try:
    size = file.stat().st_size
    if size > _JSON_BYTES:
      raise WeightsError(f"{file} has {size} bytes; a {file.name} has at most {_JSON_BYTES}")
    content = file.read_bytes()
  except OSError as error:
    raise WeightsError(f"{file} cannot be read: {error.strerror}") from error
  try:
    return parse_json(content, name=str(file))
  except UserError as error:
    raise WeightsError(str(error)) from error


class _Tensor(NamedTuple):
  """What a file's header says of one tensor."""

  file: Path
  name: str  # in the file
  kind: str  # as safetensors calls the dtype
  shape: tuple[int, ...]


class Weights:
  """The tensors of a directory by name; bytes are read when they are asked for.

  The directory holds model.safetensors, or shards under a model.safetensors.index.json. A file is
  opened for every read: pages of a file that stays mapped would stay in the process's memory.

  Attributes:
    directory: that holds them.
  """

  def __init__(self, directory: Path, *, renames: Iterable[tuple[str, str]] = ()):
    """Reads the headers of the files.

    Args:
      directory: that holds them.
      renames: (regex, replacement) pairs, applied in order to every name found.

    Raises:
      WeightsError: naming the file, or the two tensors that a rename makes one.
    """
    self.directory = directory
    if (directory / WEIGHTS_FILE).is_file():
      found = _read_header(directory / WEIGHTS_FILE)
    elif (directory / _INDEX_FILE).is_file():
      found = _read_headers(directory)
    else:
      raise WeightsError(_no_weights(directory))
    self._tensors: dict[str, _Tensor] = {}
    for tensor in found:
      name = tensor.name
      for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
      if name in self._tensors:
        raise WeightsError(
          f"{directory}: tensors {_printable(self._tensors[name].name)} and "
          f"{_printable(tensor.name)} are both {_printable(name)}; remove one"
        )
      self._tensors[name] = tensor

  @property
  def names(self) -> Collection[str]:
    """The names of all tensors, renamed."""
    return self._tensors.keys()

  def __contains__(self, name: str) -> bool:
    """Whether there is a tensor of this name."""
    return name in self._tensors

  def shape(self, name: str) -> tuple[int, ...]:
    """Of one tensor."""
    return self._tensors[name].shape

  def dtype(self, name: str) -> np.dtype:
    """float32, float16 or ml_dtypes.bfloat16. Raises WeightsError for a tensor of others."""
    kind = self._tensors[name].kind
    if kind not in _FLOATS:
      raise WeightsError(
        f"{self.directory}: tensor {_printable(name)} is {kind}, none of {', '.join(_FLOATS)}"
      )
    return _FLOATS[kind]

  def read(self, name: str) -> np.ndarray:
    """One tensor, copied from its file, in the dtype it is stored in. Raises WeightsError."""
    return self._read(name, lambda file, stored: file.get_tensor(stored))

  def read_rows(self, name: str, start: int, stop: int, *, axis: int = 0) -> np.ndarray:
    """start .. stop of one axis of a tensor, nothing else being read. Raises WeightsError."""
    shape = self._tensors[name].shape
    if start >= stop or 0 in shape:  # which the library refuses
      return np.zeros((*shape[:axis], max(0, stop - start), *shape[axis + 1 :]), self.dtype(name))
    index = (*(slice(None),) * axis, slice(start, stop))
    return self._read(name, lambda file, stored: file.get_slice(stored)[index])

  def _read(self, name: str, read: Callable[[Any, str], np.ndarray]) -> np.ndarray:
    tensor = self._tensors[name]
    try:
      with safe_open(tensor.file, framework="np") as file:
        return read(file, tensor.name)
    except (SafetensorError, OSError) as error:
      raise WeightsError(
        f"{self.directory}: tensor {_printable(name)} cannot be read: {error}"
      ) from error

  def check(self, expected: Mapping[str, tuple[int, ...]], *, ignored: Sequence[str] = ()) -> None:
    """Compares names, shapes and dtypes with what is wanted, before anything is allocated.

    Args:
      expected: tensor name -> shape; every one must be there, as floating point.
      ignored: patterns (as of file names) of further names that may be there.

    Raises:
      WeightsError: what to do, and a table of name (in the file), expected and found, the first
        rows of it.
    """
    rows = []
    causes = set()
    for name, shape in expected.items():
      tensor = self._tensors.get(name)
      wanted = f"{_FLOAT_NAMES} {list(shape)}"
      if tensor is None:
        rows.append((name, wanted, "missing"))
        causes.add(_NO_FIT)
      elif tensor.kind not in _FLOATS or tensor.shape != tuple(shape):
        rows.append((_printable(tensor.name), wanted, _describe(tensor)))
        causes.add(_NO_FIT if tensor.shape != tuple(shape) else _NO_FLOATS)
    for name, tensor in self._tensors.items():
      if name not in expected and not any(fnmatch.fnmatchcase(name, one) for one in ignored):
        rows.append((_printable(tensor.name), "no such tensor", _describe(tensor)))
        causes.add(_UNKNOWN)
    if rows:
      noun = "tensor differs" if len(rows) == 1 else "tensors differ"
      advice = ", or ".join(cause for cause in (_NO_FIT, _NO_FLOATS, _UNKNOWN) if cause in causes)
      raise WeightsError(
        f"{self.directory}: the weights do not fit config.json, {len(rows)} {noun}; {advice}\n"
        + _columns([("name", "expected", "found"), *rows[:_SHOWN_ROWS]])
        + (f"\n... and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else "")
      )


def _describe(tensor: _Tensor) -> str:
  return f"{tensor.kind} {list(tensor.shape)}"


def _read_header(file: Path) -> list[_Tensor]:
  try:
    with safe_open(file, framework="np") as opened:
      parts = [(name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118  no dict
      return [
        _Tensor(file, name, part.get_dtype(), tuple(part.get_shape())) for name, part in parts
      ]
  except (SafetensorError, OSError) as error:
    raise WeightsError(
      f"{file} is truncated or no safetensors file ({_printable(str(error))}); copy it again"
    ) from error


def _read_headers(directory: Path) -> list[_Tensor]:
  """The headers of all shards, where the index says the same."""
  index = directory / _INDEX_FILE
  places = read_json(index).get("weight_map")
  if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
    raise WeightsError(f"{index}: weight_map must map the names of tensors to those of files")
  listed: dict[str, set[str]] = {}
  for name, shard in places.items():
    listed.setdefault(shard, set()).add(name)
  if len(listed) > _MOST_SHARDS:
    raise WeightsError(f"{index}: names {len(listed)} files; at most {_MOST_SHARDS} are read")
  tensors: list[_Tensor] = []
  for shard, names in sorted(listed.items()):
    # A bare name: no folder, no way up, no absolute path on any system.
    if shard in ("", "..") or PurePosixPath(shard).name != shard or set(shard) & set("\\:\0"):
      raise WeightsError(
        f"{index}: shard {_printable(shard)!r} must be the name of a file beside the index"
      )
    if not os.path.isfile(directory / shard):  # Path.is_file raises for a name that is too long
      raise WeightsError(f"{index}: shard {_printable(shard)} is missing; copy it into {directory}")
    found = _read_header(directory / shard)
    for name in sorted(names ^ {tensor.name for tensor in found}):
      fault = "is listed in the index but not in the shard" if name in names else "is not listed"
      raise WeightsError(
        f"{index}: tensor {_printable(name)} of shard {_printable(shard)} {fault}; copy both again"
      )
    tensors += found
  return tensors


def _no_weights(directory: Path) -> str:
  files = sorted(
    file
    for file in (directory.iterdir() if directory.is_dir() else ())
    if file.suffix.lower() in _COMMANDS
  )
  if not files:
    return f"{directory} has no {WEIGHTS_FILE} and no {_INDEX_FILE}; give a directory with weights"
  command = _COMMANDS[files[0].suffix.lower()].replace("FILE", _printable(files[0].name))
  return (
    f"{_printable(str(files[0]))} is not read: only safetensors is, for other formats can run "
    f"code; in a place that you can lose, run there: {command}"
  )


def _printable(text: str) -> str:
  """Foreign text as one short line: no control characters, nothing that no terminal encodes."""
  text = text if text.isprintable() else ascii(text)[1:-1]
  return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = (
    "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
  )
  return "\n".join(line.rstrip() for line in lines)
