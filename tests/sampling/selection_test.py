"""Which candidate is the answer."""

import math

import pytest

from diffjax import similarity
from diffjax.sampling import selection
from diffjax.sampling.results import Generation
from diffjax.sampling.selection import best_of, consensus


def candidate(text, score, total):
  return Generation(text, [], [], score, total, network_calls=3)


CANDIDATES = [
  candidate("the dog ran", -0.5, -1.5),
  candidate("the cat sat on a mat", -0.6, -3.6),
  candidate("the cat sat on the mat", -0.7, -4.2),
  candidate("the cat lay on the mat", -0.8, -4.8),
  candidate("", -math.inf, -math.inf),
]


@pytest.mark.parametrize(
  ("select", "text"),
  [
    ("mean", "the dog ran"),
    ("total", "the dog ran"),
    ("bleu", "the cat sat on the mat"),
    ("rouge", "the cat sat on the mat"),
  ],
)
def test_the_best_comes_first_and_an_empty_one_last(select, text):
  best = best_of(CANDIDATES, select)
  assert best.text == text
  assert [c.text for c in best.candidates][-1] == ""
  assert len(best.candidates) == 5
  assert best.network_calls == 15


def test_total_favours_short_and_mean_does_not():
  short, long = candidate("a", -1.0, -1.0), candidate("a b c", -0.9, -2.7)
  assert best_of([short, long], "total").text == "a"
  assert best_of([short, long], "mean").text == "a b c"


def test_ties_go_to_the_first_and_one_candidate_is_itself():
  first, second = candidate("x", -1.0, -1.0), candidate("y", -1.0, -1.0)
  assert best_of([first, second], "mean").text == "x"
  assert best_of([first], "bleu") is first
  empty = candidate("", -math.inf, -math.inf)
  assert best_of([empty, empty], "rouge").text == ""


def test_consensus_is_the_mean_likeness_to_the_others():
  values = consensus(["a b", "a b", "c d"], "rouge")
  assert values == pytest.approx([50, 50, 0])


@pytest.mark.parametrize("select", ["bleu", "rouge"])
def test_equal_texts_are_compared_once(select, monkeypatch):
  texts = ["a b c d e", "a b c d e", "a b c", "e d", "a b c"]
  alike = {"bleu": similarity.bleu, "rouge": similarity.rouge_l}[select]
  pairs = []
  monkeypatch.setitem(selection._LIKENESS, select, lambda *pair: pairs.append(pair) or alike(*pair))
  expected = [sum(alike(x, y) for m, y in enumerate(texts) if m != n) / 4
              for n, x in enumerate(texts)]  # fmt: skip
  assert consensus(texts, select) == pytest.approx(expected)
  assert len(pairs) == len(set(pairs)) == {"bleu": 8, "rouge": 5}[select]
