"""Scores of generated texts against one reference each. All are percentages, 0 to 100.

`METRICS` has them by name. Most are means over examples; bleu and chrf are of a corpus as a whole.
"""

import abc
import functools
import importlib.metadata
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric as SacreMetric

from diffjax import similarity
from diffjax.types import UserError

_RESAMPLES, _SEED = 1000, 0  # of the bootstrap
_BLEU_ORDER = 4  # BLEU counts n-grams up to it; shorter references score 0 whatever is said


class Score(NamedTuple):
  """What a metric says of some texts."""

  value: float  # percent
  error: float | None  # standard error over the examples; None of a single one
  signature: str  # belongs beside every number that is reported


class Metric(abc.ABC):
  """One way to compare texts with their references."""

  def score(self, texts: Sequence[str], references: Sequence[str]) -> Score:
    """Value, standard error and signature.

    Raises:
      UserError: there are no texts, not as many as references, or references that say nothing of
        what is compared (no number, no letter).
    """
    _check(texts, references)
    value, error = self._measure(list(texts), list(references), errors=True)
    return Score(value, error, self.signature)

  def value(self, texts: Sequence[str], references: Sequence[str]) -> float:
    """The value alone, which is cheaper. Raises UserError as `score`."""
    _check(texts, references)
    return self._measure(list(texts), list(references), errors=False)[0]

  @property
  @abc.abstractmethod
  def signature(self) -> str:
    """How it is computed, in one line."""

  @abc.abstractmethod
  def each(self, text: str, reference: str) -> float | None:
    """Of one example; None of a metric of the corpus, and where the reference says nothing."""

  @abc.abstractmethod
  def suits(self, references: Sequence[str]) -> bool:
    """Whether these references can be compared with."""

  @abc.abstractmethod
  def _measure(
    self, texts: list[str], references: list[str], *, errors: bool
  ) -> tuple[float, float | None]: ...


class _Mean(Metric):
  """The mean over examples; its standard error is that of a mean."""

  def __init__(self, compare: Callable[[str, str], float | None], signature: Callable[[], str]):
    self._compare, self._signature = compare, signature

  @property
  def signature(self) -> str:
    return self._signature()

  def each(self, text: str, reference: str) -> float | None:
    value = self._compare(text, reference)
    return None if value is None else 100.0 * value

  def suits(self, references: Sequence[str]) -> bool:
    return all(self._compare(reference, reference) is not None for reference in references)

  def _measure(
    self, texts: list[str], references: list[str], *, errors: bool
  ) -> tuple[float, float | None]:
    values = list(map(self.each, texts, references))
    for reference, value in zip(references, values, strict=True):
      if value is None:
        raise UserError(
          f"the reference {reference[:60]!r} has none of what this metric compares "
          f"({self.signature}); choose another metric, or mend the reference"
        )
    count, value = len(values), sum(values) / len(values)
    if not errors or count < 2:
      return value, None
    if values in ([0.0] * count, [100.0] * count):
      return value, 100 / (count + 1)  # of none or all: as far as Wilson's interval of z = 1 goes
    return value, float(np.std(values, ddof=1)) / count**0.5


class _Corpus(Metric):
  """A metric of sacreBLEU; its standard error is of a bootstrap over sentences, seed fixed."""

  def __init__(self, make: Callable[[], SacreMetric], *, least_words: int):
    self._make, self._least_words = functools.cache(make), least_words

  @property
  def signature(self) -> str:
    metric = self._make()
    metric.corpus_score(["a"], [["a"]])  # a signature knows the number of references by then
    return str(metric.get_signature())

  def each(self, text: str, reference: str) -> None:
    return None

  def suits(self, references: Sequence[str]) -> bool:
    return max(len(reference.split()) for reference in references) >= self._least_words

  def _measure(
    self, texts: list[str], references: list[str], *, errors: bool
  ) -> tuple[float, float | None]:
    # The library's own bootstrap holds resamples x sentences x statistics in memory, a gigabyte
    # for a usual test set; sums of the same statistics need none of it.
    metric = self._make()
    statistics = np.asarray(metric._extract_corpus_statistics(texts, [references]))
    of = lambda sums: metric._compute_score_from_stats(sums.tolist()).score
    value, count = of(statistics.sum(0)), len(texts)
    if not errors or count < 2:
      return value, None
    random = np.random.default_rng(_SEED)
    sums = (
      np.bincount(random.integers(count, size=count), minlength=count) @ statistics
      for _ in range(_RESAMPLES)
    )
    return value, float(np.std([of(drawn) for drawn in sums], ddof=1))


def _check(texts: Sequence[str], references: Sequence[str]) -> None:
  if len(texts) != len(references) or not references:
    raise UserError(
      f"{len(texts)} hypotheses and {len(references)} references; give one for each, and some"
    )


def exact_match(text: str, reference: str) -> float:
  """1 where they are equal, surrounding space aside; else 0."""
  return float(text.strip() == reference.strip())


_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normal_answer(text: str) -> str:
  """As SQuAD compares (1606.05250): lower-cased, no punctuation, no English articles.

  Punctuation of every script is left out, not that of ASCII alone.
  """
  lowered = unicodedata.normalize("NFC", text).lower()
  dropped = set(string.punctuation)
  kept = "".join(c for c in lowered if c not in dropped and unicodedata.category(c)[0] != "P")
  return " ".join(_ARTICLES.sub(" ", kept).split())


