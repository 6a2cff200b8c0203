"""Multiple choice by likelihood: the option whose bound on log p is the largest."""

import itertools
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from diffjax.data import features
from diffjax.sampling import Sampler
from diffjax.types import UserError

_OPTION = re.compile(r"\(([A-Z])\)")
_ANSWERED = re.compile(r"\b(?:A|Answer):\s*\(?[A-Z]\)?(?=\s*(?:\||$|\n))")  # an earlier question


class Choice(NamedTuple):
  """Which option was chosen, and why."""

  index: int  # the first of the best
  scores: list[float]  # what was compared, of every option: nats, or nats per token
  errors: list[float]  # their standard errors


def letters(prompt: str) -> list[str]:
  """The letters of the options of a prompt's last question: "(A) 4 (B) 8 A:" has "A" and "B".

  An earlier question, of a prompt with demonstrations, ends with its answer: "A: B" before a "|" or
  the end of its line. A letter that an option itself mentions is no new option.

  Raises:
    UserError: there are not at least two options.
  """
  answered = [match.end() for match in _ANSWERED.finditer(prompt)]
  question = prompt[answered[-1] :] if answered else prompt
  found = []
  for match in _OPTION.finditer(question):
    if match[1] == string.ascii_uppercase[len(found) :][:1]:
      found.append(match[1])
  if len(found) < 2:
    raise UserError(
      f"the question {question[-60:]!r} has no options (A) .. (B) ..; give them, or generate the "
      f"answer instead"
    )
  return found


def choose(
  sampler: Sampler,
  prompts: Sequence[str],
  options: Sequence[Sequence[str]],
  *,
  samples: int = 128,
  seed: int = 0,
  batch_size: int = 32,
  length_normalised: bool = False,
  too_long: features.TooLong = "drop",
  progress: str = "",
) -> list[Choice]:
  """Chooses for each prompt the option with the largest bound on log p(option </s> | prompt).

  Options of up to seven tokens with their </s> are compared without noise at the default number of
  samples, as all of their masks are tried (see Sampler.score).

  Args:
    sampler: its model has a tokenizer.
    prompts: one for each question.
    options: of each question, at least two.
    samples, seed, batch_size, too_long, progress: see Sampler.score_many.
    length_normalised: compare nats per token, the </s> counted, for options of different lengths.

  Raises:
    UserError: as Sampler.score_many, or not as many lists of options as prompts, or one of fewer
      than two.
  """
  if len(prompts) != len(options):
    raise UserError(
      f"{len(options)} lists of options for {len(prompts)} prompts; give one for each"
    )
  for number, some in enumerate(options, 1):
    if len(some) < 2:
      raise UserError(f"options of prompt {number} = {list(some)!r}: give at least two")
  pairs = [(p, option) for p, some in zip(prompts, options, strict=True) for option in some]
  scores = iter(
    sampler.score_many(
      [prompt for prompt, _ in pairs],
      [option for _, option in pairs],
      samples=samples,
      seed=seed,
      batch_size=batch_size,
      too_long=too_long,
      progress=progress,
    )
  )
  choices = []
  for some in options:
    own = list(itertools.islice(scores, len(some)))
    share = [1 / score.tokens if length_normalised else 1.0 for score in own]
    values = [score.log_likelihood * s for score, s in zip(own, share, strict=True)]
    errors = [score.standard_error * s for score, s in zip(own, share, strict=True)]
    choices.append(Choice(values.index(max(values)), values, errors))
  return choices
