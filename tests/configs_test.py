"""Every config builds and shards, and every field of the config changes something."""

import dataclasses
import functools
import json
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from diffjax import model as models
from diffjax import sharding
from diffjax.config import Contract, MeshConfig, config_from_dict, flatten, load_config
from diffjax.data import features, pipeline, plan, sources
from diffjax.models import architectures, lora, transformer
from diffjax.training import adaptation, length, optimizer, programs, start, state, step
from diffjax.types import Batch

CONFIGS = Path(__file__).parents[1] / "configs"
SIZES = ("base", "large", "xl", "xxl")
GENERALISTS = ("instruct_flan2021", "instruct_flan2022")
# Every row of the paper's Tables 5 and 6: its second stage is called `-length`.
PAPER = [f"{task}.py:{size}" for task in ("iwslt14", "wmt14", *GENERALISTS) for size in SIZES]
PAPER += [f"gigaword.py:{data}-{size}" for data in ("10k", "full") for size in SIZES]
VARIANTS = [
  "pretrain_tiny_mlm.py", "quickstart_instruct.py", "adapt_roberta.py:base",
  "adapt_roberta.py:large", "adapt_modernbert.py:base", "adapt_modernbert.py:large",
  "adapt_gpt2.py:small", "adapt_gpt2.py:medium", "adapt_llama3.py:full", "adapt_llama3.py:lora",
  "length_head.py:quickstart", "length_head.py:multi30k",
  "decoding_benchmark.py:8000-full", "decoding_benchmark.py:64000-prefix",
  "instruct_held_out.py:2", "instruct_held_out.py:12", "scaling.py:medium-adapted-diffusion",
  "scaling.py:base-pretraining-diffusion", "scaling.py:small-pretraining-autoregressive",
  *PAPER, *(f"{name}-length" for name in PAPER),
]  # fmt: skip
# What is trained, and its autoregressive control.
CONTROLLED = {
  f"{task}.py:{name}": f"{task}.py:{control}"
  for task, name, control in (
    ("multi30k_de_en", "small", "small-autoregressive"),
    ("multi30k_de_en", "base", "base-autoregressive"),
    ("iwslt14", "tiny", "tiny-autoregressive"),
    ("iwslt14", "scratch", "scratch-autoregressive"),
    ("gsm8k", "diffusion", "autoregressive"),
    ("gsm8k", "base-diffusion", "base-autoregressive"),
    ("path_star", "diffusion", "autoregressive"),
    ("scaling", "tiny-scratch-diffusion", "tiny-scratch-autoregressive"),
  )
}
VARIANTS += [*CONTROLLED, *CONTROLLED.values()]
# The config of the run that a config goes over.
UNDER = {
  "length_head.py:quickstart": "quickstart_instruct.py",
  "length_head.py:multi30k": "multi30k_de_en.py:small",
} | {f"{name}-length": name for name in PAPER}
# The architecture that a config finds in its `init_from`, at full size.
ARCHITECTURES = {
  "adapt_roberta.py:base": "roberta-base", "adapt_roberta.py:large": "roberta-large",
  "adapt_modernbert.py:base": "modernbert-base", "adapt_modernbert.py:large": "modernbert-large",
  "adapt_gpt2.py:small": "gpt2", "adapt_gpt2.py:medium": "gpt2-medium",
  "adapt_llama3.py:full": "llama3.1-8b", "adapt_llama3.py:lora": "llama3.1-8b",
} | {name: f"xlmr-{name.replace('-', ':').split(':')[-1]}" for name in PAPER}  # fmt: skip


def architecture_of(name):
  """Of the weights that a config begins with, or makes."""
  under = UNDER.get(name, name)
  if under in ARCHITECTURES:
    found = architectures.preset(ARCHITECTURES[under])
    # A mask of its own may be one row more.
    return dataclasses.replace(found, vocab_size=found.vocab_size + 1)
  return dataclasses.replace(load_config(CONFIGS / under).model, vocab_size=4000)


