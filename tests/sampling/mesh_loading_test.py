"""Models land on a mesh in their shards, from files and from checkpoints."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import sharding
from diffjax.checkpoints import Checkpoints
from diffjax.config import MeshConfig, load_config
from diffjax.conversion import leaves
from diffjax.conversion.adapting import weights_sha256
from diffjax.model import convert, load
from diffjax.models import lora, transformer
from diffjax.sampling import Sampler
from diffjax.training import start
from diffjax.types import UserError

ROOT = Path(__file__).parents[2]
MESH = MeshConfig(data=1, fsdp=2, tensor=4)


@pytest.fixture(scope="module")
def model():
  return load("tiny_mlm")


@pytest.fixture(scope="module")
def native(tmp_path_factory):
  directory = tmp_path_factory.mktemp("model") / "ours"
  convert("tiny_mlm", directory)
  return directory


def write_run(workdir, model, *changes, **items):
  """A run with one checkpoint, written without training."""
  config = load_config(ROOT / "configs/quickstart_instruct.py", ["init_from=tiny_mlm", *changes])
  start.claim(workdir, config, model.tokenizer)
  frozen = None
  if config.lora.rank:
    shipped = ROOT / "diffjax/assets/tiny_mlm"
    sha256 = weights_sha256(shipped)
    frozen = {"path": "tiny_mlm", "resolved": str(shipped), "sha256": sha256}
  values = dataclasses.asdict(config)
  meta = {**model.meta(), "config": values, "lora": values["lora"], "frozen": frozen}
  with Checkpoints(workdir / "checkpoints") as saved:
    saved.save(7, items, meta)
  return config


def check_layout(params, want, *, dtype):
  """Every leaf lies as the table of shardings says, and holds the numbers wanted, rounded."""
  expected = sharding.shardings(want, sharding.make_mesh(MESH))

  def check(leaf, layout, value):
    assert leaf.dtype == dtype
    assert leaf.sharding.is_equivalent_to(layout, leaf.ndim)
    assert len(leaf.sharding.device_set) == 8
    np.testing.assert_array_equal(leaf, np.asarray(value).astype(dtype))

  jax.tree.map(check, params, expected, want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_a_file_land_in_their_shards(model, native, monkeypatch, dtype):
  put, sizes = jax.device_put, []
  monkeypatch.setattr(
    leaves.jax, "device_put", lambda x, *where: (sizes.append(x.size), put(x, *where))[1]
  )
  loaded = load(native, mesh=MESH, dtype=dtype)
  monkeypatch.undo()
  check_layout(loaded.params, model.params, dtype=jnp.dtype(dtype))
  table = model.params["embedding"]["tokens"]
  assert max(sizes) < table.size // 2  # no device held a whole matrix on the way
  assert loaded.params["embedding"]["tokens"].addressable_shards[0].data.shape == (96, 128)
  assert loaded.compute.dtype == dtype


def test_weights_of_a_run_land_in_their_shards(model, tmp_path):
  write_run(tmp_path / "run", model, params=model.params)
  loaded = load(tmp_path / "run", mesh=MESH, dtype="bfloat16")
  check_layout(loaded.params, model.params, dtype=jnp.bfloat16)


def test_adapters_are_merged_into_shards(model, tmp_path):
  changes = ["lora.rank=2", "lora.frozen_dtype=bfloat16"]
  config = load_config(ROOT / "configs/quickstart_instruct.py", ["init_from=tiny_mlm", *changes])
  adapters = lora.split(transformer.shapes(model.config, config.lora))[1]
  trained = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), adapters)
  write_run(tmp_path / "run", model, *changes, params=trained)
  loaded = load(tmp_path / "run", mesh=MESH)
  check_layout(loaded.params, load(tmp_path / "run").params, dtype=jnp.float32)


def test_a_mesh_that_does_not_fit_is_refused():
  with pytest.raises(UserError, match="tensor = 8 does not divide heads 4"):
    Sampler.load("tiny_mlm", mesh=MeshConfig(tensor=8))
  with pytest.raises(UserError, match="needs 4 devices, there are 8"):
    Sampler.load("tiny_mlm", mesh=MeshConfig(data=1, tensor=4))


def test_bfloat16_takes_half_the_bytes(model):
  held = load("tiny_mlm", dtype="bfloat16")
  size = lambda params: sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert size(held.params) * 2 == size(model.params)
  assert held.compute.dtype == "bfloat16"