def squad_exact(text: str, reference: str) -> float:
  """1 where the texts are equal as `normal_answer` has them."""
  return float(normal_answer(text) == normal_answer(reference))


def f1(text: str, reference: str) -> float:
  """Harmonic mean of precision and recall of the words that `normal_answer` leaves, as a bag."""
  said, meant = normal_answer(text).split(), normal_answer(reference).split()
  shared = sum((Counter(said) & Counter(meant)).values())
  if not said or not meant:
    return float(said == meant)
  return 2 * shared / (len(said) + len(meant))


# A minus is a sign where it stands behind no number, word or bracket; apart from its number, where
# nothing could be taken from: at the start, after "=", ":", "#", "is". Commas are of thousands.
_MINUS = "[-\u2212\u2013]"
_NUMBER = re.compile(
  rf"(?:(?:^|[=:#]|\bis\b)\s*(?P<apart>{_MINUS})\s+)?"
  r"(?:(?:\d+/){2,})?"  # of a date, whose last part is no divisor
  rf"(?P<sign>(?<![\w.,)]){_MINUS}[$\u20ac\u00a3]?|[$\u20ac\u00a3]{_MINUS})?"
  r"(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
  r"(?P<exponent>[eE][-+]?\d{1,3}(?!\d))?"
  r"(?:/(?P<divisor>0*[1-9]\d*)(?![\d/]))?"
)


def last_number(text: str) -> Fraction | None:
  """The last number of a text in English notation, exact: -5, $1,234.50, .5, 3/4, 1e5; "5." is 5.

  The German 1.234,5 is not read as such: its last number is 5.
  """
  found = list(_NUMBER.finditer(text))
  if not found:
    return None
  last = found[-1]
  size = Fraction(Decimal(last["digits"].replace(",", "") + (last["exponent"] or "")))
  size /= int(last["divisor"] or 1)
  return -size if last["sign"] or last["apart"] else size


def number(text: str, reference: str) -> float | None:
  """1 where the last numbers are equal; None where the reference has none."""
  meant = last_number(reference)
  return None if meant is None else float(last_number(text) == meant)


_APART = r"(?<![\w'-])([{0}])(?![\w'-])"  # a word by itself, which the X of X-ray is not
_LETTERS = (
  re.compile(r"^\W*([A-Za-z])\W*$"),  # nothing else
  # A small letter is one where nothing follows: "the answer is a cat" names none.
  re.compile(r"(?i:\b(?:answer|option)(?:\s+is)?\b)\s*:?\s*\(?(?:([A-Z])\b(?!['-])|([a-z])\W*$)"),
  re.compile(r"(?<!\w)\(([A-Z])\)"),
  re.compile(r"^\W*(?:([A-Z])(?=[.:)])|([A-HJ-Z])(?=,))"),
  re.compile(_APART.format("B-HJ-Z")),
  re.compile(_APART.format("AI") + r"\W*$"),  # within a sentence these are words
  re.compile(r"(?<!\w)\(([a-z])\)"),
)


def answer_letter(text: str) -> str | None:
  """The option that a text names: alone, after "answer is", in brackets, or a word by itself."""
  matches = (pattern.search(text) for pattern in _LETTERS)
  return next((match[match.lastindex].upper() for match in matches if match), None)


def letter(text: str, reference: str) -> float | None:
  """1 where both name the same option; None where the reference names none."""
  meant = answer_letter(reference)
  return None if meant is None else float(answer_letter(text) == meant)


def _version() -> str:
  return importlib.metadata.version("rouge-score")


def _rouge(kind: str) -> Metric:
  return _Mean(
    lambda text, reference: similarity.rouge(text, reference, kind=kind) / 100,
    lambda: f"{kind}|fmeasure|tok:unicode|stem:no|case:lc|rouge-score:{_version()}",
  )


METRICS: dict[str, Metric] = {
  "exact_match": _Mean(exact_match, lambda: "equal but for outer space|case:mixed"),
  # Cased, 13a tokens, exponential smoothing (1804.08771).
  "bleu": _Corpus(lambda: BLEU(force=True), least_words=_BLEU_ORDER),
  # The tokens of the paper's WMT14 scores.
  "bleu_intl": _Corpus(lambda: BLEU(tokenize="intl", force=True), least_words=_BLEU_ORDER),
  "bleu_lowercase": _Corpus(lambda: BLEU(lowercase=True, force=True), least_words=_BLEU_ORDER),
  "chrf": _Corpus(CHRF, least_words=1),
  "rouge_1": _rouge("rouge1"),
  "rouge_2": _rouge("rouge2"),
  "rouge_l": _rouge("rougeL"),
  # As 2308.12219 scored summaries, with the defaults of py-rouge; letters a-z and digits alone.
  "rouge_l_paper": _Mean(
    lambda text, reference: similarity.rouge_l_paper(text, reference) / 100,
    lambda: f"rougeL|alpha:0.5|tok:latin|stem:porter|bytes:665|case:lc|rouge-score:{_version()}",
  ),
  "f1": _Mean(f1, lambda: "bag of words|SQuAD normalisation"),
  "squad_exact": _Mean(squad_exact, lambda: "equal|SQuAD normalisation"),
  "number": _Mean(number, lambda: "last number|exact"),
  "letter": _Mean(letter, lambda: "first answer letter"),
}
