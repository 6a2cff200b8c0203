"""Training under attention 'prefix' and 'blocks': nothing leaks, and the run says what it did."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from diffjax import model as models
from diffjax.checkpoints import Checkpoints
from diffjax.config import (
  ComputeConfig,
  Contract,
  ModelConfig,
  config_from_dict,
  contract_from_dict,
)
from diffjax.diffusion import objectives, schedules
from diffjax.models import transformer
from diffjax.tokenizers import train_sentencepiece
from diffjax.training import step
from diffjax.training.adaptation import trained_contract
from diffjax.training.loop import train
from diffjax.types import Batch, UserError

LENGTH, PROMPT, SIZE = 16, 4, 4  # an answer of three blocks
MASK, ROWS = 59, 32
SMALL = {
  "width": 16, "layers": 2, "heads": 2, "ffn_width": 32, "max_positions": 64, "norm": "pre",
  "norm_kind": "rms", "attention_bias": "none", "dense_bias": False, "head": "linear",
  "head_bias": False, "embedding_norm": False, "token_types": 0, "dropout": 0.0, "tied": False,
}  # fmt: skip
MODEL = ModelConfig(vocab_size=60, **SMALL)
BLOCKS = Contract(
  bos_id=0, pad_id=1, eos_id=2, mask_id=MASK, attention="blocks", block_size=SIZE,
  end="predicted", end_padding=SIZE,
)  # fmt: skip
PREFIX = dataclasses.replace(BLOCKS, attention="prefix", block_size=0)
OBJECTIVE = objectives.Objective(
  schedule=schedules.make("linear"), num_timesteps=0, weight="constant", normalizer="canvas",
  times="fixed", mask_ratio=0.5, coupled=False, label_smoothing=0.0, seed=0, block_size=SIZE,
)  # fmt: skip


@functools.cache
def params():
  random = np.random.default_rng(0)
  draw = lambda leaf: random.normal(scale=0.2, size=leaf.shape).astype(np.float32)
  return jax.tree.map(draw, transformer.shapes(MODEL))


def rows(*index):
  """Rows in which every position has an id of its own: its number + 10."""
  ramp = np.tile(np.arange(LENGTH, dtype=np.int32), (len(index), 1))
  return Batch(10 + ramp, np.ones_like(ramp), ramp >= PROMPT, np.int32(index))


@functools.cache
def gradient_of():
  """(params, batch) -> the embedding's gradient of the loss."""
  bind = functools.partial(transformer.bind, config=MODEL, contract=BLOCKS, compute=ComputeConfig())
  loss = functools.partial(
    step.loss_sums, bind=bind, objective=OBJECTIVE, rows=ROWS, mask_id=MASK, chunk=16,
    shards=None, train=False,
  )  # fmt: skip
  return jax.jit(jax.grad(lambda params, batch: loss(params, {}, batch, 0), has_aux=True))


def test_a_blocks_loss_reads_what_is_before_it_and_nothing_behind_it():
  noise = functools.partial(objectives.noised, objective=OBJECTIVE, rows=ROWS, mask_id=MASK)
  result = jax.device_get(jax.jit(noise)(rows(*range(ROWS)), 0))
  seen = set()
  for index in range(ROWS):
    block = np.flatnonzero(result.batch.canvas[index])
    shown = np.setdiff1d(block, np.flatnonzero(result.corrupted[index]))
    if len(shown) in (0, SIZE) or block[0] in seen:
      continue
    seen.add(int(block[0]))
    gradient, _ = gradient_of()(params(), rows(index))
    moves = np.abs(gradient["embedding"]["tokens"]).max(1)  # the head's table is another one
    assert moves[MASK] > 0
    assert (moves[10 + np.arange(block[0])] > 0).all()  # the prompt, clean earlier blocks
    assert (moves[10 + shown] > 0).all()
    assert not moves[10 + np.arange(block[-1] + 1, LENGTH)].any()
    assert not moves[10 + np.setdiff1d(block, shown)].any()  # what is to be predicted
  assert seen == {PROMPT, PROMPT + SIZE, PROMPT + 2 * SIZE}


def test_under_prefix_prompts_do_not_see_answers_and_answers_see_all():
  batch = rows(0)

  @jax.jit
  def hidden(params, tokens):
    denoiser = transformer.bind(
      params, batch.segments, config=MODEL, contract=PREFIX, compute=ComputeConfig(),
      canvas=batch.canvas,
    )  # fmt: skip
    return denoiser.trunk(tokens, None)[0]

  changed = lambda place: np.where(np.arange(LENGTH) == place, 5, batch.tokens)
  plain, late, early = (
    np.asarray(hidden(params(), tokens))
    for tokens in (batch.tokens, changed(LENGTH - 1), changed(1))
  )
  np.testing.assert_array_equal(late[:PROMPT], plain[:PROMPT])
  assert (np.abs(late - plain).max(1)[PROMPT:] > 1e-6).all()
  assert (np.abs(early - plain).max(1) > 1e-6).all()


def experiment(room, **diffusion):
  source = {"kind": "jsonl", "path": str(room / "train.jsonl")}
  return {
    "model": SMALL,
    "data": {
      "tokenizer": str(room / "sp.model"), "train": source, "max_length": 32, "batch_size": 8,
      "end_padding": SIZE, "prompt_dropout": 0.2,
    },
    "diffusion": diffusion,
    "training": {"steps": 2},
  }  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory):
  room = tmp_path_factory.mktemp("data")
  lines = [f"{'ab' * (1 + n % 4)} {'cd' * (1 + n % 3)}" for n in range(32)]
  with (room / "train.jsonl").open("w") as file:
    for line in lines:
      file.write(json.dumps({"inputs": line, "targets": line[::-1]}) + "\n")
  train_sentencepiece(lines * 3, vocab_size=20, path=room / "sp.model", kind="bpe")
  return room


