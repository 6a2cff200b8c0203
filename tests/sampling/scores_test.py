"""Many pairs scored in shared batches, each as it would be alone."""

import numpy as np
import pytest
from letter_models import LetterTokenizer, make_model, random_prompts

from diffjax.data import features
from diffjax.sampling import Sampler
from diffjax.types import UserError

OPTIONS = {"samples": 6, "batch_size": 8, "seed": 3}


@pytest.fixture(scope="module")
def sampler():
  return Sampler(make_model())


def pairs(count, seed=0):
  return random_prompts(count, seed=seed), random_prompts(count, seed=seed + 1)


def test_a_pair_has_the_bits_that_it_has_alone_whatever_its_mates(sampler):
  prompts, targets = pairs(7)
  prompts[2], targets[2] = "", "a" * 34  # in another bucket of lengths
  together = sampler.score_many(prompts, targets, **OPTIONS)
  order = [4, 2, 6, 0, 1, 5, 3]
  moved = sampler.score_many([prompts[n] for n in order], [targets[n] for n in order], **OPTIONS)
  assert [together[n] for n in order] == moved
  for n in (1, 2):
    assert sampler.score(prompts[n], targets[n], **OPTIONS) == together[n]
  assert len({score.log_likelihood for score in together}) == 7
  assert [score.tokens for score in together] == [len(target) + 1 for target in targets]
  equal = sampler.score_many(["abc", "abc"], ["hello", "hello"], **OPTIONS)
  assert equal[0] == sampler.score("abc", "hello", **OPTIONS)
  assert equal[0] != equal[1]  # of masks of its own
  other = sampler.score_many(prompts, targets, **(OPTIONS | {"seed": 4}))
  assert other[0] != together[0]


def test_a_causal_model_takes_one_row_a_pair_and_is_exact():
  sampler = Sampler(make_model(mask_id=-1, attention="causal"))
  prompts, targets = pairs(5)
  scores = sampler.score_many(prompts, targets, batch_size=8)
  assert {score.standard_error for score in scores} == {0.0}
  # The chain rule: a target in two parts is as likely as the one after the other.
  encode = LetterTokenizer().encode
  whole, first, second = sampler.score_rows(
    [
      features.Row(np.asarray([0, *encode("abchello")]), 4),
      features.Row(np.asarray([0, *encode("abche")]), 4),
      features.Row(np.asarray([0, *encode("abchello")]), 6),
    ],
    batch_size=8,
  )
  parts = first.log_likelihood + second.log_likelihood
  np.testing.assert_allclose(whole.log_likelihood, parts, rtol=1e-5)


def test_a_prompt_that_does_not_fit_is_cut_only_where_that_is_asked_for(sampler):
  with pytest.raises(UserError, match=r"prompt and target 2 have more tokens .* positions, 48"):
    sampler.score_many(["abc", "a" * 45], ["de", "fgh"], **OPTIONS)
  (cut,) = sampler.score_many(["bc" + "a" * 45], ["fgh"], too_long="keep_end", **OPTIONS)
  (short,) = sampler.score_many(["a" * 43], ["fgh"], **OPTIONS)
  assert cut == short


def test_mistakes_are_one_line(sampler):
  with pytest.raises(UserError, match="1 prompts and 2 targets"):
    sampler.score_many(["abc"], ["de", "fg"])
  with pytest.raises(UserError, match="target 2 is empty"):
    sampler.score_many(["abc", "d"], ["de", " "])
  with pytest.raises(UserError, match="49 tokens"):
    sampler.score_rows([features.Row(np.zeros(49, np.int32), 1)])
  assert sampler.score_many([], []) == []
