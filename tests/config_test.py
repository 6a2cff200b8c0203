"""Configs are refused with the field's name, the nearest one, and the legal values."""

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
  ({"max_length": 600}, "data.max_length", "512 positions"),
  ({"buckets": (32, 16, 512)}, "data.buckets", "ascend"),
  ({"buckets": (16, 32)}, "data.buckets", "max_length 512"),
  ({"buckets": "16"}, "data.buckets", "tuple"),
  ({"batch_size": 100, "batch_unit": "tokens"}, "data.batch_size", "one row of 512"),
]
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
