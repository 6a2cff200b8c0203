"""A model that lies on a mesh says what it says on one device, and nobody ever has all of it."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from letter_models import CONFIG, make_model, random_prompts

from diffjax import sharding
from diffjax.config import ComputeConfig, MeshConfig
from diffjax.sampling import Sampler, programs
from diffjax.training import validation
from diffjax.types import UserError

WIDE = dataclasses.replace(CONFIG, heads=8)  # as many as the longest axis splits
CUBE = MeshConfig(data=2, fsdp=2, tensor=2)
MESHES = {
  "tensor8": MeshConfig(data=1, tensor=8),
  "fsdp8": MeshConfig(data=1, fsdp=8),
  "cube": CUBE,
  "sequence": MeshConfig(data=1, fsdp=2, tensor=2, sequence=2),
}
LENGTHS = [1 + n % 8 for n in range(8)]
# By what the projection and the loop are asked for.
KINDS = {
  "argmax": {},
  "sampled": {"strategy": "ancestral-linear", "temperature": 1.0},
  "truncated": {"strategy": "entropy", "temperature": 0.8, "top_p": 0.9, "top_k": 20},
  "margin": {"strategy": "margin-stochastic0.5"},
  "guided": {"strategy": "threshold0.5", "guidance": 0.7},
}
# Contracts whose decoding keeps a cache, cuts rows at their ends, or writes block after block.
CONTRACTS = {
  "prefix": {"attention": "prefix"},
  "blocks": {"attention": "blocks", "block_size": 4, "end": "predicted"},
  "causal": {"attention": "causal", "output_shift": 1, "end": "predicted"},
}


def on_mesh(model, config, dtype=None):
  """The model with its parameters on a mesh."""
  layout = sharding.shardings(model.params, sharding.make_mesh(config))
  params = model.params if dtype is None else jax.tree.map(lambda x: x.astype(dtype), model.params)
  return dataclasses.replace(model, params=jax.device_put(params, layout))


@pytest.fixture(scope="module")
def model():
  return make_model(config=WIDE)


@functools.cache
def answers_of_one_device(contract, kind):
  model = make_model(config=WIDE, **CONTRACTS.get(contract, {}))
  return ask(model, kind)


def ask(model, kind):
  options = {"num_steps": 4, "lengths": LENGTHS, "return_trace": kind == "sampled"} | KINDS[kind]
  return Sampler(model).generate(random_prompts(8), batch_size=8, **options)


def check(found, wanted):
  assert len({answer.text for answer in wanted}) > 3
  for one, other in zip(found, wanted, strict=True):
    assert one.ids == other.ids
    assert one.network_calls == other.network_calls
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    if other.trace:
      assert [(s.ids, s.masked) for s in one.trace] == [(s.ids, s.masked) for s in other.trace]


def test_answers_are_those_of_one_device(model):
  check(ask(on_mesh(model, CUBE), "truncated"), answers_of_one_device("full", "truncated"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mesh", MESHES)
def test_all_kinds_of_answers_are_those_of_one_device(model, mesh, kind):
  check(ask(on_mesh(model, MESHES[mesh]), kind), answers_of_one_device("full", kind))


@pytest.mark.slow
@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("mesh", MESHES)
def test_cached_answers_are_those_of_one_device(mesh, contract):
  model = on_mesh(make_model(config=WIDE, **CONTRACTS[contract]), MESHES[mesh])
  for kind in ("argmax", "guided"):
    check(ask(model, kind), answers_of_one_device(contract, kind))


@pytest.mark.parametrize(
  "mesh", [pytest.param(name, marks=() if name == "cube" else pytest.mark.slow) for name in MESHES]
)
def test_scores_are_those_of_one_device(model, mesh):
  prompts, targets = random_prompts(3), random_prompts(3, seed=1)
  score = lambda model: Sampler(model).score_many(prompts, targets, samples=6, batch_size=8)
  for found, wanted in zip(score(on_mesh(model, MESHES[mesh])), score(model), strict=True):
    assert found.log_likelihood == pytest.approx(wanted.log_likelihood, rel=1e-4)
    assert found.standard_error == pytest.approx(wanted.standard_error, rel=1e-3)


@pytest.mark.slow
def test_lengths_are_predicted_and_gaps_filled_on_a_mesh():
  model = make_model(config=dataclasses.replace(WIDE, length_classes=6))
  found, wanted = Sampler(on_mesh(model, CUBE)), Sampler(model)
  options = {"num_steps": 4, "batch_size": 8, "length_beam": 2, "strict": True}
  answers = wanted.generate(random_prompts(6), **options)
  assert len({len(answer.ids) for answer in answers}) > 1
  found_ids = [answer.ids for answer in found.generate(random_prompts(6), **options)]
  assert found_ids == [answer.ids for answer in answers]
  fill = lambda sampler: sampler.infill("ab {{2}} cd {{1-3}} ef", num_steps=4, batch_size=8)
  assert fill(found).text == fill(wanted).text


def test_a_stream_over_several_processes_is_refused(model, monkeypatch):
  sampler = Sampler(on_mesh(model, CUBE))
  monkeypatch.setattr(jax.sharding.Mesh, "is_multi_process", True)
  with pytest.raises(UserError, match="return_trace=True"):
    next(sampler.stream("hello", lengths=6))


@pytest.mark.slow
def test_a_stream_shows_the_steps_of_a_mesh(model):
  options = {"lengths": 6, "num_steps": 4, "strategy": "confidence"}
  steps = list(Sampler(on_mesh(model, CUBE)).stream("hello", **options))
  assert [sum(step.masked) for step in steps] == [4, 2, 1, 0]
  assert steps[-1].ids == Sampler(model).generate("hello", **options)[0].ids


@pytest.mark.slow
def test_a_model_in_training_is_decoded_where_it_lies(model):
  fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
  sampler = Sampler(validation._InTraining(**fields | {"params": {}}))
  trained = on_mesh(model, MESHES["sequence"]).params
  prompts = [model.tokenizer.encode(text) for text in random_prompts(8)]
  found = sampler.generate_ids(
    prompts, lengths=LENGTHS, num_steps=4, batch_size=8, params=({}, trained, None)
  )
  check(found, answers_of_one_device("full", "argmax"))


def test_rows_divide_over_the_mesh(model):
  sampler, shapes = Sampler(on_mesh(model, MESHES["sequence"])), []
  for count in (1, 3, 9):
    how = sampler._run(sampler.settings(), batch_size=count)
    shapes += sampler._decoder.plan([5] * count, [3] * count, how)
  assert [shape.rows for _, shape in shapes] == [4, 4, 12]


def decoding(mesh, *, dtype="bfloat16", contract=None, **changes):
  """The decoding program for parameters that are not there, as planning has it."""
  model = make_model(config=WIDE, **(contract or {}))
  how = {"strategy": "entropy", "num_steps": 4, "temperature": 1.0} | changes
  return programs.abstract_decode(
    WIDE, model.contract, ComputeConfig(dtype=dtype), sharding.make_mesh(mesh),
    rows=8, length=40, canvas=16, dtype=dtype, **how,
  )  # fmt: skip


def matrices(text, *sizes):
  """Kinds of the float matrices of two sizes, either way round, that a program's text has."""
  both = {"x".join(map(str, order)) for order in (sizes, sizes[::-1])}
  found = re.findall(r"\b(f32|bf16)\[(\d+),(\d+)\]", text)
  found += [(kind, *size) for *size, kind in re.findall(r"tensor<(\d+)x(\d+)x(f32|bf16)>", text)]
  return {kind for kind, *size in found if "x".join(size) in both}


