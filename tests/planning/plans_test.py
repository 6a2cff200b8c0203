"""Plans by formula, what a compiler answers, and how floors become a step."""

import dataclasses

import pytest
from toy_experiment import subject

from diffjax import arithmetic
from diffjax.planning import compilation, plan, sampling, topologies
from diffjax.planning.compilation import Compiled, Memory
from diffjax.planning.costs import Collective, Costs, Loop
from diffjax.types import UserError

GPUS, TPUS = topologies.parse("h100:8"), topologies.parse("v5e-8")
GIB = 2**30


def compiled(needed: float = GIB, **changes) -> Compiled:
  collectives = (Collective("all-gather", 8, 1, 4.0, 1e9, "models/layers.py:1"),)
  loops = (Loop("layers", 3, True), Loop("vocabulary", 2.0, False))
  found = Compiled(
    memory=Memory(arguments=needed / 4, temporaries=3 * needed / 4, returned=0.0),
    needed=needed,
    costs=Costs(1e12, 1e9, (), collectives, loops),
    buffers=(),
    seconds=1.0,
  )
  return found._replace(**changes)


@pytest.fixture
def compiler(monkeypatch):
  """A compiler that needs a GiB, and one more for every 64 rows; says what it was asked for."""
  asked = []

  def answer(request, **_):
    rows = request.config["data"]["batch_size"]
    asked.append(rows)
    needed = GIB * (1 + rows / 64)
    return compiled(needed) if needed < 15.75 * GIB else compiled(needed, memory=None, costs=None)

  monkeypatch.setattr(compilation, "is_available", lambda: True)
  monkeypatch.setattr(compilation, "compile_ahead", answer)
  return asked


def test_gpus_are_planned_by_formula(monkeypatch):
  monkeypatch.setattr(compilation, "is_available", lambda: True)
  made = plan.plan_training(subject(), GPUS)
  assert not made.compiled
  assert made.fits
  assert made.needed == sum(made.memory.values())
  assert made.floors.network == 0 < made.floors.interconnect
  assert 0 < made.mfu <= 1


def test_without_libtpu_the_formula_stays_and_says_so(monkeypatch):
  monkeypatch.setattr(compilation, "is_available", lambda: False)
  made = plan.plan_training(subject(), TPUS)
  assert not made.compiled
  assert "libtpu is not installed" in made.remark


def test_a_compiler_replaces_the_estimates(compiler):
  made = plan.plan_training(subject(), TPUS)
  assert made.compiled
  assert compiler == [32]
  assert made.needed == GIB * 1.5
  assert sum(made.memory.values()) == pytest.approx(made.needed)
  assert made.flops == 1e12
  assert [loop.name for loop in made.loops] == ["vocabulary"]
  assert made.floors.bound == "interconnect"


def test_a_refusal_says_by_how_much_and_knows_no_time(compiler):
  made = plan.plan_training(subject(data=dict(
    tokenizer="none", train=dict(kind="generator", limit=8), max_length=16, batch_size=2048
  )), TPUS)  # fmt: skip
  assert not made.fits
  assert made.needed > made.available
  assert (made.floors, made.mfu) == (None, 0)
  assert made.as_json()["fits"] is False


def test_the_largest_batch_by_formula_is_the_last_that_fits(monkeypatch):
  monkeypatch.setattr(compilation, "is_available", lambda: False)
  small = dict(hbm=0.01)
  made = plan.plan_training(subject(), TPUS, largest_batch=True, **small)
  rows = made.largest_rows
  assert rows > 32
  assert made.largest_by == "by formula"
  fits = lambda rows: plan.plan_training(plan.experiment.with_rows(subject(), rows), TPUS, **small)
  assert fits(rows).fits
  assert not fits(rows + 8).fits


def test_the_largest_batch_is_confirmed_by_the_compiler(compiler):
  made = plan.plan_training(subject(), TPUS, largest_batch=True)
  assert made.largest_rows in compiler
  # 15.68 GiB hold 939 rows, by eights.
  assert made.largest_rows == 936
  assert len(compiler) <= 4


