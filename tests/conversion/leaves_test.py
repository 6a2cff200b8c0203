"""Placing piece by piece puts the same numbers on the same devices, and never holds the whole."""

import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.config import MeshConfig
from diffjax.conversion import leaves
from diffjax.conversion.leaves import Leaf, as_leaf, place, to_numpy
from diffjax.sharding import make_mesh

SHAPE = (6, 8, 4)


def make_leaf(array, reads, **fields):
  def read(start, stop):
    reads.append((start, stop))
    return array[start:stop].copy()

  return Leaf(array.shape, array.dtype, read, **fields)


@pytest.fixture
def small_pieces(monkeypatch):
  monkeypatch.setattr(leaves, "_PIECE_BYTES", 4 * 8 * 4)  # one row of SHAPE in float32


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_pieces_cover_the_rows_in_order_and_are_bounded(monkeypatch, size):
  monkeypatch.setattr(leaves, "_PIECE_BYTES", size * 3 * 4)
  leaf = as_leaf(np.zeros((7, 3), np.float32))
  pieces = list(leaf.pieces())
  assert [row for start, stop in pieces for row in range(start, stop)] == list(range(7))
  assert max(stop - start for start, stop in pieces) == min(size, 7)


def test_pieces_of_what_cannot_be_divided_or_is_empty(small_pieces):
  array = np.zeros(SHAPE, np.float32)
  assert list(make_leaf(array, [], is_divisible=False).pieces()) == [(0, 6)]
  assert list(as_leaf(array[:0]).pieces()) == []
  assert to_numpy(as_leaf(array[:, :0])).shape == (6, 0, 4)


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_to_numpy_is_the_array(small_pieces, kind):
  array = np.random.default_rng(0).normal(size=SHAPE).astype(kind)
  for leaf in (make_leaf(array, []), as_leaf(array), as_leaf(jax.numpy.asarray(array))):
    assert (leaf.shape, leaf.dtype, leaf.size) == (SHAPE, np.dtype(kind), array.size)
    found = to_numpy(leaf)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array.astype(np.float32))
    assert to_numpy(leaf, kind).dtype == kind
  assert as_leaf(leaf) is leaf


def test_a_leaf_is_a_leaf_of_a_tree():
  leaf = as_leaf(np.zeros(3, np.float32))
  assert jax.tree.leaves({"a": {"b": leaf}}) == [leaf]


@pytest.mark.parametrize(
  ("mesh", "spec"),
  [
    ({"fsdp": 4, "tensor": 2}, P(None, "fsdp", "tensor")),
    ({"fsdp": 4, "tensor": 2}, P(None, "tensor", "fsdp")),
    ({"fsdp": 8}, P(None, "fsdp")),
    ({"tensor": 2}, P("tensor", None)),  # rows of a table; data copies it four times
    ({}, P()),
    ({"fsdp": 2, "tensor": 2}, P(None, ("fsdp", "tensor"), None)),
  ],
)
@pytest.mark.parametrize("is_divisible", [True, False])
def test_place_equals_putting_the_whole(small_pieces, mesh, spec, is_divisible):
  array = np.random.default_rng(1).normal(size=SHAPE).astype(ml_dtypes.bfloat16)
  sharding = NamedSharding(make_mesh(MeshConfig(**mesh)), spec)
  reads = []
  placed = place(make_leaf(array, reads, is_divisible=is_divisible), sharding)
  expected = jax.device_put(array.astype(np.float32), sharding)
  assert placed.sharding == expected.sharding
  assert placed.dtype == np.float32
  for ours, theirs in zip(placed.addressable_shards, expected.addressable_shards, strict=True):
    assert (ours.device, ours.index) == (theirs.device, theirs.index)
    np.testing.assert_array_equal(ours.data, theirs.data)
  assert [row for start, stop in reads for row in range(start, stop)] == list(range(len(array)))
  if is_divisible:
    assert max(stop - start for start, stop in reads) <= 2  # bfloat16: two rows are a piece


def test_no_array_of_the_whole_is_made_on_the_host(monkeypatch):
  rows, width = 64, 16_384
  piece = 2 * width * 4
  monkeypatch.setattr(leaves, "_PIECE_BYTES", piece)
  sharding = NamedSharding(make_mesh(MeshConfig(fsdp=8)), P(None, "fsdp"))
  whole, shard = rows * width * 4, rows * width * 4 // 8
  monkeypatch.setattr(leaves, "_PASS_BYTES", 2 * shard)
  reads = []

  def read(start, stop):
    reads.append(stop - start)
    return np.ones((stop - start, width), np.float32)

  leaf = Leaf((rows, width), np.dtype(np.float32), read)
  shards = []
  put = jax.device_put
  # On CPUs the array on the device may be the one that was put; a copy stands for a transfer.
  monkeypatch.setattr(
    jax, "device_put", lambda array, device: (shards.append(array.nbytes), put(0 * array[:1]))[1]
  )
  monkeypatch.setattr(
    jax, "make_array_from_single_device_arrays", lambda shape, sharding, parts: len(parts)
  )
  tracemalloc.start()
  try:
    assert place(leaf, sharding) == 8
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert shards == [shard] * 8
  assert sum(reads) == 4 * rows  # two shards a pass
  assert peak < 2 * shard + 3 * piece + 2**20 < whole
