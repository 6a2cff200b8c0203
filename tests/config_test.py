"""Configs are refused with the field's name, the nearest one, and the legal values."""

import functools
import subprocess
import sys

import pytest

from diffjax import config as c
from diffjax.types import UserError

MINIMAL = {
  "init_from": "weights",
  "data": {"train": {"kind": "jsonl", "path": "train.jsonl"}},
}


def build(**sections):
  return c.config_from_dict({**MINIMAL, **sections})


def test_defaults_are_legal():
  assert build().diffusion.num_timesteps == 50


def test_a_mixture_and_a_control_are_legal():
  parts = mixture({"cap": 9, "name": "a"}, {"epochs": 2.0, "task": "maths", "shots": 2})
  config = build(data={"train": parts}, diffusion=CONTROL)
  assert [part.cap for part in config.data.train.parts] == [9, 0]
  assert config.diffusion.process == "next_token"


REFUSED = [
  ({"optimizer": {"learnin_rate": 1.0}}, "optimizer.learnin_rate", "optimizer.learning_rate"),
  ({"optimizr": {}}, "config.optimizr", "config.optimizer"),
  ({"optimizer": {"learning_rate": "fast"}}, "optimizer.learning_rate", "a number"),
  ({"training": {"steps": 10.5}}, "training.steps", "a whole number"),
  ({"training": {"steps": True}}, "training.steps", "a whole number"),
  ({"training": 3}, "config.training", "section"),
  ({"diffusion": {"coupled": 1}}, "diffusion.coupled", "True or False"),
  ({"diffusion": {"schedule": "cosin"}}, "diffusion.schedule", "'cosine'"),
  ({"diffusion": {"power": 2.0}}, "diffusion.power", "polynomial"),
  ({"diffusion": {"times": "fixed", "coupled": False}}, "diffusion.mask_ratio", "(0, 1]"),
  ({"diffusion": {"mask_ratio": 0.5}}, "diffusion.mask_ratio", "fixed"),
  ({"diffusion": {"times": "fixed", "mask_ratio": 0.5}}, "diffusion.coupled", "False"),
  ({"model": {"width": 64}}, "model.layers", "together"),
  (
    {"model": {"width": 64, "layers": 1, "heads": 7, "ffn_width": 8}},
    "model.heads",
    "nearest are [8, 4]",
  ),
  ({"init_from": ""}, "config.model.width", "scratch"),
  ({"mesh": {"data": -1, "fsdp": -1}}, "config.mesh", "only one"),
  ({"mesh": {"tensor": 0}}, "mesh.tensor", "-1"),
  ({"training": {"steps": 5}, "optimizer": {"warmup_steps": 5}}, "warmup_steps", "below the 5"),
  ({"evaluation": {"metric": "bleu"}}, "evaluation.metric", "data.validation"),
  ({"training": {"microbatches": 5}}, "training.microbatches", "32 rows"),
]
SOURCES = [
  ({"kind": "pairs", "path": "a"}, "data.train.target_path", "give the file"),
  ({"kind": "jsonl", "path": "a", "target_path": "b"}, "data.train.target_path", "leave it empty"),
  ({"kind": "jsonl", "path": "a", "template": "x"}, "data.train.template", "{inputs}"),
  ({"kind": "generator"}, "data.train.limit", "number of examples"),
  ({"kind": "jsonl", "path": "a", "split": "test"}, "data.train.split", "another file"),
  ({"kind": "none"}, "data.train.kind", "training source"),
]
DATA = [
  ({"buckets": (32, 16, 512)}, "data.buckets", "ascend"),
  ({"buckets": (16, 32)}, "data.buckets", "max_length 512"),
  ({"buckets": "16"}, "data.buckets", "tuple"),
  ({"batch_size": 100, "batch_unit": "tokens"}, "data.batch_size", "one row of 512"),
  ({"end_padding": -1}, "data.end_padding", ">= 0"),
  ({"prompt_dropout": 1.0}, "data.prompt_dropout", "[0, 1)"),
]
SIZES = {"width": 64, "layers": 3, "heads": 8, "ffn_width": 8}
MODEL = [
  ({"max_positions": 400}, "data.max_length", "400 positions"),
  ({"kv_heads": 3}, "model.kv_heads", "nearest are [2, 4]"),
  ({"head_size": 5, "positions": "rotary"}, "model.head_size", "even"),
  ({"rotary": {"factor": 0.0}}, "model.rotary.factor", "> 0"),
  ({"rotary": {"high_frequency": 1.0}}, "model.rotary.high_frequency", "low_frequency 1.0"),
  ({"window": 4}, "model.global_every", ">= 2 where layers are local"),
  ({"global_every": 2}, "model.global_every", "window = 0"),
  ({"first_attention_norm": False}, "model.first_attention_norm", "norm 'pre'"),
  ({"length_classes": 9}, "model.length_classes", "set length.classes"),
]
LORA = [
  ({"rank": -1}, "lora.rank", ">= 0"),
  ({"alpha": 8.0}, "lora.rank", "lora.alpha is set"),
  ({"rank": 2, "targets": ()}, "lora.targets", "query, key"),
  ({"rank": 2, "targets": ("query", "query")}, "lora.targets", "once"),
  ({"rank": 2, "targets": ("qeury",)}, "lora.targets[0]", "'query'"),
  ({"rank": 2, "dropout": 1.0}, "lora.dropout", "[0, 1)"),
]
REFUSED += [({"model": {**SIZES, **fields}}, name, hint) for fields, name, hint in MODEL]
REFUSED += [({"lora": fields}, name, hint) for fields, name, hint in LORA]
REFUSED += [
  ({"adaptation": {"anneal_steps": -1}}, "adaptation.anneal_steps", ">= 0"),
  ({"adaptation": {"mask_id": -2}}, "adaptation.mask_id", "-1"),
  (
    {"adaptation": {"anneal_steps": 9}, "training": {"steps": 8}},
    "adaptation.anneal_steps", "over by training.steps 8",
  ),
  (
    {
      "init_from": "", "model": SIZES, "lora": {"rank": 2},
      "data": {**MINIMAL["data"], "tokenizer": "t"},
    },
    "lora.rank", "init_from",
  ),
]  # fmt: skip
HELD_OUT = {**MINIMAL["data"], "validation": {"kind": "jsonl", "path": "v.jsonl"}}
ALONE = {"length": {"weight": 1.0, "alone": True}, "data": HELD_OUT}
BY_LENGTH = {"evaluation": {"metric": "length_loss"}}
REFUSED += [
  ({"length": {"weight": -1.0}}, "length.weight", ">= 0"),
  (
    {"length": {"weight": 1.0}, "data": {"train": {"kind": "text", "path": "a"}, "max_length": 64}},
    "length.weight", "no prompts",
  ),
  ({"length": {"classes": 9}}, "length.classes", "length.weight too"),
  ({"length": {"alone": True}}, "length.alone", "length.weight too"),
  ({**BY_LENGTH, "data": HELD_OUT}, "evaluation.metric", "set length.weight"),
  (ALONE, "evaluation.metric", "choose 'length_accuracy' or 'length_loss'"),
  ({**ALONE, **BY_LENGTH, "lora": {"rank": 2}}, "length.alone", "leave config.lora out"),
  (
    {
      **ALONE, **BY_LENGTH, "init_from": "", "model": SIZES,
      "data": {**HELD_OUT, "tokenizer": "t"},
    },
    "length.alone", "set init_from",
  ),
]  # fmt: skip
PREFIX = {"attention": "prefix"}
BLOCKS = {"attention": "blocks", "block_size": 8}
REFUSED += [
  ({"diffusion": {"attention": "blocks"}}, "diffusion.block_size", "needs one >= 1"),
  ({"diffusion": {"block_size": 8}}, "diffusion.block_size", "set 0"),
  ({"diffusion": BLOCKS}, "data.end_padding", "multiple"),
  (
    {"diffusion": BLOCKS, "data": {**MINIMAL["data"], "end_padding": 12}},
    "data.end_padding", "blocks of 8",
  ),
  (
    {"diffusion": PREFIX, "adaptation": {"anneal_steps": 4}},
    "diffusion.attention", "tune the finished run",
  ),
]  # fmt: skip
FILE = {"kind": "jsonl", "path": "a"}
ASKED = {**FILE, "task": "maths", "shots": 2}
with_data = lambda **sources: {"data": {**MINIMAL["data"], **sources}}
REFUSED += [
  (with_data(train={**FILE, "epochs": 2.0}), "data.train.epochs", "only a part of a mixture"),
  (with_data(test={**FILE, "cap": 9}), "data.test.cap", "only a part of a mixture"),
  (with_data(test=ASKED), "data.test.demonstrations", "name the training split's"),
  (
    with_data(validation={**ASKED, "demonstrations": "a"}),
    "data.validation.demonstrations", "name the training split's",
  ),
  (
    {
      "length": {"weight": 1.0},
      **with_data(train={"kind": "mixture", "parts": (FILE, {"kind": "text", "path": "t"})}),
    },
    "length.weight", "no prompts",
  ),
]  # fmt: skip
CONTROL = {"process": "next_token", "attention": "causal", "coupled": False, "weight": "constant"}
REFUSED += [
  ({"diffusion": {"process": "next_tokens"}}, "diffusion.process", "did you mean 'next_token'"),
  ({"diffusion": CONTROL, "length": {"weight": 1.0}}, "length.weight", "writes its own end"),
  (
    {"diffusion": CONTROL, "adaptation": {"anneal_steps": 4}},
    "diffusion.process", "leave config.adaptation out",
  ),
  *(
    ({"diffusion": CONTROL | {name: value}}, f"diffusion.{name}", f"set {legal!r}")
    for name, value, legal in (
      ("attention", "full", "causal"), ("coupled", True, False), ("weight", "elbo", "constant"),
      ("num_timesteps", 0, 50), ("schedule", "cosine", "linear"),
      ("times", "independent", "stratified"),
    )
  ),
]  # fmt: skip
JSONL = {"kind": "jsonl", "path": "a"}
STARS = {"kind": "path_star", "limit": 4}