def test_every_config_file_is_listed():
  assert {name.split(":")[0] for name in VARIANTS} == {f.name for f in CONFIGS.glob("*.py")}


@functools.cache
def check_shardings(architecture, adapters, freezes, settings):
  """Every parameter and every part of the training state has its place on a mesh."""
  model = transformer.shapes(architecture, adapters)
  trained = lora.split(model, length_head=True)[1] if freezes else model
  update = optimizer.make(settings, steps=100)
  create = functools.partial(state.create, optimizer=update, ema=settings.ema_decay > 0)
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  sharding.shardings(jax.eval_shape(create, trained), mesh)
  sharding.shardings(model, mesh)


@pytest.mark.parametrize("name", VARIANTS)
def test_builds_and_shards(name):
  config = load_config(CONFIGS / name)
  architecture = architecture_of(name)
  assert config.data.max_length <= architecture.max_positions
  if name in UNDER:
    assert config.data.train == load_config(CONFIGS / UNDER[name]).data.train
  contract = adaptation.trained_contract(config, CONTRACT)
  model = models.Model(architecture, contract, None, None)
  architecture = length.with_head(config, model).model.config
  optimizer.make(config.optimizer, steps=config.training.steps)
  # The curve of the learning rate has no arrays: what differs in it alone is sharded once.
  curve = dict(learning_rate=1.0, warmup="linear", warmup_steps=0, decay="constant")
  check_shardings(
    architecture, config.lora, start.freezes(config),
    dataclasses.replace(config.optimizer, **curve),
  )  # fmt: skip
  objective = programs.make_objective(config, contract)
  assert objective.num_timesteps == config.diffusion.num_timesteps
  halves = sharding.make_mesh(MeshConfig(data=2, tensor=4))
  for row_length in config.data.lengths:
    rows = config.data.rows(row_length) // config.training.microbatches
    sharding.check_rows(rows, halves, "a microbatch")


@pytest.mark.parametrize("name", [*PAPER, *(f"{name}-length" for name in PAPER)])
def test_rows_divide_over_the_devices_of_its_head(name):
  config, text = load_config(CONFIGS / name), (CONFIGS / name.split(":")[0]).read_text()
  head = " ".join(text[text.index("Hardware:") : text.index("Expected:")].split())
  (size,) = re.findall("base|large|xxl|xl", name.split(":")[1])
  own = re.search(rf"\b{size} (\d+)", head)
  devices = int(own[1] if own else re.search(r"(\d+) GPUs", head)[1])
  assert config.evaluation.batch_size % devices == 0
  for row_length in config.data.lengths:
    assert config.data.rows(row_length) // config.training.microbatches % devices == 0


