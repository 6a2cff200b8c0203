import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffjax.diffusion import objectives, processes, schedules
from diffjax.diffusion.objectives import Objective
from diffjax.types import Batch, UserError

LINEAR = schedules.make("linear")
SCHEDULES = [
  LINEAR,
  schedules.make("cosine"),
  schedules.make("polynomial", power=0.5),
  schedules.make("polynomial", power=2.0),
]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
MASK = 1
PAPER = Objective(
  schedule=LINEAR, num_timesteps=50, weight="linear", normalizer="canvas", times="stratified",
  mask_ratio=0.0, coupled=True, label_smoothing=0.0, seed=0,
)  # fmt: skip

compiled = jax.jit(objectives.noised, static_argnames=("objective", "rows", "mask_id"))


def noised(*args, **kwargs):
  """On the host: every jnp operation of a test would be compiled alone."""
  return jax.device_get(compiled(*args, **kwargs))


corrupt = jax.jit(processes.corrupt, static_argnames="mask_id")
score_weights = jax.jit(objectives.score_weights, static_argnames=("normalizer", "label_smoothing"))


def replaced(**changes):
  return dataclasses.replace(PAPER, **changes)


def full_batch(rows, length):
  """One example per row, all of it canvas."""
  ones = np.ones((rows, length), np.int32)
  return Batch(7 * ones, ones, ones.astype(bool), np.arange(rows, dtype=np.int32))


def packed_batch(rows, length):
  """Rows of two packed examples and padding; each example is bos, prompt, canvas with its eos."""
  segments, canvas = np.zeros((2, rows, length), np.int32)
  draws = np.random.default_rng(0)
  for row in range(rows):
    start = 0
    for segment in (1, 2):
      prompt, target = draws.integers(1, 4), draws.integers(2, length // 2 - 3)
      segments[row, start : start + prompt + target] = segment
      canvas[row, start + prompt : start + prompt + target] = 1
      start += prompt + target
  tokens = np.where(segments > 0, draws.integers(0, 9, (rows, length)), 0)
  return Batch(
    tokens.astype(np.int32), segments, canvas.astype(bool), np.arange(rows, dtype=np.int32)
  )


def row_slice(batch, start, stop):
  return jax.tree.map(lambda leaf: leaf[start:stop], batch)


def without_total(result):
  """What belongs to rows: everything but the batch's own total."""
  return jax.tree.leaves(result._replace(weights=result.weights[:2]))


# The forward process


def test_marginal_rates_for_every_t_of_both_twins():
  steps = 10
  result = noised(
    full_batch(2000, 64), 0,
    objective=replaced(num_timesteps=steps, times="independent"), rows=2000, mask_id=MASK,
  )  # fmt: skip
  number = np.rint(result.t[:, 0] * steps).astype(int)
  for twin, step in itertools.product((0, 1), range(1, steps + 1)):
    masked = result.corrupted[twin::2][number[twin::2] == step]
    rate = step / steps
    assert masked.size > 64 * 100  # every t is drawn
    assert abs(masked.sum() - rate * masked.size) <= 5 * np.sqrt(rate * (1 - rate) * masked.size)


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=str)
def test_twins_nest_with_the_stated_probability(schedule):
  objective = replaced(schedule=schedule, num_timesteps=4)
  result = noised(full_batch(2000, 32), 3, objective=objective, rows=2000, mask_id=MASK)
  t = result.t[:, 0].reshape(-1, 2)
  masked = result.corrupted.reshape(-1, 2, 32)
  for a, b in itertools.permutations((0, 1)):  # which twin is the noisier
    for t_a, t_b in itertools.combinations(np.unique(t)[::-1], 2):
      pairs = masked[(t[:, a] == t_a) & (t[:, b] == t_b)]
      assert len(pairs) > 50
      in_a, in_b = pairs[:, a], pairs[:, b]
      assert not (in_b & ~in_a).any()
      chance = (1 - schedule.alpha(t_b)) / (1 - schedule.alpha(t_a))
      deviation = np.sqrt(in_a.sum() * chance * (1 - chance))
      assert abs(in_b.sum() - chance * in_a.sum()) < 5 * deviation
  # At equal times the second twin is a draw of its own.
  tied = masked[(t[:, 0] == t[:, 1]) & (t[:, 0] == 0.5)]
  both = (1 - schedule.alpha(0.5)) ** 2
  count = tied[:, 0].size
  assert abs((tied[:, 0] & tied[:, 1]).sum() - both * count) < 5 * np.sqrt(
    both * (1 - both) * count
  )