def mixture(*parts, **fields):
  """Of parts that are JSONL files."""
  return {"kind": "mixture", "parts": tuple(JSONL | part for part in parts), **fields}


SOURCES += [
  ({"kind": "parquet"}, "data.train.path", "give the file"),
  ({"kind": "tfds"}, "data.train.path", "give the file"),
  (JSONL | {"data_dir": "b"}, "data.train.data_dir", "only tfds"),
  (JSONL | {"families": ("choice",)}, "data.train.families", "only a generator"),
  (JSONL | {"wording": 0}, "data.train.wording", "name it in task"),
  (JSONL | {"shots": 2}, "data.train.shots", "name it in task"),
  (JSONL | {"shuffle_options": True}, "data.train.shuffle_options", "name it in task"),
  (JSONL | {"task": "maths", "wording": -2}, "data.train.wording", ">= -1"),
  (JSONL | {"task": "maths", "shots": -1}, "data.train.shots", ">= 0"),
  (JSONL | {"task": "maths", "demonstrations": "b"}, "data.train.demonstrations", "give shots"),
  (JSONL | {"exclude_language": "dutch"}, "data.train.exclude_language", "'german'"),
  ({"kind": "text", "path": "a", "task": "maths"}, "data.train.task", "no records"),
  (STARS | {"arms": 1}, "data.train.arms", ">= 2"),
  (STARS | {"arm_length": 1}, "data.train.arm_length", ">= 2"),
  (STARS | {"limit": 0}, "data.train.limit", "number of examples"),
  (JSONL | {"arms": 3}, "data.train.arms", "only path_star"),
  (JSONL | {"temperature": 2.0}, "data.train.temperature", "only a mixture"),
  (JSONL | {"parts": (JSONL,)}, "data.train.parts", "only a mixture"),
  (mixture(), "data.train.parts", "name the sources"),
  (mixture({}, limit=4), "data.train.limit", "say it of the parts"),
  (mixture({}, temperature=0.0), "data.train.temperature", "> 0"),
  (mixture({}, {"shots": 1}), "data.train.parts[1].shots", "name it in task"),
  (mixture({}, {"epochs": 0.0}), "data.train.parts[1].epochs", "> 0"),
  (mixture({}, {"cap": -1}), "data.train.parts[1].cap", ">= 0"),
  (mixture({"weight": 1.0}, {}), "data.train.parts[1].weight", "or none of them"),
  (mixture({"weight": -1.0}), "data.train.parts[0].weight", ">= 0"),
  (mixture({"weight": 1.0, "cap": 9}), "data.train.parts[0].weight", "leave one out"),
  (mixture({"weight": 1.0}, temperature=2.0), "data.train.temperature", "leave one out"),
  (mixture({"name": "a"}, {"name": "a"}), "data.train.parts", "its own name"),
  ({"kind": "mixture", "parts": (mixture({}),)}, "data.train.parts[0].kind", "a plain source"),
]
DATA += [
  ({"packing": True, "buckets": (64, 512)}, "data.buckets", "leave them out"),
  ({"too_long": "keep_middle"}, "data.too_long", "'keep_ends'"),
  ({"on_bad_record": "ignore"}, "data.on_bad_record", "'skip'"),
]
REFUSED += [
  (
    {"data": MINIMAL["data"] | {"packing": True}, "length": {"weight": 1.0}},
    "data.packing", "one prompt a row",
  ),
]  # fmt: skip
REFUSED += [({"data": {"train": source}}, name, hint) for source, name, hint in SOURCES]
REFUSED += [({"data": {**MINIMAL["data"], **data}}, name, hint) for data, name, hint in DATA]


