"""Whatever the bytes are: a clean read, or a WeightsError that names the thing."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.conversion.readers import Weights, WeightsError, read_json

TENSORS = {
  "a": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b": np.ones(4, np.float16),
  "c": np.arange(3),
}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def directory(tmp_path):
  save_file(TENSORS, tmp_path / "model.safetensors")
  return tmp_path


def test_reads_every_tensor(directory):
  weights = Weights(directory)
  assert len(weights) == 3
  assert "a" in weights
  assert "d" not in weights
  for name, tensor in TENSORS.items():
    np.testing.assert_array_equal(weights.read(name), tensor)


def test_check_passes_what_fits_and_ignores_by_pattern(directory):
  Weights(directory).check({"a": (2, 3), "b": (4,)}, ignored=["c*"])


def test_check_shows_name_expected_and_found(directory):
  with pytest.raises(WeightsError) as caught:
    Weights(directory).check({"a": (3, 2), "c": (3,), "d": (5, 1)})
  head, *table = str(caught.value).splitlines()
  assert str(directory) in head
  assert "4 tensors differ" in head
  cells = [[cell.strip() for cell in line.split("  ") if cell] for line in table]
  assert cells == [
    ["name", "expected", "found"],
    ["a", "float [3, 2]", "F32 [2, 3]"],
    ["c", "float [3]", "I64 [3]"],
    ["d", "float [5, 1]", "missing"],
    ["b", "no such tensor", "F16 [4]"],
  ]


def test_check_shows_the_first_rows_only(directory):
  with pytest.raises(WeightsError, match=r"and 33 more$"):
    Weights(directory).check({f"missing {n}": (1,) for n in range(40)})


def test_no_proper_prefix_of_a_file_is_read(directory):
  file = directory / "model.safetensors"
  content = file.read_bytes()
  for size in (0, 1, 7, 8, 9, 60, len(content) // 2, len(content) - 1):
    file.write_bytes(content[:size])
    with pytest.raises(WeightsError, match=r"model\.safetensors is truncated or no safetensors"):
      Weights(directory)


def test_mutated_files_are_read_or_refused(directory):
  random = np.random.default_rng(0)
  file = directory / "model.safetensors"
  content = np.frombuffer(file.read_bytes(), np.uint8)
  refused = 0
  for _ in range(300):
    mutated = content.copy()
    places = random.integers(0, len(content), random.integers(1, 4))
    mutated[places] = random.integers(0, 256, len(places))
    file.write_bytes(mutated.tobytes())
    try:
      weights = Weights(directory)
      weights.check({"a": (2, 3), "b": (4,)}, ignored=["c"])
      weights.read("a")
    except WeightsError:
      refused += 1
  assert 0 < refused < 300


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_pickles_are_refused_unread_with_what_to_do(tmp_path, name):
  (tmp_path / name).write_bytes(pickle.dumps(Trap()))
  with pytest.raises(WeightsError, match=r"safe_serialization=True") as caught:
    Weights(tmp_path)
  assert name in str(caught.value)
  assert "\n" not in str(caught.value)


class Trap:
  def __reduce__(self):
    return pytest.fail, ("unpickled",)


def test_a_directory_without_weights(tmp_path):
  for directory in (tmp_path, tmp_path / "absent"):
    with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
      Weights(directory)


def write_index(directory, places):
  (directory / INDEX).write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
  "shard", ["../part", "/etc/part", "sub/part", "..", ".", "", "C:part", "..\\part", "a\0b"]
)
def test_shards_must_lie_beside_the_index(tmp_path, shard):
  directory = tmp_path / "inside"
  (directory / "sub").mkdir(parents=True)
  save_file(TENSORS, tmp_path / "part")
  save_file(TENSORS, directory / "sub" / "part")
  write_index(directory, dict.fromkeys(TENSORS, shard))
  with pytest.raises(WeightsError, match="must be the name of a file beside the index"):
    Weights(directory)


def test_index_and_shards_must_agree(tmp_path):
  save_file(TENSORS, tmp_path / "part")
  write_index(tmp_path, dict.fromkeys(TENSORS, "part"))
  np.testing.assert_array_equal(Weights(tmp_path).read("a"), TENSORS["a"])
  write_index(tmp_path, dict.fromkeys(TENSORS, "part") | {"d": "other"})
  with pytest.raises(WeightsError, match="shard other is missing"):
    Weights(tmp_path)
  write_index(tmp_path, dict.fromkeys([*TENSORS, "d"], "part"))
  with pytest.raises(WeightsError, match="tensor d of shard part is listed in the index but not"):
    Weights(tmp_path)
  write_index(tmp_path, dict.fromkeys(["a", "b"], "part"))
  with pytest.raises(WeightsError, match="tensor c of shard part is not listed"):
    Weights(tmp_path)


@pytest.mark.parametrize("places", [None, [], {"a": 1}, {"a": None}])
def test_an_index_must_map_names_to_files(tmp_path, places):
  write_index(tmp_path, places)
  with pytest.raises(WeightsError, match="weight_map must map"):
    Weights(tmp_path)


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"{",
    b"\xff\xfe{}",
    b"[" * 200_000,
    b'{"a": ' + b"9" * 5000 + b"}",
    b"[]",
    b" " * 2**24 + b"{}",
  ],
  ids=["empty", "open", "not utf-8", "deep", "digits", "list", "large"],
)
def test_bad_json_is_refused_by_name(tmp_path, content):
  file = tmp_path / "config.json"
  file.write_bytes(content)
  with pytest.raises(WeightsError, match=r"config\.json") as caught:
    read_json(file)
  assert "\n" not in str(caught.value)


def test_json_is_read_or_missing(tmp_path):
  file = tmp_path / "config.json"
  with pytest.raises(WeightsError, match=r"config\.json does not exist"):
    read_json(file)
  file.write_text('{"a": [1, 2.5, "b"]}')
  assert read_json(file) == {"a": [1, 2.5, "b"]}
