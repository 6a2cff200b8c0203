"""Formulas against a compiled program of the same step, and against one another."""

import functools

import pytest
from toy_experiment import subject

from diffjax import sharding
from diffjax.planning import costs, estimates, experiment, hlo, sampling, topologies

EIGHT = topologies.parse("v5e-8")


@functools.cache
def compiled_toy():
  """The toy step on eight devices."""
  # Without noise, whose random bits are most of what there is to compile.
  plain = dict(process="next_token", attention="causal", coupled=False, weight="constant")
  planned = subject(mesh=dict(data=2, fsdp=4), compute=dict(remat="full"), diffusion=plain)
  mesh = sharding.make_mesh(planned.config.mesh)
  program, inputs = estimates.abstract(planned, mesh)
  compiled = program.train_step.lower(program.state, program.frozen, inputs).compile()
  return planned, mesh, program, inputs, compiled


def test_the_state_is_what_the_program_takes():
  _, _, program, inputs, compiled = compiled_toy()
  state = estimates.state_bytes(program, inputs)
  taken = compiled.memory_analysis().argument_size_in_bytes
  assert state.total == pytest.approx(taken, abs=64)  # the step's number is a scalar besides


def test_abstract_devices_give_the_same_state():
  planned, _, program, inputs, _ = compiled_toy()
  far = estimates.abstract(planned, experiment.absent_mesh(planned.config, EIGHT))
  assert estimates.state_bytes(*far) == estimates.state_bytes(program, inputs)


def test_flops_are_those_of_the_compiled_loops():
  planned, mesh, program, _, compiled = compiled_toy()
  visits = estimates.visits(planned, mesh)
  found = costs.count(
    hlo.Module(compiled.as_text()), unknown_trips=lambda name: visits, slices=[0] * mesh.size
  )
  estimated = estimates.work(planned, program, mesh).flops
  assert found.flops == pytest.approx(estimated, rel=0.15)
  assert [loop for loop in found.loops if not loop.is_known], "the vocabulary's"
  trips = {loop.trips for loop in found.loops if loop.is_known}
  assert planned.model.config.layers in trips


def test_sources_are_lines_of_the_package():
  *_, compiled = compiled_toy()
  found = costs.count(hlo.Module(compiled.as_text()), slices=[0] * 8)
  lines = [line.source for line in found.traffic]
  assert any(line.startswith("models/layers.py:") for line in lines), lines


def temporaries(**sections):
  planned = subject(**sections)
  mesh = experiment.absent_mesh(planned.config, EIGHT)
  return estimates.temporary_bytes(planned, estimates.abstract(planned, mesh)[0], mesh)


def test_policies_keep_less_and_less():
  kept = [
    temporaries(compute=dict(remat=remat)).activations
    for remat in ("none", "save_matmuls", "full", "offload")
  ]
  assert kept == sorted(kept, reverse=True)
  assert kept[-2] > kept[-1] == 0


def test_microbatches_halve_activations_and_double_gradients():
  one, two = temporaries(), temporaries(training=dict(steps=10, microbatches=2))
  assert two.activations == one.activations / 2
  assert two.gradients == 2 * one.gradients


def test_what_is_split_is_counted_once():
  whole, split = temporaries(mesh=dict(data=-1, fsdp=1)), temporaries()
  assert split.gradients < whole.gradients / 4
  assert split.activations == whole.activations


def test_collectives_follow_the_mesh():
  kinds = {}
  for name, axes in {
    "data": dict(data=8, fsdp=1), "fsdp": dict(data=1, fsdp=8),
    "tensor": dict(data=1, fsdp=2, tensor=4),
  }.items():  # fmt: skip
    planned = subject(mesh=axes)
    mesh = experiment.absent_mesh(planned.config, EIGHT)
    program, _ = estimates.abstract(planned, mesh)
    found = estimates.work(planned, program, mesh).collectives
    kinds[name] = {(part.kind, part.group) for part in found}
  assert kinds["data"] == {("all-reduce", 8)}  # of gradients
  assert {("all-gather", 8), ("reduce-scatter", 8)} <= kinds["fsdp"]
  assert ("all-reduce", 4) in kinds["tensor"]


def test_a_host_holds_its_devices_state_while_it_saves():
  planned = subject()
  mesh = experiment.absent_mesh(planned.config, EIGHT)
  program, _ = estimates.abstract(planned, mesh)
  host = estimates.host_bytes(planned, program, mesh, devices=4, hosts=2)
  assert host.checkpoint == 4 * estimates.tree_bytes(program.state)
  assert estimates.checkpoint_bytes(program) <= 8 * estimates.tree_bytes(program.state)
  assert host.offloaded == 0


def test_a_sampler_holds_its_parameters_in_their_shards():
  planned = subject()
  mesh = experiment.absent_mesh(planned.config, EIGHT)
  wide, narrow = (
    estimates.tree_bytes(sampling.parameter_shapes(planned, mesh, dtype))
    for dtype in ("float32", "bfloat16")
  )
  assert wide == 2 * narrow
  program, _ = estimates.abstract(planned, mesh)
  assert wide == estimates.tree_bytes(program.state.params)