@pytest.mark.parametrize(("sections", "name", "hint"), REFUSED, ids=lambda x: str(x)[:40])
def test_refuses_naming_field_and_remedy(sections, name, hint):
  with pytest.raises(UserError) as error:
    build(**sections)
  assert name in str(error.value)
  assert hint in str(error.value)
  assert "\n" not in str(error.value)


@pytest.fixture
def config_file(tmp_path):
  file = tmp_path / "experiment.py"
  file.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(size='small'):\n"
    "  data = dict(train=dict(kind='jsonl', path='a'), max_length=dict(small=32, large=64)[size])\n"
    "  return ConfigDict(dict(init_from='weights', data=data))\n"
  )
  return file


def test_file_argument_and_overrides(config_file):
  loaded = c.load_config(
    f"{config_file}:large",
    ["optimizer.learning_rate=1e-3", "config.init_from=other", "data.buckets=(32,64)", "seed=7"],
  )
  assert loaded.data.max_length == 64
  assert loaded.optimizer.learning_rate == 1e-3
  assert (loaded.init_from, loaded.data.buckets, loaded.seed) == ("other", (32, 64), 7)


@pytest.mark.parametrize(
  ("override", "hint"),
  [
    ("optimizer.lerning_rate=1", "optimizer.learning_rate"),
    ("optimiser.learning_rate=1", "config.optimizer"),
    ("seed", "'='"),
    ("seed=x", "whole number"),
    ("seed.depth=1", "config.seed"),
    ("training.steps=[", "whole number"),
  ],
)
def test_bad_overrides_are_refused(config_file, override, hint):
  with pytest.raises(UserError, match=r"config|override") as error:
    c.load_config(config_file, [override])
  assert hint in str(error.value)


