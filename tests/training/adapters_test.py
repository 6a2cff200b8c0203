"""Whole runs with adapters, on causal weights whose attention opens meanwhile."""

import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict

from diffjax import model as models
from diffjax import tokenizers
from diffjax.config import ComputeConfig, Contract, LoraConfig, ModelConfig, config_from_dict
from diffjax.conversion import native
from diffjax.data import pipeline
from diffjax.models import lora, transformer
from diffjax.training.loop import train
from diffjax.types import Preempted, UserError

STEPS, STOP, ANNEAL = 6, 2, 5
ADAPTERS = {"rank": 2, "targets": ("query", "gate"), "dropout": 0.1}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
  """Pairs, and a causal model in our own format with the tokenizer for them."""
  room = tmp_path_factory.mktemp("room")
  random = np.random.default_rng(0)
  words = ["one", "two", "three", "four", "five"]
  texts = [" ".join(random.choice(words, 3)) for _ in range(32)]
  lines = [json.dumps({"inputs": text, "targets": text}) for text in texts]
  (room / "train.jsonl").write_text("\n".join(lines))
  tokenizers.train_sentencepiece(texts, vocab_size=30, path=room / "sp.model", kind="bpe")
  tokenizer = tokenizers.load(room / "sp.model")
  config = ModelConfig(
    vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=4, kv_heads=2, ffn_width=32,
    positions="rotary", max_positions=32, token_types=0, embedding_norm=False, norm="pre",
    norm_kind="rms", attention_bias="none", activation="silu", gated=True, dense_bias=False,
    dropout=0.0, head="linear", head_bias=False,
  )  # fmt: skip
  contract = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=-1, attention="causal")
  draw = lambda leaf: random.normal(scale=0.2, size=leaf.shape).astype(np.float32)
  params = jax.tree.map(draw, transformer.shapes(config))
  native.write_native(room / "causal", config, contract, params, tokenizer=tokenizer)
  return room


def experiment(room, **sections):
  pairs = {"kind": "jsonl", "path": str(room / "train.jsonl")}
  return config_from_dict({
    "init_from": str(room / "causal"),
    "model": {"dropout": 0.0},
    "data": {
      "train": pairs, "validation": {**pairs, "limit": 8}, "max_length": 32, "batch_size": 8,
    },
    "adaptation": {"anneal_steps": ANNEAL},
    "lora": ADAPTERS,
    "optimizer": {"learning_rate": 1e-2, "ema_decay": 0.5},
    "training": {"steps": STEPS, "log_every": 1, "eval_every": STOP, "keep_checkpoints": 9},
    "evaluation": {"batch_size": 8, "examples": 8, "metric": "exact_match", "num_steps": 2},
    **sections,
  })  # fmt: skip


def train_until(stop, config, workdir):
  """Trains, and is interrupted in step number `stop`, which it finishes and saves."""
  whole = pipeline.batches

  def interrupted(*args, **kwargs):
    for number, batch in enumerate(whole(*args, **kwargs), 1):
      if number == stop:
        signal.raise_signal(signal.SIGINT)
      yield batch

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipeline, "batches", interrupted)
    with pytest.raises(Preempted, match=f"stopped at step {stop} of"):
      train(config, workdir)


def lines_of(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir, *, without=()):
  """Of all steps, and of the validations but those after the steps `without`."""
  lines = lines_of(workdir)
  kept = (x for x in lines if x["split"] != "validation" or x["step"] not in without)
  return [line["loss"] for line in kept]


def saved_trees(workdir, step):
  items = {name: ocp.args.StandardRestore() for name in ("params", "opt_state", "ema_params")}
  with ocp.CheckpointManager(workdir.absolute() / "checkpoints") as manager:
    restored = manager.restore(step, args=ocp.args.Composite(**items))
    return jax.device_get({name: restored[name] for name in items})


def meta_of(workdir, step):
  return json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())


@pytest.fixture(scope="module")
def whole(room, tmp_path_factory):
  """A run without a stop."""
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  train(experiment(room), workdir)
  return workdir


@pytest.fixture(scope="module")
def stopped(room, tmp_path_factory):
  """A run that stopped while attention was opening."""
  workdir = tmp_path_factory.mktemp("runs") / "stopped"
  train_until(STOP, experiment(room), workdir)
  return workdir


def test_only_adapters_are_saved(whole):
  trees = saved_trees(whole, STEPS)
  for item in ("params", "ema_params"):
    names = flatten_dict(trees[item], sep="/")
    assert sorted(names) == [
      f"layers/{projection}/lora_{side}"
      for projection in ("attention/query", "ffn/gate")
      for side in "ab"
    ]


