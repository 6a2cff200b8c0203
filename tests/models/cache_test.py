"""Keys and values kept from earlier calls: the same numbers as computing the whole row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.config import ComputeConfig, Contract, ModelConfig
from diffjax.models import transformer

ROWS, LENGTH, BLOCK, PAD = 3, 16, 4, 1
ANSWER = 8  # positions, as two blocks
PREFIX = Contract(bos_id=0, pad_id=PAD, eos_id=2, mask_id=40, attention="prefix")
BLOCKS = dataclasses.replace(
  PREFIX, attention="blocks", block_size=BLOCK, end="predicted", end_padding=BLOCK
)
CAUSAL = dataclasses.replace(PREFIX, attention="causal")
SHIFTED = dataclasses.replace(CAUSAL, output_shift=1)

POST = {}
GPT2 = dict(norm="pre", position_offset=0, token_types=0, embedding_norm=False, head="linear")
LLAMA = GPT2 | dict(
  norm_kind="rms", positions="rotary", kv_heads=2, query_key_norm=True, attention_bias="none",
  gated=True, activation="silu", dense_bias=False,
)  # fmt: skip
LOCAL = POST | dict(positions="rotary", window=3, global_every=2)
CASES = {
  "post-prefix": (POST, PREFIX),
  "llama-blocks": (LLAMA, BLOCKS),
  "llama-shifted": (LLAMA, SHIFTED),
  "gpt2-shifted": (GPT2, SHIFTED),
  "local-causal": (LOCAL, CAUSAL),
}
STARTS = np.asarray([3, 8, 5])  # of the answers: prompts of three lengths, then padding
SEGMENTS = (np.arange(LENGTH) < (STARTS + ANSWER)[:, None]).astype(np.int32)
CANVAS = (np.arange(LENGTH) >= STARTS[:, None]) & (SEGMENTS > 0)
RANDOM = np.random.default_rng(0)
TOKENS = np.where(SEGMENTS > 0, RANDOM.integers(3, 40, (ROWS, LENGTH)), PAD).astype(np.int32)


def tiny(**form) -> ModelConfig:
  sizes = dict(vocab_size=41, width=16, layers=3, heads=4, ffn_width=24, max_positions=32)
  return ModelConfig(**(sizes | form))


def random_params(config: ModelConfig):
  """Like trained ones: nothing is 0 or 1."""
  random = np.random.default_rng(1)

  def draw(path, leaf):
    offset = 1.0 if path[-1].key == "scale" else 0.0
    return jnp.asarray(offset + random.normal(0, 0.3, leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, transformer.shapes(config))


def bind(params, config, contract, segments=SEGMENTS, canvas=CANVAS, **options):
  return transformer.bind(
    params, segments, config=config, contract=contract, compute=ComputeConfig(), canvas=canvas,
    **options,
  )  # fmt: skip


def slots(block: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Places of one block of every answer with padding slots behind them, and which are real."""
  places = STARTS[:, None] + block * BLOCK + np.arange(width)
  real = np.arange(width) < BLOCK
  return np.where(real, places, 0).astype(np.int32), np.broadcast_to(real, places.shape)


def take(values, places):
  return np.take_along_axis(np.asarray(values), places[..., None], axis=1)


@pytest.mark.parametrize("case", CASES)
def test_blocks_over_a_cache_equal_whole_rows(case):
  form, contract = CASES[case]
  config = tiny(**form)
  whole_answer = contract.attention == "prefix"
  params = random_params(config)
  width = ANSWER if whole_answer else BLOCK + 2

  @jax.jit
  def run(tokens, junk):
    denoiser = bind(params, config, contract)
    rows = np.arange(ROWS)[:, None]
    cache = denoiser.prefill(jnp.where(CANVAS, junk, tokens), ~CANVAS & (SEGMENTS > 0))
    if whole_answer:
      places = STARTS[:, None] + np.arange(ANSWER)
      hidden, _ = denoiser.extend(tokens[rows, places], places, np.ones(places.shape, bool), cache)
      return denoiser.trunk(tokens, None), [hidden]
    parts = []
    for block in range(2):
      places, real = slots(block, width)
      hidden, cache = denoiser.extend(tokens[rows, places], places, real, cache)
      parts.append(hidden[:, :BLOCK])
    return denoiser.trunk(tokens, None), parts

  whole, parts = jax.device_get(run(TOKENS, np.full_like(TOKENS, 7)))
  want = take(whole, STARTS[:, None] + np.arange(ANSWER))
  assert np.abs(want).max() > 1
  np.testing.assert_allclose(np.concatenate(parts, axis=1), want, rtol=1e-5, atol=1e-5)
  # What the canvas held while the prompt was stored is nothing to anyone.
  _, others = jax.device_get(run(TOKENS, np.full_like(TOKENS, 9)))
  jax.tree.map(np.testing.assert_array_equal, others, parts)