def test_missing_file_and_missing_function(tmp_path):
  with pytest.raises(UserError, match="does not exist"):
    c.load_config(tmp_path / "none.py")
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(UserError, match="get_config"):
    c.load_config(tmp_path / "empty.py")


def test_round_trip_through_plain_values():
  import dataclasses
  import json

  config = build(data={**MINIMAL["data"], "buckets": (64, 512)})
  assert c.config_from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_contract_ids_are_checked():
  legal = c.Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=9)
  legal.check(10)
  with pytest.raises(UserError, match="mask_id = 9 is outside the vocabulary of 9"):
    legal.check(9)
  with pytest.raises(UserError, match="needs its own id"):
    c.Contract(bos_id=0, pad_id=1, eos_id=9, mask_id=9).check(10)


def test_only_causal_attention_is_open_in_part_and_a_mask_may_be_missing():
  ids = {"bos_id": 0, "pad_id": 0, "eos_id": 0}
  causal = c.Contract(**ids, mask_id=-1, attention="causal")
  causal.check(10)
  assert not causal.denoises
  c.Contract(**ids, mask_id=3, attention="causal", openness=0.5).check(10)
  with pytest.raises(UserError, match=r"openness = 0\.5 with attention 'full'"):
    c.Contract(**ids, mask_id=3, openness=0.5).check(10)
  with pytest.raises(UserError, match="output_shift = 2"):
    c.Contract(**ids, mask_id=3, output_shift=2).check(10)


def test_blocks_and_ends_of_a_contract_go_together():
  contract = functools.partial(c.Contract, bos_id=0, pad_id=1, eos_id=2, mask_id=3)
  blocks = functools.partial(contract, attention="blocks", block_size=4, end="predicted")
  contract(end="predicted", end_padding=6).check(10)
  blocks(end_padding=8).check(10)
  for faulty, message in (
    (contract(block_size=4), "block_size = 4 with attention 'full'"),
    (blocks(block_size=0), "block_size = 0 with attention 'blocks'"),
    (contract(end_padding=6), "end_padding = 6 with end 'given'"),
    (blocks(end_padding=6), "end_padding = 6 with blocks of 4"),
    (blocks(end="given"), "blocks of 4"),
  ):
    with pytest.raises(UserError, match=message) as error:
      faulty.check(10)
    assert "\n" not in str(error.value)


def test_divisors_of_nonsense_are_found_at_once():
  with pytest.raises(UserError, match="must divide width"):
    c.ModelConfig(width=2**62 + 1, layers=1, heads=2**40, ffn_width=1)


def test_a_wrong_config_is_refused_before_any_backend_starts(config_file):
  script = (
    "import sys, diffjax\n"
    "from diffjax.types import UserError\n"
    f"try: diffjax.load_config({str(config_file)!r}, ['seed=x'])\n"
    "except UserError: pass\n"
    "import jax._src.xla_bridge as bridge\n"
    "sys.exit(bool(bridge._backends))\n"
  )
  assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