def test_no_device_ever_has_the_whole_table():
  rows, width = WIDE.table_rows, WIDE.width
  planned = decoding(CUBE, dtype="float32")
  compiled = planned.function.lower(*planned.arguments).compile().as_text()
  assert matrices(compiled, rows // 4, width)  # a shard of it
  assert not matrices(compiled, rows, width)
  # Nor the logits of more positions than its share of them.
  counts = re.findall(rf"f32\[(?:{rows},(\d+)|(\d+),{rows})\]", compiled)
  assert all(int(one or other) <= 8 * 16 // 4 for one, other in counts)


def test_a_table_of_bfloat16_is_not_copied_wider():
  planned = decoding(CUBE)
  text = planned.function.lower(*planned.arguments).as_text()  # as it is asked of the compiler
  rows, width = WIDE.table_rows, WIDE.width
  assert matrices(text, rows, width) == matrices(text, rows // 4, width) == {"bf16"}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["sequence", "one"])
@pytest.mark.parametrize("contract", ["full", *CONTRACTS])
def test_the_planned_program_is_the_one_that_decodes(mesh, contract):
  meshes = MESHES | {"one": MeshConfig(data=1)}
  devices = jax.devices()[:1] if mesh == "one" else None
  model = make_model(config=WIDE, **CONTRACTS.get(contract, {}))
  planned = programs.abstract_decode(
    WIDE, model.contract, ComputeConfig(), sharding.make_mesh(meshes[mesh], devices),
    rows=8, length=32, canvas=8, strategy="confidence", num_steps=4,
  )  # fmt: skip
  compiled = planned.function.lower(*planned.arguments).compile()
  assert compiled.memory_analysis().argument_size_in_bytes > 0
