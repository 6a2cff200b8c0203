"""The bound on plain text: against all orders of a short text, and a law that ignores the text."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.config import Contract, ModelConfig
from diffjax.data import features
from diffjax.evaluation import likelihood
from diffjax.evaluation.likelihood import TextBound, text_bound, text_bounds, windows
from diffjax.model import Model
from diffjax.models import transformer
from diffjax.sampling import Sampler
from diffjax.types import Example, UserError

LETTERS = "abcdefghij"
CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=15, known_ids=14)
CONFIG = ModelConfig(
  vocab_size=16, width=16, layers=1, heads=2, ffn_width=16, max_positions=12, dropout=0.0
)
OPTIONS = {"samples": 64, "batch_size": 8}


class Tokenizer:
  """Ids 4.. are letters, 3 any other character; spaces are nothing."""

  unk_id = 3

  def encode(self, text):
    return [4 + LETTERS.find(c) if c in LETTERS else 3 for c in text.replace(" ", "")]


def make_sampler(spread, *, bias=None, **contract):
  """Normal weights of this spread; 0: a law that its bias alone decides."""
  random = np.random.default_rng(0)
  draw = lambda leaf: jnp.asarray(random.normal(0, spread, leaf.shape).astype(np.float32))
  params = jax.tree.map(draw, transformer.shapes(CONFIG))
  if bias is not None:
    params["head"]["bias"] = jnp.asarray(np.pad(bias, (0, CONFIG.table_rows - len(bias))))
  return Sampler(Model(CONFIG, dataclasses.replace(CONTRACT, **contract), params, Tokenizer()))


@pytest.mark.slow
def test_all_orders_of_a_short_text_have_this_mean():
  sampler = make_sampler(0.5)
  ids = np.array([0, *Tokenizer().encode("dig"), 2])
  masks = np.array(list(itertools.product([False, True], repeat=4)))
  rows = np.tile(ids, (16, 1))
  rows[:, 1:] = np.where(masks, CONTRACT.mask_id, ids[1:])
  logits = np.asarray(sampler.model.logits(rows), np.float64)[..., :14]
  law = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  own = law[:, np.arange(1, 5), ids[1:]]  # [masks, places]
  chains = []
  for order in itertools.permutations(range(4)):
    hidden, total = np.ones(4, bool), 0.0
    for place in order:
      total += own[int((hidden * [8, 4, 2, 1]).sum()), place]
      hidden[place] = False
    chains.append(total)
  exact = text_bound(sampler, ["dig"], samples=15, batch_size=8)
  assert exact.error == 0
  assert exact.nats == pytest.approx(-np.mean(chains), rel=1e-4)
  drawn = text_bound(sampler, ["dig"], samples=14, batch_size=8)
  assert drawn.error > 0
  assert abs(drawn.nats - exact.nats) < 4 * drawn.error


def test_a_law_that_ignores_the_text_has_its_closed_form():
  bias = np.random.default_rng(1).normal(size=14).astype(np.float32)
  sampler = make_sampler(0, bias=bias)
  texts = ["abc", "hi", "abcdefghijabcdefghijabcd"]  # one of three windows
  law = bias - np.log(np.exp(bias).sum())
  wanted = [-law[[*Tokenizer().encode(text), 2]].sum() for text in texts]
  some = text_bounds(sampler, texts, **OPTIONS)
  for bound, nats in zip(some, wanted, strict=True):
    assert abs(bound.nats - nats) <= 4 * bound.error + 1e-4
  assert [bound.error > 0 for bound in some] == [False, False, True]
  uniform = text_bound(make_sampler(0), texts, **OPTIONS)
  assert uniform.tokens == 3 + 2 + 24 + 3
  assert uniform.perplexity == pytest.approx(14, rel=1e-4)
  assert uniform.error == pytest.approx(0, abs=1e-3)


def test_a_text_that_fits_is_the_row_of_training_and_texts_add_up():
  sampler = make_sampler(0.5)
  texts = ["abc", "jigabcdefgh"]
  first, second = text_bounds(sampler, texts, **OPTIONS)
  score = sampler.score("", "abc", **OPTIONS)
  assert (first.nats, first.error, first.tokens) == (
    -score.log_likelihood, score.standard_error, 4,
  )  # fmt: skip
  both = text_bound(sampler, texts, **OPTIONS)
  assert both.nats == pytest.approx(first.nats + second.nats)
  assert both.error == pytest.approx(math.hypot(first.error, second.error))
  assert (both.tokens, both.bytes, both.characters) == (16, 14, 14)


@pytest.mark.parametrize("padding", [0, 4, 32])
@pytest.mark.parametrize("size", [1, 10, 11, 12, 33, 40])
def test_windows_score_every_token_once_and_the_last_sees_what_fits(size, padding):
  contract = dataclasses.replace(CONTRACT, end="predicted", end_padding=padding)
  ids = np.random.default_rng(size).integers(4, 14, size).tolist()
  rows = windows(ids, contract, max_length=12)
  scored = np.concatenate([row.tokens[row.canvas_start :] for row in rows]).tolist()
  assert scored[: size + 1] == [*ids, 2]
  assert set(scored[size:]) == {2}
  assert len(scored) % (padding if padding < 12 and padding else 1) == 0
  assert len(scored) < size + 1 + max(padding, 1)
  for row in rows:
    assert row.tokens[0] == 0
    assert len(row.tokens) <= 12
  if len(rows) > 1:
    assert len(rows[-1].tokens) == 12
    start = len(scored) - 11
    assert rows[-1].tokens[1:].tolist() == [*ids, *[2] * padding, 2][start : start + 11]
  elif padding != 32:
    text = "".join(LETTERS[id_ - 4] for id_ in ids)
    trained = features.encode(
      Example("", text), Tokenizer(), contract, max_length=12, too_long="drop"
    )
    assert trained.tokens.tolist() == rows[0].tokens.tolist()
    assert trained.canvas_start == rows[0].canvas_start


def test_bits_and_perplexity_and_their_errors_are_of_the_same_nats():
  bound = TextBound(nats=60.0, error=3.0, tokens=20, bytes=90, characters=80)
  assert bound.per_token == 3
  assert bound.perplexity == pytest.approx(math.exp(3))
  assert bound.bits_per_byte * 90 == pytest.approx(60 / math.log(2))
  assert bound.bits_per_character * 80 == pytest.approx(60 / math.log(2))
  small = TextBound(nats=60.0 + 1e-6, error=3.0, tokens=20, bytes=90, characters=80)
  slope = (small.perplexity - bound.perplexity) / 1e-6
  assert bound.perplexity_error == pytest.approx(3 * slope, rel=1e-3)
  for name in ("per_token", "bits_per_byte", "bits_per_character"):
    share = getattr(bound, f"{name}_error") / getattr(bound, name)
    assert share == pytest.approx(3 / 60)


def test_unknown_characters_are_not_taken_for_bytes():
  known, unknown = text_bounds(make_sampler(0), ["abc", "a猫c"], **OPTIONS)
  assert (known.unknown, unknown.unknown) == (0, 1)
  assert known.bits_per_byte > 0
  assert math.isnan(unknown.bits_per_byte)
  assert math.isnan(unknown.bits_per_character)
  assert unknown.per_token == pytest.approx(known.per_token)


def test_the_error_of_repeated_texts_is_as_large_as_it_says():
  # Sixteen times the same text: by the same masks, errors would all have the same sign.
  sampler, texts = make_sampler(0.5), ["abcdefghij"] * 16
  options = {"samples": 8, "batch_size": 64}
  exact = 16 * text_bound(sampler, ["abcdefghij"], samples=4096, batch_size=64).nats
  bounds = [text_bound(sampler, texts, seed=seed, **options) for seed in range(6)]
  deviations = [(bound.nats - exact) / bound.error for bound in bounds]
  assert 0.2 < np.mean(np.square(deviations)) < 4  # with equal masks about 16
  # In another call too: a number stands for what came before.
  first, second = (text_bounds(sampler, texts[:1], numbers=[n], **options)[0] for n in (0, 1))
  assert first.nats != second.nats


def test_mistakes_are_one_line():
  sampler = make_sampler(0)
  with pytest.raises(UserError, match="no texts to score"):
    text_bound(sampler, [])
  with pytest.raises(UserError, match="text 2 of 3 has no tokens"):
    text_bound(sampler, ["abc", " ", "de"])
  assert likelihood.text_bounds(sampler, []) == []
