"""Scores: known values, case, scripts, numbers and letters as people write them; their errors."""

import random
from decimal import Decimal

import numpy as np
import pytest

from diffjax import similarity
from diffjax.evaluation import metrics
from diffjax.evaluation.metrics import METRICS
from diffjax.types import UserError


def value(name, texts, references):
  return METRICS[name].value(texts, references)


@pytest.mark.parametrize("name", METRICS)
def test_perfect_and_hopeless_texts_score_100_and_0(name):
  texts = ["B the cat sat on the mat today 17", "D second line of five words 4"]
  other = ["C w x y z 5", "F p q r z 6"]
  perfect = METRICS[name].score(texts, texts)
  assert perfect.value == pytest.approx(100)
  means = METRICS[name].each(texts[0], texts[0]) is not None
  assert perfect.error == pytest.approx(100 / 3 if means else 0, abs=1e-6)
  assert value(name, other, texts) < (6 if name == "chrf" else 1e-6)  # letters are shared
  assert perfect.signature


def test_bleu_is_cased_13a_and_a_corpus_score():
  score = METRICS["bleu"].score(["the cat sat on the mat"], ["The Cat sat on the mat"])
  assert 0 < score.value < 100
  assert score.error is None
  for part in ("tok:13a", "case:mixed", "smooth:exp", "nrefs:1"):
    assert part in score.signature
  assert "case:lc" in METRICS["bleu_lowercase"].signature
  assert value("bleu_lowercase", ["the cat sat on"], ["The Cat sat on"]) == pytest.approx(100)
  # 13a sets punctuation apart, so that these are the same tokens.
  assert value("bleu", ["a b c , d e ."], ["a b c, d e."]) == pytest.approx(100)
  # Precisions 5/6, 4/5, 3/4, 2/3 of one sentence, no brevity penalty: the definition by hand.
  expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
  assert value("bleu", ["a b c d e x"], ["a b c d e f"]) == pytest.approx(expected)
  assert METRICS["bleu"].suits(["a", "four words are enough"])
  assert not METRICS["bleu"].suits(["three of them"])


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_errors_are_those_of_resampled_sentences(name):
  words = random.Random(0)
  draw = lambda: [words.choice("abcde") for _ in range(8)]
  references = [draw() for _ in range(40)]
  texts = [[w if words.random() < 0.8 else "x" for w in line] for line in references]
  texts, references = ([" ".join(line) for line in lines] for lines in (texts, references))
  score = METRICS[name].score(texts, references)
  again = METRICS[name].score(texts, references)
  assert score == again
  rows = np.random.default_rng(5).integers(40, size=(200, 40))
  values = [value(name, [texts[n] for n in row], [references[n] for n in row]) for row in rows]
  assert score.error == pytest.approx(np.std(values), rel=0.2)
  assert METRICS[name].each(texts[0], references[0]) is None


def test_means_and_their_errors():
  score = METRICS["exact_match"].score([" a", "b", "c", "D"], ["a ", "b", "x", "d"])
  assert score.value == 50  # outer space aside; cased
  assert score.error == pytest.approx(100 * (1 / 3) ** 0.5 / 2)  # sample deviation over root of 4
  assert METRICS["exact_match"].score(["a"], ["a"]).error is None


def test_none_of_twenty_is_not_known_to_be_none_of_all():
  # Wilson's interval around 0 of n reaches z^2 / (n + z^2).
  for said in "ab":
    assert METRICS["exact_match"].score([said] * 20, ["a"] * 20).error == pytest.approx(100 / 21)


def test_rouge_by_hand():
  # LCS 'a c d' of 4 and 5 words: precision 3/4, recall 3/5.
  expected = 100 * 2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5)
  assert value("rouge_l", ["a c x d"], ["a b C, d e"]) == pytest.approx(expected)
  assert value("rouge_1", ["d c a x"], ["a b C, d e"]) == pytest.approx(expected)
  assert value("rouge_2", ["a b x d e"], ["a b c d e"]) == pytest.approx(50)


