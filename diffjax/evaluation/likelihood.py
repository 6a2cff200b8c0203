"""How well a model knows plain text: a bound on its likelihood, per token, byte and character."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffjax.config import Contract
from diffjax.data import features
from diffjax.sampling import Sampler, Score
from diffjax.types import UserError


class TextBound(NamedTuple):
  """An upper bound on -log p of texts, by Monte Carlo; exact of a causal model without a mask.

  Errors are standard errors of the bound's estimate: how far other masks would have moved it. They
  say nothing of the choice of texts.

  An unknown token says not which text it stands for, so its likelihood is none of bytes or
  characters: with one of them, bits per byte and per character are nan.
  """

  nats: float
  error: float  # of nats
  tokens: int  # each text's own, and one </s>
  bytes: int  # in UTF-8, of the text as it stands, whatever the tokenizer makes of it
  characters: int
  unknown: int = 0  # tokens that stand for text which the tokenizer has no piece for

  @property
  def per_token(self) -> float:
    """Nats per token."""
    return self.nats / self.tokens

  @property
  def per_token_error(self) -> float:
    """Standard error of per_token."""
    return self.error / self.tokens

  @property
  def bits_per_byte(self) -> float:
    """Bits per byte of UTF-8, which no tokenizer decides; nan with unknown tokens."""
    return math.nan if self.unknown else self.nats / math.log(2) / self.bytes

  @property
  def bits_per_byte_error(self) -> float:
    """Standard error of bits_per_byte."""
    return self.error / math.log(2) / self.bytes

  @property
  def bits_per_character(self) -> float:
    """Bits per character; nan with unknown tokens."""
    return math.nan if self.unknown else self.nats / math.log(2) / self.characters

  @property
  def bits_per_character_error(self) -> float:
    """Standard error of bits_per_character."""
    return self.error / math.log(2) / self.characters

  @property
  def perplexity(self) -> float:
    """exp(nats per token): at least the perplexity of the model."""
    return math.exp(self.per_token)

  @property
  def perplexity_error(self) -> float:
    """Standard error of perplexity, to first order."""
    return self.perplexity * self.per_token_error


def text_bound(
  sampler: Sampler,
  texts: Sequence[str],
  *,
  samples: int = 128,
  seed: int = 0,
  batch_size: int = 32,
  progress: str = "",
) -> TextBound:
  """The bound on all texts together: the sum of `text_bounds`.

  Args:
    sampler: its model has a tokenizer.
    texts: each by itself, as a row of plain text is in training.
    samples: network passes for each window of a text; see Sampler.score.
    seed, batch_size, progress: see Sampler.score_many.

  Raises:
    UserError: there are no texts, or one of them has no tokens.
  """
  bounds = text_bounds(
    sampler, texts, samples=samples, seed=seed, batch_size=batch_size, progress=progress
  )
  if not bounds:
    raise UserError("no texts to score; give some")
  return _sum(bounds)


def text_bounds(
  sampler: Sampler,
  texts: Sequence[str],
  *,
  samples: int = 128,
  seed: int = 0,
  batch_size: int = 32,
  progress: str = "",
  numbers: Sequence[int] | None = None,
) -> list[TextBound]:
  """The bound on each text: log p(text </s>) = sum over windows log p(window | what it sees).

  A text that fits the model is one row `<s> text </s>`, as in training. A longer one is cut into
  `windows`, whose bounds add up.

  Args:
    sampler, texts, samples, seed, batch_size, progress: see `text_bound`.
    numbers: of the texts; see Sampler.score_rows.

  Raises:
    UserError: a text has no tokens.
  """
  model = sampler.model
  if model.tokenizer is None:
    raise UserError("this model has no tokenizer, so it takes no text; score ids by score_rows")
  rows: list[features.Row] = []
  owners: list[int] = []
  encoded: list[list[int]] = []
  for number, text in enumerate(texts):
    ids = model.tokenizer.encode(text)
    if not ids:
      raise UserError(f"text {number + 1} of {len(texts)} has no tokens; leave it out")
    parts = windows(ids, model.contract, max_length=model.config.max_positions)
    rows += parts
    owners += [number] * len(parts)
    encoded.append(ids)
  scores = sampler.score_rows(
    rows, samples=samples, seed=seed, batch_size=batch_size, progress=progress,
    numbers=None if numbers is None else [numbers[owner] for owner in owners],
  )  # fmt: skip
  by_text: list[list[Score]] = [[] for _ in texts]
  for owner, score in zip(owners, scores, strict=True):
    by_text[owner].append(score)
  return [
    TextBound(
      nats=-sum(score.log_likelihood for score in of_text),
      error=math.hypot(*(score.standard_error for score in of_text)),
      tokens=len(ids) + 1,
      bytes=len(text.encode()),
      characters=len(text),
      unknown=ids.count(model.tokenizer.unk_id),
    )
    for text, ids, of_text in zip(texts, encoded, by_text, strict=True)
  ]


def windows(ids: Sequence[int], contract: Contract, *, max_length: int) -> list[features.Row]:
  """A text and its </s> as rows in which every token is scored once.

  Each but the last scores a whole row behind its <s> and sees nothing of those before; the last
  scores what is left, and sees before it as much of the text as still fits. With
  `contract.end_padding`, </s> fill the last up to its multiple, as in training; like all behind the
  first, they are no tokens of the text.

  Args:
    ids: of the text, without <s> and </s>.
    contract: says what these are.
    max_length: of a row, with its <s>.
  """
  room, multiple = max_length - 1, max(1, contract.end_padding)
  size = room - room % multiple or room
  if size % multiple:  # not even one multiple fits
    multiple = 1
  ends = 1 + -(len(ids) + 1) % multiple
  whole = [*ids, *[contract.eos_id] * ends]
  rows = []
  for start in range(0, len(whole), size):
    stop = min(start + size, len(whole))
    seen = 0 if stop < len(whole) else min(start, room - (stop - start))
    row = [contract.bos_id, *whole[start - seen : stop]]
    rows.append(features.Row(np.asarray(row, np.int32), 1 + seen))
  return rows


def _sum(bounds: Sequence[TextBound]) -> TextBound:
  columns = list(zip(*bounds, strict=True))
  nats, errors, *counts = columns
  return TextBound(math.fsum(nats), math.hypot(*errors), *map(sum, counts))
