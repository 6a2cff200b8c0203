"""The bound against whole enumerations, and its standard error against the spread it states."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffjax.config import ComputeConfig, Contract, ModelConfig
from diffjax.diffusion import likelihood
from diffjax.models import transformer
from diffjax.types import Denoiser, Head, UserError

SYMBOLS, SIZE, MASK = 3, 4, 3
PROMPT, LENGTH = 1, 7  # a token, the target's four, two of padding
TARGET = np.arange(LENGTH)
TARGET = (TARGET >= PROMPT) & (TARGET < PROMPT + SIZE)
ROW = np.array([2, 0, 2, 1, 1, 0, 0])
PLACES = np.flatnonzero(TARGET)
X = ROW[TARGET]


def toy(table: np.ndarray) -> Denoiser:
  """Whose logits of the target are table [4 ** SIZE, SIZE, SYMBOLS] at the target's tokens."""

  def trunk(xt, t):
    code = (xt[:, PLACES] * 4 ** jnp.arange(SIZE)).sum(-1)
    hidden = jnp.zeros((len(xt), LENGTH, SYMBOLS))
    return hidden.at[:, PLACES].set(jnp.asarray(table, jnp.float32)[code])

  rows = SYMBOLS + 1
  head = Head(
    transform=lambda params, hidden: hidden,
    params={},
    table=jnp.eye(rows, SYMBOLS),
    bias=jnp.zeros(rows),
    allowed=jnp.arange(rows) < SYMBOLS,
  )
  return Denoiser(trunk, head)


def random_table() -> np.ndarray:
  """A network whose conditionals belong to no joint law."""
  return np.random.default_rng(0).normal(size=(4**SIZE, SIZE, SYMBOLS))


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def conditional(table, masked) -> np.ndarray:
  """log p(x_i | what is not masked) of every i, [SIZE]."""
  code = (np.where(masked, MASK, X) * 4 ** np.arange(SIZE)).sum()
  return log_softmax(table[code])[np.arange(SIZE), X]


def by_orders(table) -> float:
  """The mean over all orders of the chain rule along each."""
  chains = []
  for order in itertools.permutations(range(SIZE)):
    masked, total = np.ones(SIZE, bool), 0.0
    for place in order:
      total += conditional(table, masked)[place]
      masked[place] = False
    chains.append(total)
  return float(np.mean(chains))


def all_masks() -> np.ndarray:
  """bool[15, SIZE], all but the empty one."""
  return np.array(list(itertools.product([False, True], repeat=SIZE)))[1:]


def keys(seed: int, count: int):
  return jax.random.split(jax.random.key(seed), count)


draw_masks = jax.jit(likelihood.draw_masks)


@jax.jit
def run(table, keys, tokens, scored, low, high):
  return likelihood.samples(toy(table), keys, tokens, scored, low, high, mask_id=MASK, chunk=64)


ROWS = 3200  # of the one compiled call


def values_of(table, seed, scored, low, high) -> np.ndarray:
  """The samples' values; rows that score nothing fill the call up."""
  rows = len(scored)
  fill = lambda x: np.pad(x, ((0, ROWS - rows),) + ((0, 0),) * (x.ndim - 1))
  tokens = np.broadcast_to(ROW, (ROWS, LENGTH))
  values = run(table, keys(seed, ROWS), tokens, fill(scored), fill(low), fill(high))
  assert (values[rows:] == 0).all()
  return np.asarray(values)[:rows]


FEW = 8  # samples that are fewer than the 15 masks of the target, so that they are drawn


def bounds(table, *, repeats, seed=0):
  """Values and standard errors of so many independent estimates, [repeats] each."""
  plan = likelihood.plan(TARGET, samples=FEW)
  assert not plan.enumerated
  rows = plan.rows(np.tile(np.arange(FEW), repeats))
  values = values_of(table, seed, *rows).reshape(repeats, FEW)
  return np.array([likelihood.estimate(some, plan) for some in values]).T


def enumerated(table) -> float:
  """The mean of n / l sum log p over l and all masks of l positions, through the module."""
  masks = all_masks()
  masked = np.zeros((len(masks), LENGTH), bool)
  masked[:, PLACES] = masks
  tokens = jnp.asarray(np.broadcast_to(ROW, masked.shape))
  xt = jnp.where(masked, MASK, tokens)
  values = likelihood.log_likelihoods(toy(table), xt, tokens, jnp.asarray(masked), chunk=64)
  count = masks.sum(-1)
  share = np.array([1 / SIZE / math.comb(SIZE, size) for size in count])
  return float((share * SIZE / count * np.asarray(values, np.float64).sum(-1)).sum())


def test_the_mean_over_all_masks_is_the_mean_over_all_orders():
  table = random_table()
  np.testing.assert_allclose(enumerated(table), by_orders(table), rtol=1e-5)


