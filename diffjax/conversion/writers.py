"""Writing models: a directory appears whole or not at all, and its tensors read back as written."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from diffjax.conversion.readers import WEIGHTS_FILE, Weights
from diffjax.types import UserError

StoredDtype = Literal["float32", "bfloat16"]

_STORED = {
  "float32": ("F32", np.dtype(np.float32)),
  "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
}


@contextlib.contextmanager
def new_directory(target: Path) -> Iterator[Path]:
  """Yields a temporary sibling of `target` that takes its place when the block ends well.

  Raises:
    UserError: the target exists and is not an empty directory, or cannot be written.
  """
  target = target.absolute()
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f"{target} exists and is not empty; give a new directory")
  partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
  try:
    partial.mkdir(parents=True)
    yield partial
    partial.rename(target)
  except OSError as error:
    raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
  """An object as indented JSON."""
  file.write_text(json.dumps(values, indent=2) + "\n")


def write_weights(
  directory: Path, tensors: Mapping[str, np.ndarray], *, dtype: StoredDtype
) -> None:
  """Writes `model.safetensors`, one tensor in memory at a time, and compares what reads back.

  The format is written here, and not by safetensors.numpy.save_file, which wants every tensor as
  a copy at once and stores wrong values for arrays that are not contiguous (safetensors 0.8.0).

  Args:
    directory: exists.
    tensors: name -> array, of any strides.
    dtype: of the stored values.

  Raises:
    UserError: an unknown dtype, or a file that does not read back as it was written.
  """
  if dtype not in _STORED:
    raise UserError(f"dtype = {dtype!r} is none of {', '.join(_STORED)}")
  code, kind = _STORED[dtype]
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers refuses
  start = 0
  for name, tensor in tensors.items():
    end = start + tensor.size * kind.itemsize
    header[name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [start, end]}
    start = end
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)  # so that the data is aligned
  with open(directory / WEIGHTS_FILE, "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
      file.write(_stored_bytes(tensor, kind))
    file.flush()
    os.fsync(file.fileno())
  weights = Weights(directory)
  for name, tensor in tensors.items():
    if not np.array_equal(_stored_bytes(weights.read(name), kind), _stored_bytes(tensor, kind)):
      raise UserError(f"{directory / WEIGHTS_FILE}: {name} reads back changed; check the disk")


def _stored_bytes(tensor: np.ndarray, kind: np.dtype) -> np.ndarray:
  return np.ascontiguousarray(tensor, dtype=kind).reshape(-1).view(np.uint8)
