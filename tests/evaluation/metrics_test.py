"""Scores: known values, case, scripts, and what is refused."""

import pytest

from diffjax import similarity
from diffjax.evaluation import metrics
from diffjax.types import UserError


def test_perfect_and_hopeless_texts_score_100_and_0():
  texts = ["the cat sat on the mat today", "a second line of five words"]
  other = ["w x y z", "p q r s"]
  for score in (lambda *a: metrics.bleu(*a)[0], metrics.exact_match, metrics.rouge_l):
    assert score(texts, texts) == pytest.approx(100)
    assert score(other, texts) < 1e-6


def test_bleu_is_cased_13a_and_a_corpus_score():
  score, signature = metrics.bleu(["the cat sat on the mat"], ["The Cat sat on the mat"])
  assert 0 < score < 100
  assert "tok:13a" in signature
  assert "case:mixed" in signature
  assert "smooth:exp" in signature
  # 13a sets punctuation apart, so that these are the same tokens.
  assert metrics.bleu(["a b c , d e ."], ["a b c, d e."])[0] == pytest.approx(100)
  # Precisions 5/6, 4/5, 3/4, 2/3 of one sentence, no brevity penalty: the definition by hand.
  score, _ = metrics.bleu(["a b c d e x"], ["a b c d e f"])
  assert score == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


def test_exact_match_counts_in_percent_and_ignores_outer_space():
  assert metrics.exact_match([" a", "b", "c", "D"], ["a ", "b", "x", "d"]) == 50


def test_rouge_l_by_hand():
  # LCS 'a c d' of 4 and 5 words: precision 3/4, recall 3/5.
  expected = 100 * 2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5)
  assert metrics.rouge_l(["a c x d"], ["a b C, d e"]) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("hypothesis", "reference", "words", "shared"),
  [
    ("кошка сидит", "кошка спит", 2, 1),
    ("我喜欢猫", "我爱猫", 4, 2),
    ("नमस्ते दुनिया", "नमस्ते भारत", 2, 1),
    ("مرحبا بالعالم", "مرحبا", 2, 1),
    ("Straße GRÜN", "strasse grün", 2, 2),
    ("e\u0301te\u0301", "été", 1, 1),
    ("ปลา", "ปลา", 3, 3),
    ("year 2024年", "2024年", 3, 2),
  ],
)
def test_rouge_l_sees_words_of_other_scripts(hypothesis, reference, words, shared):
  tokenize = similarity.UnicodeTokenizer().tokenize
  assert len(tokenize(hypothesis)) == words
  expected = 100 * 2 * shared / (words + len(tokenize(reference)))
  assert metrics.rouge_l([hypothesis], [reference]) == pytest.approx(expected)


def test_texts_without_words_score_0_and_do_not_fail():
  assert metrics.rouge_l(["", "..."], ["a", ""]) == 0


@pytest.mark.parametrize("score", [metrics.bleu, metrics.exact_match, metrics.rouge_l])
@pytest.mark.parametrize("texts", [([], []), (["a"], ["a", "b"])])
def test_unpaired_or_missing_texts_are_refused(score, texts):
  with pytest.raises(UserError, match="hypotheses"):
    score(*texts)