def test_the_bound_of_an_exact_denoiser_is_the_log_likelihood():
  law = np.random.default_rng(1).dirichlet(np.full(SYMBOLS**SIZE, 0.5)).reshape((SYMBOLS,) * SIZE)
  table = np.zeros((4**SIZE, SIZE, SYMBOLS))
  for state in itertools.product(range(4), repeat=SIZE):
    seen = tuple(slice(None) if s == MASK else slice(s, s + 1) for s in state)
    for place in range(SIZE):
      others = tuple(i for i in range(SIZE) if i != place)
      marginal = law[tuple(slice(None) if i == place else seen[i] for i in range(SIZE))]
      code = sum(s * 4**i for i, s in enumerate(state))
      table[code, place] = np.log(marginal.sum(others) + 1e-30)
  log_p = math.log(law[tuple(X)])
  np.testing.assert_allclose(enumerated(table), log_p, rtol=1e-5)
  values, errors = bounds(table, repeats=256)
  assert abs(values.mean() - log_p) < 4 * np.sqrt((errors**2).sum()) / 256


def test_the_estimate_is_unbiased_and_its_standard_error_is_its_spread():
  table, repeats = random_table(), 400
  have, errors = bounds(table, repeats=repeats, seed=2)
  spread = have.std(ddof=1)
  assert abs(have.mean() - by_orders(table)) < 4 * spread / np.sqrt(repeats)
  np.testing.assert_allclose(np.sqrt((errors**2).mean()), spread, rtol=0.15)


def test_a_network_that_knows_nothing_has_the_closed_form_and_no_error():
  values, errors = bounds(np.zeros((4**SIZE, SIZE, SYMBOLS)), repeats=3)
  np.testing.assert_allclose(values, -SIZE * math.log(SYMBOLS), rtol=1e-6)
  np.testing.assert_allclose(errors, 0, atol=1e-6)


def test_a_network_that_ignores_its_input_sums_its_log_probabilities():
  logits = np.random.default_rng(3).normal(size=(SIZE, SYMBOLS))
  want = log_softmax(logits)[np.arange(SIZE), X].sum()
  values, errors = bounds(np.broadcast_to(logits, (4**SIZE, SIZE, SYMBOLS)), repeats=128)
  error = np.sqrt((errors**2).sum()) / 128
  assert abs(values.mean() - want) < 4 * error
  assert error < 0.1


def test_where_all_masks_are_no_more_than_the_samples_all_are_tried():
  table = random_table()
  plan = likelihood.plan(TARGET, samples=16)
  assert plan.enumerated
  assert plan.count == 15
  some = np.random.default_rng(0).permutation(15)
  values = np.empty(15)
  values[some] = values_of(table, 3, *plan.rows(some))
  bound, error = likelihood.estimate(values, plan)
  np.testing.assert_allclose(bound, by_orders(table), rtol=1e-5)
  assert error == 0
  assert not likelihood.plan(TARGET, samples=14).enumerated
  in_blocks = likelihood.plan(TARGET, samples=1, block_size=1)  # four rows, not two for each block
  assert in_blocks.enumerated
  assert in_blocks.count == SIZE


def test_one_token_needs_no_more_than_one_mask():
  table = random_table()
  target = np.arange(LENGTH) == PLACES[2]
  plan = likelihood.plan(target, samples=1)
  assert plan.count == 1
  value, error = likelihood.estimate(values_of(table, 0, *plan.rows(np.arange(1))), plan)
  masked = np.arange(SIZE) == 2
  np.testing.assert_allclose(value, conditional(table, masked)[2], rtol=1e-5)
  assert error == 0


def test_masks_are_uniform_among_those_of_a_uniform_size_whatever_the_padding():
  rows = 20_000
  scored = np.broadcast_to(TARGET, (rows, LENGTH))
  some = keys(4, rows)
  masked, weight = draw_masks(some, scored, np.zeros(rows, np.float32), np.ones(rows, np.float32))
  masked = np.asarray(masked)
  assert not masked[:, ~TARGET].any()
  count = masked.sum(-1)
  np.testing.assert_allclose(weight, SIZE / count, rtol=1e-6)
  masks = all_masks()
  code = lambda m: (m * 2 ** np.arange(SIZE)).sum(-1)
  have = np.bincount(code(masked[:, TARGET]), minlength=16)
  want = np.zeros(16)
  want[code(masks)] = [rows / SIZE / math.comb(SIZE, size) for size in masks.sum(-1)]
  assert have[0] == 0
  assert scipy.stats.chisquare(have[1:], want[1:]).pvalue > 1e-4

  few = slice(0, 50)
  longer = np.pad(scored[few], ((0, 0), (0, 9)))
  again, _ = draw_masks(some[few], longer, np.zeros(50, np.float32), np.ones(50, np.float32))
  np.testing.assert_array_equal(np.asarray(again)[:, :LENGTH], masked[few])