def test_only_the_canvas_is_masked_and_its_eos_can_be():
  batch = packed_batch(128, 24)
  result = noised(batch, 0, objective=PAPER, rows=128, mask_id=MASK)
  clean = result.batch
  assert not (result.corrupted & ~clean.canvas).any()
  assert (result.scored == result.corrupted).all()
  assert (result.xt == np.where(result.corrupted, MASK, clean.tokens)).all()
  ends = clean.canvas & (np.diff(clean.segments, append=0) != 0)  # eos
  eos_masked = result.corrupted[ends]
  assert 0.4 < eos_masked.mean() < 0.6  # 512 of them at rates from 0.02 to 1
  assert not result.weights.nll[~result.corrupted].any()
  reseeded = noised(batch, 0, objective=replaced(seed=1), rows=128, mask_id=MASK)
  assert (reseeded.t != result.t).any()
  assert (reseeded.corrupted != result.corrupted).any()


def test_one_block_of_each_answer_is_noised_and_twins_share_it():
  batch, size = packed_batch(128, 24), 3
  result = noised(batch, 0, objective=replaced(block_size=size), rows=128, mask_id=MASK)
  np.testing.assert_array_equal(result.answer, np.repeat(batch.canvas, 2, axis=0))
  np.testing.assert_array_equal(result.xt, np.where(result.corrupted, MASK, result.batch.tokens))
  canvas, counts = result.batch.canvas, set()
  np.testing.assert_array_equal(canvas[::2], canvas[1::2])
  assert not (result.corrupted & ~canvas).any()
  assert (result.corrupted[::2] != result.corrupted[1::2]).any()
  for row, segment in itertools.product(range(0, 256, 2), (1, 2)):
    own = np.flatnonzero(result.answer[row] & (result.batch.segments[row] == segment))
    blocks = [own[at : at + size].tolist() for at in range(0, len(own), size)]
    mine = result.batch.segments[row] == segment
    candidates = [[n for n in block if result.batch.tokens[row, n] != MASK] for block in blocks]
    assert np.flatnonzero(canvas[row] & mine).tolist() in candidates
    counts.add(len(blocks))
  assert counts >= {1, 2, 3}
  # Each example's weights are divided by its block's positions, not by its answer's.
  counts = np.sum(canvas & (result.batch.segments == 1), axis=1)
  first = result.scored & (result.batch.segments == 1)
  w = np.maximum(1 - result.t + 1 / 50, 0)  # alpha at t - 1/T
  want = (w / np.maximum(counts, 1)[:, None])[first]
  np.testing.assert_allclose(result.weights.nll[first], want, rtol=1e-4)


def test_blocks_are_drawn_uniformly_and_by_example():
  rows, length, size = 4000, 18, 4  # answers of 3 blocks, the last one short, and of 2
  segments = np.tile(np.int32([1] * 10 + [2] * 8), (rows, 1))
  batch = full_batch(rows, length)._replace(segments=segments)
  objective = replaced(block_size=size, coupled=False)
  drawn = []
  for step in (0, 1):
    canvas = noised(batch, step, objective=objective, rows=rows, mask_id=MASK).batch.canvas
    first = canvas[:, :10:size].argmax(1), canvas[:, 10::size].argmax(1)
    assert set(canvas.sum(1)) == {8, 6}
    drawn += first
  for numbers, blocks in zip(drawn, (3, 2, 3, 2), strict=True):
    counts = np.bincount(numbers, minlength=blocks)
    assert len(counts) == blocks
    assert np.abs(counts - rows / blocks).max() < 5 * (rows / blocks) ** 0.5
  for one, other in itertools.combinations(drawn, 2):  # examples and steps draw apart
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / rows**0.5


