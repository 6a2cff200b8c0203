"""A language whose middle token depends on what follows: adapted causal weights learn it.

`<s> first middle last </s>`, the middle a function of the last token alone, the first drawn apart.
With causal attention nothing tells of the middle before it is read; a diffusion model sees both
sides (2410.17891).
"""

import json

import jax
import numpy as np
import optax
import pytest

from diffjax import model as models
from diffjax import tokenizers
from diffjax.config import Contract, ModelConfig, config_from_dict
from diffjax.conversion import native
from diffjax.models import transformer
from diffjax.training.loop import train

FIRST, MIDDLE, LAST = "abcdefgh", "ijklmnop", "qrstuvwx"
MIDDLE_PLACE = 2  # <s> first middle last </s>
STEPS = 350


@pytest.fixture(scope="module")
def room(tmp_path_factory):
  """Texts of the language, one a line, and a tokenizer with one id a letter."""
  room = tmp_path_factory.mktemp("language")
  random = np.random.default_rng(0)
  pairs = list(zip(random.permutation(list(MIDDLE)), LAST, strict=True))
  texts = [f"{first} {middle} {last}" for first in FIRST for middle, last in pairs]
  random.shuffle(texts)
  lines = [json.dumps({"inputs": "", "targets": text}) for text in texts * 4]
  (room / "train.jsonl").write_text("\n".join(lines))
  letters = [f"{a} {b}" for a in FIRST + MIDDLE + LAST for b in FIRST + MIDDLE + LAST]
  tokenizers.train_sentencepiece(letters, vocab_size=54, path=room / "sp.model", kind="bpe")
  tokenizer = tokenizers.load(room / "sp.model")
  ids = [tokenizer.encode(text) for text in texts]
  assert {len(row) for row in ids} == {3}
  return room, tokenizer, np.asarray(ids)


@pytest.fixture(scope="module")
def causal(room):
  """A causal model that was trained to predict the next token of the language."""
  room, tokenizer, ids = room
  config = ModelConfig(
    vocab_size=tokenizer.vocab_size, width=32, layers=1, heads=2, ffn_width=64,
    positions="rotary", max_positions=16, token_types=0, embedding_norm=False, norm="pre",
    norm_kind="rms", attention_bias="none", activation="silu", gated=True, dense_bias=False,
    dropout=0.0, head="linear", head_bias=False,
  )  # fmt: skip
  contract = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=-1, attention="causal")
  rows = np.pad(ids, ((0, 0), (1, 0)), constant_values=contract.bos_id)
  whole = models.Model(config, contract, None, tokenizer)
  random = np.random.default_rng(1)
  draw = lambda leaf: random.normal(scale=0.04, size=leaf.shape).astype(np.float32)
  optimizer = optax.adam(3e-3)

  def loss(params):
    logits = transformer.logits(whole.denoiser(np.ones_like(rows), params=params), rows)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

  @jax.jit
  def pretrain(params):
    def step(carry, _):
      params, moments = carry
      updates, moments = optimizer.update(jax.grad(loss)(params), moments)
      return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=200)[0][0]

  params = jax.device_get(pretrain(jax.tree.map(draw, transformer.shapes(config))))
  native.write_native(room / "causal", config, contract, params, tokenizer=tokenizer)
  return room / "causal"


def best(model, rows):
  """The best token at every place."""
  segments = np.ones_like(rows)
  logits = jax.jit(lambda params: transformer.logits(model.denoiser(segments, params=params), rows))
  return np.argmax(logits(model.params), -1)


def accuracy(model, ids, place):
  """How often the best middle token is right, the middle itself being hidden from the model."""
  rows = np.pad(ids, ((0, 0), (1, 1)), constant_values=((0, 0), (0, model.contract.eos_id)))
  rows[:, 0] = model.contract.bos_id
  if model.contract.denoises:
    rows[:, MIDDLE_PLACE] = model.contract.mask_id
  return float((best(model, rows)[:, place] == ids[:, 1]).mean())


@pytest.mark.slow
def test_adapted_weights_use_the_right_context(room, causal, tmp_path):
  source, _, ids = room
  chance = 1 / len(MIDDLE)
  # What comes after <s> first is read at the place of `first`, before the middle is seen.
  before = models.load(causal)
  assert accuracy(before, ids, MIDDLE_PLACE - 1) <= chance + 1e-6
  last = best(before, np.pad(ids, ((0, 0), (1, 0))))[:, 2]
  assert (last == ids[:, 2]).mean() > 0.9  # it has learned what can be learned
  config = config_from_dict({
    "init_from": str(causal),
    "model": {"dropout": 0.0},
    "adaptation": {"anneal_steps": STEPS // 3},
    "data": {
      "train": {"kind": "jsonl", "path": str(source / "train.jsonl")}, "max_length": 8,
      "batch_size": 64,
    },
    "diffusion": {
      "num_timesteps": 0, "weight": "elbo", "normalizer": "tokens", "coupled": False,
    },
    "optimizer": {"learning_rate": 1e-2, "beta2": 0.99, "warmup_steps": 10, "weight_decay": 0.0},
    "training": {"steps": STEPS, "log_every": 40, "checkpoint_every": 1000},
  })  # fmt: skip
  train(config, tmp_path / "run")
  after = models.load(tmp_path / "run")
  assert (after.contract.attention, after.contract.output_shift) == ("full", 1)
  assert accuracy(after, ids, MIDDLE_PLACE) >= 0.9
