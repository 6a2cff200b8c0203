"""The network: published sizes, who sees whom, and what must not change the numbers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.config import ComputeConfig, Contract, ModelConfig
from diffjax.models import transformer
from diffjax.models.architectures import PRESETS, preset
from diffjax.types import UserError

CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=40)
ROWS, LENGTH = 3, 12


def tiny(**changes) -> ModelConfig:
  sizes = dict(vocab_size=41, width=16, layers=2, heads=2, ffn_width=32, max_positions=32)
  return ModelConfig(**(sizes | changes))


@functools.cache
def fresh(config: ModelConfig):
  return jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), config)


def bind(params, segments, config, *, compute=None, **layout):
  return transformer.bind(
    params, segments, config=config, contract=CONTRACT, compute=compute or ComputeConfig(), **layout
  )


def count(tree) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# Section sizes in millions: the blocks, and everything with the real rows of the table.
@pytest.mark.parametrize(
  ("name", "blocks", "total"),
  [
    ("xlmr-base", 85.05, 278.30),
    ("xlmr-large", 302.31, 560.14),
    ("xlmr-xl", 2832.4, 3482.7),
    ("xlmr-xxl", 9666.2, 10713.0),
  ],
)
def test_presets_have_the_published_numbers_of_parameters(name, blocks, total):
  config = PRESETS[name]
  shapes = transformer.shapes(config)
  padding = (config.table_rows - config.vocab_size) * (config.width + 1)  # of table and bias
  assert round(count(shapes["layers"]) / 1e6, 2) == pytest.approx(blocks, rel=1e-4)
  assert (count(shapes) - padding) / 1e6 == pytest.approx(total, rel=1e-4)


def test_unknown_preset_names_the_nearest():
  with pytest.raises(UserError, match="'xlmr-base'"):
    preset("xlm-base")


@pytest.fixture(scope="module", params=["post", "pre"])
def network(request):
  config = tiny(norm=request.param)
  return config, fresh(config)


def tokens() -> jax.Array:
  return jnp.asarray(np.random.default_rng(0).integers(3, 40, (ROWS, LENGTH)), jnp.int32)


def influence(config, params, segments, **layout) -> np.ndarray:
  """bool[L, L]: whether the output at row q changes when the token at row k does."""
  base = tokens()[0]
  changed = jnp.where(jnp.eye(LENGTH, dtype=bool), (base + 1) % 40, base)  # row k changes token k
  ids = jnp.concatenate([base[None], changed])
  every = lambda x: jnp.broadcast_to(x, (LENGTH + 1, LENGTH))
  layout = {name: every(x) for name, x in layout.items()}
  run = jax.jit(lambda ids: bind(params, every(segments), config, **layout).trunk(ids, None))
  hidden = np.asarray(run(ids))
  return (hidden[1:] != hidden[0]).any(-1).T


def test_full_attention_stays_inside_segments(network):
  segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3], jnp.int32)
  sees = influence(network[0], network[1], segments)
  np.testing.assert_array_equal(sees, np.equal.outer(segments[0], segments[0]))


def test_order_makes_attention_causal_or_prefix(network):
  segments = jnp.ones((1, LENGTH), jnp.int32)
  ramp = jnp.arange(LENGTH, dtype=jnp.int32)[None]
  sees = influence(network[0], network[1], segments, order=ramp)
  np.testing.assert_array_equal(sees, np.tril(np.ones((LENGTH, LENGTH), bool)))
  prefix = (ramp >= 4).astype(jnp.int32)
  sees = influence(network[0], network[1], segments, order=prefix)
  np.testing.assert_array_equal(sees, np.greater_equal.outer(prefix[0], prefix[0]))


def test_a_packed_segment_equals_the_same_row_alone(network):
  config, params = network
  x0 = tokens()
  packed = jnp.concatenate([x0[0, :5], x0[1, :7]])[None]
  segments = jnp.asarray([[1] * 5 + [2] * 7], jnp.int32)
  run = jax.jit(lambda ids, segments: bind(params, segments, config).trunk(ids, None)[0])
  together = run(packed, segments)
  alone = run(x0[1:2, :7], jnp.ones((1, 7), jnp.int32))
  np.testing.assert_allclose(together[5:], alone, atol=1e-5)


def test_rematerialisation_changes_no_gradient(network):
  config, params = network
  segments = jnp.ones((ROWS, LENGTH), jnp.int32)
  keys = jax.random.split(jax.random.key(1), ROWS)

  def gradient(remat):
    def loss(params):
      denoiser = bind(params, segments, config, compute=ComputeConfig(remat=remat), dropout=keys)
      return jnp.square(denoiser.trunk(tokens(), None)).sum()

    return jax.jit(jax.grad(loss))(params)

  want = gradient("none")
  for remat in ("full", "save_matmuls"):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, gradient(remat), want)


@pytest.mark.parametrize("rates", [{"dropout": 0.3}, {"dropout": 0.0, "attention_dropout": 0.3}])
def test_dropout_is_keyed_by_row(rates):
  config = tiny(**rates)
  params = fresh(config)
  keys = jax.random.split(jax.random.key(1), ROWS)
  segments = jnp.ones((ROWS, LENGTH), jnp.int32)
  run = jax.jit(lambda ids, keys: bind(params, segments, config, dropout=keys).trunk(ids, None))
  together = run(tokens(), keys)
  # Rows in another order, beside other mates: the same masks follow the keys.
  np.testing.assert_allclose(together[::-1], run(tokens()[::-1], keys[::-1]), atol=1e-5)
  assert np.abs(together - run(tokens(), jax.random.split(jax.random.key(2), ROWS))).max() > 1e-3


def test_attention_with_dropout_path_equals_the_fused_path_at_rate_near_zero():
  config = tiny(dropout=0.0, attention_dropout=1e-9)
  params = fresh(config)
  segments = jnp.asarray([[1] * 8 + [0] * 4] * ROWS, jnp.int32)
  keys = jax.random.split(jax.random.key(1), ROWS)
  run = lambda keys: bind(params, segments, config, dropout=keys).trunk(tokens(), None)
  written_out, fused = jax.jit(lambda keys: (run(keys), run(None)))(keys)
  np.testing.assert_allclose(written_out, fused, atol=1e-5)


def test_dropped_elements_keep_the_mean():
  from diffjax.models.layers import dropout

  keys = jax.random.split(jax.random.key(0), 64)
  dropped = np.asarray(dropout(jnp.ones((64, 500)), keys, 0.3, site=1))
  assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.7)}
  assert abs(dropped.mean() - 1) < 5 * np.sqrt(0.3 / 0.7 / dropped.size)


def test_bfloat16_activations_leave_parameters_and_logits_float32(network):
  config, params = network
  segments = jnp.ones((ROWS, LENGTH), jnp.int32)

  @functools.partial(jax.jit, static_argnums=0)
  def run(dtype):
    denoiser = bind(params, segments, config, compute=ComputeConfig(dtype=dtype))
    return denoiser.trunk(tokens(), None), transformer.logits(denoiser, tokens())

  exact = run("float32")[1]
  hidden, rough = run("bfloat16")
  assert hidden.dtype == jnp.bfloat16
  assert rough.dtype == exact.dtype == jnp.float32
  np.testing.assert_allclose(rough, exact, atol=0.05)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_blocks_return_the_keys_and_values_of_every_layer(network):
  config, params = network
  module = transformer.Transformer(config, ComputeConfig())
  layout = transformer.make_layout(jnp.ones((ROWS, LENGTH), jnp.int32))
  variables = {"params": params}
  _, (keys, values) = module.apply(variables, tokens(), layout, None, method="trunk")
  want = (config.layers, ROWS, LENGTH, config.heads, config.head_width)
  assert keys.shape == values.shape == want


def test_mask_and_padding_rows_are_not_allowed():
  allowed = np.asarray(transformer.allowed_rows(tiny(), CONTRACT))
  assert allowed.shape == (256,)
  np.testing.assert_array_equal(np.flatnonzero(~allowed), np.arange(40, 256))


def test_positions_restart_in_every_segment():
  segments = jnp.asarray([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 3, 3, 0]], jnp.int32)
  positions = transformer.make_layout(segments).positions
  np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 0, 1, 0]])
