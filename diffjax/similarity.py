"""How alike two texts are, in percent: sentence BLEU and ROUGE."""

import functools
import unicodedata

from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

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
_PAPER_BYTES = 665  # of a text that py-rouge reads


def bleu(text: str, reference: str) -> float:
  """Sentence BLEU by sacreBLEU: 13a tokens, exponential smoothing, n-grams that the text has."""
  return _bleu().sentence_score(text, [reference]).score


def rouge_l(text: str, reference: str) -> float:
  """The ROUGE-L F-measure by rouge-score, over words of any script (see UnicodeTokenizer)."""
  return rouge(text, reference, kind="rougeL")


def rouge(text: str, reference: str, *, kind: str) -> float:
  """The F-measure of rouge1, rouge2 or rougeL, as `rouge_l`."""
  return 100 * _rouge(kind).score(reference, text)[kind].fmeasure


def rouge_l_paper(text: str, reference: str) -> float:
  """ROUGE-L as 2308.12219 computed it, with the defaults of py-rouge.

  The first 665 bytes, lower-cased, a-z and 0-9 alone, Porter stems, precision and recall weighing
  the same. Of texts of one sentence; py-rouge split longer ones, and had exceptions to the stems.
  """
  cut = lambda whole: whole.encode()[:_PAPER_BYTES].decode(errors="ignore").lower()
  return 100 * _stemmed_rouge().score(cut(reference), cut(text))["rougeL"].fmeasure


@functools.cache
def _bleu() -> BLEU:
  return BLEU(effective_order=True)


@functools.cache
def _rouge(kind: str) -> rouge_scorer.RougeScorer:
  return rouge_scorer.RougeScorer([kind], tokenizer=UnicodeTokenizer())


@functools.cache
def _stemmed_rouge() -> rouge_scorer.RougeScorer:
  return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


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
