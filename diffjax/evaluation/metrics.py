"""Scores of generated text against one reference each. All are percentages, 0 to 100."""

from collections.abc import Sequence

from sacrebleu.metrics import BLEU

from diffjax import similarity
from diffjax.types import UserError


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
  """Corpus BLEU by sacreBLEU: cased, 13a tokens, exponential smoothing (arXiv 1804.08771).

  Returns:
    The score and sacreBLEU's signature, which belongs beside every number that is reported.

  Raises:
    UserError: if there are no texts, or not as many hypotheses as references.
  """
  _check(hypotheses, references)
  metric = BLEU(force=True)  # no warning that texts look tokenised: some are
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
  """Mean ROUGE-L F-measure by rouge-score, with words of any script (see similarity.py).

  Raises:
    UserError: as `bleu`.
  """
  _check(hypotheses, references)
  return sum(map(similarity.rouge_l, hypotheses, references)) / len(references)


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
  if len(hypotheses) != len(references) or not references:
    raise UserError(
      f"{len(hypotheses)} hypotheses and {len(references)} references; give one for each, and some"
    )
