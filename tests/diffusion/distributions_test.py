"""What laws the strategies sample, with an exact denoiser on a law that can be enumerated.

`pytest -m slow -s tests/diffusion/distributions_test.py` prints the measured bias of all of them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from each_row import EachRowItsOwn
from scipy import stats

from diffjax.diffusion import generation, vocabulary
from diffjax.diffusion.generation import Canvas, View
from diffjax.diffusion.strategies import parse
from diffjax.types import Head

V, C = 3, 3  # symbols, positions
MASK = V
DRAWS = 20_000
OUTCOMES = np.stack(np.unravel_index(np.arange(V**C), (V,) * C), axis=-1)  # [V^C, C]


def dependent_law():
  """float64[V^C]: positions that depend on one another, and unevenly."""
  weights = np.exp(np.random.default_rng(0).normal(0, 1.5, V**C))
  return weights / weights.sum()


def product_law():
  """Independent positions, each with a law of its own."""
  each = np.random.default_rng(1).dirichlet(np.ones(V), C)
  return np.prod([each[n, OUTCOMES[:, n]] for n in range(C)], axis=0)


@functools.cache
def exact_logits(law):
  """float32[(V+1)^C, C, V+1]: log p(x_n, what is visible) of every canvas, masked or not."""
  p = law()
  logits = np.zeros(((V + 1) ** C, C, V + 1), np.float32)
  for code in range(len(logits)):
    said = np.array(np.unravel_index(code, (V + 1,) * C))
    agree = ((said == OUTCOMES) | (said == MASK)).all(-1)
    for n in range(C):
      joint = np.bincount(OUTCOMES[agree, n], p[agree], minlength=V)
      logits[code, n, :V] = np.log(np.maximum(joint, 1e-30))
  return logits


@functools.partial(jax.jit, static_argnames="keep_trace")
def sample(strategy, logits, keys, end_id=-1, *, keep_trace=False):
  code = (V + 1) ** jnp.arange(C - 1, -1, -1)
  rows = jnp.arange(V + 1)
  head = Head(lambda _, hidden: hidden, {}, jnp.eye(V + 1), jnp.zeros(V + 1), rows < MASK)
  shape = len(keys), C
  canvas = Canvas(jnp.broadcast_to(jnp.arange(C), shape), jnp.ones(shape, bool))
  return generation.fill(
    View(lambda said: logits[said @ code], head), canvas, keys, strategy,
    vocabulary.draw(temperature=1.0), mask_id=MASK, chunk=2**20, end_id=end_id,
    keep_trace=keep_trace,
  )  # fmt: skip


def decode(name, num_steps, *, draws=DRAWS, seed=0):
  """int32[draws, C]"""
  strategy = parse(name, num_steps=num_steps, canvas_size=C)
  keys = jax.random.split(jax.random.key(seed), draws)
  return np.asarray(sample(strategy, exact_logits(dependent_law), keys).tokens)


TOGETHER = (
  "left_to_right", "entropy", "margin", "dndm-linear", "ancestral-linear", "ancestral-cosine",
  "remask-rescale0.1-linear",
)  # fmt: skip
EACH = 30_000


class Drawn(NamedTuple):
  tokens: np.ndarray  # [B, C]
  calls: np.ndarray  # [B]
  masked: np.ndarray  # [S', B, C]


@functools.cache
def decode_together(num_steps, law=dependent_law, end_id=-1):
  """name -> Drawn, all from one compiled program."""
  strategies = tuple(parse(name, num_steps=num_steps, canvas_size=C) for name in TOGETHER)
  kinds = np.repeat(np.arange(len(TOGETHER), dtype=np.int32), EACH)
  keys = jax.random.split(jax.random.key(0), len(kinds))
  drawn = sample(
    EachRowItsOwn(strategies, kinds), exact_logits(law), keys, np.int32(end_id), keep_trace=True
  )
  split = lambda x, axis=0: np.split(np.asarray(x), len(TOGETHER), axis)
  columns = split(drawn.tokens), split(drawn.calls), split(drawn.trace.masked, 1)
  return {name: Drawn(*parts) for name, *parts in zip(TOGETHER, *columns, strict=True)}


def counts(tokens):
  """int[V^C]: how often each outcome was drawn."""
  return np.bincount(tokens @ V ** np.arange(C - 1, -1, -1), minlength=V**C)


def p_value(tokens, law=dependent_law):
  return stats.chisquare(counts(tokens), law() * len(tokens)).pvalue


@pytest.mark.slow
@pytest.mark.parametrize("name", ["left_to_right", "entropy", "margin"])
def test_one_commit_a_step_in_an_order_that_ignores_the_draw_is_exact(name):
  drawn = decode_together(16)[name]
  assert (drawn.calls == C).all()
  assert p_value(drawn.tokens) > 1e-3


@pytest.mark.parametrize("name", ["dndm-linear", "ancestral-linear"])
def test_transitions_at_distinct_times_are_exact(name):
  drawn = decode_together(16)[name]
  distinct = drawn.calls == C  # the times are drawn apart from the tokens: no selection of these
  assert DRAWS <= distinct.sum() < 0.9 * EACH
  assert p_value(drawn.tokens[distinct]) > 1e-3
  assert p_value(drawn.tokens) < 1e-6  # and with the others it is not


def test_remasking_that_reveals_one_position_at_a_time_is_exact():
  drawn = decode_together(16)["remask-rescale0.1-linear"]
  masked = np.concatenate([np.ones((1, EACH, C), bool), drawn.masked])
  again = (~masked[:-1] & masked[1:]).any((0, 2))
  alone = ((masked[:-1] & ~masked[1:]).sum(-1) <= 1).all(0)
  assert DRAWS <= alone.sum() < 0.9 * EACH
  assert again[alone].mean() > 0.15
  assert p_value(drawn.tokens[alone]) > 1e-3
  assert p_value(drawn.tokens) < 1e-6


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("name", TOGETHER)
def test_independent_positions_are_exact_at_any_number_of_steps(name, num_steps):
  assert p_value(decode_together(num_steps, product_law)[name].tokens, product_law) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_rows_end_as_often_as_their_law_says(name):
  end = 1
  tokens = decode_together(16, product_law, end)[name].tokens
  cut = np.where(np.cumsum(end == OUTCOMES, -1) > 0, end, OUTCOMES)
  expected = np.bincount(cut @ V ** np.arange(C - 1, -1, -1), product_law(), minlength=V**C)
  possible = expected > 0
  assert counts(tokens)[~possible].sum() == 0
  assert stats.chisquare(counts(tokens)[possible], expected[possible] * EACH).pvalue > 1e-3


@pytest.mark.parametrize("name", TOGETHER[1:])
def test_dependent_positions_revealed_together_are_not(name):
  assert p_value(decode_together(2)[name].tokens) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  ["ancestral-linear", "ancestral-cosine", "remask-cap0.005-linear", "remask-rescale0.005-linear",
   "remask-loop0.005-linear"],
)  # fmt: skip
def test_a_thousand_steps_are_exact(name):
  assert p_value(decode(name, num_steps=1000)) > 1e-3


def measured_bias(name, num_steps, *, draws):
  """Total variation distance between the dependent law and so many draws."""
  tokens = decode(name, num_steps, draws=draws, seed=1)
  return np.abs(counts(tokens) / len(tokens) - dependent_law()).sum() / 2


MEASURED = {
  "left_to_right": (3,),
  "entropy": (2, 3), "margin": (2, 3),
  "confidence": (2, 3), "confidence-stochastic0.5": (2, 3), "confidence-block1": (3,),
  "threshold0.9": (3,), "threshold0.5": (3,), "factor1.0": (3,), "factor0.5": (3,),
  "mask_predict": (2, 3, 16),
  "reparam-uncond-deterministic-cosine": (2, 3, 16),
  "reparam-cond-deterministic-cosine": (2, 3, 16),
  "reparam-uncond-stochastic1.0-cosine": (2, 3, 16),
  "dndm-linear": (2, 3, 16, 1000), "dndm_topk-linear": (2, 3, 16, 1000),
  "ancestral-linear": (2, 3, 16, 1000), "ancestral-cosine": (2, 3, 16, 1000),
  "remask-cap0.005-linear": (2, 3, 16, 1000), "remask-cap0.02-linear": (2, 3, 16, 1000),
  "remask-rescale0.02-linear": (2, 3, 16, 1000), "remask-confidence-linear": (2, 3, 16, 1000),
  "remask-loop0.02-linear": (2, 3, 16, 1000),
}  # fmt: skip
EXACT = {("left_to_right", 3), ("entropy", 3), ("margin", 3), ("confidence-block1", 3)}


@pytest.mark.slow
def test_measured_bias_is_nil_where_exactness_is_claimed():
  law = dependent_law()
  random = np.random.default_rng(0)
  print("\n| strategy | steps | total variation distance | of as many exact draws, at most |")
  for name, steps in MEASURED.items():
    for num_steps in steps:
      draws = 20_000 if num_steps == 1000 else 50_000
      noise = np.abs(random.multinomial(draws, law, 1000) / draws - law).sum(-1).max() / 2
      bias = measured_bias(name, num_steps, draws=draws)
      print(f"| {name} | {num_steps} | {bias:.4f} | {noise:.4f} |", flush=True)
      assert (name, num_steps) not in EXACT or bias < noise