def test_the_mask_id_in_the_data_is_neither_noised_nor_scored_but_stays_in_the_answer():
  batch = packed_batch(64, 24)
  result = noised(batch, 0, objective=replaced(coupled=False), rows=64, mask_id=MASK)
  np.testing.assert_array_equal(result.answer, batch.canvas)
  np.testing.assert_array_equal(result.batch.canvas, batch.canvas & (batch.tokens != MASK))
  assert not result.weights.nll[batch.tokens == MASK].any()
  assert (batch.canvas & (batch.tokens == MASK)).any()


# Randomness


@pytest.mark.parametrize(
  ("times", "coupled", "block_size"),
  [("stratified", True, 0), ("independent", True, 2), ("stratified", False, 0)],
)
def test_noise_is_a_function_of_the_row_number(times, coupled, block_size):
  objective = replaced(times=times, coupled=coupled, num_timesteps=0, block_size=block_size)
  batch = packed_batch(32, 24)
  run = functools.partial(noised, objective=objective, rows=32, mask_id=MASK)
  whole = run(batch, 5)
  parts = [run(row_slice(batch, start, start + 8), 5) for start in range(0, 32, 8)]
  for leaf, *pieces in zip(without_total(whole), *map(without_total, parts), strict=True):
    np.testing.assert_array_equal(leaf, np.concatenate(pieces))
  assert whole.weights.total == sum(part.weights.total for part in parts)
  # other rows, in another order, with other contents in front
  order = np.r_[31, 2:32, 0]
  mates = jax.tree.map(lambda leaf: leaf[order], batch)
  mates = mates._replace(tokens=np.where(np.arange(32)[:, None] < 31, 3, mates.tokens))
  other, count = run(mates, 5), 2 if coupled else 1
  for leaf, again in zip(without_total(whole), without_total(other), strict=True):
    np.testing.assert_array_equal(leaf[:count], again[-count:])
  assert (run(batch, 6).corrupted != whole.corrupted).any()


@pytest.mark.parametrize(("times", "block_size"), [("stratified", 0), ("independent", 2)])
def test_noise_is_bit_equal_on_eight_devices_and_rows_stay_where_they_are(times, block_size):
  batch = packed_batch(32, 24)
  objective = replaced(times=times, num_timesteps=0, block_size=block_size)
  arguments = {"objective": objective, "rows": 32, "mask_id": MASK}
  alone = noised(batch, 5, **arguments)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  spread = jax.device_put(batch, sharding)
  program = compiled.lower(spread, 5, **arguments).compile()
  sharded = program(spread, 5)
  for leaf, again in zip(jax.tree.leaves(alone), jax.tree.leaves(sharded), strict=True):
    np.testing.assert_array_equal(leaf, again)
  assert sharded.xt.sharding.is_equivalent_to(sharding, 2)
  for collective in ("all-gather", "all-to-all", "collective-permute"):
    assert collective not in program.as_text()


def test_keys_differ_by_seed_purpose_and_step():
  purposes = (
    objectives.TIMES, objectives.NOISE, objectives.TIED_NOISE, objectives.DROPOUT,
    objectives.OPENING, objectives.BLOCK,
  )  # fmt: skip
  words = [
    tuple(jax.random.key_data(objectives.purpose_key(*of)).tolist())
    for of in itertools.product((0, 1), purposes, (0, 1, 2))
  ]
  assert len(set(words)) == 2 * 6 * 3
  traced = jax.jit(objectives.purpose_key, static_argnums=(0, 1))(1, objectives.NOISE, 2)
  plain = objectives.purpose_key(1, objectives.NOISE, 2)
  assert (jax.random.key_data(traced) == jax.random.key_data(plain)).all()


# Times


@functools.partial(jax.jit, static_argnames=("rows", "kind", "coupled", "num_timesteps"))
def times_of_steps(steps, segments, *, rows, kind, coupled, num_timesteps):
  """float32[steps, B, L]"""
  index = jnp.arange(segments.shape[0], dtype=jnp.int32)
  sample = lambda step: objectives.sample_times(
    objectives.purpose_key(0, objectives.TIMES, step), index, segments, rows=rows, kind=kind,
    schedule=LINEAR, mask_ratio=0.0, num_timesteps=num_timesteps, coupled=coupled,
  )  # fmt: skip
  return jax.vmap(sample)(steps)