def test_no_more_memory_than_the_user_says():
  assert plan.available_bytes(TPUS, 8.0) == pytest.approx(plan.available_bytes(TPUS, 0.0) / 2)
  two = topologies.parse("tpu7x:2x2x1")  # two devices a chip
  assert plan.available_bytes(two, 0.0) < 100 * GIB


@pytest.mark.parametrize(
  ("chip", "shown"), [("a100", 79.14), ("h100", 79.10), ("h200", 139.72), ("b200", 178.35)]
)
def test_no_more_memory_of_a_gpu_than_its_pool(chip, shown):
  available = plan.available_bytes(topologies.parse(f"{chip}:8"), 0.0)
  assert 0.9 < available / (shown * GIB) <= 0.92  # CUDA shows less than nvidia-smi


def test_a_step_takes_as_long_as_its_longest_part():
  gather = Collective("all-gather", 16, 2, 1.0, 15e6, "")
  one = plan.floors(TPUS, flops=197e12, hbm_bytes=0, collectives=())
  assert (one.step, one.bound) == (1, "arithmetic")
  two_slices = topologies.parse("2*v5e:2x4")
  found = plan.floors(two_slices, flops=0, hbm_bytes=819e9 / 2, collectives=(gather,))
  assert found.bound == "hbm"
  # A slice lacks half of what is gathered, and eight chips bring it in.
  assert found.network == pytest.approx(15e6 / 8 / two_slices.chip.network_bandwidth)
  assert found.interconnect == pytest.approx(15e6 / two_slices.link_bandwidth)


def test_hosts_of_gpus_are_crossed_by_the_outer_axes():
  planned = subject(mesh=dict(data=2, fsdp=8))
  made = plan.plan_training(planned, topologies.parse("h100:2x8"))
  reached = {part.group: part.slices for part in made.collectives}
  assert reached == {8: 1, 2: 2}
  assert made.floors.network > 0


def test_what_does_not_divide_is_refused():
  with pytest.raises(UserError, match="must divide over data x fsdp = 64 devices"):
    plan.plan_training(subject(mesh=dict(data=-1, fsdp=1)), topologies.parse("v5p-128"))


DECODING = sampling.Decoding(
  rows=8, length=16, canvas=8, strategy="reparam-uncond-deterministic-cosine", num_steps=4,
  temperature=0.0, dtype="bfloat16",
)  # fmt: skip


def test_a_sampler_by_formula():
  made = plan.plan_decoding(subject(), GPUS, DECODING)
  assert made.fits
  twice = plan.plan_decoding(subject(), GPUS, DECODING._replace(num_steps=8))
  assert twice.model_flops == 2 * made.model_flops
  wide = plan.plan_decoding(subject(), GPUS, DECODING._replace(dtype="float32"))
  assert wide.memory["parameters"] == 2 * made.memory["parameters"]
  # All of the model passes through the one host.
  assert sum(made.host.values()) > 8 * made.memory["parameters"]
  with pytest.raises(UserError, match="rows"):
    plan.plan_decoding(subject(), GPUS, DECODING._replace(rows=4))


def test_a_sampler_gathers_what_is_split_every_step():
  split, whole = (
    plan.plan_decoding(subject(mesh=axes), GPUS, DECODING)
    for axes in (dict(data=1, fsdp=8), dict(data=8, fsdp=1))
  )
  weights = 2 * arithmetic.trunk_weights(subject().model.config)
  assert not whole.collectives
  assert whole.floors.interconnect == 0 < split.floors.interconnect
  gathered = max(part.bytes for part in split.collectives if part.kind == "all-gather")
  assert gathered >= DECODING.num_steps * weights * 7 / 8
  # What is gathered is written and read; what was there all the time is read.
  assert split.hbm_bytes > DECODING.num_steps * 2 * weights
  assert whole.hbm_bytes > DECODING.num_steps * weights
  sampled = plan.plan_decoding(
    subject(mesh=dict(data=1, fsdp=8)), GPUS, DECODING._replace(temperature=1.0)
  )
  assert sampled.floors.interconnect > split.floors.interconnect


MESSAGE = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory \
space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.

