"""The network: published sizes, who sees whom, and what must not change the numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.config import ComputeConfig, Contract, ModelConfig
from diffjax.models import transformer

CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=40)
ROWS, LENGTH = 3, 12


def tiny(**changes) -> ModelConfig:
  sizes = dict(vocab_size=41, width=16, layers=2, heads=2, ffn_width=32, max_positions=32)
  return ModelConfig(**(sizes | changes))


@functools.cache
def fresh(config: ModelConfig):
  """Distributed as `init` makes them, without compiling it."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key
    if name in ("scale", "bias"):
      return jnp.asarray(np.full(leaf.shape, float(name == "scale"), np.float32))
    return jnp.asarray(rng.normal(0, 0.02, leaf.shape).astype(np.float32))

  return jax.tree_util.tree_map_with_path(draw, transformer.shapes(config))


def bind(params, segments, config, *, contract=CONTRACT, compute=None, **layout):
  return transformer.bind(
    params, segments, config=config, contract=contract, compute=compute or ComputeConfig(), **layout
  )


# As far apart as two forms can be: XLM-R's, and Llama's with Qwen 3's norms.
FORMS = {
  "post": {},
  "modern": dict(
    norm="pre", norm_kind="rms", positions="rotary", position_offset=0, token_types=0,
    embedding_norm=False, kv_heads=1, query_key_norm=True, attention_bias="none", gated=True,
    activation="silu", dense_bias=False, head="linear", head_bias=False, tied=False,
  ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FORMS)
def network(request):
  config = tiny(**FORMS[request.param])
  return config, fresh(config)


def tokens() -> np.ndarray:
  return np.random.default_rng(0).integers(3, 40, (ROWS, LENGTH)).astype(np.int32)


def ones(*shape) -> np.ndarray:
  return np.ones(shape, np.int32)


@functools.partial(jax.jit, static_argnames=("config", "contract"))
def trunk(params, ids, segments, *, config, contract, order=None):
  return bind(params, segments, config, contract=contract, order=order).trunk(ids, None)


def influence(config, params, segments, *, contract=CONTRACT, **layout) -> np.ndarray:
  """bool[L, L]: whether the output at row q changes when the token at row k does."""
  base = tokens()[0]
  changed = np.where(np.eye(LENGTH, dtype=bool), (base + 1) % 40, base)  # row k changes token k
  ids = np.concatenate([base[None], changed])
  every = lambda x: np.broadcast_to(x, (LENGTH + 1, LENGTH))
  layout = {name: every(x) for name, x in layout.items()}
  hidden = np.asarray(
    trunk(params, ids, every(segments), config=config, contract=contract, **layout)
  )
  return (hidden[1:] != hidden[0]).any(-1).T


def test_full_attention_stays_inside_segments(network):
  segments = np.int32([[1] * 5 + [2] * 4 + [0] * 3])
  sees = influence(network[0], network[1], segments)
  np.testing.assert_array_equal(sees, np.equal.outer(segments[0], segments[0]))


def test_order_makes_attention_causal_or_prefix(network):
  segments = ones(1, LENGTH)
  ramp = np.arange(LENGTH, dtype=np.int32)[None]
  sees = influence(network[0], network[1], segments, order=ramp)
  np.testing.assert_array_equal(sees, np.tril(np.ones((LENGTH, LENGTH), bool)))
  prefix = (ramp >= 4).astype(np.int32)
  sees = influence(network[0], network[1], segments, order=prefix)
  np.testing.assert_array_equal(sees, np.greater_equal.outer(prefix[0], prefix[0]))


def test_a_packed_segment_equals_the_same_row_alone(network):
  config, params = network
  x0 = tokens()
  packed = np.concatenate([x0[0, :5], x0[1, :7]])[None]
  segments = np.int32([[1] * 5 + [2] * 7])
  hidden = lambda ids, segments: bind(params, segments, config).trunk(ids, None)[0]
  run = jax.jit(lambda ids: (hidden(packed, segments), hidden(ids, ones(1, 7))))
  together, alone = jax.device_get(run(x0[1:2, :7]))
  np.testing.assert_allclose(together[5:], alone, atol=1e-5)


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient():
  config = tiny(layers=1, **FORMS["modern"])
  params = fresh(config)
  segments = ones(ROWS, LENGTH)
  keys = jax.random.split(jax.random.key(1), ROWS)

  def loss(params, remat):
    denoiser = bind(params, segments, config, compute=ComputeConfig(remat=remat), dropout=keys)
    return jnp.square(denoiser.trunk(tokens(), None)).sum()

  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  want = gradient(params, "none")
  for remat in ("full", "save_matmuls", "offload"):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, gradient(params, remat), want)


