"""What holds for every strategy on any canvas: 5 000 random cases, rows of few compiled calls."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from each_row import EachRowItsOwn

from diffjax.diffusion import generation, vocabulary
from diffjax.diffusion.generation import Canvas
from diffjax.diffusion.strategies import NAMES, parse
from diffjax.types import Denoiser, Head

V, MASK, END, PADDING_ROWS = 16, 11, 2, 3
FORBIDDEN = [MASK, *range(V - PADDING_ROWS, V)]
CASES, LENGTH, SLOTS = 5000, 24, 12
STEPS = 6
# In the order of NAMES.
ONE_OF_EACH_FAMILY = (
  "reparam-uncond-stochastic1.0-cosine", "ancestral-linear", "mask_predict",
  "confidence-stochastic0.5", "entropy-block8", "factor1.0-block8", "remask-rescale0.05-linear",
  "dndm_topk-cosine",
)  # fmt: skip


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), jnp.float32)


def denoiser(prompts, is_prompt):
  """Logits that depend on the whole row; NaN once anything is written on a prompt."""
  rows = np.arange(V)
  allowed = (rows < V - PADDING_ROWS) & (rows != MASK)
  # What is not allowed would win if it were.
  head = Head(lambda _, h: h, {}, jnp.eye(V), jnp.where(allowed, 0.0, 50.0), jnp.asarray(allowed))

  def trunk(xt, t):
    del t
    real = xt >= 0  # -1 pads the shapes
    seen = jnp.where(real[..., None], normal(1, V, V)[xt], 0)
    # Whole numbers: their sum does not depend on how it is grouped, whatever the shape.
    mixed = jnp.round(seen * 64).sum(1, keepdims=True) / 512
    before = jnp.pad(seen, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    hidden = mixed + before + normal(2, 40, V)[: xt.shape[1]]
    spoilt = ((xt != prompts) & is_prompt).any(-1)
    return jnp.where(spoilt[:, None, None], jnp.nan, hidden)

  return Denoiser(trunk, head)


@jax.jit
def decode(strategies, kinds, tokens, is_prompt, canvas, keys, end_id, draw, always):
  view = generation.whole_rows(denoiser(tokens, is_prompt), tokens, canvas)
  cond = jax.lax.cond
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax.lax, "cond", lambda asked, *ways: cond(asked | always, *ways))
    return generation.fill(
      view, canvas, keys, EachRowItsOwn(strategies, kinds), draw,
      mask_id=MASK, chunk=512, end_id=end_id,
    )  # fmt: skip


@dataclasses.dataclass
class Cases:
  kinds: np.ndarray
  tokens: np.ndarray
  is_prompt: np.ndarray
  places: np.ndarray
  real: np.ndarray
  keys: np.ndarray  # as data

  def take(self, rows):
    return Cases(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

  def pad(self, length, slots):
    """The same cases in larger shapes."""
    wide = lambda x, to, fill: np.pad(x, ((0, 0), (0, to - x.shape[1])), constant_values=fill)
    return Cases(
      self.kinds, wide(self.tokens, length, -1), wide(self.is_prompt, length, False),
      wide(self.places, slots, 0), wide(self.real, slots, False), self.keys,
    )  # fmt: skip


@functools.cache
def cases():
  """Prompts full of mask and forbidden ids, canvases of every size with gaps between them."""
  random = np.random.default_rng(0)
  tokens = random.integers(0, V, (CASES, LENGTH)).astype(np.int32)
  tokens[:, ::4] = MASK
  sizes = random.integers(0, SLOTS + 1, CASES)
  places = np.zeros((CASES, SLOTS), np.int32)
  on_canvas = np.zeros((CASES, LENGTH), bool)
  for b, size in enumerate(sizes):
    places[b, :size] = np.sort(random.choice(LENGTH, size, replace=False))
    on_canvas[b, places[b, :size]] = True
  keys = jax.random.key_data(jax.random.split(jax.random.key(3), CASES))
  kinds = (np.arange(CASES) % len(NAMES)).astype(np.int32)
  real = np.arange(SLOTS) < sizes[:, None]
  return Cases(kinds, tokens, ~on_canvas, places, real, np.asarray(keys))


def run(cases, names=NAMES, *, end_id=-1, temperature=1.0, always=False):
  strategies = tuple(
    parse(name, num_steps=STEPS, canvas_size=cases.places.shape[1]) for name in names
  )
  return jax.device_get(decode(
    strategies, cases.kinds, cases.tokens, cases.is_prompt, Canvas(cases.places, cases.real),
    jax.random.wrap_key_data(cases.keys), jnp.int32(end_id),
    vocabulary.draw(temperature=temperature), always,
  ))  # fmt: skip


@functools.cache
def outcome(end_id=-1):
  return run(cases(), end_id=end_id)


@pytest.mark.parametrize("end_id", [-1, END])
def test_every_position_gets_a_legal_token_and_no_prompt_is_touched(end_id):
  real, decoded = cases().real, outcome(end_id)
  # Finite: a token was revealed at each, and the network never saw another prompt.
  assert np.isfinite(decoded.scores[real]).all()
  assert (decoded.scores[real] <= 1e-5).all()
  assert not np.isin(decoded.tokens[real], FORBIDDEN).any()
  assert (decoded.tokens[real] >= 0).all()
  assert len(np.unique(decoded.tokens[real])) == V - len(FORBIDDEN)
  limits = [parse(n, num_steps=STEPS, canvas_size=SLOTS).num_steps for n in NAMES]
  assert (decoded.calls <= np.asarray(limits)[cases().kinds]).all()
  assert ((decoded.calls > 0) == real.any(-1)).all()


def test_nothing_is_written_behind_an_end():
  real, decoded = cases().real, outcome(END)
  ends = (decoded.tokens == END) & real
  behind = (np.cumsum(ends, -1) > 0) & real
  assert (decoded.tokens[behind] == END).all()
  after = np.arange(SLOTS) > np.argmax(ends, -1)[:, None]
  for kind, name in enumerate(NAMES):
    cut = behind & after & (cases().kinds == kind)[:, None]
    assert (decoded.scores[cut] == 0).sum() > 5, name  # cut, not revealed


@pytest.mark.slow
def test_same_keys_same_text_in_any_order_and_beside_any_rows():
  whole = outcome()
  order = np.random.default_rng(1).permutation(CASES)
  shuffled = run(cases().take(order))
  for field in ("tokens", "scores", "calls"):
    assert (getattr(shuffled, field) == getattr(whole, field)[order]).all()
  # Half of the rows have nothing to do, the others have them twice: new mates for all.
  half = cases().take(np.concatenate([order[: CASES // 2], order[: CASES - CASES // 2]]))
  half.real[CASES // 2 :] = False
  halved = run(half)
  for field in ("tokens", "scores", "calls"):
    mine = getattr(whole, field)[order[: CASES // 2]]
    assert (getattr(halved, field)[: CASES // 2] == mine).all()
  # One row of each kind, without any mates.
  alone = cases().take(np.arange(CASES))
  kept = np.arange(CASES) % 211 == 0
  alone.real[~kept] = False
  assert len(np.unique(alone.kinds[kept])) > 20
  alone = run(alone)
  for field in ("tokens", "scores", "calls"):
    assert (getattr(alone, field)[kept] == getattr(whole, field)[kept]).all()


def test_predictions_of_a_few_positions_that_are_kept_are_those_that_a_step_reads():
  few = [n for n in NAMES if not n.startswith(("reparam", "dndm_topk"))]  # these read all positions
  mine = cases().take(np.arange(50 * len(few)))
  mine.kinds = (np.arange(len(mine.kinds)) % len(few)).astype(np.int32)
  whole = run(mine, few, temperature=0.0)
  asking = run(mine, few, temperature=0.0, always=True)
  jax.tree.map(np.testing.assert_array_equal, asking, whole)
  kept = np.arange(len(mine.kinds)) % 50 == 0
  alone = mine.take(np.arange(len(mine.kinds)))
  alone.real[~kept] = False
  assert len(np.unique(alone.kinds[kept])) == len(few)
  alone = run(alone, few, temperature=0.0)
  for field in ("tokens", "scores", "calls"):
    assert (getattr(alone, field)[kept] == getattr(whole, field)[kept]).all()


def test_texts_are_equal_across_shapes():
  names = [NAMES.index(name) for name in ONE_OF_EACH_FAMILY]
  rows = np.flatnonzero(np.isin(cases().kinds, names))
  wider = cases().take(rows).pad(LENGTH + 9, SLOTS + 5)
  wider.kinds = np.searchsorted(names, wider.kinds).astype(np.int32)
  wider = run(wider, ONE_OF_EACH_FAMILY)
  real = cases().real[rows]
  assert real.sum() > 5000
  assert (wider.tokens[:, :SLOTS][real] == outcome().tokens[rows][real]).all()
  assert (wider.calls == outcome().calls[rows]).all()
  scores = outcome().scores[rows][real]
  np.testing.assert_allclose(wider.scores[:, :SLOTS][real], scores, atol=1e-5)
