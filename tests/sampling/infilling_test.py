"""Texts with gaps."""

import numpy as np
import pytest
from letter_models import CONFIG, LetterTokenizer, make_model

from diffjax.sampling import Sampler, infilling
from diffjax.types import UserError


@pytest.fixture(scope="module")
def sampler():
  return Sampler(make_model())


def test_gaps_are_found_with_the_texts_around_them():
  template = infilling.parse("The {{8}} sat on the {{ 3 - 4 }}.")
  assert template.texts == ["The", " sat on the", "."]
  assert template.gaps == [range(8, 9), range(3, 5)]
  assert template.sizes == [(8, 3), (8, 4)]
  assert infilling.parse("{{2}}").texts == ["", ""]


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("no gap", "has no gap"),
    ("a {{3}} b {{4", r"\{\{ without its other half"),
    ("a 3}} b {{4}}", r"\}\} without its other half"),
    ("a {{x}} b", r"the gap \{\{x\}\} must be"),
    ("a {{0}} b", r"the gap \{\{0\}\} must be"),
    ("a {{4-2}} b", r"the gap \{\{4-2\}\} must be"),
    ("{{1-9}} {{1-9}} {{1-9}}", "combine in 729 ways"),
  ],
)
def test_illegal_gaps_are_one_line(template, message):
  with pytest.raises(UserError, match=message) as error:
    infilling.parse(template)
  assert "\n" not in str(error.value)


def test_the_text_stays_and_the_gaps_are_filled(sampler):
  answer = sampler.infill("ab{{3}}cd{{2}}e", num_steps=3)
  assert len(answer.ids) == 5
  letters = "".join(LetterTokenizer().piece(id_) if id_ > 2 else "" for id_ in answer.ids)
  kept = [id_ > 2 for id_ in answer.ids]
  first = sum(kept[:3])
  assert answer.text == f"ab{letters[:first]}cd{letters[first:]}e"


def test_of_a_range_the_best_score_wins(sampler):
  answer = sampler.infill("ab{{1-3}}cd", num_steps=2)
  fixed = [sampler.infill(f"ab{{{{{n}}}}}cd", num_steps=2) for n in (1, 2, 3)]
  assert answer.score == pytest.approx(max(one.score for one in fixed), abs=1e-4)
  assert answer.ids == fixed[int(np.argmax([one.score for one in fixed]))].ids
  assert len(answer.candidates) == 3


def test_a_text_that_does_not_fit_is_refused(sampler):
  with pytest.raises(UserError, match=f"{CONFIG.max_positions} positions"):
    sampler.infill("a" * 40 + "{{9}}")
  with pytest.raises(UserError, match="only writes on from a prompt"):
    Sampler(make_model(attention="causal", output_shift=1)).infill("a{{2}}")
