"""The reparameterised strategy: counts, invariants, and what its forms differ in."""

import decimal
import math

import jax
import numpy as np
import pytest

from diffjax.diffusion.strategies import masked_counts, parse
from diffjax.diffusion.vocabulary import Prediction

UNCOND = "reparam-uncond-deterministic-cosine"


@pytest.mark.parametrize(
  ("schedule", "canvas", "steps", "expected"),
  [
    ("cosine", 40, 10, [39, 38, 35, 32, 28, 23, 18, 12, 6, 0]),
    ("cosine", 20, 10, [19, 19, 17, 16, 14, 11, 9, 6, 3, 0]),
    ("cosine", 8, 4, [7, 5, 3, 0]),
    ("linear", 40, 10, [36, 32, 28, 24, 20, 16, 12, 8, 4, 0]),
  ],
)
def test_masked_counts_are_the_published_trajectories(schedule, canvas, steps, expected):
  assert masked_counts(schedule, steps, 64)[:, canvas].tolist() == expected


def test_short_canvas_with_many_steps_stays_at_nine_for_fourteen_steps():
  counts = masked_counts("cosine", 50, 10)[:, 10].tolist()
  assert counts[:14] == [9] * 14
  assert counts[14] == 8
  assert counts[-1] == 0


def exact_cosine_count(size, step, steps):
  """floor(size cos(pi step / 2 steps)) from a Taylor series with 50 digits."""
  if step == steps:
    return 0
  if 3 * step == 2 * steps:
    return size // 2
  with decimal.localcontext(prec=60):
    pi = decimal.Decimal("3.14159265358979323846264338327950288419716939937510582")
    x = pi * step / (2 * steps)
    term = total = decimal.Decimal(1)
    for n in range(1, 25):
      term *= -x * x / ((2 * n - 1) * (2 * n))
      total += term
    return math.floor(size * total)


def test_counts_are_exact_and_float32_is_not():
  for steps in (1, 2, 3, 6, 9, 10, 12, 48, 50):
    cosine, linear = (masked_counts(name, steps, 512) for name in ("cosine", "linear"))
    for step in range(1, steps + 1):
      for size in (1, 2, 3, 7, 40, 100, 256, 511, 512):
        assert cosine[step - 1, size] == exact_cosine_count(size, step, steps)
        assert linear[step - 1, size] == size - math.ceil(size * step / steps - 1e-9)
  wrong = {np.float32: 0, np.float64: 0}
  for steps in range(1, 65):
    exact = masked_counts("linear", steps, 512)
    for kind in wrong:
      rate = kind(1) - np.arange(1, steps + 1, dtype=kind) / kind(steps)
      wrong[kind] += (np.floor(np.arange(513, dtype=kind) * rate[:, None]) != exact).sum()
  assert wrong[np.float32] > 1000  # the reason for whole numbers on the host ...
  assert wrong[np.float64] > 1000  # ... and for whole numbers at all


@jax.jit
def steps(strategy, said, canvas):
  """All states of a run without noise: said and the result have a leading axis of steps."""
  keys = jax.random.split(jax.random.key(0), canvas.shape)

  def body(state, step):
    number, prediction = step
    state = strategy.step(state, prediction, canvas=canvas, number=number, keys=keys)
    return state, state

  numbers = np.arange(len(said.scores))
  return jax.lax.scan(body, strategy.init(canvas, keys), (numbers, said))[1]


def test_unconditional_steps_keep_their_invariants(run_on_words):
  run = run_on_words(UNCOND, 16)
  states, predictions, canvas = run.states, run.words, run.canvas
  lengths = canvas.sum(-1)
  counts = masked_counts("cosine", 16, 16)
  remasked = 0
  before_masked, before_tokens, before_scores = canvas, None, None
  for s in range(16):
    masked, tokens, scores = states.masked[s], states.tokens[s], states.scores[s]
    open_before = ~states.done[s - 1] if s else lengths > 0
    for b in np.flatnonzero(open_before):
      # Exactly k masked, ties or not; no visible position is less sure than a masked one.
      assert masked[b].sum() == counts[s, lengths[b]]
      now = predictions.scores[s, b]
      if masked[b].any() and (canvas[b] & ~masked[b]).any():
        assert now[canvas[b] & ~masked[b]].min() >= now[masked[b]].max()
    assert (scores[masked] == -np.inf).all()
    if s:
      kept = canvas & ~before_masked & ~masked
      assert (tokens[kept] == before_tokens[kept]).all()
      assert (scores[kept] == before_scores[kept]).all()
      remasked += (~before_masked & masked).sum()
    before_masked, before_tokens, before_scores = masked, tokens, scores
  assert remasked > 20  # otherwise the kept tokens would be kept trivially


def test_equal_scores_leave_exactly_k_masked_and_the_first_positions_lose():
  said = Prediction(np.full((10, 1, 40), 5, np.int32), np.zeros((10, 1, 40), np.float32))
  states = steps(parse(UNCOND, num_steps=10, canvas_size=40), said, np.ones((1, 40), bool))
  expected = np.arange(40) < masked_counts("cosine", 10, 40)[:, 40:]
  assert (states.masked[:, 0] == expected).all()


def test_conditional_masks_again_only_a_repeated_token_that_lost_confidence():
  # Step 1 reveals position 3 alone (linear, 4 steps); from then on it is the least sure.
  tokens, scores = np.full((4, 3, 4), 7, np.int32), np.full((4, 3, 4), -2.0, np.float32)
  scores[0, :, 3] = -1.0
  scores[1:, :, 3] = -3.0
  tokens[1:, 1, 3] = 8  # row 1: the network now says something else
  scores[1:, 2] += 4.0  # row 2: every score rises, so that position 3 is still last but surer
  canvas = np.ones((3, 4), bool)
  cond, uncond = (
    steps(
      parse(f"reparam-{condition}-deterministic-linear", num_steps=4, canvas_size=4),
      Prediction(tokens, scores),
      canvas,
    )
    for condition in ("cond", "uncond")
  )
  assert not cond.masked[0, :, 3].any()
  assert not uncond.masked[0, :, 3].any()
  assert cond.masked[1, :, 3].tolist() == [True, False, False]
  assert uncond.masked[1, :, 3].tolist() == [True, True, True]


def test_noise_on_the_ranks_falls_with_the_rate_and_leaves_scores_alone(run_on_words):
  run = run_on_words("reparam-uncond-stochastic1.5-linear", 16)
  states, predictions, canvas = run.states, run.words, run.canvas
  plain = run_on_words("reparam-uncond-deterministic-linear", 16).states
  differ = (states.masked != plain.masked).sum((1, 2))
  assert differ[:8].sum() > differ[8:].sum() > 0
  revealed_first = canvas & ~states.masked[0]
  assert (states.scores[0][revealed_first] == predictions.scores[0][revealed_first]).all()
