"""Scores of generated text against one reference each. All are percentages, 0 to 100."""

import unicodedata
from collections.abc import Sequence

from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

from diffjax.types import UserError

# Scripts written without spaces between words, where every letter counts as a word: Thai and Lao,
# Myanmar, Khmer, kana, Han with its extensions and compatibility forms.
_UNSPACED = (
  (0x0E00, 0x0EFF),
  (0x1000, 0x109F),
  (0x1780, 0x17FF),
  (0x2E80, 0x2FDF),
  (0x3040, 0x30FF),
  (0x31F0, 0x31FF),
  (0x3400, 0x9FFF),
  (0xF900, 0xFAFF),
  (0x20000, 0x3FFFF),
)


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
  """Corpus BLEU by sacreBLEU: cased, 13a tokens, exponential smoothing (arXiv 1804.08771).

  Returns:
    The score and sacreBLEU's signature, which belongs beside every number that is reported.

  Raises:
    UserError: if there are no texts, or not as many hypotheses as references.
  """
  _check(hypotheses, references)
  metric = BLEU()
  score = metric.corpus_score(list(hypotheses), [list(references)]).score
  return score, str(metric.get_signature())


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
  """The share of hypotheses that equal their reference, surrounding space aside.

  Raises:
    UserError: as `bleu`.
  """
  _check(hypotheses, references)
  pairs = zip(hypotheses, references, strict=True)
  return 100 * sum(a.strip() == b.strip() for a, b in pairs) / len(references)


def rouge_l(hypotheses: Sequence[str], references: Sequence[str]) -> float:
  """Mean ROUGE-L F-measure by rouge-score, with words of any script (see UnicodeTokenizer).

  Raises:
    UserError: as `bleu`.
  """
  _check(hypotheses, references)
  scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer())
  pairs = zip(hypotheses, references, strict=True)
  return 100 * sum(scorer.score(b, a)["rougeL"].fmeasure for a, b in pairs) / len(references)


class UnicodeTokenizer:
  """Words for ROUGE. The library's own keeps a-z and 0-9 alone, so other scripts score 0."""

  def tokenize(self, text: str) -> list[str]:
    """Case-folded runs of letters, marks and digits; single letters where script has no spaces."""
    words, open_word = [], False
    for character in unicodedata.normalize("NFKC", text).casefold():
      kind = unicodedata.category(character)[0]
      alone = any(first <= ord(character) <= last for first, last in _UNSPACED)
      if kind == "M" and words and (open_word or alone):
        words[-1] += character  # a vowel sign or an accent belongs to what it stands on
      elif kind not in "LMN":
        open_word = False
      elif open_word and not alone:
        words[-1] += character
      else:
        words.append(character)
        open_word = not alone
    return words


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
  if len(hypotheses) != len(references) or not references:
    raise UserError(
      f"{len(hypotheses)} hypotheses and {len(references)} references; give one for each, and some"
    )
