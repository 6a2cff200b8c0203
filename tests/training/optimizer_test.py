"""The learning-rate curve at its corners, what weight decay leaves alone, low-memory states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import sharding
from diffjax.checkpoints import Checkpoints
from diffjax.config import MeshConfig, ModelConfig, OptimizerConfig
from diffjax.models import transformer
from diffjax.models.architectures import PRESETS
from diffjax.training import optimizer
from diffjax.types import UserError

STEPS, WARMUP, PEAK = 100, 10, 2.0


def curve(**changes) -> np.ndarray:
  config = OptimizerConfig(learning_rate=PEAK, **{"warmup_steps": WARMUP, **changes})
  return np.asarray(jax.vmap(optimizer.learning_rate(config, steps=STEPS))(jnp.arange(STEPS)))


@pytest.mark.parametrize("decay", ["constant", "inverse_sqrt", "cosine", "linear"])
@pytest.mark.parametrize("warmup", ["linear", "logarithmic"])
def test_rises_to_the_peak_at_the_end_of_warmup_and_never_above(warmup, decay):
  rates = curve(warmup=warmup, decay=decay)
  assert rates[WARMUP - 1] == pytest.approx(PEAK)
  assert (np.diff(rates[:WARMUP]) > 0).all()
  assert (np.diff(rates[WARMUP:]) <= 1e-6).all()


def test_decays_have_their_closed_forms():
  n = np.arange(STEPS) + 1
  after = n > WARMUP
  share = (n - 1 - WARMUP) / (STEPS - WARMUP)
  for decay, want in {
    "constant": np.full(STEPS, PEAK),
    "inverse_sqrt": PEAK * np.sqrt(WARMUP / n),
    "linear": PEAK * (1 - share),
    "cosine": PEAK * (1 + np.cos(np.pi * share)) / 2,
  }.items():
    np.testing.assert_allclose(curve(decay=decay)[after], want[after], rtol=1e-5, atol=1e-6)


def test_logarithmic_warmup_is_log_shaped():
  rates = curve(warmup="logarithmic")
  np.testing.assert_allclose(
    rates[: WARMUP - 1], PEAK * np.log(np.arange(1, WARMUP)) / np.log(WARMUP), rtol=1e-5, atol=1e-6
  )


def test_without_warmup_the_first_update_has_the_peak_rate():
  assert curve(warmup_steps=0)[0] == pytest.approx(PEAK)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_weight_decay_moves_matrices_and_tables_only(name):
  config = ModelConfig(vocab_size=20, width=8, layers=1, heads=1, ffn_width=8, max_positions=8)
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), transformer.shapes(config))
  update = optimizer.make(OptimizerConfig(name=name, weight_decay=0.5), steps=10)

  @jax.jit
  def without_gradients(params):
    return update.update(jax.tree.map(jnp.zeros_like, params), update.init(params), params)[0]

  moved = {
    jax.tree_util.keystr(path): bool(np.any(x != 0))
    for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(without_gradients(params)))
  }
  for path, has_moved in moved.items():
    is_table = path.endswith(("'kernel']", "'tokens']", "'positions']", "'types']"))
    assert has_moved == is_table, path


def test_clipping_bounds_the_gradient_that_the_optimizer_sees():
  params = {"kernel": np.zeros(3, np.float32)}
  update = optimizer.make(OptimizerConfig(clip_norm=1.0, epsilon=1.0), steps=10)
  huge = {"kernel": np.float32([3e3, 4e3, 0.0])}
  unit = {"kernel": np.float32([0.6, 0.8, 0.0])}
  step = jax.jit(lambda gradient: update.update(gradient, update.init(params), params)[0]["kernel"])
  np.testing.assert_allclose(step(huge), step(unit), rtol=1e-5)


def draw(seed: int, centre: float = 0.0) -> dict:
  """Two layers and an embedding, as far as factoring tells shapes apart."""
  random = np.random.default_rng(seed)
  normal = lambda *shape: random.normal(centre, 1, shape).astype(np.float32)
  attention = {
    "query": {"kernel": normal(2, 128, 4, 32), "bias": normal(2, 4, 32)},
    "output": {"kernel": normal(2, 4, 32, 192)},
  }
  ffn = {"up": {"kernel": normal(2, 128, 64), "bias": normal(2, 64)}}  # a small matrix
  norm = {"scale": normal(2, 128)}
  embedding = {"tokens": normal(256, 128), "types": normal(1, 128)}
  return {
    "layers": {"attention": attention, "ffn": ffn, "attention_norm": norm}, "embedding": embedding,
  }  # fmt: skip


def as_matrices(params: dict) -> dict:
  """Every layer's leaves alone, projections of heads as matrices."""
  alone = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    for number, part in enumerate(leaf if "layers" in name else [leaf]):
      if "'query']['kernel" in name:
        part = part.reshape(128, 128)
      if "'output']['kernel" in name:
        part = part.reshape(128, 192)
      alone[f"{name}{number}"] = part
  return alone


