"""The autoregressive control: next-token cross entropy, by the same trainer and sampler."""

import dataclasses
import functools
import json

import jax
import numpy as np
import optax
import pytest

from diffjax import model as models
from diffjax.config import ComputeConfig, Contract, ModelConfig, config_from_dict
from diffjax.conversion import leaves
from diffjax.models import transformer
from diffjax.sampling import Sampler
from diffjax.tokenizers import train_sentencepiece
from diffjax.training import loop, programs, step
from diffjax.training.adaptation import adapt, trained_contract
from diffjax.types import Batch, UserError

CONTROL = {
  "process": "next_token", "attention": "causal", "coupled": False, "weight": "constant",
}  # fmt: skip
SMALL = {
  "width": 16, "layers": 2, "heads": 2, "ffn_width": 32, "max_positions": 64, "norm": "pre",
  "norm_kind": "rms", "attention_bias": "none", "dense_bias": False, "head": "linear",
  "head_bias": False, "embedding_norm": False, "token_types": 0, "dropout": 0.0, "tied": False,
}  # fmt: skip
MODEL = ModelConfig(vocab_size=60, **SMALL)
MASKED = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=59)


def experiment(*, data=None, init_from="", **diffusion):
  model = {} if init_from else {"model": SMALL}
  return config_from_dict({
    "init_from": init_from, "diffusion": {**CONTROL, **diffusion}, **model,
    "data": {
      "tokenizer": "t", "train": {"kind": "jsonl", "path": "x"}, "max_length": 32, **(data or {}),
    },
  })  # fmt: skip


def random_params():
  random = np.random.default_rng(0)
  draw = lambda leaf: random.normal(scale=0.2, size=leaf.shape).astype(np.float32)
  return jax.tree.map(draw, transformer.shapes(MODEL))


def packed_rows():
  """Two rows: two examples and padding, one example; prompts of 3 and 2 tokens."""
  random = np.random.default_rng(1)
  tokens = random.integers(3, 59, (2, 12)).astype(np.int32)
  segments = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12], np.int32)
  canvas = np.zeros((2, 12), bool)
  canvas[0, 3:5], canvas[0, 7:9], canvas[1, 2:12] = True, True, True
  return Batch(tokens, segments, canvas, np.arange(2, dtype=np.int32))


def naive_losses(params, batch):
  """-log p of every canvas token, each example run alone through the plain causal network."""
  plain = dataclasses.replace(MASKED, mask_id=-1, attention="causal")
  losses = []
  for row, segment in ((0, 1), (0, 2), (1, 1)):
    places = np.flatnonzero(batch.segments[row] == segment)
    tokens = batch.tokens[row, places][None]
    denoiser = transformer.bind(
      params, np.ones_like(tokens), config=MODEL, contract=plain, compute=ComputeConfig()
    )
    logits = transformer.logits(denoiser, tokens)[0, :-1]
    logits = np.where(denoiser.head.allowed, logits, -np.inf)  # rows beyond the vocabulary
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[0, 1:])
    losses.append(np.asarray(nll)[batch.canvas[row, places][1:]])
  return losses


@pytest.mark.parametrize("normalizer", ["tokens", "canvas"])
def test_the_loss_is_next_token_cross_entropy(normalizer):
  config = experiment(normalizer=normalizer)
  contract = trained_contract(config, MASKED)
  assert (contract.attention, contract.output_shift, contract.end) == ("causal", 1, "predicted")
  assert not contract.denoises
  loss = functools.partial(
    step.loss_sums, objective=programs.make_objective(config, contract), rows=2,
    bind=functools.partial(
      transformer.bind, config=MODEL, contract=contract, compute=ComputeConfig()
    ),
    mask_id=contract.mask_id, chunk=16, shards=None, train=True,
  )  # fmt: skip
  params, batch = random_params(), packed_rows()
  total, sums = jax.jit(loss)(params, {}, batch, 7)
  naive = naive_losses(params, batch)
  if normalizer == "tokens":
    expected = np.concatenate(naive).mean()
  else:
    expected = np.mean([losses.mean() for losses in naive])
  np.testing.assert_allclose(total / sums.weight, expected, rtol=1e-5)
  assert sums.scored.sum() == batch.canvas.sum()


def test_weights_are_taken_as_they_are():
  source = models.Model(MODEL, MASKED, random_params(), None, ComputeConfig())
  adapted = adapt(experiment(init_from="source"), source)
  jax.tree.map(
    np.testing.assert_array_equal, jax.tree.map(leaves.to_numpy, adapted.model.params),
    source.params,
  )  # fmt: skip
  assert adapted.notes == ["source sees later tokens; from now on it looks back alone"]
  causal = dataclasses.replace(MASKED, mask_id=-1, attention="causal")
  adapted = adapt(
    experiment(init_from="source"), models.Model(MODEL, causal, source.params, None, None)
  )
  assert adapted.notes == []
  assert not trained_contract(experiment(init_from="source"), adapted.model.contract).denoises


@pytest.mark.parametrize("wrong", [
  {"attention": "full"}, {"coupled": True}, {"weight": "linear"}, {"num_timesteps": 10},
  {"schedule": "cosine"}, {"times": "independent"},
], ids=str)  # fmt: skip
def test_what_has_no_meaning_without_noise_is_refused(wrong):
  (name,) = wrong
  with pytest.raises(UserError, match=rf"config\.diffusion\.{name} = .*'next_token'") as error:
    experiment(**wrong)
  assert "\n" not in str(error.value)


def test_trained_validated_and_sampled_by_the_same_commands(tmp_path):
  lines = [f"{'ab' * (1 + n % 4)} {'cd' * (1 + n % 3)}" for n in range(32)]
  with (tmp_path / "train.jsonl").open("w") as file:
    for line in lines:
      file.write(json.dumps({"inputs": line, "targets": line[::-1]}) + "\n")
  train_sentencepiece(lines * 3, vocab_size=20, path=tmp_path / "sp.model", kind="bpe")
  source = {"kind": "jsonl", "path": str(tmp_path / "train.jsonl")}
  config = config_from_dict({
    "model": SMALL, "diffusion": CONTROL, "training": {"steps": 2},
    "data": {
      "tokenizer": str(tmp_path / "sp.model"), "train": source,
      "validation": {**source, "limit": 4}, "max_length": 32, "batch_size": 8,
    },
    "evaluation": {"metric": "exact_match", "examples": 4, "batch_size": 8},
  })  # fmt: skip
  measured = loop.train(config, tmp_path / "run")
  assert 0 <= measured["exact_match"] <= 100
  assert measured["loss"] == pytest.approx(measured["nll"], rel=0.2)
  model = models.load(tmp_path / "run")
  assert (model.contract.attention, model.contract.output_shift) == ("causal", 1)
  assert not model.contract.denoises
  sampler = Sampler(model)
  (answer,) = sampler.generate("abab cd", lengths=8)
  assert len(answer.scores) == len(answer.ids)
  score = sampler.score("abab cd", "dc")
  assert score.standard_error == 0
  assert score.log_likelihood < 0