Total hbm usage >= 20.76G:
    reserved        258.00M
    program          10.20G
    arguments        10.30G

  Largest program allocations in hbm:

  1. Size: 2.00G
     Operator: op_name="jit(train_step)/dot_general" source_file="/a/diffjax/models/layers.py" \
source_line=120
     Shape: bf16[8,512,1024]{2,1,0:T(8,128)(2,1)}
     ==========================

  2. Size: 512.5M
     Operator: op_name="jit(train_step)/while/body/add"
     Shape: f32[1024]{0:T(1024)}
"""


def test_a_refusal_is_read():
  found = compilation.refusal(MESSAGE, seconds=3.0)
  assert found.memory is None
  assert found.needed == 20.5 * GIB
  first, second = found.buffers
  assert (first.bytes, first.shape) == (2 * GIB, "bf16[8,512,1024]")
  assert (first.source, second.source) == ("models/layers.py:120", "add")
  short = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
  short += "temporaries (20.11G) exceeds available HBM (15.75G)."
  assert compilation.refusal(short, seconds=0).needed == 20.11 * GIB
  assert compilation.refusal("RESOURCE_EXHAUSTED: what?", seconds=0).needed == 0


def test_a_plan_is_plain_values(compiler):
  values = plan.plan_training(subject(), TPUS).as_json()
  assert values["collectives"][0]["kind"] == "all-gather"
  assert values["floors"]["step"] == values["floors"]["interconnect"]
  assert set(dataclasses.asdict(plan.plan_training(subject(), TPUS))) <= set(values)


def test_a_refusal_of_unknown_size_is_searched_around(compiler, monkeypatch):
  answer = compilation.compile_ahead

  def silent(request, **options):
    found = answer(request, **options)
    return found if found.memory else found._replace(needed=0.0)

  monkeypatch.setattr(compilation, "compile_ahead", silent)
  data = dict(tokenizer="none", train=dict(kind="generator", limit=8), max_length=16)
  made = plan.plan_training(subject(data=data | {"batch_size": 1024}), TPUS, largest_batch=True)
  assert not made.fits
  assert 936 >= made.largest_rows >= 936 / 2


@pytest.mark.slow
@pytest.mark.skipif(not compilation.is_available(), reason="needs libtpu")
@pytest.mark.parametrize("shape", ["2x2", "1x1"])
def test_a_real_compiler_agrees_with_the_formula(shape, monkeypatch):
  # Of smaller ones much is in the chip's vector memory.
  rows, split = (32, dict(data=1, fsdp=1)) if shape == "1x1" else (128, dict(data=2, fsdp=2))
  planned = subject(
    model=dict(
      vocab_size=8000, width=256, layers=4, heads=4, ffn_width=1024, max_positions=512, dropout=0.0
    ),
    data=dict(
      tokenizer="none", train=dict(kind="generator", limit=8), max_length=512, batch_size=rows
    ),
    compute=dict(dtype="bfloat16", vocabulary_chunk=256, remat="full"),
    mesh=split,
  )  # fmt: skip
  topology = topologies.parse(f"v5e:{shape}")
  made = plan.plan_training(planned, topology)
  assert made.compiled
  assert any(buffer.source.startswith(("models/", "diffusion/")) for buffer in made.buffers)
  # The kernel is the topology's, not this machine's; on one chip too.
  assert any(line.source.startswith("models/splash.py") for line in made.traffic)
  monkeypatch.setattr(compilation, "is_available", lambda: False)
  guess = plan.plan_training(planned, topology)
  assert guess.needed / 2 < made.needed < 2 * guess.needed
  assert made.model_flops / made.devices < made.flops < 1.5 * guess.flops


@pytest.mark.slow
@pytest.mark.skipif(not compilation.is_available(), reason="needs libtpu")
def test_machine_code_is_made_where_it_is_asked_for():
  planned = subject(mesh=dict(data=2, fsdp=2), compute=dict(remat="full"))
  made = plan.plan_training(planned, topologies.parse("v5e:2x2"), to_the_end=True)
  assert made.compiled
  assert made.fits