def test_adafactor_treats_every_layer_of_a_stack_as_a_matrix_of_its_own():
  ours = optimizer.scale_by_factored_moments()
  theirs = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
  ours_update, theirs_update = jax.jit(ours.update), jax.jit(theirs.update)
  params = draw(0)
  state, want_state = ours.init(params), theirs.init(as_matrices(params))
  for step in range(3):
    gradients = draw(step, centre=step)
    updates, state = ours_update(gradients, state)
    want, want_state = theirs_update(as_matrices(gradients), want_state, as_matrices(params))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, as_matrices(jax.device_get(updates)), jax.device_get(want))


def test_adafactor_survives_rows_that_never_have_a_gradient():
  gradients = {"embedding": {"tokens": np.zeros((256, 128), np.float32)}}
  gradients["embedding"]["tokens"][:2] = 1e4
  update = optimizer.scale_by_factored_moments()
  updates, _ = jax.jit(update.update)(gradients, update.init(gradients))
  updates = updates["embedding"]["tokens"]
  assert (updates[2:] == 0).all()
  assert np.isfinite(updates).all()


LOW_MEMORY = [{"first_moment_dtype": "bfloat16"}, {"name": "adafactor"}]


def state_bytes(**settings) -> int:
  update = optimizer.make(OptimizerConfig(**settings), steps=10)
  state = jax.eval_shape(update.init, transformer.shapes(PRESETS["xlmr-base"]))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def test_low_memory_states_are_as_small_as_they_promise():
  full, narrow, factored = state_bytes(), *(state_bytes(**kind) for kind in LOW_MEMORY)
  assert narrow == pytest.approx(0.75 * full, rel=1e-6)
  assert factored < 0.03 * full


@pytest.mark.parametrize("settings", LOW_MEMORY, ids=["bfloat16 moment", "adafactor"])
def test_low_memory_states_shard_and_resume_bit_equal(settings, tmp_path):
  update = optimizer.make(OptimizerConfig(**settings), steps=10)
  params = draw(0)
  abstract = jax.eval_shape(update.init, params)
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  placed = sharding.shardings(abstract, mesh)
  begin = jax.jit(update.init, out_shardings=placed)(params)
  step = jax.jit(update.update, out_shardings=(None, placed))
  after = step(draw(1), begin, params)[1]
  with Checkpoints(tmp_path) as saved:
    saved.save(1, {"opt_state": after}, {})
  target = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed
  )
  with Checkpoints(tmp_path, read_only=True) as saved:
    restored = saved.restore(1, {"opt_state": target})["opt_state"]
  assert jax.tree.structure(restored) == jax.tree.structure(after)
  jax.tree.map(np.testing.assert_array_equal, restored, after)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), after, begin)
  assert all(jax.tree.leaves(moved))


def test_adafactor_has_no_moments_to_set():
  for field, value in (("first_moment_dtype", "bfloat16"), ("beta1", 0.5), ("epsilon", 1e-6)):
    with pytest.raises(UserError, match=f"optimizer.{field} = .*only adamw has it"):
      OptimizerConfig(name="adafactor", **{field: value})