def stand_in(source, directory, count):
  """The same source over `count` made-up records."""
  if source.kind == "mixture":
    each = -(-count // len(source.parts)) + 4  # shares differ
    parts = [stand_in(part, directory, each) for part in source.parts]
    return dataclasses.replace(source, parts=tuple(parts))
  if source.kind in ("generator", "generator_text", "path_star"):
    return dataclasses.replace(source, limit=min(source.limit, 4 * count))
  inputs, targets = {
    "maths": ("question", "answer"), "summarisation": ("document", "summary"),
  }.get(source.task, ("inputs", "targets"))  # fmt: skip
  end = " #### 7" if source.task == "maths" else ""
  records = [{inputs: f"is it number {n}", targets: f"it is {n}{end}"} for n in range(count)]
  # A pattern fits the file whose stars are nothing; what reads TFDS is tested elsewhere.
  file = directory / source.path.replace("*", "").replace("/", "_").removesuffix(".gz")
  other = directory / source.target_path.replace("/", "_").removesuffix(".gz")
  if source.kind == "pairs":
    file.write_text("".join(f"{record[inputs]}\n" for record in records))
    other.write_text("".join(f"{record[targets]}\n" for record in records))
    return dataclasses.replace(source, path=str(file), target_path=str(other))
  if source.kind == "text":
    file.write_text("".join(f"{record[targets]}\n" for record in records))
    return dataclasses.replace(source, path=str(file))
  file = file.with_suffix(".jsonl")
  file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
  return dataclasses.replace(source, kind="jsonl", path=str(file), data_dir="", split="train")


@functools.cache
def first_batch(data, contract):
  """Of stand-ins for the sources; sizes and stages share most of them."""
  with tempfile.TemporaryDirectory() as directory:
    train = stand_in(data.train, Path(directory), data.rows(data.lengths[0]) + 8)
    [batch] = read_batches(dataclasses.replace(data, train=train), contract, count=1)
  return batch


@pytest.mark.parametrize("name", VARIANTS)
def test_plans_and_reads_one_batch(name):
  config = load_config(CONFIGS / name)
  data = config.data
  batch = first_batch(data, adaptation.trained_contract(config, CONTRACT))
  rows, row_length = batch.tokens.shape
  assert row_length in data.lengths
  assert rows == data.rows(row_length)
  assert batch.canvas.any(axis=1).all()
  assert ((batch.segments > 0) >= batch.canvas).all()


@pytest.mark.parametrize("name", CONTROLLED)
def test_a_control_differs_in_nothing_but_its_process(name):
  ours, control = (load_config(CONFIGS / n) for n in (name, CONTROLLED[name]))
  assert (ours.diffusion.process, control.diffusion.process) == ("absorbing", "next_token")
  assert ours.diffusion.label_smoothing == control.diffusion.label_smoothing
  same = dataclasses.replace(
    control, diffusion=ours.diffusion,
    data=dataclasses.replace(control.data, end_padding=ours.data.end_padding),
  )  # fmt: skip
  assert same == ours


# Tables 5 and 6 of 2308.12219: batch (in tokens, or rows), learning rate, steps of the four sizes.
TABLES = {
  "iwslt14.py:{}": ("tokens", [32] * 4, 5e-5, [150_000, 150_000, 100_000, 30_000]),
  "wmt14.py:{}": ("tokens", [128] * 4, 5e-5, [300_000, 300_000, 150_000, 100_000]),
  "gigaword.py:10k-{}": ("tokens", [16] * 4, 5e-5, [30_000, 10_000, 5000, 1000]),
  "instruct_flan2021.py:{}": ("rows", [512, 512, 512, 256], 5e-5, [5000, 5000, 3000, 1000]),
  "instruct_flan2022.py:{}": ("rows", [512, 512, 1024, 2048], 1e-5, [70_000, 30_000, 17_000, 4000]),
}


@pytest.mark.parametrize("row", TABLES)
def test_the_papers_numbers(row):
  unit, batches, rate, steps = TABLES[row]
  for size, batch, count in zip(SIZES, batches, steps, strict=True):
    config = load_config(CONFIGS / row.format(size))
    assert config.data.batch_unit == unit
    assert config.data.batch_size == batch * (1024 if unit == "tokens" else 1)
    assert (config.optimizer.learning_rate, config.training.steps) == (rate, count)
    assert config.optimizer.warmup_steps == count // 100
    assert config.optimizer.warmup == "logarithmic"
    head = load_config(CONFIGS / (row.format(size) + "-length"))
    assert head.length.alone
    assert (head.data.batch_unit, head.data.batch_size) == ("rows", 256)
    assert head.training.steps == (30_000 if unit == "tokens" else 16_000)


@pytest.mark.parametrize("name", VARIANTS)
def test_header_says_how_to_run_it(name):
  text = (CONFIGS / name.split(":")[0]).read_text()
  assert f"diffjax train --config=configs/{name.split(':')[0]}" in text
  assert "Hardware:" in text
  assert "Expected:" in text


# ---- Every field changes the traced step, the planned batch, or what is measured of a run.

BASE = {
  "model": {"vocab_size": 60, "width": 16, "layers": 1, "heads": 2, "ffn_width": 32},
  "data": {
    "tokenizer": "t",
    "train": {"kind": "generator", "limit": 64},
    "max_length": 40,
    "batch_size": 8,
  },
  "training": {"steps": 20},
}
LONG = {"data.max_length": 40, "data.batch_size": 8}


def mixed(*parts):
  """Parts of a mixture with these fields; the second has three times as many examples."""
  families = (("choice",), ("arithmetic",))
  return tuple(
    {"kind": "generator", "families": family, "limit": limit, **part}
    for family, limit, part in zip(families, (16, 48), parts, strict=True)
  )


# Another legal value, with what must be set beside it.
CHANGES = {
  "model.vocab_size": {"model.vocab_size": 300},
  "model.width": {"model.width": 32},
  "model.layers": {"model.layers": 2},
  "model.heads": {"model.heads": 4},
  "model.ffn_width": {"model.ffn_width": 64},
  "model.max_positions": {"model.max_positions": 64},
  "model.position_offset": {"model.position_offset": 0},
  "model.kv_heads": {"model.kv_heads": 1},
  "model.head_size": {"model.head_size": 4},
  "model.positions": {"model.positions": "rotary"},
  "model.rotary.theta": {"model.rotary.theta": 500.0},
  "model.rotary.local_theta": {"model.rotary.local_theta": 500.0},
  "model.rotary.factor": {"model.rotary.factor": 2.0},
  "model.rotary.low_frequency": {"model.rotary.low_frequency": 2.0},
  "model.rotary.high_frequency": {"model.rotary.high_frequency": 8.0},
  "model.rotary.original_positions": {"model.rotary.original_positions": 16},
  "model.token_types": {"model.token_types": 0},
  "model.embedding_norm": {"model.embedding_norm": False},
  "model.zero_mask_embedding": {"model.zero_mask_embedding": True},
  "model.norm": {"model.norm": "pre"},
  "model.norm_kind": {"model.norm_kind": "rms"},
  "model.first_attention_norm": {"model.first_attention_norm": False},
  "model.attention_bias": {"model.attention_bias": "qkv"},
  "model.query_key_norm": {"model.query_key_norm": True},
  "model.window": {"model.window": 8},
  "model.global_every": {"model.global_every": 3},
  "model.activation": {"model.activation": "silu"},
  "model.gated": {"model.gated": True},
  "model.dense_bias": {"model.dense_bias": False},
  "model.head": {"model.head": "linear"},
  "model.head_bias": {"model.head_bias": False},
  "model.tied": {"model.tied": False},
  "model.norm_epsilon": {"model.norm_epsilon": 1e-3},
  "model.dropout": {"model.dropout": 0.0},
  "model.attention_dropout": {"model.attention_dropout": 0.1},
  "compute.dtype": {"compute.dtype": "bfloat16"},
  "compute.remat": {"compute.remat": "full"},
  "compute.attention": {"compute.attention": "splash"},
  "compute.vocabulary_chunk": {"compute.vocabulary_chunk": 32},
  "lora.rank": {"init_from": "w", "lora.rank": 2},
  "lora.alpha": {"lora.alpha": 4.0},
  "lora.targets": {"lora.targets": ("query", "up")},
  "lora.dropout": {"lora.dropout": 0.1},
  "lora.frozen_dtype": {"lora.frozen_dtype": "bfloat16"},
  "diffusion.num_timesteps": {"diffusion.num_timesteps": 0},
  "diffusion.schedule": {"diffusion.schedule": "cosine"},
  "diffusion.power": {"diffusion.schedule": "polynomial", "diffusion.power": 2.0},
  "diffusion.weight": {"diffusion.weight": "elbo"},
  "diffusion.normalizer": {"diffusion.normalizer": "tokens"},
  "diffusion.times": {"diffusion.times": "independent"},
  "diffusion.mask_ratio": {
    "diffusion.times": "fixed", "diffusion.mask_ratio": 0.3, "diffusion.coupled": False,
  },
  "diffusion.coupled": {"diffusion.coupled": False},
  "diffusion.label_smoothing": {"diffusion.label_smoothing": 0.1},
  "diffusion.attention": {"diffusion.attention": "prefix"},
  "diffusion.block_size": {"diffusion.block_size": 4},
  "length.weight": {"length.weight": 0.5},
  "length.classes": {"length.classes": 9},
  "length.alone": {"length.alone": True},
  "optimizer.name": {"optimizer.name": "adafactor"},
  "optimizer.first_moment_dtype": {"optimizer.first_moment_dtype": "bfloat16"},
  "optimizer.learning_rate": {"optimizer.learning_rate": 1e-3},
  "optimizer.beta1": {"optimizer.beta1": 0.5},
  "optimizer.beta2": {"optimizer.beta2": 0.5},
  "optimizer.epsilon": {"optimizer.epsilon": 1e-3},
  "optimizer.weight_decay": {"optimizer.weight_decay": 0.5},
  "optimizer.clip_norm": {"optimizer.clip_norm": 0.5},
  "optimizer.warmup": {"optimizer.warmup": "logarithmic", "optimizer.warmup_steps": 4},
  "optimizer.warmup_steps": {"optimizer.warmup_steps": 4},
  "optimizer.decay": {"optimizer.decay": "cosine"},
  "optimizer.ema_decay": {"optimizer.ema_decay": 0.5},
  "training.steps": {"training.steps": 30, "optimizer.decay": "linear"},
  "training.microbatches": {"training.microbatches": 2},
  "seed": {"seed": 1},
  "data.max_length": {"data.max_length": 44},
  "data.too_long": {"data.too_long": "keep_end"},
  "data.buckets": {"data.buckets": (32, 40)},
  "data.batch_size": {"data.batch_size": 4},
  "data.batch_unit": {"data.batch_unit": "tokens", "data.batch_size": 160},
  "data.train.kind": {"data.train.kind": "generator_text", "data.max_length": 64},
  "data.train.limit": {"data.train.limit": 50},
  "data.train.split": {"data.train.split": "test"},
  "data.end_padding": {"data.end_padding": 4},
  "data.prompt_dropout": {"data.prompt_dropout": 0.5},
  "diffusion.process": {"diffusion.process": "next_token"},
  "data.packing": {"data.packing": True},
  "data.chat": {"data.chat": True},
  "data.train.families": {"data.train.families": ("choice", "translation")},
  "data.train.arms": {"data.train.arms": 3},
  "data.train.arm_length": {"data.train.arm_length": 4},
  "data.train.parts": {"data.train.parts": mixed({}, {})[::-1]},
  "data.train.weight": {"data.train.parts": mixed({"weight": 1.0}, {"weight": 4.0})},
  "data.train.epochs": {"data.train.parts": mixed({"epochs": 5.0}, {})},
  "data.train.cap": {"data.train.parts": mixed({}, {"cap": 8})},
  "data.train.temperature": {"data.train.temperature": 4.0},
}  # fmt: skip
# With these set beside both, so that the field alone makes the difference.
ROTARY = {"model.positions": "rotary", "model.max_positions": 40}
STRETCHED = ROTARY | {
  "model.rotary.theta": 4.0, "model.rotary.factor": 4.0, "model.rotary.original_positions": 32,
}  # fmt: skip
LOCAL = {"model.layers": 3, "model.window": 4, "model.global_every": 2}
ADAPTED = {"init_from": "w", "lora.rank": 2}
BLOCKS = {
  "diffusion.attention": "blocks", "diffusion.block_size": 8, "data.end_padding": 8,
}  # fmt: skip
MEASURED = {
  "init_from": "w", "length.weight": 1.0, "evaluation.metric": "length_loss",
  "data.validation.kind": "generator", "data.validation.limit": 8,
}  # fmt: skip
STARS = {"data.train.kind": "path_star", "data.max_length": 100}
MIXTURE = {
  "data.train.kind": "mixture", "data.train.limit": 0, "data.train.parts": mixed({}, {}),
}  # fmt: skip
CONTEXT = {
  "model.rotary.theta": ROTARY,
  "model.rotary.local_theta": ROTARY | LOCAL,
  "model.rotary.factor": STRETCHED,
  "model.rotary.low_frequency": STRETCHED,
  "model.rotary.high_frequency": STRETCHED,
  "model.rotary.original_positions": STRETCHED,
  "model.first_attention_norm": {"model.norm": "pre"},
  "model.window": LOCAL,
  "model.global_every": LOCAL,
  "lora.alpha": ADAPTED,
  "lora.targets": ADAPTED,
  "lora.dropout": ADAPTED,
  "lora.frozen_dtype": ADAPTED,
  "diffusion.power": {"diffusion.schedule": "polynomial", "diffusion.power": 3.0},
  "diffusion.mask_ratio": {
    "diffusion.times": "fixed", "diffusion.mask_ratio": 0.5, "diffusion.coupled": False,
  },
  "diffusion.block_size": BLOCKS,
  "length.classes": {"length.weight": 1.0},
  "length.alone": MEASURED,
  "optimizer.warmup": {"optimizer.warmup_steps": 4},
  "training.steps": {"optimizer.decay": "linear"},
  "data.train.kind": {"data.max_length": 64},
  "diffusion.process": {
    "diffusion.attention": "causal", "diffusion.coupled": False, "diffusion.weight": "constant",
  },
  "data.train.arms": STARS,
  "data.train.arm_length": STARS,
  "data.train.parts": MIXTURE,
  "data.train.weight": MIXTURE | {"data.train.parts": mixed({"weight": 1.0}, {"weight": 3.0})},
  "data.train.epochs": MIXTURE,
  "data.train.cap": MIXTURE,
  "data.train.temperature": MIXTURE,
}  # fmt: skip
# Fields whose effect is seen elsewhere: in runs (tests/training/loop_test.py), in the tests of
# sources, tasks and plans (tests/data), of meshes, of decoding and of adaptation.
ELSEWHERE = {
  "model.length_classes", "adaptation.anneal_steps", "adaptation.mask_id",
  "adaptation.mask_noise",
  "init_from", "data.tokenizer", "data.workers", "mesh.data", "mesh.fsdp", "mesh.tensor",
  "mesh.sequence", "training.profile_start", "training.profile_steps", "training.stall_seconds",
  "data.train.path", "data.train.target_path", "data.train.template", "training.log_every",
  "training.eval_every", "training.checkpoint_every", "training.keep_checkpoints",
  "data.on_bad_record", "data.train.name", "data.train.data_dir", "data.train.task",
  "data.train.wording", "data.train.shots", "data.train.demonstrations",
  "data.train.shuffle_options", "data.train.exclude_language",
}  # fmt: skip


CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=59)


