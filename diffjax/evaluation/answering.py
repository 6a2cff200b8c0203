"""How a model answers the questions of an evaluation: by writing, by choosing, or by how likely.

A way lays questions out one by one (which says what is cut and what does not fit), and answers
them many at a time. Its `identity` holds all that decides its answers besides model and questions.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from diffjax.data import features
from diffjax.evaluation import choice, likelihood
from diffjax.evaluation.suites import Question
from diffjax.sampling import Sampler, Settings
from diffjax.types import Example, UserError

LIKELIHOOD = "likelihood"  # the strategy, in a report, of answers that no decoding made


class Row(NamedTuple):
  """A question as it is given to the model."""

  question: Question
  ids: features.Row | None  # None of plain text, which is cut into windows later
  size: int  # tokens
  is_cut: bool  # whether its prompt was too long


class Answer(NamedTuple):
  """What the model said."""

  text: str
  log_probability: float | None  # nats: of the tokens when revealed, or the bound on the answer's
  network_calls: int | None  # None where it is not a question's own
  details: Mapping[str, Any] = {}  # further plain values that are kept with it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way(abc.ABC):
  """One way to answer."""

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
    """Where the length of an answer comes from: gold, predicted or given."""

  @property
  def identity(self) -> dict[str, Any]:
    """Plain values; answers of the same ones can stand in one file."""
    return {
      "way": type(self).__name__, "settings": self.settings, "length": self.length,
      "max_length": self.max_length, "too_long": self.too_long, "seed": self.seed,
    }  # fmt: skip

  def lay_out(self, question: Question) -> Row | None:
    """The row of a question; None where it does not fit and is left out."""
    return self._encode(question, self.max_length)

  @abc.abstractmethod
  def answer(self, rows: Sequence[Row]) -> list[Answer]:
    """Answers in the order of the rows. Raises UserError."""

  def _encode(self, question: Question, max_length: int) -> Row | None:
    model = self.sampler.model
    example = Example(question.prompt, question.reference)
    how = dict(max_length=max_length, too_long=self.too_long)
    row = features.encode(example, model.tokenizer, model.contract, **how)
    if row is None:
      return None
    full = features.measure(example, model.tokenizer, model.contract, **how).full
    return Row(question, row, len(row.tokens), len(row.tokens) < full)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing(Way):
  """The model writes its answers."""

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
    """As of any way; a canvas that is given has its room."""
    row = self._encode(question, self.max_length)
    if row is None or not isinstance(self.canvas, int):
      return row
    # A canvas longer than the reference takes more room from the prompt.
    more = self.canvas - self._gold(row)
    return self._encode(question, self.max_length - more) if more > 0 else row

  def answer(self, rows: Sequence[Row]) -> list[Answer]:
    """Decodes. Raises UserError."""
    lengths: int | list[int] | None = None
    if self.canvas != "predicted":
      lengths = self.canvas if isinstance(self.canvas, int) else list(map(self._gold, rows))
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

  def _gold(self, row: Row) -> int:
    """Places of a canvas that the reference fills; a </s> behind it is none of them."""
    behind = int(self.sampler.model.contract.end == "given")
    return len(row.ids.tokens) - row.ids.canvas_start - behind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choosing(Way):
  """The letter of the option whose bound on log p is the largest (see choice.py)."""

  samples: int

  @property
  def settings(self) -> dict[str, Any]:
    """Nothing is decoded; the samples stand for steps."""
    return {"strategy": LIKELIHOOD, "num_steps": self.samples}

  @property
  def length(self) -> str:
    """That of each option."""
    return "given"

  def answer(self, rows: Sequence[Row]) -> list[Answer]:
    """Compares the options. Raises UserError for a prompt that has none."""
    prompts = [row.question.prompt for row in rows]
    options = [choice.letters(prompt) for prompt in prompts]
    chosen = choice.choose(
      self.sampler, prompts, options, samples=self.samples, seed=self.seed,
      batch_size=self.batch_size, too_long=self.too_long,
    )  # fmt: skip
    return [
      Answer(
        some[one.index], one.scores[one.index], None,
        {"options": dict(zip(some, one.scores, strict=True))},
      )
      for one, some in zip(chosen, options, strict=True)
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring(Way):
  """How likely the references are: a bound on log p (see likelihood.py), nothing is written."""

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
    size = len(self.sampler.model.tokenizer.encode(question.reference))
    return Row(question, None, size, False) if size else None

  def answer(self, rows: Sequence[Row]) -> list[Answer]:
    """Scores the references; the texts of the answers stay empty."""
    how = dict(samples=self.samples, seed=self.seed, batch_size=self.batch_size)
    texts = [row.question.reference for row in rows if row.ids is None]
    bounds = iter(likelihood.text_bounds(self.sampler, texts, **how) if texts else ())
    scores = iter(self.sampler.score_rows([row.ids for row in rows if row.ids], **how))
    answers = []
    for row in rows:
      if row.ids is None:
        bound = next(bounds)
        nats, error, tokens = bound.nats, bound.error, bound.tokens
      else:
        score = next(scores)
        nats, error, tokens = -score.log_likelihood, score.standard_error, score.tokens
      answers.append(Answer("", -nats, None, {"error": error, "tokens": tokens}))
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