def test_the_strata_cover_all_sizes_evenly():
  plan = likelihood.plan(np.ones(8, bool), samples=16)
  for seed in range(3):
    masked, _ = draw_masks(keys(seed, 16), *plan.rows(np.arange(16)))
    assert sorted(np.asarray(masked).sum(-1)) == sorted([*range(1, 9)] * 2)


def test_every_block_of_a_plan_has_as_many_rows_of_its_own():
  target = np.zeros(20, bool)
  target[5:15] = True
  plan = likelihood.plan(target, samples=10, block_size=4)
  assert plan.count == 12
  scored, low, high = plan.rows(np.arange(12))
  for block, places in enumerate((range(5, 9), range(9, 13), range(13, 15))):
    for row in scored.reshape(3, 4, 20)[block]:
      assert list(np.flatnonzero(row)) == list(places)
  np.testing.assert_allclose(low.reshape(3, 4), [[0, 0, 0.5, 0.5]] * 3)
  np.testing.assert_allclose(high.reshape(3, 4), [[0.5, 0.5, 1, 1]] * 3)


def test_estimates_add_over_blocks():
  values = np.random.default_rng(5).normal(size=(3, 8))
  of = lambda blocks: likelihood.plan(
    np.ones(5 * blocks, bool), samples=8 * blocks, block_size=5 * (blocks > 1)
  )
  parts = [likelihood.estimate(v, of(1)) for v in values]
  value, error = likelihood.estimate(values.reshape(-1), of(3))
  np.testing.assert_allclose(value, sum(v for v, _ in parts))
  np.testing.assert_allclose(error, math.hypot(*(e for _, e in parts)))


def test_mistakes_are_named():
  with pytest.raises(UserError, match="samples = 0 must be >= 1"):
    likelihood.plan(TARGET, samples=0)
  with pytest.raises(UserError, match="the target is empty"):
    likelihood.plan(np.zeros(4, bool), samples=2)


# A real network, under the patterns in which a likelihood is a product over what is earlier.
CONFIG = ModelConfig(vocab_size=24, width=16, layers=2, heads=2, ffn_width=32, max_positions=16)
IDS = np.random.default_rng(6).integers(3, 20, size=10).astype(np.int32)
ANSWER = np.arange(10) >= 4


@functools.cache
def parameters():
  rng = np.random.default_rng(7)
  draw = lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
  return jax.tree.map(draw, transformer.shapes(CONFIG))


def denoiser(rows: int, **attention) -> Denoiser:
  ids = dict(bos_id=0, pad_id=1, eos_id=2, mask_id=20)
  return transformer.bind(
    jax.tree.map(jnp.asarray, parameters()),
    jnp.ones((rows, len(IDS)), jnp.int32),
    config=CONFIG,
    contract=Contract(**ids, **attention),
    compute=ComputeConfig(),
    canvas=jnp.broadcast_to(ANSWER, (rows, len(IDS))),
  )


def allowed_log_law(xt, **attention) -> np.ndarray:
  logits = jax.jit(lambda xt: transformer.logits(denoiser(len(xt), **attention), xt))(xt)
  allowed = denoiser(1, **attention).head.allowed
  return log_softmax(np.where(allowed, logits, -1e30).astype(np.float64))


def test_blocks_of_one_position_have_the_exact_likelihood_from_left_to_right():
  attention = dict(attention="blocks", block_size=1, end="predicted", end_padding=1)
  plan = likelihood.plan(ANSWER, samples=1, block_size=1)
  rows = plan.count
  assert rows == ANSWER.sum()
  run = lambda *rows_: likelihood.samples(denoiser(rows, **attention), *rows_, mask_id=20, chunk=8)
  some = plan.rows(np.arange(rows))
  values = jax.jit(run)(keys(0, rows), jnp.tile(IDS, (rows, 1)), *some)
  value, error = likelihood.estimate(values, plan)

  places = np.flatnonzero(ANSWER)
  masked_from = np.where(np.arange(len(IDS)) >= places[:, None], 20, IDS)  # and all that is later
  law = allowed_log_law(masked_from, **attention)
  want = law[np.arange(len(places)), places, IDS[places]].sum()
  np.testing.assert_allclose(value, want, rtol=1e-5)
  assert error < 1e-5


def test_a_causal_network_with_an_output_shift_has_its_next_token_likelihood():
  attention = dict(attention="causal", output_shift=1)
  scored = jnp.asarray(ANSWER[None])
  run = lambda ids: likelihood.log_likelihoods(denoiser(1, **attention), ids, ids, scored, chunk=8)
  have = jax.jit(run)(IDS[None])
  places = np.flatnonzero(ANSWER)
  hidden_later = np.where(np.arange(len(IDS)) >= places[:, None], 20, IDS)  # nothing else is known
  law = allowed_log_law(hidden_later, **attention)
  want = law[np.arange(len(places)), places, IDS[places]]
  np.testing.assert_allclose(have[0, places], want, rtol=1e-4, atol=1e-5)
  assert (np.asarray(have)[0, ~ANSWER] == 0).all()
