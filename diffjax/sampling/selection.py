"""Which of several candidates for one prompt is its answer."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence

from diffjax import similarity
from diffjax.sampling.results import Generation

_LIKENESS = {"bleu": similarity.bleu, "rouge": similarity.rouge_l}


def best_of(candidates: Sequence[Generation], select: str) -> Generation:
  """The best candidate, with all of them, best first, beside it.

  mean and total compare log-probabilities (2308.12219, section 3; a mean favours no length); bleu
  and rouge take the candidate that is most like the others on average, which minimises the Bayes
  risk under that likeness. A candidate without text is never chosen where another has some; ties
  go to the earlier one.

  Args:
    candidates: of one prompt, at least one.
    select: 'mean', 'total', 'bleu' or 'rouge'.
  """
  if len(candidates) == 1:
    return candidates[0]
  if select in _LIKENESS:
    values = consensus([candidate.text for candidate in candidates], select)
  else:
    values = [{"mean": c.score, "total": c.total}[select] for c in candidates]
  order = sorted(range(len(candidates)), key=lambda n: (not candidates[n].text, -values[n], n))
  ranked = [candidates[n] for n in order]
  calls = sum(candidate.network_calls for candidate in candidates)
  return dataclasses.replace(ranked[0], candidates=ranked, network_calls=calls)


def consensus(texts: Sequence[str], select: str) -> list[float]:
  """The mean likeness of each text to the others as references; equal texts are compared once."""
  counts = Counter(texts)
  alike = functools.cache(_LIKENESS[select])

  def likeness(text: str, other: str) -> float:
    if select == "rouge" and other < text:  # symmetric
      return alike(other, text)
    return alike(text, other)

  means = {}
  for text in counts:
    others = ((other, count - (other == text)) for other, count in counts.items())
    total = sum(count * likeness(text, other) for other, count in others if count)
    means[text] = total / (len(texts) - 1)
  return [means[text] for text in texts]