@pytest.fixture
def noised_by(monkeypatch):
  """The block sizes that training steps were traced with."""
  sizes, noise = [], objectives.noised

  def spy(*args, objective, **rest):
    sizes.append(objective.block_size)
    return noise(*args, objective=objective, **rest)

  monkeypatch.setattr(objectives, "noised", spy)
  return sizes


def contract_of(workdir):
  with Checkpoints(workdir / "checkpoints", read_only=True) as saved:
    return contract_from_dict(saved.meta(saved.latest())["contract"])


@pytest.mark.parametrize("attention", ["prefix", "causal"])
def test_a_run_says_who_saw_whom(attention, room, tmp_path, noised_by):
  train(config_from_dict(experiment(room, attention=attention, coupled=False)), tmp_path / "run")
  contract = contract_of(tmp_path / "run")
  assert (contract.attention, contract.block_size) == (attention, 0)
  assert (contract.end, contract.end_padding) == ("predicted", SIZE)
  assert set(noised_by) == {0}


def test_under_causal_attention_positions_see_what_is_before_them():
  batch, causal = rows(0), dataclasses.replace(PREFIX, attention="causal")

  @jax.jit
  def hidden(params, tokens):
    denoiser = transformer.bind(
      params, batch.segments, config=MODEL, contract=causal, compute=ComputeConfig(),
      canvas=batch.canvas,
    )  # fmt: skip
    return denoiser.trunk(tokens, None)[0]

  other = np.where(np.arange(LENGTH) == PROMPT + 2, 5, batch.tokens)
  moved = np.abs(hidden(params(), other) - hidden(params(), batch.tokens)).max(1) > 1e-6
  assert moved.tolist() == [n >= PROMPT + 2 for n in range(LENGTH)]


def test_a_run_in_blocks_says_so_and_what_tunes_it_keeps_them(room, tmp_path, noised_by):
  values = experiment(room, attention="blocks", block_size=SIZE, coupled=False)
  train(config_from_dict(values), tmp_path / "run")
  contract = contract_of(tmp_path / "run")
  assert (contract.attention, contract.block_size) == ("blocks", SIZE)
  assert (contract.end, contract.end_padding) == ("predicted", SIZE)
  assert models.load(tmp_path / "run").contract == contract
  del values["model"], values["diffusion"]
  values |= {"init_from": str(tmp_path / "run"), "diffusion": {"coupled": False}}
  train(config_from_dict(values), tmp_path / "tuned")
  assert contract_of(tmp_path / "tuned") == contract
  assert set(noised_by) == {SIZE}


def asked(*, data=None, init_from="source", adaptation=None, **diffusion):
  return config_from_dict({
    "init_from": init_from, "diffusion": diffusion, "adaptation": adaptation or {},
    "data": {"train": {"kind": "text", "path": "x"}, "max_length": 64, **(data or {})},
  })  # fmt: skip


def test_attention_is_what_the_config_says_else_what_the_weights_have():
  given = dataclasses.replace(BLOCKS, attention="full", block_size=0, end="given", end_padding=0)
  padded = {"end_padding": SIZE}
  assert trained_contract(asked(), given) == given
  prefix = dataclasses.replace(given, attention="prefix")
  assert trained_contract(asked(attention="prefix"), given) == prefix
  assert trained_contract(asked(), prefix) == prefix
  blocks = asked(attention="blocks", block_size=SIZE, data=padded)
  assert trained_contract(blocks, given) == BLOCKS
  assert trained_contract(asked(data=padded), BLOCKS) == BLOCKS
  assert trained_contract(asked(attention="prefix", data=padded), BLOCKS) == PREFIX
  shorter = trained_contract(asked(attention="blocks", block_size=2, data=padded), BLOCKS)
  assert shorter == dataclasses.replace(BLOCKS, block_size=2)
  for config in (blocks, asked(data=padded), asked(attention="full", data=padded)):
    once = trained_contract(config, BLOCKS)
    assert trained_contract(config, once) == once
    once.check(60)


def test_annealed_attention_stays_causal_until_its_end():
  causal = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=5, attention="causal", output_shift=1)
  for attention in ("own", "full"):
    config = asked(attention=attention, adaptation={"anneal_steps": 4})
    assert trained_contract(config, causal) == causal


def test_an_end_once_predicted_stays_so():
  predicted = dataclasses.replace(PREFIX, end_padding=0)
  assert trained_contract(asked(), predicted) == predicted
  assert trained_contract(asked(), PREFIX) == predicted  # the config says: one </s>


@pytest.mark.parametrize(("data", "message"), [
  ({}, "end_padding = 0: source answers in blocks of 4"),
  ({"end_padding": 6}, "end_padding = 6: source answers in blocks of 4"),
  ({"end_padding": 64}, "end_padding = 64: no row of config.data.max_length = 64"),
], ids=lambda value: str(value)[:24])  # fmt: skip
def test_contradictions_are_refused_in_one_line(data, message):
  with pytest.raises(UserError, match=message) as error:
    trained_contract(asked(data=data), BLOCKS)
  assert "\n" not in str(error.value)