class WordTokenizer:
  """Words of the built-in world as ids, by a stable hash; enough to plan batches."""

  sha256 = "words"

  def chat_prompt(self, text: str) -> str:
    return f"user: {text} model:"

  def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
    return [3 + sum(word.encode()) % 50 for word in text.split()]


def build(changes):
  values = jax.tree.map(lambda x: x, BASE)
  for name, value in changes.items():
    *sections, field = name.split(".")
    owner = values
    for section in sections:
      owner = owner.setdefault(section, {})
    owner[field] = value
  return config_from_dict(values)


def traced_step(config) -> str:
  """The jaxpr of the whole training step, with its constants' shapes and its settings."""
  contract = adaptation.trained_contract(config, CONTRACT)
  whole = models.Model(config.model, contract, None, None)
  whole = length.with_head(config, whole).model
  model = whole.config
  update = optimizer.make(config.optimizer, steps=config.training.steps)
  bind = functools.partial(
    transformer.bind, config=model, contract=contract, compute=config.compute, lora=config.lora
  )
  full = transformer.shapes(model, config.lora)
  frozen, trained = ({}, full)
  if start.freezes(config):
    frozen, trained = lora.split(full, length_head=True)
  frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, config.lora.frozen_dtype), frozen)
  loss = functools.partial(
    step.loss_sums, bind=bind, objective=programs.make_objective(config, contract),
    mask_id=contract.mask_id, chunk=config.compute.vocabulary_chunk, shards=None, train=True,
  )  # fmt: skip
  train_step = functools.partial(
    step.train_step, loss=None if config.length.alone else loss, optimizer=update,
    length=programs.make_length_loss(config, whole) if config.length.weight else None,
    length_weight=config.length.weight,
    learning_rate=optimizer.learning_rate(config.optimizer, steps=config.training.steps),
    microbatches=config.training.microbatches,
    ema_decay=config.optimizer.ema_decay,
  )  # fmt: skip
  create = functools.partial(state.create, optimizer=update, ema=config.optimizer.ema_decay > 0)
  abstract = jax.eval_shape(create, trained)
  struct = lambda dtype: jax.ShapeDtypeStruct((8, 40), dtype)
  batch = Batch(
    struct("int32"), struct("int32"), struct("bool"), jax.ShapeDtypeStruct((8,), "int32")
  )
  traced = jax.make_jaxpr(train_step)(abstract, frozen, batch)
  constants = [np.asarray(constant).tobytes() for constant in traced.consts]
  return re.sub(r" at 0x[0-9a-f]+", "", f"{traced} {constants}")


