"""One run on many meshes: the same noise, losses and gradients, and little is gathered."""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffjax.config import ExperimentConfig
from diffjax.training import programs
from diffjax.types import Batch, UserError

ROOT = Path(__file__).parents[2]


@functools.cache
def bench():
  """benchmarks/mesh_equality.py, which trains a small network on any mesh."""
  file = ROOT / "benchmarks" / "mesh_equality.py"
  spec = importlib.util.spec_from_file_location("mesh_equality", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@functools.cache
def alone():
  return bench().train(smallest(), bench().make_mesh("1x1x1x1"), steps=2)[0]


def too_far(run, reference) -> dict[str, float]:
  return bench().too_far(bench().differences(run, reference))


def smallest(**sections) -> ExperimentConfig:
  return bench().make_config(layers=1, **sections)


def lower(config: ExperimentConfig, mesh):
  """The training step, compiled for a mesh whose devices need not be there."""
  program = programs.build(config, bench().model_of(config), None, mesh)
  attach = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=program.rows)
  batch = jax.tree.map(attach, bench().make_batch(0))
  return program.train_step.lower(program.state, program.frozen, Batch(*batch)), program


def test_losses_gradients_and_noise_do_not_depend_on_the_mesh():
  mesh = bench().make_mesh("1x2x2x2")  # training/step_test.py has others
  first, second = bench().train(smallest(), mesh, steps=2, runs=2)
  assert bench().are_equal(first, second)
  assert not too_far(first, alone())
  one = bench().noise(smallest(), bench().make_mesh("1x1x1x1"))
  assert bench().are_equal(bench().noise(smallest(), mesh), one)
  assert len(set(first.losses)) == 2


@pytest.mark.slow
def test_ten_steps_are_equal_on_every_mesh():
  config = bench().make_config()
  for row in bench().compare(config, bench().MESHES, steps=10):
    assert not bench().too_far(row["differences"]), row
    assert row["rerun_equal"], row
    assert row["noise_equal"], row


@pytest.mark.slow
def test_in_half_precision_losses_stay_near():
  config = bench().make_config(compute={"dtype": "bfloat16", "vocabulary_chunk": 16})
  (row,) = bench().compare(config, ["1x2x2x2"], steps=10)
  assert row["differences"]["loss"] > 0
  assert not bench().too_far(row["differences"], "bfloat16"), row


@pytest.mark.parametrize("leaf", ["['head']['bias']", "['layers']['ffn']['up']['kernel']"])
def test_a_gradient_that_is_wrong_by_a_factor_is_seen(leaf):
  """Losses of Adam's steps hardly show it."""
  right = alone()
  wrong = {path: x * (1 + (path == leaf)) for path, x in right.gradients.items()}
  assert list(bench().too_far(bench().differences(right._replace(gradients=wrong), right))) == [
    "gradients"
  ]


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "save_matmuls", "offload"])
def test_rematerialisation_and_microbatches_change_no_loss_on_a_mesh(remat):
  config = smallest(compute={"vocabulary_chunk": 16, "remat": remat}, training={"microbatches": 2})
  run = bench().train(config, bench().make_mesh("2x2x2x1"), steps=2)[0]
  assert not too_far(run, alone())


@pytest.mark.slow
def test_factored_moments_on_a_mesh_are_those_of_one_device():
  model = {
    "vocab_size": 500, "width": 128, "layers": 2, "heads": 4, "ffn_width": 256,
    "max_positions": 32, "norm": "pre",
  }  # fmt: skip
  config = smallest(model=model, optimizer={"name": "adafactor", "learning_rate": 1e-3})
  one, eight = (
    bench().train(config, bench().make_mesh(name), steps=4)[0] for name in ("1x1x1x1", "2x2x2x1")
  )
  # No softmax feels it: its gradients are rounding, which these steps blow up to full size.
  unfelt = "['layers']['attention']['key']['bias']"
  felt = lambda run: run._replace(parameters={**run.parameters, unfelt: np.zeros(())})
  assert not too_far(felt(eight), felt(one))