def test_one_time_falls_into_each_stratum_for_either_twin():
  rows = 24
  segments = np.tile(np.int32([1, 1, 2, 3, 0]), (2 * rows, 1))
  t = times_of_steps(
    np.arange(20), segments, rows=rows, kind="stratified", coupled=True, num_timesteps=0
  )
  t = np.asarray(t, np.float64)
  assert t.min() > 0
  assert t.max() <= 1
  assert (t[:, :, 0] == t[:, :, 1]).all()  # one time for an example
  for twin, position in itertools.product((0, 1), (0, 2, 3)):
    u = 1 - t[:, twin::2, position]  # [steps, rows]
    stratum = np.rint((u - u[:, :1]) * rows) % rows
    assert (np.sort(stratum, axis=1) == np.arange(rows)).all()
    gaps = np.diff(np.sort(u, axis=1), axis=1)
    np.testing.assert_allclose(gaps, 1 / rows, atol=1e-5)
  apart = (t[:, :, 0] - t[:, :, 2]) % 1
  np.testing.assert_allclose(apart, 0.618, atol=1e-4)


def test_twins_times_are_independent_and_every_rows_time_is_uniform():
  rows, steps = 8, 4000
  t = times_of_steps(
    np.arange(steps), np.ones((2 * rows, 1), np.int32),
    rows=rows, kind="stratified", coupled=True, num_timesteps=0,
  )[:, :, 0]  # fmt: skip
  t = np.asarray(t)
  cells = np.stack([np.histogram(t[:, row], 10, (0, 1))[0] for row in range(2 * rows)])
  assert np.abs(cells - steps / 10).max() < 5 * np.sqrt(steps * 0.09)
  first, second = (t[:, 0::2] - 0.5) * np.sqrt(12), (t[:, 1::2] - 0.5) * np.sqrt(12)
  assert np.abs((first * second).sum(axis=0)).max() < 5 * np.sqrt(steps)
  assert (t[:, 0::2] == t[:, 1::2]).mean() < 1e-3  # the twins' strata have their own offsets
  # within one step the order of the second twins' strata is not that of the first
  assert len({tuple(row) for row in np.argsort(second, axis=1)}) > steps / 10


