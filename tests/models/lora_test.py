"""Adapters: the sum they make, where they start, and their trees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.config import ComputeConfig, Contract, LoraConfig, ModelConfig
from diffjax.models import lora, transformer
from diffjax.types import UserError

CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=40)
CONFIG = ModelConfig(
  vocab_size=41, width=16, layers=2, heads=4, kv_heads=2, ffn_width=32, max_positions=16,
  gated=True, dropout=0.0, token_types=0, embedding_norm=False, head="linear", head_bias=False,
)  # fmt: skip
ALL = LoraConfig(
  rank=3, alpha=6.0, targets=("query", "key", "value", "output", "up", "gate", "down")
)
ROWS, LENGTH = 3, 8
SEGMENTS = np.asarray([[1] * 5 + [2] * 3] * ROWS)


@functools.cache
def fresh(adapters=ALL):
  init = jax.jit(transformer.init, static_argnums=(1, 2))
  return jax.device_get(init(jax.random.key(0), CONFIG, adapters))


@functools.cache
def moved():
  """Adapters as after some training: B is no longer 0."""
  rng = np.random.default_rng(1)

  def move(path, leaf):
    if path[-1].key != "lora_b":
      return leaf
    return rng.normal(0, 0.3, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(move, fresh())


def tokens():
  return np.random.default_rng(0).integers(3, 40, (ROWS, LENGTH))


@functools.partial(jax.jit, static_argnames=("adapters", "dtype"))
def logits(params, ids, keys=None, *, adapters=LoraConfig(), dtype="float32"):  # noqa: B008
  denoiser = transformer.bind(
    params, SEGMENTS, config=CONFIG, contract=CONTRACT, compute=ComputeConfig(dtype=dtype),
    dropout=keys, lora=adapters,
  )  # fmt: skip
  return transformer.logits(denoiser, ids)


def test_fresh_adapters_change_nothing_and_trained_ones_equal_the_merged_weights():
  base, _ = lora.split(fresh())
  plain = logits(base, tokens())
  np.testing.assert_array_equal(logits(fresh(), tokens(), adapters=ALL), plain)
  adapted = logits(moved(), tokens(), adapters=ALL)
  merged = jax.jit(lora.merge, static_argnums=1)(moved(), ALL)
  assert jax.tree.structure(merged) == jax.tree.structure(base)
  np.testing.assert_allclose(logits(merged, tokens()), adapted, atol=1e-4)
  assert np.abs(adapted - plain).max() > 0.1


def test_bfloat16_frozen_weights_keep_their_dtype_and_the_adapters_theirs():
  frozen, adapters = lora.split(moved())
  frozen = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), frozen)
  params = lora.join(frozen, adapters)
  rough = logits(params, tokens(), adapters=ALL, dtype="bfloat16")
  np.testing.assert_allclose(rough, logits(moved(), tokens(), adapters=ALL), atol=0.1)
  merged = jax.eval_shape(functools.partial(lora.merge, lora=ALL), params)
  assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}


def test_gradients_reach_the_adapters_through_frozen_weights():
  frozen, adapters = lora.split(moved())

  def loss(adapters):
    return jnp.square(logits(lora.join(frozen, adapters), tokens(), adapters=ALL)).sum()

  gradient = jax.jit(jax.grad(loss))(adapters)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_dropout_of_the_adapters_is_keyed_by_row_and_leaves_the_base_alone():
  config = dataclasses.replace(ALL, dropout=0.4)
  keys = jax.random.split(jax.random.key(1), ROWS)
  run = lambda params, ids, keys: logits(params, ids, keys, adapters=config)
  together = run(moved(), tokens(), keys)
  np.testing.assert_allclose(together[::-1], run(moved(), tokens()[::-1], keys[::-1]), atol=1e-5)
  assert np.abs(together - run(moved(), tokens(), jax.random.split(keys[0], ROWS))).max() > 1e-2
  np.testing.assert_array_equal(run(fresh(), tokens(), keys), logits(fresh(), tokens()))


def test_targets_choose_the_projections():
  shapes = transformer.shapes(CONFIG, LoraConfig(rank=2, targets=("query", "down")))
  adapters = lora.split(shapes)[1]["layers"]
  sizes = jax.tree.map(lambda leaf: leaf.shape, adapters)
  assert sizes == {
    "attention": {"query": {"lora_a": (2, 16, 2), "lora_b": (2, 2, 4, 4)}},
    "ffn": {"down": {"lora_a": (2, 32, 2), "lora_b": (2, 2, 16)}},
  }
  output = transformer.shapes(CONFIG, ALL)["layers"]["attention"]["output"]
  assert output["lora_a"].shape == (2, 4, 4, 3)
  assert output["lora_b"].shape == (2, 3, 16)
  plain = dataclasses.replace(CONFIG, gated=False)
  with pytest.raises(UserError, match=r"lora\.targets .* no gate"):
    transformer.shapes(plain, ALL)


def test_a_length_head_is_split_off_where_it_is_trained():
  params = transformer.shapes(dataclasses.replace(CONFIG, length_classes=3), ALL)
  assert "length_head" in lora.split(params)[0]
  frozen, trained = lora.split(params, length_head=True)
  assert set(trained) == {"layers", "length_head"}
  assert trained["length_head"] == params["length_head"]
  assert frozen == lora.split(transformer.shapes(CONFIG, ALL))[0]
  assert lora.join(frozen, trained) == params


def test_join_is_the_inverse_of_split_and_refuses_what_stands_twice():
  params = transformer.shapes(CONFIG, ALL)
  frozen, adapters = lora.split(params)
  assert lora.join(frozen, adapters) == params
  assert lora.join(frozen, {}) == frozen
  assert not lora.split(frozen)[1]
  with pytest.raises(ValueError, match="tokens"):
    lora.join(frozen, {"embedding": {"tokens": 0}})
