"""How a model answers the questions of an evaluation: by writing, by choosing, or by how likely.

A way lays questions out one by one (which says what is cut and what does not fit), and answers
them many at a time. Its `identity` holds all that decides its answers besides model and questions.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from diffjax.data import features
from diffjax.evaluation import choice, likelihood
from diffjax.evaluation.suites import Question
from diffjax.sampling import Sampler, Settings, requests
from diffjax.types import Example, UserError

LIKELIHOOD = "likelihood"  # the strategy, in a report, of answers that no decoding made
_UNCUT = 1 << 40  # positions


class Tokens(NamedTuple):
  """Of a text."""

  unknown: int = 0  # that the tokenizer has no piece for
  all: int = 0


class Row(NamedTuple):
  """A question as it is given to the model."""

  question: Question
  ids: features.Row | None  # None of plain text, which is cut into windows later
  size: int  # tokens
  is_cut: bool  # whether its prompt was too long
  prompt: Tokens = Tokens()  # as it is asked
  reference: Tokens = Tokens()
  options: Mapping[str, features.Row] = {}  # of multiple choice: letter -> the row that it ends


class Answer(NamedTuple):
  """What the model said."""

  text: str
  log_probability: float | None  # nats: of the tokens when revealed, or the bound on the answer's
  network_calls: int | None  # None where it is not a question's own
  details: Mapping[str, Any] = {}  # further plain values that are kept with it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way(abc.ABC):
  """One way to answer."""

  name: ClassVar[str]  # in a report
  sampler: Sampler
  max_length: int  # of a row, at most the model's positions
  too_long: features.TooLong  # what is kept of a prompt that does not fit; see features.encode
  batch_size: int = 32
  seed: int = 0

  @property
  @abc.abstractmethod
  def settings(self) -> dict[str, Any]:
    """As a report has them: the fields of Settings."""

  @property
  @abc.abstractmethod
  def length(self) -> str:
    """Where the length of an answer comes from: gold, predicted, given, or its options."""

  @property
  def identity(self) -> dict[str, Any]:
    """Plain values; answers of the same ones can stand in one file."""
    return {
      "way": self.name, "settings": self.settings, "length": self.length,
      "max_length": self.max_length, "too_long": self.too_long, "seed": self.seed,
    }  # fmt: skip

  def lay_out(self, question: Question) -> Row | None:
    """The row of a question; None where it does not fit and is left out.

    Raises:
      UserError: it cannot be answered in this way.
    """
    return self._encode(question)

  @abc.abstractmethod
  def answer(self, rows: Sequence[Row]) -> list[Answer]:
    """Answers in the order of the rows. Raises UserError."""

  def _encode(self, question: Question, canvas: int | None = None) -> Row | None:
    """The row with its reference; its prompt has the room that a canvas of this size leaves it.

    Of a canvas size, that room says nothing about the reference.
    """
    model, limit = self.sampler.model, self.max_length
    encode = functools.partial(
      features.encode, Example(question.prompt, question.reference), model.tokenizer, model.contract
    )
    full = encode(max_length=_UNCUT, too_long="drop")
    if full is None:
      return None
    if canvas is not None:
      limit += self._gold(full) - canvas
    is_cut = len(full.tokens) > limit
    row = encode(max_length=limit, too_long=self.too_long) if is_cut else full
    if row is None:
      return None
    start = row.canvas_start
    counts = [self._count(part.tolist()) for part in (row.tokens[1:start], row.tokens[start:])]
    return Row(question, row, len(row.tokens), is_cut, *counts)

  def _count(self, ids: list[int]) -> Tokens:
    return Tokens(ids.count(self.sampler.model.tokenizer.unk_id), len(ids))

  def _gold(self, row: features.Row) -> int:
    """Places of a canvas that the reference fills; a </s> behind it is none of them."""
    behind = int(self.sampler.model.contract.end == "given")
    return len(row.tokens) - row.canvas_start - behind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing(Way):
  """The model writes its answers."""

  name = "writing"
  decoding: Settings
  canvas: Literal["gold", "predicted"] | int = "gold"  # gold: as long as the reference

  @property
  def settings(self) -> dict[str, Any]:
    """All of Settings."""
    return dataclasses.asdict(self.decoding)

  @property
  def length(self) -> str:
    """gold, predicted, or given where all answers get one canvas."""
    return "given" if isinstance(self.canvas, int) else self.canvas

  @property
  def identity(self) -> dict[str, Any]:
    """As of any way, and the canvas."""
    return super().identity | {"canvas": self.canvas}

  def lay_out(self, question: Question) -> Row | None:
    """As of any way; how much of a prompt is kept tells the reference's length to `gold` alone."""
    if self.canvas == "gold":
      return self._encode(question)
    return self._encode(question, self._longest if self.canvas == "predicted" else self.canvas)

  @property
  def _longest(self) -> int:
    """Room for a predicted canvas: the largest, but at most half a row."""
    config, contract = self.sampler.model.config, self.sampler.model.contract
    largest = requests.open_size(contract)
    if config.length_classes:
      largest = max(
        requests.around_lengths([config.length_classes], config.max_positions, contract)
      )
    return min(largest, self.max_length // 2)

  def answer(self, rows: Sequence[Row]) -> list[Answer]:
    """Decodes. Raises UserError."""
    lengths: int | list[int] | None = None
    if self.canvas != "predicted":
      lengths = (
        self.canvas if isinstance(self.canvas, int) else [self._gold(row.ids) for row in rows]
      )
    # Noise is keyed by a question's number, whatever else is asked in the same call; the sampler
    # counts equal prompts of one call by itself.
    seen: dict[tuple[int, ...], int] = {}
    prompts, repeats = [], []
    for row in rows:
      prompt = tuple(row.ids.tokens[1 : row.ids.canvas_start].tolist())
      earlier = seen.setdefault(prompt, 0)
      seen[prompt] += 1
      prompts.append(prompt)
      repeats.append(row.question.number - earlier)
    generations = self.sampler.generate_ids(
      prompts, lengths=lengths, repeats=repeats, batch_size=self.batch_size, seed=self.seed,
      **self.settings,
    )  # fmt: skip
    return [Answer(g.text, _finite(g.total), g.network_calls) for g in generations]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choosing(Way):
  """The letter of the option whose bound on log p is the largest (see choice.py)."""

  name = "choosing"
  samples: int

  @property
  def settings(self) -> dict[str, Any]:
    """Nothing is decoded; the samples stand for steps."""
    return {"strategy": LIKELIHOOD, "num_steps": self.samples}

  @property
  def length(self) -> str:
    """That of each option."""
    return "options"

  def lay_out(self, question: Question) -> Row | None:
    """As of any way, with a row an option; None where one of them does not fit.

    Raises:
      UserError: no options in the prompt, or two that the tokenizer does not tell apart.
    """
    how = dict(max_length=self.max_length, too_long=self.too_long)
    try:
      letters = choice.letters(question.prompt)
      rows = choice.option_rows(self.sampler, question.prompt, letters, **how)
    except UserError as error:
      of = f" of {question.group}" if question.group else ""
      raise UserError(f"question {question.number}{of}: {error}") from None
    row = self._encode(question)
    if row is None or rows is None:
      return None
    return row._replace(options=dict(zip(letters, rows, strict=True)))

  def answer(self, rows: Sequence[Row]) -> list[Answer]:
    """Compares the options; several that are equally likely are no answer. Raises UserError."""
    chosen = choice.choose_rows(
      self.sampler, [list(row.options.values()) for row in rows], samples=self.samples,
      seed=self.seed, batch_size=self.batch_size, numbers=[row.question.number for row in rows],
    )  # fmt: skip
    answers = []
    for one, row in zip(chosen, rows, strict=True):
      letters = list(row.options)
      said = letters[one.index] if one.best == 1 else ""
      told = {"options": dict(zip(letters, one.scores, strict=True)), "tied": one.best > 1}
      answers.append(Answer(said, one.scores[one.index], None, told))
    return answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring(Way):
  """How likely the references are: a bound on log p (see likelihood.py), nothing is written."""

  name = "scoring"
  samples: int

  @property
  def settings(self) -> dict[str, Any]:
    """Nothing is decoded; the samples stand for steps."""
    return {"strategy": LIKELIHOOD, "num_steps": self.samples}

  @property
  def length(self) -> str:
    """That of the reference."""
    return "gold"

  def lay_out(self, question: Question) -> Row | None:
    """As of any way; plain text is not cut, but scored in windows."""
    if question.prompt:
      return super().lay_out(question)
    tokens = self._count(self.sampler.model.tokenizer.encode(question.reference))
    return Row(question, None, tokens.all, False, reference=tokens) if tokens.all else None

  def answer(self, rows: Sequence[Row]) -> list[Answer]:
    """Scores the references; the texts of the answers stay empty."""
    how = dict(samples=self.samples, seed=self.seed, batch_size=self.batch_size)
    plain, paired = [row for row in rows if row.ids is None], [row for row in rows if row.ids]
    texts = [row.question.reference for row in plain]
    numbers = lambda some: [row.question.number for row in some]
    bounds = likelihood.text_bounds(self.sampler, texts, numbers=numbers(plain), **how)
    scores = self.sampler.score_rows([r.ids for r in paired], numbers=numbers(paired), **how)
    bounds, scores, answers = iter(bounds), iter(scores), []
    for row in rows:
      if row.ids is None:
        bound = next(bounds)
        nats, error, tokens = bound.nats, bound.error, bound.tokens
      else:
        score = next(scores)
        nats, error, tokens = -score.log_likelihood, score.standard_error, score.tokens
      told = {"error": error, "tokens": tokens, "unknown": row.reference.unknown}
      answers.append(Answer("", -nats, None, told))
    return answers


def length_of(text: str) -> Literal["gold", "predicted"] | int:
  """`gold`, `predicted` or a number of tokens. Raises UserError."""
  if text in ("gold", "predicted"):
    return text
  if not text.isdecimal() or int(text) < 1:
    raise UserError(f"--length {text!r} must be gold, predicted, or a whole number >= 1")
  return int(text)


def _finite(number: float) -> float | None:
  return number if math.isfinite(number) else None
