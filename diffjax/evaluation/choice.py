"""Multiple choice by likelihood: the option whose bound on log p is the largest."""

import itertools
import re
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

from diffjax.data import features
from diffjax.sampling import Sampler
from diffjax.types import Example, UserError

_OPTION = re.compile(r"\(([A-Z])\)")
_ANSWERED = re.compile(r"\b(?:A|Answer):\s*\(?[A-Z]\)?(?=\s*(?:\||$|\n))")  # an earlier question


class Choice(NamedTuple):
  """Which option was chosen, and why."""

  index: int  # the first of the best
  scores: list[float]  # what was compared, of every option: nats, or nats per token
  errors: list[float]  # their standard errors
  best: int = 1  # options with that score; of several, none was chosen by the model


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
    samples, seed, batch_size, progress: see Sampler.score_many.
    length_normalised: compare nats per token, the </s> counted, for options of different lengths.
    too_long: what is kept of a prompt that does not fit the model; with "drop" it is an error.

  Raises:
    UserError: not as many lists of options as prompts, one of fewer than two or with two that are
      the same to the tokenizer, or a prompt that does not fit.
  """
  if len(prompts) != len(options):
    raise UserError(
      f"{len(options)} lists of options for {len(prompts)} prompts; give one for each"
    )
  longest, questions = sampler.model.config.max_positions, []
  for number, (prompt, some) in enumerate(zip(prompts, options, strict=True), 1):
    try:
      rows = option_rows(sampler, prompt, some, max_length=longest, too_long=too_long)
    except UserError as error:
      raise UserError(f"prompt {number}: {error}") from None
    if rows is None:
      raise UserError(f"prompt {number} does not fit {longest} positions; shorten it")
    questions.append(rows)
  return choose_rows(
    sampler, questions, samples=samples, seed=seed, batch_size=batch_size,
    length_normalised=length_normalised, progress=progress,
  )  # fmt: skip


def option_rows(
  sampler: Sampler,
  prompt: str,
  options: Sequence[str],
  *,
  max_length: int,
  too_long: features.TooLong,
) -> list[features.Row] | None:
  """A row for each option; None where the prompt does not fit with one of them.

  Args:
    sampler: its model has a tokenizer.
    prompt: of the question.
    options: at least two.
    max_length, too_long: see features.encode.

  Raises:
    UserError: fewer than two options, one of no tokens, or two of the same tokens, between which
      no score can choose.
  """
  if len(options) < 2:
    raise UserError(f"options = {list(options)!r}: give at least two")
  model, seen = sampler.model, {}
  for option in options:
    ids = tuple(model.tokenizer.encode(option))
    if not ids:
      raise UserError(f"option {option!r} has no tokens; name it otherwise")
    if ids in seen:
      raise UserError(
        f"options {seen[ids]!r} and {option!r} are the same to this model's tokenizer, so "
        f"likelihoods cannot choose; generate the answer, or take a tokenizer that knows them"
      )
    seen[ids] = option
  rows = [
    features.encode(
      Example(prompt, option), model.tokenizer, model.contract, max_length=max_length,
      too_long=too_long,
    )
    for option in options
  ]  # fmt: skip
  return None if any(row is None for row in rows) else rows


def choose_rows(
  sampler: Sampler,
  questions: Sequence[Sequence[features.Row]],
  *,
  length_normalised: bool = False,
  numbers: Sequence[int] | None = None,
  **scoring: Any,
) -> list[Choice]:
  """`choose` of questions whose options are rows already.

  Args:
    sampler: of the model.
    questions: of `option_rows`, each.
    length_normalised: see `choose`.
    numbers: of the questions; see Sampler.score_rows.
    **scoring: samples, seed, batch_size, progress of Sampler.score_rows.

  Raises:
    UserError: as Sampler.score_rows.
  """
  owners = None
  if numbers is not None:
    owners = [n for n, some in zip(numbers, questions, strict=True) for _ in some]
  rows = [row for some in questions for row in some]
  scores = iter(sampler.score_rows(rows, numbers=owners, **scoring))
  choices = []
  for some in questions:
    own = list(itertools.islice(scores, len(some)))
    share = [1 / score.tokens if length_normalised else 1.0 for score in own]
    values = [score.log_likelihood * s for score, s in zip(own, share, strict=True)]
    errors = [score.standard_error * s for score, s in zip(own, share, strict=True)]
    largest = max(values)
    choices.append(Choice(values.index(largest), values, errors, values.count(largest)))
  return choices