def test_a_run_says_how_open_attention_was(whole, stopped, room, tmp_path, capsys):
  contracts = {step: meta_of(whole, step)["contract"] for step in (STOP, STEPS)}
  assert contracts[STOP]["openness"] == STOP / ANNEAL
  assert [contracts[step]["attention"] for step in (STOP, STEPS)] == ["causal", "full"]
  assert all(contract["output_shift"] == 1 for contract in contracts.values())
  assert models.load(stopped).contract.openness == STOP / ANNEAL
  # Scores of a half-open model are shown, and make no checkpoint the best.
  validated = [line["step"] for line in lines_of(whole) if line["split"] == "validation"]
  assert validated == [2, 4, 6]
  scored = [step for step in validated if (whole / "checkpoints" / str(step) / "metrics").exists()]
  assert scored == [6]
  assert models.checkpoint_of(whole).step == 6
  shutil.copytree(stopped, tmp_path / "run")
  train(experiment(room), tmp_path / "run")  # resumed in the middle
  said = capsys.readouterr().out
  assert "validation at step 4 (attention 0.80 open)" in said
  assert "validation at step 6:" in said
  have, want = saved_trees(tmp_path / "run", STEPS), saved_trees(whole, STEPS)
  jax.tree.map(np.testing.assert_array_equal, have, want)
  # The validation of the step in which it was stopped is given up.
  assert losses(tmp_path / "run", without={STOP}) == losses(whole, without={STOP})


def test_a_loaded_run_has_its_adapters_merged(whole, room):
  loaded, source = models.load(whole), models.load(room / "causal")
  merged, base = (flatten_dict(model.params, sep="/") for model in (loaded, source))
  targets = {"layers/attention/query/kernel", "layers/ffn/gate/kernel"}
  mask = loaded.contract.mask_id
  for name, have in merged.items():
    want = np.array(base[name])
    if name == "embedding/tokens":
      have, want = np.delete(have, mask, 0), np.delete(want, mask, 0)
    assert np.array_equal(have, want) == (name not in targets), name
  # As unmerged: the source's weights with the mask's row, and the saved average beside them.
  frozen = {**source.params, "embedding": loaded.params["embedding"]}
  tokens = np.random.default_rng(0).integers(3, mask + 1, (2, 10))

  @jax.jit
  def unmerged(adapters):
    denoiser = transformer.bind(
      lora.join(frozen, adapters), jnp.ones_like(tokens), config=loaded.config,
      contract=loaded.contract, compute=ComputeConfig(), lora=LoraConfig(**ADAPTERS),
    )  # fmt: skip
    return transformer.logits(denoiser, tokens)

  segments = np.ones_like(tokens)
  have = jax.jit(
    lambda params: transformer.logits(loaded.denoiser(segments, params=params), tokens)
  )
  want = unmerged(saved_trees(whole, STEPS)["ema_params"])
  np.testing.assert_allclose(have(loaded.params), want, atol=1e-4)


def test_a_sharded_run_has_the_same_losses(stopped, room, tmp_path):
  mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  loss_alone = {"batch_size": 8, "examples": 8}
  train_until(STOP, experiment(room, mesh=mesh, evaluation=loss_alone), tmp_path / "run")
  np.testing.assert_allclose(losses(tmp_path / "run"), losses(stopped), rtol=1e-5)


def test_frozen_weights_are_known_by_what_they_hold(stopped, room, tmp_path):
  run, moved = tmp_path / "run", tmp_path / "moved"
  shutil.copytree(stopped, run)
  frozen = meta_of(run, STOP)["frozen"]
  assert frozen["path"] == frozen["resolved"] == str(room / "causal")
  weights = room / "causal" / "model.safetensors"
  kept = weights.read_bytes()
  try:
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    for refused in (lambda: train(experiment(room), run), lambda: models.load(run)):
      with pytest.raises(UserError, match="not the ones that this run was trained with") as error:
        refused()
      assert "\n" not in str(error.value)
    shutil.copytree(room / "causal", moved)
    (moved / "model.safetensors").write_bytes(kept)
    assert train(experiment(room, init_from=str(moved)), run)["step"] == STEPS
    assert meta_of(run, STEPS)["frozen"]["resolved"] == str(moved)
    models.load(run / "checkpoints" / str(STEPS))
  finally:
    weights.write_bytes(kept)