def test_the_papers_rouge_stems_cuts_and_knows_latin_alone():
  assert value("rouge_l_paper", ["his"], ["hi"]) == 0  # words of three letters keep their ends
  assert value("rouge_l_paper", ["the trees falling"], ["THE tree falls"]) == pytest.approx(100)
  long = "word " * 133  # 665 bytes
  assert value("rouge_l_paper", [long + "more"], [long + "other things"]) == pytest.approx(100)
  assert value("rouge_l_paper", ["кошка"], ["кошка"]) == 0


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
def test_rouge_sees_words_of_other_scripts(hypothesis, reference, words, shared):
  tokenize = similarity.UnicodeTokenizer().tokenize
  assert len(tokenize(hypothesis)) == words
  expected = 100 * 2 * shared / (words + len(tokenize(reference)))
  for name in ("rouge_1", "rouge_l"):
    assert value(name, [hypothesis], [reference]) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["rouge_1", "rouge_2", "rouge_l", "rouge_l_paper", "f1", "chrf"])
def test_texts_without_words_score_0_and_do_not_fail(name):
  assert value(name, ["", "..."], ["x", "b"]) == 0


def test_answers_are_compared_as_squad_does():
  assert metrics.normal_answer(" The  U.S.A. \u2013 a «state»! ") == "usa state"
  assert value("squad_exact", ["The Tower."], ["tower"]) == 100
  assert value("squad_exact", ["there"], ["re"]) == 0  # articles are whole words
  # One word of two and of three is shared.
  assert value("f1", ["blue tower"], ["the tower of Babel"]) == pytest.approx(100 * 2 / 5)
  assert value("f1", ["b b"], ["b c"]) == pytest.approx(50)  # a bag: b is shared once
  assert value("f1", ["the"], ["a"]) == 100  # nothing is left of either


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("-5", "-5"), ("\u22125", "-5"), ("5.", "5"), ("$1,234.50.", "1234.50"), ("-$4.20", "-4.20"),
    ("costs $-3", "-3"), (".5 of it", "0.5"), ("it is 10-5", "5"), ("10 - 5", "5"),
    ("16-3-4=9", "9"), ("=-7", "-7"), ("so 1,234,567 in all", "1234567"), ("1,2,3", "3"),
    ("1,2345", "2345"), ("18.0", "18"), ("2024年", "2024"), ("the answer is 1,000,", "1000"),
    ("# # # 18", "18"), ("5%", "5"), ("3 and then... 4", "4"), ("A3", "3"), ("...5", "5"),
    ("none", None), ("- .", None), ("", None), ("- 5", "-5"), ("x = - 5", "-5"), ("#### - 5", "-5"),
    ("it is \u2013 5", "-5"), ("\u20135", "-5"), ("3 \u2013 5", "5"), ("this - 5", "5"),
    ("3/4", "0.75"), ("-1/2", "-0.5"), ("1/0", "0"), ("3/4/2024", "2024"), ("12/3 = 4", "4"),
    ("1e5", "100000"), ("2.5E-3", "0.0025"), ("1e99999", "99999"), ("1.234,5", "5"),
  ],
)  # fmt: skip
def test_the_last_number(text, expected):
  assert metrics.last_number(text) == (None if expected is None else Decimal(expected))


def test_numbers_are_exact():
  assert value("number", ["1/3", "-1/3"], ["2/6", "1/3"]) == 50
  assert value("number", ["0.30", "1e", "about 7"], ["0.3", "1.0", "70"]) == pytest.approx(200 / 3)
  long = "-" + "9" * 40
  assert value("number", [long[:-1] + "8"], [long]) == 0
  assert METRICS["number"].each("no number", "3") == 0
  assert METRICS["number"].each("3", "no number") is None
  assert not METRICS["number"].suits(["3", "none"])
  with pytest.raises(UserError, match="'none' has none of what this metric compares"):
    value("number", ["3", "4"], ["3", "none"])


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("A", "A"), ("b", "B"), (" (c) because", "C"), ("D.", "D"), ("B) since", "B"),
    ("The answer is C.", "C"), ("Answer: B", "B"), ("I think it is B", "B"), ("A: the first", "A"),
    ("none of them", None), ("", None), ("A man walks", None), ("I do not know", None),
    ("So f(x) is B", "B"), ("(x) B", "B"), ("X-ray: C", "C"), ("answer: d", "D"), ("It is A.", "A"),
    ("The option is a", "A"), ("The answer is a cat", None), ("THE ANSWER IS (D)", "D"), ("I", "I"),
    ("I'm sure: it is B", "B"), ("I, too, say C", "C"),
  ],
)  # fmt: skip
def test_the_letter_of_an_answer(text, expected):
  assert metrics.answer_letter(text) == expected


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("texts", [([], []), (["a"], ["a", "b"])])
def test_unpaired_or_missing_texts_are_refused(name, texts):
  with pytest.raises(UserError, match="hypotheses"):
    METRICS[name].score(*texts)
