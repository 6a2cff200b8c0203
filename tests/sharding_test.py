"""The mesh and the table of shardings."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from diffjax import sharding
from diffjax.config import ComputeConfig, LoraConfig, MeshConfig, ModelConfig, OptimizerConfig
from diffjax.models import attention, lora, transformer
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
  heads = {"layers": {"attention": {"query": {"bias": shape(2, 6, 64)}}}}
  with pytest.raises(UserError, match=r"tensor = 4 does not divide heads 6 .* tensor = 2$"):
    sharding.shardings(heads, mesh)


@pytest.mark.parametrize(
  ("sizes", "said", "nearest"),
  [
    ((1, 1, 8, 1), "tensor = 8 does not divide heads 12", {"fsdp": 1, "tensor": 4}),
    ((1, 1, 6, 1), "fsdp x tensor = 6 does not divide vocabulary", {"fsdp": 1, "tensor": 2}),
    ((1, 3, 2, 1), "fsdp x tensor = 6 does not divide vocabulary", {"fsdp": 1, "tensor": 2}),
  ],
)
def test_a_mesh_that_is_named_as_the_nearest_is_legal_for_all_parameters(sizes, said, nearest):
  def place(**axes):
    devices = jax.devices()[: np.prod(sizes)]
    return sharding.shardings(shapes, sharding.make_mesh(MeshConfig(data=-1, **axes), devices))

  shapes = transformer.shapes(PRESETS["xlmr-base"])
  _, fsdp, tensor, _ = sizes
  with pytest.raises(UserError, match=said) as error:
    place(fsdp=fsdp, tensor=tensor)
  assert str(error.value).endswith(", ".join(f"{axis} = {n}" for axis, n in nearest.items()))
  place(**nearest)


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


@dataclasses.dataclass(frozen=True)
class FakeDevice:
  """As much of a device as laying out a mesh asks for."""

  id: int
  slice_index: int
  process_index: int = 0
  platform: str = "fake"
  device_kind: str = "fake"


def test_one_device_that_is_not_here_decides_on_the_kernel():
  device = FakeDevice(0, 0, platform="tpu")
  absent = Mesh(np.asarray(device).reshape(1, 1, 1, 1), sharding.AXES)
  ask = functools.partial(attention.chosen, PRESETS["xlmr-base"], ComputeConfig(), length=512)
  assert ask(shards=sharding.shards(absent)) == "splash"
  assert sharding.shards(sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])) is None


@pytest.mark.parametrize(
  ("slices", "config", "crossed"),
  [
    (2, {"data": 2, "fsdp": 4, "tensor": 2}, "data"),
    (2, {"data": 4, "fsdp": -1}, "data"),
    (4, {"data": 1, "fsdp": 8, "tensor": 2}, "fsdp"),
    (4, {"data": 2, "fsdp": 4, "tensor": 2}, "data and fsdp"),
  ],
)
def test_axes_that_talk_much_stay_inside_a_slice(slices, config, crossed):
  devices = [FakeDevice(n, n * slices // 16) for n in range(16)]
  grid = sharding.make_mesh(MeshConfig(**config), devices).devices
  number = np.vectorize(lambda device: device.slice_index)(grid)
  varies = [axis for n, axis in enumerate(sharding.AXES) if (np.ptp(number, axis=n) > 0).any()]
  assert " and ".join(varies) == crossed
  assert len({device.id for device in grid.flat}) == 16


def test_slices_that_no_axis_can_span_are_refused():
  devices = [FakeDevice(n, n // 4) for n in range(8)]
  with pytest.raises(UserError, match=r"2 slices do not divide over data = 1 .* multiple of 2"):
    sharding.make_mesh(MeshConfig(data=1, tensor=8), devices)


def test_adafactors_means_lie_as_the_rows_and_columns_of_their_matrix():
  heads = ("stack", "width", "heads", "whole")
  query, output = "second/layers/attention/query/kernel", "second/layers/attention/output/kernel"
  assert sharding.logical_axes(query, 4) == heads
  assert sharding.logical_axes(f"{query}/rows", 2) == ("stack", "width")
  assert sharding.logical_axes(f"{query}/columns", 3) == ("stack", "heads", "whole")
  assert sharding.logical_axes(f"{output}/rows", 3) == ("stack", "heads", "whole")
  assert sharding.logical_axes(f"{output}/columns", 2) == ("stack", "width")
  assert sharding.logical_axes("embedding/tokens/rows", 1) == ("vocabulary",)
  assert sharding.logical_axes("embedding/tokens/columns", 1) == ("whole",)
  for path, count in ((query, 2), (f"{query}/rows", 4), (f"{query}/other", 2)):
    with pytest.raises(UserError, match="exactly one"):
      sharding.logical_axes(path, count)


def test_what_is_large_and_replicated_over_fsdp_is_named():
  def names(rows: int, **axes) -> list[str]:
    mesh = sharding.make_mesh(MeshConfig(**axes))
    shapes = {"head": {"bias": (256,), "norm": {"scale": (rows,)}}}
    struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    tree = jax.tree.map(struct, shapes, is_leaf=lambda x: isinstance(x, tuple))
    attach = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    placed = jax.tree.map(attach, tree, sharding.shardings(tree, mesh))
    return sharding.replicated_over_fsdp(placed)

  assert names(8, data=2, fsdp=4) == ["head/norm/scale"]  # 3 % of all
  assert names(2, data=2, fsdp=4) == []
  assert names(8, data=8) == []


def golden():
  """The module that writes tests/golden/shardings_*.txt."""
  file = Path(__file__).parent / "golden" / "write_shardings.py"
  spec = importlib.util.spec_from_file_location("write_shardings", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("preset", ["xlmr-base", "xlmr-xl", "xlmr-xxl"])
def test_parameters_and_activations_of_presets_lie_as_written_down(preset):
  """On a change that is meant: python tests/golden/write_shardings.py."""
  written = golden()
  table = written.table(preset)
  assert table == written.path(preset).read_text()
  assert "large and replicated over fsdp: nothing" in table
