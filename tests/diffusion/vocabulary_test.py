"""The streamed loss and projection against their slow, obvious twins."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffjax.diffusion import draws, vocabulary
from diffjax.types import Head, UserError

ROWS, WIDTH, VOCABULARY = 40, 8, 32


def make_head(seed: int = 0, *, rows: int = VOCABULARY, width: int = WIDTH) -> Head:
  random = np.random.default_rng(seed)
  return Head(
    transform=lambda params, hidden: hidden,
    params={},
    table=random.normal(size=(rows, width)).astype(np.float32),
    bias=random.normal(size=rows).astype(np.float32),
    allowed=np.arange(rows) < rows - 5,
  )


def make_data(seed: int, share: float):
  random = np.random.default_rng(seed)
  features = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
  targets = random.integers(VOCABULARY - 5, size=ROWS).astype(np.int32)
  some = lambda: np.where(random.random(ROWS) < share, random.random(ROWS), 0).astype(np.float32)
  return features, targets, some(), some()


def naive(features, table, bias, allowed, targets, nll, smooth):
  logits = jnp.where(allowed, features @ table.T + bias, -jnp.inf)
  log_p = jax.nn.log_softmax(logits)
  minus = -jnp.take_along_axis(log_p, targets[:, None], 1)[:, 0]
  loss = jnp.sum(nll * minus)
  if smooth is not None:
    loss += jnp.sum(smooth * -jnp.where(allowed, log_p, 0).sum(-1) / allowed.sum())
  return loss, minus


@functools.partial(jax.jit, static_argnames="function")
def _both(function, features, table, bias, targets, nll, smooth):
  head = make_head()
  loss = lambda f, t, b: function(f, head._replace(table=t, bias=b), targets, nll, smooth)[0]
  return jax.value_and_grad(loss, argnums=(0, 1, 2))(features, table, bias)


def both(function, features, head, targets, nll, smooth):
  """The loss, and its gradients by features, table and bias."""
  return jax.device_get(_both(function, features, head.table, head.bias, targets, nll, smooth))


def naive_of_head(features, head, targets, nll, smooth):
  return naive(features, head.table, head.bias, head.allowed, targets, nll, smooth)


streamed = functools.partial(vocabulary.cross_entropy, chunk=7)


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_equals_the_naive_loss_and_gradient(share, smoothed):
  head = make_head()
  features, targets, nll, smooth = make_data(1, share)
  smooth = smooth if smoothed else None
  want = both(naive_of_head, features, head, targets, nll, smooth)
  have = both(streamed, features, head, targets, nll, smooth)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), have, want)


def test_bfloat16_features_keep_float32_sums_and_gradients_of_the_table():
  head = make_head()
  features, targets, nll, smooth = make_data(6, 0.6)
  loss, gradients = both(streamed, features.astype(jnp.bfloat16), head, targets, nll, smooth)
  want, want_gradients = both(naive_of_head, features, head, targets, nll, smooth)
  assert [x.dtype for x in (loss, *gradients)] == [
    jnp.float32, jnp.bfloat16, jnp.float32, jnp.float32,
  ]  # fmt: skip
  np.testing.assert_allclose(loss, want, rtol=0.02)
  for have, exact in zip(gradients, want_gradients, strict=True):
    error = np.abs(np.asarray(have, np.float32) - exact).max()
    assert error <= 0.03 * np.abs(exact).max()


def test_returns_the_nll_of_scored_positions_only():
  head = make_head()
  features, targets, nll, _ = make_data(2, 0.4)
  run = jax.jit(
    lambda nll: (
      vocabulary.cross_entropy(features, head, targets, nll, chunk=16)[1],
      naive_of_head(features, head, targets, nll, None)[1],
    )
  )
  minus, want = jax.device_get(run(nll))
  np.testing.assert_allclose(minus, np.where(nll != 0, want, 0), rtol=1e-5)


def test_rows_of_positions_equal_their_flat_list_bit_by_bit():
  head = make_head()
  features, targets, nll, smooth = make_data(7, 0.6)
  rows = lambda x: x.reshape(5, 8, *x.shape[1:])
  flat = jax.device_get(jax.jit(
    lambda *x: vocabulary.cross_entropy(x[0], head, *x[1:], chunk=16)
  )(features, targets, nll, smooth))  # fmt: skip
  have = jax.device_get(jax.jit(
    lambda *x: vocabulary.cross_entropy(x[0], head, *x[1:], chunk=16)
  )(*map(rows, (features, targets, nll, smooth))))  # fmt: skip
  assert have[0] == flat[0]
  np.testing.assert_array_equal(have[1], rows(flat[1]))
  predict = predictor(head)
  want = predict(features, vocabulary.draw())
  have = predict(rows(features), vocabulary.draw())
  np.testing.assert_array_equal(have.tokens, rows(want.tokens))
  np.testing.assert_array_equal(have.scores, rows(want.scores))


def test_memory_is_an_eighth_of_the_naive_loss_at_xlmr_size():
  positions, width, rows = 16 * 512, 768, 250002
  shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
  arguments = (
    shape(positions, width), shape(rows, width), shape(rows), shape(rows, dtype=bool),
    shape(positions, dtype=jnp.int32), shape(positions),
  )  # fmt: skip

  def streamed(f, t, b, allowed, targets, nll):
    head = Head(None, None, t, b, allowed)
    return vocabulary.cross_entropy(f, head, targets, nll, chunk=256)[0]

  def whole(f, t, b, allowed, targets, nll):
    return naive(f, t, b, allowed, targets, nll, None)[0]

  def temporary_bytes(loss):
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

  assert temporary_bytes(streamed) * 8 <= temporary_bytes(whole)


ROWS_OF_TABLE = 2600  # more than two tiles, and no multiple of one


def make_large(seed: int, *, rows: int = ROWS_OF_TABLE, scale: float = 1.0):
  """A head whose first rows and last ones are not allowed, and hidden states [ROWS, WIDTH]."""
  head = make_head(seed, rows=rows)
  allowed = np.arange(rows) < rows - 5
  allowed[:3] = False
  hidden = scale * make_data(seed, 1.0)[0]
  return head._replace(allowed=allowed), hidden


def log_law(head, hidden):
  """float64[P, V]"""
  logits = hidden.astype(np.float64) @ head.table.T.astype(np.float64) + head.bias
  logits = np.where(head.allowed, logits, -np.inf)
  top = logits.max(-1, keepdims=True)
  return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def predictor(head, *, chunk=16, needs=frozenset()):
  """predict(hidden, draw, keys, wanted), compiled."""
  return jax.jit(
    lambda hidden, draw, keys=None, wanted=None: vocabulary.predict(
      head, hidden, chunk=chunk, draw=draw, keys=keys, needs=needs, wanted=wanted
    )
  )


BOTH = frozenset({"entropy", "margin"})


@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize("rows", [VOCABULARY, ROWS_OF_TABLE])
def test_predict_equals_its_naive_twin(rows, scale):
  head, hidden = make_large(4, rows=rows, scale=scale)
  have = predictor(head, needs=BOTH)(hidden, vocabulary.draw())
  log_p = log_law(head, hidden)
  p = np.exp(log_p)
  ordered = np.sort(p, -1)
  np.testing.assert_array_equal(have.tokens, log_p.argmax(-1))
  np.testing.assert_allclose(have.scores, log_p.max(-1), rtol=1e-5, atol=1e-5)
  entropy = -(p * np.where(p > 0, log_p, 0)).sum(-1)
  np.testing.assert_allclose(have.entropy, entropy, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(have.margin, ordered[:, -1] - ordered[:, -2], rtol=1e-4, atol=1e-6)


def test_predict_returns_only_what_is_needed_and_the_earliest_of_ties():
  head, hidden = make_large(4, rows=VOCABULARY)
  head = head._replace(table=np.zeros_like(head.table), bias=np.zeros_like(head.bias))
  have = predictor(head, needs=frozenset({"margin"}))(hidden, vocabulary.draw())
  assert have.entropy is None
  assert (have.tokens == 3).all()  # the first allowed row
  assert (have.margin == 0).all()


def test_a_head_that_allows_few_rows_of_the_last_tile_predicts_those():
  head, hidden = make_large(8)
  head = head._replace(allowed=np.arange(ROWS_OF_TABLE) >= ROWS_OF_TABLE - 2)
  predict = predictor(head, needs=BOTH)
  keys = jax.random.split(jax.random.key(1), ROWS)
  for draw in (vocabulary.draw(), vocabulary.draw(temperature=1.5)):
    have = predict(hidden, draw, keys if draw.sampled else None)
    assert (have.tokens >= ROWS_OF_TABLE - 2).all()
    assert all(np.isfinite(x).all() for x in have)


@pytest.mark.parametrize("draw", [vocabulary.draw(), vocabulary.draw(temperature=0.9, top_p=0.8)])
def test_a_prediction_does_not_depend_on_the_others_by_one_bit(draw):
  head, hidden = make_large(5)
  hidden = np.repeat(hidden, 4, axis=0)  # 160 positions: several pieces
  keys = jax.random.split(jax.random.key(3), len(hidden)) if draw.sampled else None
  predict = predictor(head, chunk=48, needs=BOTH)
  everything = np.ones(len(hidden), bool)
  want = predict(hidden, draw, keys, everything)
  for seed, share in ((0, 1.0), (1, 0.5), (2, 0.05), (3, 0.0)):
    random = np.random.default_rng(seed)
    shuffled, wanted = random.permutation(len(hidden)), random.random(len(hidden)) < share
    have = predict(hidden[shuffled], draw, None if keys is None else keys[shuffled], wanted)
    for one, expected in zip(have, want, strict=True):
      np.testing.assert_array_equal(one[wanted], expected[shuffled][wanted])
      assert np.isfinite(one).all()


def test_no_more_chunks_are_visited_than_hold_wanted_positions():
  head, hidden = make_large(6, rows=VOCABULARY)
  visits = []

  def transform(params, features):
    jax.experimental.io_callback(lambda: visits.append(1), None)
    return features

  predict = predictor(head._replace(transform=transform), chunk=8)
  for wanted, pieces in ((0, 0), (1, 1), (8, 1), (9, 2), (ROWS, 5)):
    visits.clear()
    jax.block_until_ready(predict(hidden, vocabulary.draw(), None, np.arange(ROWS)[::-1] < wanted))
    jax.effects_barrier()
    assert len(visits) == pieces


def chi_square(tokens, law):
  """The p-value of the counts; tokens without probability must not occur."""
  counts = np.bincount(tokens, minlength=len(law))
  assert counts[law == 0].sum() == 0
  expected = law[law > 0] / law.sum() * len(tokens)
  assert expected.min() > 5
  return scipy.stats.chisquare(counts[law > 0], expected).pvalue


def truncate(law, *, top_p, top_k):
  """The law of one position by the definition of Draw."""
  order = np.argsort(-law)
  before = np.cumsum(law[order]) - law[order]
  keep = before < top_p
  keep &= np.arange(len(law)) < (top_k or len(law))
  kept = np.zeros_like(law)
  kept[order[keep]] = law[order[keep]]
  return kept / kept.sum()


@pytest.mark.slow
def test_predict_samples_the_tempered_and_truncated_law_and_scores_the_untempered_one():
  head = make_head(rows=16)
  draws = 40_000
  hidden = np.broadcast_to(0.6 * make_data(5, 1.0)[0][0], (draws, WIDTH))
  predict = predictor(head, chunk=draws)
  scores = log_law(head, hidden[:1])[0]
  cases = [dict(temperature=0.7), dict(temperature=1.6)]
  cases += [dict(temperature=1.6, top_p=0.8), dict(temperature=1.6, top_k=4)]
  cases += [dict(temperature=1.6, top_p=0.8, top_k=6), dict(temperature=1.0, top_p=1e-6)]
  cases += [dict(temperature=1.6, top_k=400)]
  for number, case in enumerate(cases):
    keys = jax.random.split(jax.random.key(number), draws)
    have = jax.device_get(predict(hidden, vocabulary.draw(**case), keys))
    law = np.exp(scores / case["temperature"])
    law = truncate(law / law.sum(), top_p=case.get("top_p", 1), top_k=case.get("top_k", 0))
    if (law > 0).sum() > 1:
      assert chi_square(have.tokens, law) > 1e-4, case
    else:
      assert (law[have.tokens] == 1).all()
    np.testing.assert_allclose(have.scores, scores[have.tokens], rtol=1e-4, atol=1e-5)
  assert predict._cache_size() == 2  # truncated or not: the numbers are traced


def test_sampling_over_several_tiles_follows_the_law():
  head, hidden = make_large(7, scale=0.3)
  draws = 20_000
  head = head._replace(bias=np.where(np.arange(ROWS_OF_TABLE) % 100 == 7, 6, head.bias))
  hidden = np.broadcast_to(hidden[0], (draws, WIDTH))
  keys = jax.random.split(jax.random.key(0), draws)
  have = predictor(head, chunk=256)(hidden, vocabulary.draw(temperature=1.0), keys)
  law = np.exp(log_law(head, hidden[:1])[0])
  bins = np.arange(ROWS_OF_TABLE) // 50 * 2 + (np.arange(ROWS_OF_TABLE) % 100 == 7)
  binned = np.bincount(bins, law)
  assert head.allowed[have.tokens].all()
  assert chi_square(bins[have.tokens], binned) > 1e-4


def test_the_likeliest_token_is_kept_at_the_least_top_p():
  least = vocabulary.draw(temperature=1e-37, top_p=float(np.finfo(np.float32).tiny))
  tempered = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32) * 1e30
  kept = draws.kept(jnp.asarray(tempered), least)
  np.testing.assert_array_equal(kept, tempered == tempered.max(0))


@pytest.mark.slow
def test_tokens_of_probability_one_in_a_million_are_neither_lost_nor_inflated():
  draws, rows, rare = 2**19, 1024, 1e-6
  # Two likely tokens: rare ones in the groups of rows of a likely one, and in groups of their own.
  law = np.full(rows, rare)
  law[[0, 100]] = (1 - rare * (rows - 2)) * np.array([0.75, 0.25])
  head = Head(lambda params, hidden: hidden, {}, np.zeros((rows, 1), np.float32),
              np.log(law).astype(np.float32), np.ones(rows, bool))  # fmt: skip
  hidden = np.zeros((draws, 1), np.float32)
  keys = jax.random.split(jax.random.key(11), draws)
  tokens = predictor(head, chunk=256)(hidden, vocabulary.draw(temperature=1.0), keys).tokens
  counts = np.bincount(tokens, minlength=rows)
  beside = np.isin(np.arange(rows) // 32, [0, 100 // 32])
  apart = ~beside
  beside[[0, 100]] = False
  for which in (beside, apart):
    expected = draws * rare * which.sum()
    assert abs(counts[which].sum() - expected) < 4 * np.sqrt(expected)


def test_the_noise_of_a_draw_is_fine_in_its_right_tail():
  """An ordinary float32 Gumbel variable takes the same few values there, and none above 16."""
  keys = jax.random.split(jax.random.key(2), 2**17)
  noise = np.asarray(jax.jit(draws.group_noise, static_argnums=2)(keys, 0, 1024))
  tail = noise[noise > 12]
  expected = noise.size * -np.expm1(-np.exp(-12.0))
  assert abs(len(tail) - expected) < 4 * np.sqrt(expected)
  assert len(np.unique(tail)) == len(tail)


def test_a_temperature_near_0_is_the_argmax():
  head, hidden = make_large(9, rows=VOCABULARY)
  predict = predictor(head)
  keys = jax.random.split(jax.random.key(5), ROWS)
  have = predict(hidden, vocabulary.draw(temperature=1e-30), keys)
  want = predict(hidden, vocabulary.draw())
  np.testing.assert_array_equal(have.tokens, want.tokens)
  np.testing.assert_allclose(have.scores, want.scores, rtol=1e-6)


def test_bfloat16_features_give_float32_scores():
  head, hidden = make_large(10, rows=VOCABULARY)
  have = predictor(head, needs=BOTH)(hidden.astype(jnp.bfloat16), vocabulary.draw())
  want = predictor(head, needs=BOTH)(hidden, vocabulary.draw())
  assert all(x.dtype == jnp.float32 for x in have[1:])
  np.testing.assert_allclose(have.scores, want.scores, atol=0.1)


@pytest.mark.parametrize(
  "numbers",
  [dict(temperature=-1), dict(temperature=1e-39), dict(temperature=1e39), dict(top_p=0),
   dict(top_p=1e-39), dict(top_p=1.1), dict(top_k=-1)],
)  # fmt: skip
def test_illegal_draws_are_named(numbers):
  with pytest.raises(UserError, match=f"{next(iter(numbers))} = .*must be"):
    vocabulary.draw(**numbers)
