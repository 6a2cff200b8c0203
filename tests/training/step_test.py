"""One step: microbatches, meshes and rows change nothing but rounding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import sharding
from diffjax.config import (
  ComputeConfig,
  Contract,
  LoraConfig,
  MeshConfig,
  ModelConfig,
  OptimizerConfig,
)
from diffjax.diffusion import objectives, schedules
from diffjax.models import lora, transformer
from diffjax.training import optimizer, state, step
from diffjax.training.adaptation import Annealing
from diffjax.types import Batch

MODEL = ModelConfig(
  vocab_size=60, width=16, layers=1, heads=2, ffn_width=32, max_positions=16, dropout=0.1
)
# What adapters stand beside is of no account: as little as compiles.
ADAPTED = dataclasses.replace(
  MODEL, norm="pre", norm_kind="rms", attention_bias="none", dense_bias=False, head="linear",
  head_bias=False, embedding_norm=False, token_types=0, dropout=0.0,
)  # fmt: skip
CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=59)
NO_ADAPTERS = LoraConfig()
ROWS, LENGTH = 16, 12
OBJECTIVE = objectives.Objective(
  schedule=schedules.make("linear", power=1.0), num_timesteps=50, weight="linear",
  normalizer="corrupted", times="stratified", mask_ratio=0.0, coupled=True,
  label_smoothing=0.1, seed=3,
)  # fmt: skip
PER_EXAMPLE = dataclasses.replace(OBJECTIVE, normalizer="canvas", coupled=False)


def make_batch() -> Batch:
  random = np.random.default_rng(0)
  lengths = random.integers(5, LENGTH + 1, ROWS)[:, None]
  ramp = np.arange(LENGTH)
  return Batch(
    tokens=random.integers(3, 59, (ROWS, LENGTH)).astype(np.int32),
    segments=(ramp < lengths).astype(np.int32),
    canvas=(ramp >= 3) & (ramp < lengths),
    index=np.arange(ROWS, dtype=np.int32),
  )


@functools.cache
def optimizer_of():
  return optimizer.make(OptimizerConfig(learning_rate=0.1, epsilon=1e-3), steps=10)


def model_of(adapters: LoraConfig) -> ModelConfig:
  return ADAPTED if adapters.rank else MODEL


@functools.cache
def fresh_state(adapters=NO_ADAPTERS) -> tuple[state.TrainState, dict]:
  """The state, and the frozen leaves."""
  random = np.random.default_rng(0)

  def draw(path, leaf):  # as after some steps: no adapter is 0
    centre = 1.0 if path[-1].key == "scale" else 0.05 if path[-1].key == "lora_b" else 0.0
    return random.normal(centre, 0.02, leaf.shape).astype(np.float32)

  params = jax.tree_util.tree_map_with_path(draw, transformer.shapes(model_of(adapters), adapters))
  frozen, trained = lora.split(params) if adapters.rank else ({}, params)
  frozen = jax.tree.map(lambda x: x.astype(adapters.frozen_dtype), frozen)
  create = jax.jit(functools.partial(state.create, optimizer=optimizer_of(), ema=True))
  return jax.device_get(create(trained)), frozen


def run(
  objective=OBJECTIVE, *, microbatches=1, mesh_config=None, adapters=NO_ADAPTERS, annealing=None
):
  """One step on one device or on a mesh -> (state, updates)."""
  shards, placed_params, options = None, None, {}
  current, frozen = fresh_state(adapters)
  contract = CONTRACT
  if annealing:
    contract = dataclasses.replace(CONTRACT, attention="causal", output_shift=1)
    current = current.replace(step=np.int32(1))
  if mesh_config:
    mesh = sharding.make_mesh(mesh_config)
    shards = sharding.shards(mesh)
    placed = sharding.shardings(jax.eval_shape(lambda: current), mesh)
    placed_params = placed.params
    options["in_shardings"] = (placed, sharding.shardings(frozen, mesh), sharding.rows(mesh))
    options["out_shardings"] = (placed, sharding.replicated(mesh))
  bind = functools.partial(
    transformer.bind, config=model_of(adapters), contract=contract, compute=ComputeConfig(),
    lora=adapters, shards=shards,
  )  # fmt: skip
  loss = functools.partial(
    step.loss_sums, bind=bind, objective=objective, mask_id=CONTRACT.mask_id, chunk=16,
    shards=shards, train=True,
  )  # fmt: skip
  train_step = functools.partial(
    step.train_step,
    loss=loss,
    optimizer=optimizer_of(),
    learning_rate=lambda count: 0.1,
    microbatches=microbatches,
    ema_decay=0.9,
    opening=functools.partial(annealing.opened, seed=3) if annealing else None,
    placed=placed_params,
  )
  return jax.jit(train_step, **options)(current, frozen, make_batch())


@functools.cache
def whole():
  return jax.device_get(run())


def assert_close(have, want):
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, jax.device_get(have), want)


@pytest.mark.parametrize(
  ("mesh", "microbatches"),
  [({"data": 8}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 4)],
  ids=["8x1x1", "2x2x2 in 4 microbatches"],
)
def test_eight_devices_and_microbatches_equal_one_of_each(mesh, microbatches):
  current, updates = run(mesh_config=MeshConfig(**mesh), microbatches=microbatches)
  assert_close((current, updates), whole())
  assert float(updates.sums.loss) == pytest.approx(float(whole()[1].sums.loss), rel=1e-5)


def test_the_moving_average_follows_its_definition():
  (before, _), (after, _) = fresh_state(), whole()
  want = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, before.ema_params, after.params)
  assert_close(after.ema_params, want)


def test_sums_report_what_they_say():
  sums, batch = whole()[1].sums, make_batch()
  noise = jax.jit(
    functools.partial(objectives.noised, objective=OBJECTIVE, rows=ROWS, mask_id=CONTRACT.mask_id)
  )
  noised = jax.device_get(noise(batch, 0))
  assert sums.tokens == (batch.segments > 0).sum()
  assert sums.scored.sum() == noised.scored.sum() == sums.weight
  rate = 1 - np.asarray(OBJECTIVE.schedule.alpha(noised.t))
  bins = np.clip((rate * step.NOISE_BINS).astype(int), 0, step.NOISE_BINS - 1)
  want = np.bincount(bins[noised.scored], minlength=step.NOISE_BINS)
  np.testing.assert_array_equal(sums.scored, want)


@functools.cache
def plain_losses():
  """(params, batch) -> the streamed and the naive loss with gradients, without twins, dropout."""
  bind = functools.partial(
    transformer.bind, config=MODEL, contract=CONTRACT, compute=ComputeConfig()
  )
  streamed = functools.partial(
    step.loss_sums, bind=bind, objective=PER_EXAMPLE, rows=ROWS, mask_id=CONTRACT.mask_id, chunk=16,
    shards=None, train=False,
  )  # fmt: skip

  def naive(params, batch):
    noised = objectives.noised(batch, 5, objective=PER_EXAMPLE, rows=ROWS, mask_id=CONTRACT.mask_id)
    denoiser = bind(params, batch.segments)
    logits = transformer.logits(denoiser, noised.xt)
    log_p = jax.nn.log_softmax(jnp.where(denoiser.head.allowed, logits, -jnp.inf))
    nll = -jnp.take_along_axis(log_p, batch.tokens[..., None], -1)[..., 0]
    mean = -jnp.where(denoiser.head.allowed, log_p, 0).sum(-1) / denoiser.head.allowed.sum()
    return (noised.weights.nll * nll + noised.weights.smooth * mean).sum()

  def both(params, batch):
    have = jax.value_and_grad(lambda p: streamed(p, {}, batch, 5), has_aux=True)(params)
    return have, jax.value_and_grad(naive)(params, batch)

  both = jax.jit(both)
  return lambda *args: jax.device_get(both(*args))


def test_gradient_equals_that_of_the_naive_loss():
  ((loss, _), gradient), want = plain_losses()(fresh_state()[0].params, make_batch())
  assert_close((loss, gradient), want)


ADAPTERS = LoraConfig(rank=2, targets=("query", "down"), dropout=0.1)


@functools.cache
def adapted():
  return jax.device_get(run(PER_EXAMPLE, adapters=ADAPTERS, annealing=Annealing(4)))


def test_microbatches_equal_the_whole_batch_and_share_one_draw_of_open_attention():
  have = run(PER_EXAMPLE, adapters=ADAPTERS, annealing=Annealing(4), microbatches=2)
  assert_close(have, adapted())
  assert adapted()[1].sums.weight == ROWS


def test_adapters_alone_are_trained():
  current, _ = adapted()
  before, frozen = fresh_state(ADAPTERS)
  for tree in (current.params, current.ema_params):
    assert jax.tree.structure(tree) == jax.tree.structure(before.params)
  changed = jax.tree.map(lambda a, b: bool((a != b).all()), current.params, before.params)
  assert all(jax.tree.leaves(changed))
  moments = sum(x.size for x in jax.tree.leaves(current.opt_state))
  trained = sum(x.size for x in jax.tree.leaves(current.params))
  assert 2 * trained <= moments <= 2 * trained + 4  # two moments, and counters
  assert trained < sum(x.size for x in jax.tree.leaves(frozen)) / 4


def test_a_reused_mask_id_is_neither_noised_nor_scored():
  batch, params = make_batch(), fresh_state()[0].params
  tokens = np.where(np.arange(LENGTH) == 4, CONTRACT.mask_id, batch.tokens)  # of a text
  ((_, have), gradient), _ = plain_losses()(params, batch._replace(tokens=tokens))
  ((_, plain), _), _ = plain_losses()(params, batch)
  assert np.isfinite(have.loss)
  assert np.isfinite(have.nll).all()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert have.scored.sum() < plain.scored.sum()


def test_what_is_computed_again_need_not_be_stored():
  model = dataclasses.replace(MODEL, layers=6, width=64, heads=4, ffn_width=256)
  segments, tokens = np.ones((8, 16), np.int32), np.zeros((8, 16), np.int32)

  def temporary_bytes(remat: str) -> int:
    compute = ComputeConfig(remat=remat)

    def loss(params):
      bound = transformer.bind(params, segments, config=model, contract=CONTRACT, compute=compute)
      return bound.trunk(tokens, None).sum()

    gradient = jax.jit(jax.grad(loss)).lower(transformer.shapes(model))
    return gradient.compile().memory_analysis().temp_size_in_bytes

  kept = {remat: temporary_bytes(remat) for remat in ("full", "save_matmuls", "none")}
  assert kept["full"] < kept["save_matmuls"] < kept["none"]
  outputs = 6 * tokens.size * (4 * 64 + 256) * 4  # bytes: of the products whose output is read
  assert kept["save_matmuls"] - kept["full"] > 0.8 * outputs, kept
