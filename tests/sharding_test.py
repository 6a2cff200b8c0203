"""The mesh and the table of shardings."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from diffjax import sharding
from diffjax.config import LoraConfig, MeshConfig, ModelConfig, OptimizerConfig
from diffjax.models import lora, transformer
from diffjax.models.architectures import PRESETS
from diffjax.training import optimizer, state
from diffjax.types import UserError


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_every_leaf_of_a_training_state_matches_exactly_one_rule(norm):
  config = ModelConfig(
    vocab_size=60, width=16, layers=2, heads=2, ffn_width=32, max_positions=16, norm=norm
  )
  update = optimizer.make(OptimizerConfig(), steps=10)
  create = lambda params: state.create(params, update, ema=True)
  abstract = jax.eval_shape(create, transformer.shapes(config))
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  placed = sharding.shardings(abstract, mesh)
  assert placed.params["embedding"]["tokens"].spec == P(("fsdp", "tensor"), None)
  assert placed.ema_params["layers"]["ffn"]["up"]["kernel"].spec == P(None, "fsdp", "tensor")
  moments = [s.spec for s in jax.tree.leaves(placed.opt_state)]
  assert moments.count(P(("fsdp", "tensor"), None)) == 2  # both moments of the table lie as it does
  assert placed.step.spec == P()


def placed_with_adapters_and_a_length_head(name):
  """The shardings, and the mesh."""
  config = dataclasses.replace(PRESETS[name], length_classes=511)
  targets = ("query", "key", "value", "output", "up", "gate", "down")
  adapters = LoraConfig(rank=9, targets=tuple(t for t in targets if config.gated or t != "gate"))
  tensor = 2 if config.key_heads % 2 == 0 else 1
  mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8 // tensor, tensor=tensor))
  return sharding.shardings(transformer.shapes(config, adapters), mesh), mesh


@pytest.mark.parametrize("name", ["xlmr-base", "llama3.1-8b"])
def test_adapters_and_a_length_head_move_nothing_else(name):
  placed, mesh = placed_with_adapters_and_a_length_head(name)
  without = dict(lora.split(placed)[0])
  del without["length_head"]
  assert without == sharding.shardings(transformer.shapes(PRESETS[name]), mesh)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_shard_at_full_size_with_adapters_and_a_length_head(name):
  placed, _ = placed_with_adapters_and_a_length_head(name)
  query = placed["layers"]["attention"]["query"]
  assert query["lora_a"].spec == P(None, "fsdp", None)
  assert query["lora_b"].spec == P(None, None, "tensor", None)
  assert query["kernel"].spec == P(None, "fsdp", "tensor", None)


def test_unknown_and_uneven_parameters_are_refused_by_name():
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=1, tensor=4))
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  with pytest.raises(UserError, match="head/extra"):
    sharding.shardings({"head": {"extra": shape(4)}}, mesh)
  with pytest.raises(
    UserError, match=r"mesh.fsdp x tensor = 4 does not divide vocabulary 6 of head/bias"
  ):
    sharding.shardings({"head": {"bias": shape(6)}}, mesh)


def test_a_mesh_that_does_not_cover_the_devices_is_refused():
  with pytest.raises(UserError, match="needs 3 devices, there are 8"):
    sharding.make_mesh(MeshConfig(data=3))
  assert dict(sharding.make_mesh(MeshConfig(data=-1, tensor=2)).shape) == {
    "data": 4, "fsdp": 1, "tensor": 2, "sequence": 1,
  }  # fmt: skip


def test_rows_must_divide_over_the_mesh():
  mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=2))
  sharding.check_rows(16, mesh, "a batch")
  with pytest.raises(UserError, match=r"a batch = 12 rows .* nearest are \[8, 16\]"):
    sharding.check_rows(12, mesh, "a batch")