def test_fresh_parameters_start_as_they_should():
  config = tiny(length_classes=5)
  init = jax.jit(transformer.init, static_argnums=1)
  params = jax.device_get(init(jax.random.key(0), config))
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    assert leaf.dtype == jnp.float32
    if path[-1].key in ("scale", "bias"):
      assert (leaf == float(path[-1].key == "scale")).all()
    else:
      assert abs(leaf.std() / 0.02 - 1) < 0.3, path
  query = params["layers"]["attention"]["query"]["kernel"]
  assert (query[0] != query[1]).all()


@pytest.mark.parametrize("rates", [{"dropout": 0.3}, {"dropout": 0.0, "attention_dropout": 0.3}])
def test_dropout_is_keyed_by_row(rates):
  config = tiny(**rates)
  params = fresh(config)
  keys = jax.random.split(jax.random.key(1), ROWS)
  segments = ones(ROWS, LENGTH)
  run = jax.jit(lambda ids, keys: bind(params, segments, config, dropout=keys).trunk(ids, None))
  together = np.asarray(run(tokens(), keys))
  # Rows in another order, beside other mates: the same masks follow the keys.
  np.testing.assert_allclose(together[::-1], run(tokens()[::-1], keys[::-1]), atol=1e-5)
  assert np.abs(together - run(tokens(), jax.random.split(jax.random.key(2), ROWS))).max() > 1e-3


def test_attention_with_dropout_path_equals_the_fused_path_at_rate_near_zero():
  config = tiny(heads=4, kv_heads=2, dropout=0.0, attention_dropout=1e-9)
  params = fresh(config)
  segments = np.int32([[1] * 8 + [0] * 4] * ROWS)
  keys = jax.random.split(jax.random.key(1), ROWS)
  run = lambda keys: bind(params, segments, config, dropout=keys).trunk(tokens(), None)
  written_out, fused = jax.device_get(jax.jit(lambda keys: (run(keys), run(None)))(keys))
  np.testing.assert_allclose(written_out, fused, atol=1e-5)


def test_dropped_elements_keep_the_mean():
  from diffjax.models.layers import dropout

  keys = jax.random.split(jax.random.key(0), 64)
  run = jax.jit(lambda keys: dropout(jnp.ones((64, 500)), keys, 0.3, site=1))
  dropped = np.asarray(run(keys))
  assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.7)}
  assert abs(dropped.mean() - 1) < 5 * np.sqrt(0.3 / 0.7 / dropped.size)


def test_bfloat16_activations_or_weights_leave_logits_float32(network):
  config, params = network
  segments = ones(ROWS, LENGTH)

  def logits(params, compute):
    denoiser = bind(params, segments, config, compute=compute)
    return transformer.logits(denoiser, tokens())

  def hidden(params):
    return bind(params, segments, config, compute=rough).trunk(tokens(), None)

  exact, rough = ComputeConfig(), ComputeConfig(dtype="bfloat16")
  frozen = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.bfloat16), params)
  run = jax.jit(lambda p, f: (logits(p, exact), logits(p, rough), logits(f, exact)))
  want, *have = jax.device_get(run(params, frozen))
  assert want.dtype == np.float32
  for logits_of in have:  # bfloat16 activations; bfloat16 weights, as the frozen ones may be
    assert logits_of.dtype == np.float32
    assert (logits_of != want).any()
    np.testing.assert_allclose(logits_of, want, atol=0.05)
  assert jax.eval_shape(hidden, params).dtype == jnp.bfloat16


def test_blocks_return_the_keys_and_values_of_every_layer(network):
  config, params = network
  module = transformer.Transformer(config, ComputeConfig())
  layout = transformer.make_layout(ones(ROWS, LENGTH))
  variables = {"params": params}
  run = lambda ids: module.apply(variables, ids, layout, None, method="trunk")
  _, (keys, values) = jax.eval_shape(run, tokens())
  want = (config.layers, ROWS, LENGTH, config.key_heads, config.head_width)
  assert keys.shape == values.shape == want


def test_mask_and_padding_rows_are_not_allowed():
  allowed = np.asarray(transformer.allowed_rows(tiny(), CONTRACT))
  assert allowed.shape == (256,)
  np.testing.assert_array_equal(np.flatnonzero(~allowed), np.arange(40, 256))


