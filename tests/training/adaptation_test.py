"""Causal weights as a diffusion model: the same function at first, open attention at last."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import model as models
from diffjax.config import ComputeConfig, Contract, ModelConfig, config_from_dict
from diffjax.conversion import leaves
from diffjax.models import transformer
from diffjax.training.adaptation import Annealing, adapt, trained_contract
from diffjax.types import UserError

LENGTH = 64
LLAMA = ModelConfig(
  vocab_size=40, width=16, layers=2, heads=4, kv_heads=2, ffn_width=32, positions="rotary",
  max_positions=64, token_types=0, embedding_norm=False, norm="pre", norm_kind="rms",
  attention_bias="none", activation="silu", gated=True, dense_bias=False, dropout=0.0,
  head="linear", head_bias=False, tied=False,
)  # fmt: skip
CAUSAL = Contract(bos_id=0, pad_id=2, eos_id=2, mask_id=-1, attention="causal")
DENOISES = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=39)
DATA = {"train": {"kind": "jsonl", "path": "x"}, "max_length": 64}


class Tokenizer:
  """As much of one as is asked."""

  vocab_size, special_ids = 40, {"bos_id": 0, "eos_id": 2}


def experiment(**sections):
  return config_from_dict({"init_from": "source", "data": DATA, **sections})


def source(contract=CAUSAL, config=LLAMA):
  random = np.random.default_rng(0)
  draw = lambda leaf: random.normal(scale=0.1, size=leaf.shape).astype(np.float32)
  params = jax.tree.map(draw, transformer.shapes(config))
  return models.Model(config, contract, params, Tokenizer(), ComputeConfig())


def in_memory(params):
  return jax.tree.map(leaves.to_numpy, params)


@pytest.mark.parametrize("start", [0.0, 0.25])
def test_openness_rises_from_its_start_to_one(start):
  annealing = Annealing(8, start)
  rates = [annealing.openness(step) for step in range(12)]
  assert rates[0] == start
  np.testing.assert_allclose(np.diff(rates[:9]), (1 - start) / 8)
  assert rates[8:] == [1.0] * 4


def test_the_contract_says_how_open_attention_was():
  annealing = Annealing(8)
  contract = dataclasses.replace(DENOISES, attention="causal", output_shift=1)
  assert annealing.contract(contract, 0) == contract
  assert annealing.contract(contract, 2) == dataclasses.replace(contract, openness=0.25)
  assert annealing.contract(contract, 8) == dataclasses.replace(contract, attention="full")


def test_each_step_draws_its_share_of_open_positions():
  annealing, draw = (
    Annealing(8),
    jax.jit(functools.partial(Annealing(8).opened, seed=3), static_argnums=1),
  )
  drawn = [np.asarray(draw(jnp.int32(step), LENGTH)) for step in range(9)]
  assert not drawn[0].any()
  assert drawn[8].all()
  for step, opened in enumerate(drawn):
    rate = annealing.openness(step)
    assert abs(opened.mean() - rate) <= 4 * (rate * (1 - rate)) ** 0.5 / LENGTH
  assert (drawn[3] & ~drawn[4]).any()  # another draw, not a larger one of the same
  np.testing.assert_array_equal(drawn[4], draw(jnp.int32(4), LENGTH))
  other = jax.jit(lambda step: Annealing(8).opened(step, LENGTH, seed=4))(jnp.int32(4))
  assert (np.asarray(other) != drawn[4]).any()


def test_at_step_0_clean_rows_have_the_causal_models_logits():
  before = source()
  model, annealing, _ = adapt(experiment(adaptation={"anneal_steps": 8}), before)
  tokens = np.random.default_rng(1).integers(3, 40, (3, 12))
  segments = np.asarray([[1] * 12, [1] * 7 + [2] * 5, [1] * 9 + [0] * 3])
  params = in_memory(model.params)

  @jax.jit
  def adapted_logits(params):
    opened = annealing.opened(jnp.int32(0), 12, seed=0)
    denoiser = transformer.bind(
      params, segments, config=model.config, contract=model.contract, compute=model.compute,
      opened=opened,
    )  # fmt: skip
    return transformer.logits(denoiser, tokens)

  have = np.asarray(adapted_logits(params))[..., :40]
  causal = lambda params: transformer.logits(before.denoiser(segments, params=params), tokens)
  want = np.asarray(jax.jit(causal)(before.params))[..., :40]
  follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
  np.testing.assert_allclose(have[:, 1:][follows], want[:, :-1][follows], atol=1e-4)
  assert np.abs(want).max() > 1e-2


def test_a_causal_source_gets_mask_and_shift():
  model, annealing, _ = adapt(experiment(adaptation={"anneal_steps": 8}), source())
  assert annealing == Annealing(8, 0.0)
  assert model.contract == dataclasses.replace(CAUSAL, mask_id=40, known_ids=40, output_shift=1)
  assert model.config.vocab_size == 41
  model, annealing, _ = adapt(experiment(), source())
  assert annealing is None
  assert (model.contract.attention, model.contract.output_shift) == ("full", 1)


def test_what_was_adapted_before_goes_on():
  half = dataclasses.replace(DENOISES, attention="causal", openness=0.5, output_shift=1)
  model, annealing, _ = adapt(experiment(adaptation={"anneal_steps": 4}), source(half))
  assert annealing == Annealing(4, 0.5)
  assert model.contract.mask_id == half.mask_id
  full = dataclasses.replace(DENOISES, output_shift=1)
  before = source(full)
  model, annealing, notes = adapt(experiment(), before)
  assert (model.contract, annealing, notes) == (full, None, [])
  jax.tree.map(np.testing.assert_array_equal, in_memory(model.params), before.params)


def test_a_length_head_is_left_out_and_told():
  with_head = dataclasses.replace(LLAMA, length_classes=5)
  model, _, notes = adapt(experiment(), source(DENOISES, with_head))
  assert "length_head" not in model.params
  assert model.config == LLAMA
  assert "length head" in notes[0]


def test_a_length_head_that_is_trained_is_kept():
  before = source(DENOISES, dataclasses.replace(LLAMA, length_classes=5))
  model, _, notes = adapt(experiment(length={"weight": 0.1}), before)
  assert (model.config, notes) == (before.config, [])
  jax.tree.map(np.testing.assert_array_equal, in_memory(model.params), before.params)


@pytest.mark.parametrize("attention", ["prefix", "blocks"])
def test_answers_of_a_causal_source_may_be_read_after_their_prompts(attention):
  section = {"attention": attention, "block_size": 4 * (attention == "blocks")}
  config = experiment(diffusion=section, data={**DATA, "end_padding": 4})
  model, annealing, notes = adapt(config, source())
  assert annealing is None
  assert f"attention is {attention} from the first step" in notes
  contract = trained_contract(config, model.contract)
  assert (contract.attention, contract.output_shift, contract.mask_id) == (attention, 1, 40)
  # Such weights are no causal model any more.
  again, annealing, notes = adapt(config, source(contract))
  assert (again.contract, annealing, notes) == (contract, None, [])
  with pytest.raises(UserError, match="source is no causal model"):
    adapt(experiment(adaptation={"anneal_steps": 4}), source(contract))


def test_attention_stays_causal_where_it_is_asked_to():
  config = experiment(diffusion={"attention": "causal"})
  model, annealing, notes = adapt(config, source())
  assert annealing is None
  assert "attention is causal from the first step" in notes
  contract = trained_contract(config, model.contract)
  assert (contract.attention, contract.output_shift) == ("causal", 1)
  for shift in (0, 1):  # with a mask already: from such a run, or from scratch
    before = dataclasses.replace(DENOISES, attention="causal", output_shift=shift)
    assert trained_contract(config, adapt(config, source(before))[0].contract) == before
    opened = dataclasses.replace(before, attention="full")
    assert trained_contract(experiment(), adapt(experiment(), source(before))[0].contract) == opened


REFUSED = [
  (DENOISES, {"anneal_steps": 4}, "adaptation.anneal_steps = 4: source is no causal model"),
  (DENOISES, {"mask_id": 5}, "adaptation.mask_id = 5: source has a mask, id 39"),
  (DENOISES, {"mask_noise": 0.1}, "adaptation.mask_noise = 0.1: source has a mask"),
  (CAUSAL, {"mask_id": 2}, "adaptation.mask_id = 2: this is the"),
  (CAUSAL, {"mask_id": 5, "mask_noise": 0.1}, "adaptation.mask_noise = 0.1: an id"),
  (dataclasses.replace(CAUSAL, attention="full"), {}, "neither a mask nor causal attention"),
]


@pytest.mark.parametrize(("contract", "section", "message"), REFUSED, ids=[m for *_, m in REFUSED])
def test_what_weights_have_no_need_of_is_refused(contract, section, message):
  with pytest.raises(UserError, match=message) as error:
    adapt(experiment(adaptation=section), source(contract))
  assert "\n" not in str(error.value)