def test_padding_slots_store_nothing_and_disturb_nothing():
  config = tiny(**LLAMA)
  params = random_params(config)
  stored = ~CANVAS & (SEGMENTS > 0)

  @jax.jit
  def run(said, places, real):
    denoiser = bind(params, config, SHIFTED)
    cache = denoiser.prefill(TOKENS, stored)
    return cache, *denoiser.extend(said, places, real, cache)

  places, real = slots(0, BLOCK + 2)
  real = real & (np.arange(ROWS) != 1)[:, None]  # row 1 has ended
  said = TOKENS[np.arange(ROWS)[:, None], places]
  cache, hidden, extended = jax.device_get(run(said, places, real))
  fresh = np.zeros((ROWS, LENGTH), bool)
  fresh[np.nonzero(real)[0], places[real]] = True
  assert (extended.stored == (stored | fresh)).all()
  for old, new in ((cache.keys, extended.keys), (cache.values, extended.values)):
    np.testing.assert_array_equal(new[:, ~fresh], old[:, ~fresh])
    assert (new[-1, fresh] != old[-1, fresh]).all()  # the first layer's are of a token alone
  np.testing.assert_array_equal(extended.hidden[~fresh], cache.hidden[~fresh])
  assert np.isfinite(hidden).all()
  junk = np.where(real, said, 11), np.where(real, places, 6)
  _, other_hidden, other = jax.device_get(run(*junk, real))
  np.testing.assert_array_equal(other_hidden[real], hidden[real])
  jax.tree.map(np.testing.assert_array_equal, other, extended)


def test_slots_with_gaps_take_shifted_outputs_from_where_they_are():
  """One canvas in pieces: behind a gap, the output before is the stored one."""
  config = tiny(**GPT2)
  params = random_params(config)
  places = np.tile(np.int32([4, 5, 9, 12, 13]), (ROWS, 1))
  segments = np.ones((ROWS, LENGTH), np.int32)
  tokens = RANDOM.integers(3, 40, (ROWS, LENGTH)).astype(np.int32)
  stored = np.ones((ROWS, LENGTH), bool)
  stored[:, places[0]] = False

  @jax.jit
  def run(tokens):
    denoiser = bind(params, config, SHIFTED, segments, ~stored)
    # All of the row is stored first, so that nothing stored lacks what it sees.
    full = denoiser.prefill(tokens, np.ones_like(stored))
    cache = full._replace(hidden=full.hidden * stored[..., None], stored=jnp.asarray(stored))
    real = np.ones(places.shape, bool)
    hidden, _ = denoiser.extend(tokens[:, places[0]], places, real, cache)
    return denoiser.trunk(tokens, None), hidden

  whole, hidden = jax.device_get(run(tokens))
  np.testing.assert_allclose(hidden, take(whole, places), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_kept_is_not_offered():
  def offered(contract, form=POST, **options):
    found = []

    def trace(params):
      denoiser = bind(params, tiny(**form), contract, **options)
      found.extend(part is not None for part in (denoiser.prefill, denoiser.extend))

    jax.eval_shape(trace, transformer.shapes(tiny(**form)))
    return found

  for contract in (PREFIX, BLOCKS, CAUSAL, SHIFTED):
    assert offered(contract) == [True, True]
  full = dataclasses.replace(PREFIX, attention="full")
  half_open = dataclasses.replace(CAUSAL, openness=0.5)
  rescaled = dict(zero_mask_embedding=True, positions="rotary")
  keys = jax.random.split(jax.random.key(0), ROWS)
  assert offered(full) == offered(half_open) == [False, False]
  assert offered(PREFIX, rescaled) == offered(PREFIX, dropout=keys) == [False, False]


def test_a_look_costs_as_the_positions_it_computes():
  """Operations of the traced program: a quarter of the row costs a quarter of the row's."""
  length, width = 128, 32
  config = tiny(width=64, ffn_width=256, heads=4, max_positions=length)
  segments = np.ones((ROWS, length), np.int32)
  canvas = np.broadcast_to(np.arange(length) >= length - width, segments.shape)
  places = np.broadcast_to(np.arange(length - width, length, dtype=np.int32), (ROWS, width))

  def cost(run, *arguments):
    return jax.jit(run).lower(*arguments).cost_analysis()["flops"]

  def whole(params, tokens):
    return bind(params, config, PREFIX, segments, canvas).trunk(tokens, None)

  def prefill(params, tokens):
    return bind(params, config, PREFIX, segments, canvas).prefill(tokens, ~canvas)

  def look(params, tokens, cache):
    denoiser = bind(params, config, PREFIX, segments, canvas)
    return denoiser.extend(tokens, places, np.ones(places.shape, bool), cache)[0]

  row = jax.ShapeDtypeStruct(segments.shape, jnp.int32)
  part = jax.ShapeDtypeStruct(places.shape, jnp.int32)
  params = transformer.shapes(config)
  cache = jax.eval_shape(prefill, params, row)
  share = cost(look, params, part, cache) / cost(whole, params, row)
  assert 0.2 < share < 0.3