def test_positions_restart_in_every_segment():
  segments = np.int32([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 3, 3, 0]])
  positions = transformer.make_layout(segments).positions
  np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 0, 1, 0]])


CAUSAL = dataclasses.replace(CONTRACT, attention="causal")


def test_a_causal_contract_hides_what_is_later(network):
  segments = np.int32([[1] * 5 + [2] * 4 + [0] * 3])
  sees = influence(*network, segments, contract=CAUSAL)
  np.testing.assert_array_equal(sees, np.tril(np.equal.outer(segments[0], segments[0])))


def test_openness_shows_a_share_of_what_is_later():
  opened = np.asarray(transformer.open_attention(jax.random.key(3), 300, 0.3))
  later = opened[np.triu_indices(300, 1)]
  assert abs(later.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / later.size)
  more = np.asarray(transformer.open_attention(jax.random.key(3), 300, 0.6))
  assert (more >= opened).all()
  assert (more > opened).any()
  assert np.asarray(transformer.open_attention(jax.random.key(3), 300, 1.0)).all()
  assert not np.asarray(transformer.open_attention(jax.random.key(3), 300, 0.0)).any()
  shorter = transformer.open_attention(jax.random.key(3), 40, 0.3)
  np.testing.assert_array_equal(shorter, opened[:40, :40])  # padding changes nothing


def test_the_contracts_openness_is_seen_on_top_of_causal_attention():
  config = tiny(layers=1)  # with more, what is open is seen through others too
  segments = np.int32([[1] * 5 + [2] * 7])
  contract = dataclasses.replace(CAUSAL, openness=0.4)
  sees = influence(config, fresh(config), segments, contract=contract)
  opened = np.asarray(transformer._contract_layout(segments, contract).opened)
  together = np.equal.outer(segments[0], segments[0])
  np.testing.assert_array_equal(sees, together & (np.tril(together) | opened))
  assert sees.sum() > np.tril(together).sum()


def test_an_output_shift_is_undone_inside_segments(network):
  config, params = network
  segments = np.int32([[1] * 5 + [2] * 4 + [0] * 3] * ROWS)
  shifted = dataclasses.replace(CAUSAL, output_shift=1)
  run = lambda contract: bind(params, segments, config, contract=contract).trunk(tokens(), None)
  plain, moved = jax.device_get(jax.jit(lambda: (run(CAUSAL), run(shifted)))())
  source = [0, 0, 1, 2, 3, 5, 5, 6, 7, 9, 9, 10]  # each segment's first keeps its own
  np.testing.assert_array_equal(moved, plain[:, source])


def test_rotary_attention_depends_on_differences_of_positions_only():
  config = tiny(**FORMS["modern"])
  params, segments = fresh(config), ones(ROWS, LENGTH)
  run = jax.jit(
    lambda places: bind(params, segments, config, positions=places).trunk(tokens(), None)
  )
  ramp = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))
  plain, moved, stretched = (np.asarray(run(places)) for places in (ramp, ramp + 50, ramp * 2))
  np.testing.assert_allclose(moved, plain, atol=1e-4)
  assert np.abs(stretched - plain).max() > 1e-2


def test_masks_embed_as_nothing_and_a_row_of_masks_stays_finite():
  config = tiny(zero_mask_embedding=True, positions="rotary")
  params = fresh(config)
  segments = ones(1, LENGTH)
  run = jax.jit(lambda params, ids: bind(params, segments, config).trunk(ids, None))
  masks = np.full((1, LENGTH), CONTRACT.mask_id, np.int32)
  assert np.isfinite(run(params, masks)).all()
  table = params["embedding"]["tokens"]
  moved = np.where(np.arange(len(table))[:, None] == CONTRACT.mask_id, np.float32(9), table)
  other = params | {"embedding": params["embedding"] | {"tokens": moved}}
  some = np.where(np.arange(LENGTH) == 3, CONTRACT.mask_id, tokens()[:1])
  np.testing.assert_array_equal(run(other, some), run(params, some))


def test_a_head_has_what_its_form_says():
  plain = bind(params := fresh(tiny()), ones(1, 2), tiny()).head
  assert set(plain.params) == {"dense", "norm"}
  assert plain.table is params["embedding"]["tokens"]
  config = tiny(**FORMS["modern"])
  modern = bind(params := fresh(config), ones(1, 2), config).head
  assert not modern.params
  assert modern.table is params["head"]["table"]
  np.testing.assert_array_equal(modern.bias, np.zeros(256))
  hidden = np.ones((2, 16))
  assert modern.transform(modern.params, hidden) is hidden