def read_batches(data, contract, *, count, seed=0):
  """The first batches of a data section, over words."""
  tokenizer = WordTokenizer()
  source = sources.open_source(data.train)
  lengths = plan.length_index(
    source, tokenizer, contract, max_length=data.max_length, too_long=data.too_long,
    cache_dir=None, on_bad_record=data.on_bad_record,
  )  # fmt: skip
  chosen = plan.Plan(lengths, data, seed)
  return pipeline.batches(source, tokenizer, contract, chosen, data=data, start=0, stop=count)


def planned_batches(config) -> bytes:
  contract = adaptation.trained_contract(config, CONTRACT)
  read = read_batches(config.data, contract, count=3, seed=config.seed)
  return b"".join(np.asarray(part).tobytes() for batch in read for part in batch)


def test_every_field_is_accounted_for():
  fields = {
    name for name in flatten(build({}))
    if not name.startswith(("data.validation.", "data.test.", "evaluation."))
  }  # fmt: skip
  assert fields == set(CHANGES) | ELSEWHERE
  assert not set(CHANGES) & ELSEWHERE


def test_equal_configs_trace_and_plan_the_same():
  """Or a difference would prove nothing."""
  assert traced_step(build({})) == traced_step(build({}))
  assert planned_batches(build({})) == planned_batches(build({}))


@functools.cache
def seen_of(settings, in_data):
  """The planned batches or the traced step of a config, given as JSON."""
  return (planned_batches if in_data else traced_step)(build(json.loads(settings)))


@pytest.mark.parametrize("field", CHANGES)
def test_the_field_changes_the_traced_step_or_the_planned_batch(field):
  context = CONTEXT.get(field, {})
  before, after = (
    seen_of(json.dumps(settings), field.startswith("data."))
    for settings in (context, context | CHANGES[field])
  )
  assert after != before


def test_rows_of_the_toy_tokenizer_are_sometimes_too_long():
  """Or the policy above could not be seen."""
  config = build({})
  source = sources.open_source(config.data.train)
  rows = [
    features.encode(source[n], WordTokenizer(), CONTRACT, max_length=40, too_long="drop")
    for n in range(64)
  ]
  assert 0 < sum(row is None for row in rows) < 64