@pytest.mark.parametrize("kind", ["stratified", "independent"])
def test_discrete_times_are_the_grid_and_equally_likely(kind):
  rows, steps, grid = 40, 500, 10
  segments = np.tile(np.int32([1, 2]), (rows, 1))
  t = times_of_steps(
    np.arange(steps), segments, rows=rows, kind=kind, coupled=False, num_timesteps=grid
  )
  number = np.rint(np.asarray(t) * grid).astype(int)
  np.testing.assert_array_equal(t, np.float32(number) / np.float32(grid))
  for position in (0, 1):
    share = np.stack([(number[:, :, position] == i + 1).sum(axis=1) for i in range(grid)])
    if kind == "stratified":
      assert (share == rows // grid).all()
    else:
      expected, count = rows * steps / grid, rows * steps
      deviation = np.sqrt(count * (1 / grid) * (1 - 1 / grid))
      assert np.abs(share.sum(axis=1) - expected).max() < 5 * deviation
      assert share.std() > 1  # and not stratified
  if kind == "independent":  # an example packed beside another has a draw of its own
    same = (number[:, :, 0] == number[:, :, 1]).mean()
    assert abs(same - 1 / grid) < 5 * np.sqrt(0.09 / (rows * steps))


@each_schedule
def test_fixed_times_give_the_ratio(schedule):
  segments = jnp.ones((2, 3), jnp.int32)
  sample = lambda ratio, steps: objectives.sample_times(
    jax.random.key(0), jnp.arange(2), segments, rows=2, kind="fixed",
    schedule=schedule, mask_ratio=ratio, num_timesteps=steps, coupled=False,
  )  # fmt: skip
  np.testing.assert_allclose(1 - schedule.alpha(sample(0.15, 0)), 0.15, atol=1e-6)
  for ratio in (0.14, 0.15, 1e-9, 1.0):
    t = sample(ratio, 50)
    number = np.rint(float(t[0, 0]) * 50)
    assert (t == np.float32(number / 50)).all()
    rate = lambda number: 1 - schedule.alpha(number / 50)
    assert rate(number) >= ratio - 1e-9  # the grid's next rate up, and no further
    assert number == 1 or rate(number - 1) < ratio - 1e-9


# Weights


@each_schedule
def test_weights_are_finite_for_every_time_that_can_be_drawn(schedule):
  edge = np.float32(2.0**-24)
  continuous = jnp.asarray([edge, 2 * edge, 1e-4, 0.5, 1 - edge, 1.0], jnp.float32)
  discrete = jnp.arange(1, 51) / 50
  for kind, (t, steps) in itertools.product(
    ("linear", "elbo", "constant"), ((continuous, 0), (discrete, 50))
  ):
    w = objectives.weights(t, schedule=schedule, num_timesteps=steps, kind=kind)
    assert np.isfinite(w).all()
    assert (w >= 0).all()
    assert not (w[1 - schedule.alpha(t) <= 0] > 0).any() or kind != "elbo"


@each_schedule
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_linear_weight_is_the_share_that_is_clean_one_step_earlier(schedule, steps):
  number = np.arange(1, steps + 1)
  t = jnp.asarray(number / steps, jnp.float32)
  w = objectives.weights(t, schedule=schedule, num_timesteps=steps, kind="linear")
  np.testing.assert_allclose(w, schedule.alpha((number - 1) / steps), atol=1e-5)
  if schedule == LINEAR:  # the paper's T - (t - 1), divided by T
    np.testing.assert_allclose(w * steps, steps - (number - 1), rtol=1e-5)


@each_schedule
def test_elbo_weights_count_every_token_once(schedule):
  t = jnp.arange(1, 51, dtype=jnp.float32) / 50
  w = objectives.weights(t, schedule=schedule, num_timesteps=50, kind="elbo")
  np.testing.assert_allclose(np.mean(w * (1 - schedule.alpha(t))), 1, atol=1e-5)
  t, measure = unit_interval_quadrature()
  w = objectives.weights(t, schedule=schedule, num_timesteps=0, kind="elbo")
  np.testing.assert_allclose(np.sum(measure * w * (1 - schedule.alpha(t))), 1, atol=1e-5)


def unit_interval_quadrature():
  """Nodes and weights on [0, 1], good for integrands that go like t^-1/2 at 0."""
  nodes, measure = np.polynomial.legendre.leggauss(80)
  root = (nodes + 1) / 2
  return jnp.asarray(root**2, jnp.float32), measure * root


# Score weights


def slow_score_weights(scored, canvas, segments, w, *, normalizer, label_smoothing):
  nll, smooth, examples = np.zeros(w.shape), np.zeros(w.shape), 0
  for row, segment in itertools.product(range(len(w)), range(1, segments.max() + 1)):
    positions = [n for n in range(w.shape[1]) if segments[row, n] == segment and canvas[row, n]]
    examples += bool(positions)
    for n in positions:
      if scored[row, n]:
        scale = 1 / len(positions) if normalizer == "canvas" else 1
        nll[row, n] = (1 - label_smoothing) * w[row, n] * scale
        smooth[row, n] = label_smoothing * scale
  return nll, smooth, {"canvas": examples, "tokens": canvas.sum(), "corrupted": scored.sum()}


@pytest.mark.parametrize("normalizer", ["canvas", "tokens", "corrupted"])
def test_score_weights_equal_the_slow_twin(normalizer):
  batch = packed_batch(16, 24)
  canvas = batch.canvas & (np.arange(16)[:, None] != 3)  # a row with nothing to learn is no example
  draws = np.random.default_rng(1)
  scored = canvas & (draws.random(canvas.shape) < 0.4)
  w = draws.random(canvas.shape).astype(np.float32)
  settings = {"normalizer": normalizer, "label_smoothing": 0.1}
  got = score_weights(scored, canvas, batch.segments, w, **settings)
  nll, smooth, totals = slow_score_weights(scored, canvas, batch.segments, w, **settings)
  np.testing.assert_allclose(got.nll, nll, rtol=1e-6)
  np.testing.assert_allclose(got.smooth, smooth, rtol=1e-6)
  assert got.total == totals[normalizer]
  assert totals["canvas"] == 30


def test_label_smoothing_is_the_papers_formula():
  """L = (1 - ls) L_nll + ls L_smooth of the paper's code, in its own numbers, divided by T."""
  steps, ls, vocabulary = 10, 0.1, 6
  objective = replaced(num_timesteps=steps, label_smoothing=ls)
  batch = packed_batch(16, 24)
  batch = batch._replace(segments=np.where(batch.segments > 0, 1, 0))  # one example per row
  result = noised(batch, 2, objective=objective, rows=16, mask_id=MASK)
  draws = np.random.default_rng(2)
  logits = draws.normal(size=(*result.t.shape, vocabulary))
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  targets = draws.integers(0, vocabulary, result.t.shape)
  ce = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  spread = -log_p.mean(-1)
  sums = result.weights.nll * ce + result.weights.smooth * spread
  expected = 0.0
  for row in range(32):
    masked, count = result.corrupted[row], result.batch.canvas[row].sum()
    number = np.rint(result.t[row, 0] * steps)
    l_nll = (steps - (number - 1)) / count * ce[row][masked].sum()
    l_smooth = steps / count * spread[row][masked].sum()
    expected += ((1 - ls) * l_nll + ls * l_smooth) / 32 / steps
  np.testing.assert_allclose(sums.sum() / result.weights.total, expected, rtol=1e-5)


# What the loss is worth


@pytest.mark.parametrize("steps", [5, 50])
def test_a_constant_model_has_the_papers_expected_loss(steps):
  """Every t once, and uniforms on a grid, so that each row masks exactly its expected share."""
  length = 2 * steps
  number = np.arange(1, steps + 1)
  t = jnp.asarray(np.repeat(number[:, None] / steps, length, 1), jnp.float32)
  uniform = np.tile((np.random.default_rng(0).permutation(length) + 0.5) / length, (steps, 1))
  batch = full_batch(steps, length)
  _, corrupted, scored = corrupt(uniform, batch.tokens, batch.canvas, LINEAR.alpha(t), mask_id=MASK)
  np.testing.assert_array_equal(corrupted.sum(axis=1), 2 * number)
  w = objectives.weights(t, schedule=LINEAR, num_timesteps=steps, kind="linear")
  result = score_weights(
    scored, batch.canvas, batch.segments, w, normalizer="canvas", label_smoothing=0.0
  )
  log_v = np.log(1000)
  loss = np.sum(result.nll * log_v) / result.total
  expected = (steps + 1) * (steps + 2) / (6 * steps**2) * log_v
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_constant_models_loss_for_given_masks():
  """sum_i w_i |M_i| / N_i / B' from the batch that noised makes."""
  batch = packed_batch(128, 24)
  result = noised(batch, 1, objective=PAPER, rows=128, mask_id=MASK)
  terms = []
  for row, segment in itertools.product(range(256), (1, 2)):
    own = result.batch.segments[row] == segment
    masked, count = (result.corrupted[row] & own).sum(), (result.batch.canvas[row] & own).sum()
    number = np.rint(result.t[row][own][0] * 50)
    terms.append((50 - (number - 1)) / 50 * masked / count)
  assert result.weights.total == len(terms)
  np.testing.assert_allclose(result.weights.nll.sum(), np.sum(terms), rtol=1e-5)


class Toy:
  """Three positions of three symbols with a random joint law, and its exact posterior."""

  def __init__(self):
    self.joint = np.random.default_rng(5).dirichlet(np.full(27, 0.3)).reshape(3, 3, 3)
    self.clean = np.array(list(itertools.product(range(3), repeat=3)))  # [27, 3]
    self.law = self.joint.reshape(-1)  # [27]
    self.masks = np.array(list(itertools.product((False, True), repeat=3)))  # [8, 3]

  def posterior(self, xt):
    """p(x0_n = v | xt), [3, 3] for one row in which 3 is the mask."""
    fits = (xt == 3) | (self.clean == xt)  # [27, 3]
    law = self.law * fits.all(axis=1)
    return np.stack([law @ (self.clean == v) for v in range(3)], axis=1) / law.sum()

  def loss_of_masks(self):
    """The oracle's expected summed cross entropy for each mask set, through the package: [8]."""
    rows = len(self.clean)
    batch = full_batch(rows, 3)._replace(tokens=self.clean.astype(np.int32))
    losses = []
    for mask in self.masks:
      uniform = np.broadcast_to(np.where(mask, 0.0, 0.9), (rows, 3))
      xt, _, scored = corrupt(
        uniform, batch.tokens, batch.canvas, np.full((rows, 3), 0.5), mask_id=3
      )
      score = score_weights(
        scored, batch.canvas, batch.segments, np.ones((rows, 3), np.float32),
        normalizer="canvas", label_smoothing=0.0,
      )  # fmt: skip
      posterior = np.stack([self.posterior(row) for row in np.asarray(xt)])  # [27, 3, 3]
      chance = np.take_along_axis(posterior, self.clean[..., None], -1)[..., 0]
      example = 3 * (np.asarray(score.nll) * -np.log(chance)).sum(axis=1)  # 1/N undone: a sum
      losses.append(self.law @ example)
    return np.array(losses)

  def expected_loss(self, t, *, schedule, num_timesteps):
    """E over masks of w(t) times the summed cross entropy, for each t: [len(t)]."""
    rate = 1 - np.asarray(schedule.alpha(t), np.float64)
    size = self.masks.sum(axis=1)
    chance = rate[:, None] ** size * (1 - rate[:, None]) ** (3 - size)
    w = objectives.weights(t, schedule=schedule, num_timesteps=num_timesteps, kind="elbo")
    return np.asarray(w) * (chance @ self.loss_of_masks())

  def bound(self, schedule, steps):
    """sum_t E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) by Bayes' rule over single symbols."""
    alpha = [schedule.alpha(i / steps) for i in range(steps + 1)]
    marginal = lambda i: np.hstack([alpha[i] * np.eye(3), np.full((3, 1), 1 - alpha[i])])
    total = 0.0
    for i in range(1, steps + 1):
      keep = alpha[i] / alpha[i - 1]
      forward = np.vstack([np.hstack([keep * np.eye(3), np.full((3, 1), 1 - keep)]), np.eye(4)[3]])
      # reverse[x0, xt, xs] = q(xt | xs) q(xs | x0) / q(xt | x0)
      joint = np.einsum("st,os->ots", forward, marginal(i - 1))
      evidence = joint.sum(axis=-1, keepdims=True)
      reverse = np.divide(joint, evidence, out=np.zeros_like(joint), where=evidence > 0)
      for x0, law in zip(self.clean, self.law, strict=True):
        for mask in self.masks:
          xt = np.where(mask, 3, x0)
          chance = np.prod(marginal(i)[x0, xt])
          if chance == 0:
            continue
          posterior = self.posterior(xt)
          for n in range(3):
            q = reverse[x0[n], xt[n]]
            p = posterior[n] @ reverse[:, xt[n]]
            seen = q > 0
            total += law * chance * np.sum(q[seen] * np.log(q[seen] / p[seen]))
    return total


@each_schedule
def test_with_an_oracle_the_continuous_elbo_is_the_entropy(schedule):
  toy = Toy()
  t, measure = unit_interval_quadrature()
  loss = np.sum(measure * toy.expected_loss(t, schedule=schedule, num_timesteps=0))
  entropy = -np.sum(toy.law * np.log(toy.law))
  np.testing.assert_allclose(loss, entropy, rtol=1e-5)


@each_schedule
@pytest.mark.parametrize("steps", [1, 4])
def test_with_an_oracle_the_discrete_elbo_is_the_enumerated_bound(schedule, steps):
  toy = Toy()
  t = jnp.arange(1, steps + 1, dtype=jnp.float32) / steps
  loss = np.mean(toy.expected_loss(t, schedule=schedule, num_timesteps=steps))
  bound = toy.bound(schedule, steps)
  np.testing.assert_allclose(loss, bound, rtol=1e-5)
  assert bound > -np.sum(toy.law * np.log(toy.law)) + 0.01  # fewer steps, a looser bound


def test_unknown_names_are_refused():
  t = jnp.ones((1, 2))
  with pytest.raises(UserError, match="'elbow'"):
    objectives.weights(t, schedule=LINEAR, num_timesteps=0, kind="elbow")
  with pytest.raises(UserError, match="'uniform'"):
    noised(full_batch(2, 2), 0, objective=replaced(times="uniform"), rows=2, mask_id=MASK)
  with pytest.raises(UserError, match="'mean'"):
    noised(full_batch(2, 2), 0, objective=replaced(normalizer="mean"), rows=2, mask_id=MASK)
