"""Parameters that still lie in files, and their way into memory or onto devices, piece by piece."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from diffjax.types import Array

_PIECE_BYTES = 64 * 2**20
_PASS_BYTES = 4 * 2**30  # of shards that are filled by one pass over a leaf

Bounds = tuple[tuple[int, int], ...]  # (start, stop) of every axis


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A parameter that is read when it is wanted; `jax.tree` takes it for a leaf."""

  shape: tuple[int, ...]  # at least one axis
  dtype: np.dtype  # as stored: float32, float16 or ml_dtypes.bfloat16
  read: Callable[[int, int], np.ndarray]  # rows start .. stop of the leading axis
  is_divisible: bool = True  # False: to read a row costs as much as to read all

  @property
  def size(self) -> int:
    """The number of elements."""
    return int(np.prod(self.shape, dtype=object))

  def pieces(self) -> Iterator[tuple[int, int]]:
    """(start, stop) that cover the leading axis in order, each at most 64 MiB or one row."""
    rows = self.shape[0]
    step = rows
    if self.is_divisible and self.size:
      step = _PIECE_BYTES // (self.size // rows * self.dtype.itemsize)
    step = max(1, step)
    for start in range(0, rows, step):
      yield start, min(start + step, rows)


def as_leaf(array: Any) -> Leaf:
  """An array, of NumPy or on devices, as a Leaf; a Leaf as it is."""
  if isinstance(array, Leaf):
    return array
  read = lambda start, stop: np.asarray(array[start:stop])
  return Leaf(tuple(array.shape), np.dtype(array.dtype), read)


def to_numpy(leaf: Leaf, dtype: Any = np.float32) -> np.ndarray:
  """The whole of it in memory; besides it only a piece."""
  return _read_parts(leaf, [tuple((0, size) for size in leaf.shape)], np.dtype(dtype))[0]


def place(leaf: Leaf, sharding: jax.sharding.Sharding, dtype: Any = np.float32) -> Array:
  """Puts it on the devices of a sharding.

  What this process's devices hold is read once, however it is split over them. Where their shards
  take more than 4 GiB together, as many as fit into that, one at least, are filled by one pass over
  the leaf. So much of it is in host memory at a time, and a piece.

  Args:
    leaf: what to place.
    sharding: of the whole array; only this process's devices are filled.
    dtype: of the result.
  """
  dtype = np.dtype(dtype)
  devices: dict[Bounds, list[jax.Device]] = {}
  for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
    bounds = tuple(
      part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True)
    )  # slices have a hash from Python 3.12 on only
    devices.setdefault(bounds, []).append(device)
  size = math.prod(sharding.shard_shape(leaf.shape)) * dtype.itemsize
  count = max(1, _PASS_BYTES // max(size, 1))
  shards, placed = list(devices), []
  for number in range(0, len(shards), count):
    some = shards[number : number + count]
    for bounds, shard in zip(some, _read_parts(leaf, some, dtype), strict=True):
      placed += [jax.device_put(shard, device) for device in devices[bounds]]
    # Waits, so that the shards' memory is free before the next ones are read.
    jax.block_until_ready(placed)
  return jax.make_array_from_single_device_arrays(leaf.shape, sharding, placed)


def _read_parts(leaf: Leaf, parts: Sequence[Bounds], dtype: np.dtype) -> list[np.ndarray]:
  """Parts of a leaf, filled during one pass over the rows that they have."""
  filled = [np.empty([stop - start for start, stop in bounds], dtype) for bounds in parts]
  for start, stop in leaf.pieces():
    rows = [(max(start, bounds[0][0]), min(stop, bounds[0][1])) for bounds in parts]
    wanted = [(first, last) for first, last in rows if first < last]
    if not wanted:
      continue
    lowest = min(first for first, _ in wanted)
    piece = leaf.read(lowest, max(last for _, last in wanted))
    for part, (first, last), ((top, _), *rest) in zip(filled, rows, parts, strict=True):
      if first < last:
        inside = slice(first - lowest, last - lowest), *(slice(*bound) for bound in rest)
        part[first - top : last - top] = piece[inside]
  return filled