def gathers(compiled: str) -> list[tuple[str, tuple[int, ...]]]:
  """(dtype, shape) of what all-gathers of a compiled program make."""
  found = re.findall(r"= \(?(\w+)\[([\d,]*)\][^=]* all-gather(?:-start)?\(", compiled)
  return [(kind, tuple(int(n) for n in sizes.split(",") if n)) for kind, sizes in found]


def largest_layer(program: programs.Program) -> int:
  """Numbers of the largest matrix of one layer."""
  return max(leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(program.state.params["layers"]))


@pytest.mark.slow
def test_no_stack_of_layers_and_no_table_is_gathered_whole():
  config = bench().make_config(layers=6, compute={"remat": "full", "vocabulary_chunk": 16})
  lowered, program = lower(config, bench().make_mesh("1x8x1x1"))
  shapes = {shape for _, shape in gathers(lowered.compile().as_text())}
  params = program.state.params
  stacks = {leaf.shape for leaf in jax.tree.leaves(params["layers"]) if leaf.size > 1000}
  assert not shapes & (stacks | {params["embedding"]["tokens"].shape})
  assert {stack[1:] for stack in stacks} <= shapes  # or this test does not see gathers


def test_a_kernel_that_cannot_is_refused_before_anything_is_traced():
  model = {"vocab_size": 500, "width": 32, "layers": 1, "heads": 4, "ffn_width": 32}
  config = smallest(
    model={**model, "max_positions": 32, "attention_dropout": 0.1},
    compute={"attention": "splash", "vocabulary_chunk": 16},
  )
  with pytest.raises(UserError, match=r"'splash' drops no attention probabilities"):
    programs.build(config, bench().model_of(config), None, bench().make_mesh("1x1x1x1"))


def test_a_length_that_the_sequence_axis_does_not_divide_is_refused():
  data = {
    "tokenizer": "none", "train": {"kind": "text", "path": "none"}, "max_length": 31,
    "batch_size": 16,
  }  # fmt: skip
  with pytest.raises(UserError, match=r"sequence = 2 does not divide rows of 31"):
    lower(smallest(data=data), bench().make_mesh("1x1x1x2"))


ON_TPU = """
import re, sys
sys.path.insert(0, {tests!r})
import meshes_test as tests
from jax.experimental import topologies
from diffjax import sharding
from diffjax.config import MeshConfig

bench = tests.bench()
model = dict(
  vocab_size=4000, width=256, layers=4, heads=8, ffn_width=1024, max_positions=32, dropout=0.1
)
config = bench.make_config(
  model=model, compute=dict(dtype="bfloat16", remat="offload", vocabulary_chunk=16)
)
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
lowered, program = tests.lower(config, sharding.make_mesh(MeshConfig(data=1, fsdp=8), devices))
compiled = lowered.compile()
layer = tests.largest_layer(program)
for kind, shape in tests.gathers(compiled.as_text()):
  print("gather", kind, *shape)
print("host", compiled.memory_analysis().host_temp_size_in_bytes)
two = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2).devices
mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), two)
print("slices", *sorted({{(n, d.slice_index) for n in (0, 1) for d in mesh.devices[n].flat}}))
"""


@pytest.mark.slow
def test_on_tpus_weights_move_as_bfloat16_layer_by_layer_and_inputs_wait_on_the_host():
  pytest.importorskip("libtpu")
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }  # fmt: skip
  script = ON_TPU.format(tests=str(Path(__file__).parent))
  ran = subprocess.run(
    [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=500
  )
  assert ran.returncode == 0, ran.stderr[-2000:]
  lines = [line.split() for line in ran.stdout.splitlines()]
  matrices = [line[1:] for line in lines if line[0] == "gather" and len(line) > 3]
  large = [kind for kind, *shape in matrices if np.prod([int(n) for n in shape]) >= 256 * 256]
  assert set(large) == {"bf16"}
  assert all(np.prod([int(n) for n in shape]) <= 256 * 1024 for _, *shape in matrices)
  # Layers x rows of a device, with their twins, x positions x width, two bytes each.
  assert ["host", str(4 * (2 * 16 // 8) * 32 * 256 * 2)] in lines
  assert ["slices", "(0,", "0)", "(1,", "1)"] in lines
