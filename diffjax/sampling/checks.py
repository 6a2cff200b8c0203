"""What a call may ask for; every mistake is one line."""

import numbers
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffjax.types import UserError


def check_text(text: str, what: str) -> None:
  """Raises UserError for an empty text, or one that is no UTF-8."""
  if not text.strip():
    raise UserError(f"{what} is empty; give it some text")
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"{what} is not valid UTF-8: {text[error.start]!r} at character {error.start + 1}"
    ) from None


def check_count(name: str, value: int) -> None:
  """Raises UserError unless it is a whole number >= 1."""
  if not _is_whole(value) or value < 1:
    raise UserError(f"{name} = {value!r} must be >= 1, a whole number")


def check_batch(batch_size: int) -> None:
  """Raises UserError."""
  check_count("batch_size", batch_size)


def check_seed(seed: int) -> None:
  """Raises UserError."""
  if not _is_whole(seed) or not 0 <= seed < 2**32:
    raise UserError(f"seed = {seed!r} must be a whole number between 0 and 2**32 - 1")


def check_ids(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
  """Raises UserError for a token that the vocabulary does not have."""
  for number, prompt in enumerate(prompts, 1):
    for id_ in prompt:
      if not _is_whole(id_) or not 0 <= id_ < vocab_size:
        raise UserError(f"id {id_!r} of prompt {number} must be in 0 .. {vocab_size - 1}")


def check_repeats(repeats: Sequence[int] | None, prompts: int) -> Sequence[int] | None:
  """Earlier equal prompts of each, as given. Raises UserError."""
  if repeats is not None:
    if len(repeats) != prompts:
      raise UserError(f"{len(repeats)} repeats for {prompts} prompts; give one for each")
    for count in repeats:
      if not _is_whole(count) or count < 0:
        raise UserError(f"repeats = {count!r} of a prompt must be a whole number >= 0")
  return repeats


def _is_whole(value: Any) -> bool:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)


def check_lengths(lengths: int | Sequence[int], prompts: int) -> list[int]:
  """A length for every prompt. Raises UserError."""
  given = list(lengths) if isinstance(lengths, Sequence | np.ndarray) else [lengths] * prompts
  if len(given) != prompts:
    raise UserError(
      f"{len(given)} lengths for {prompts} prompts; give one for each, or one number for all"
    )
  for number, length in enumerate(given, 1):
    if not _is_whole(length) or length < 1:
      raise UserError(f"length {length!r} of prompt {number} must be a whole number >= 1")
  return [operator.index(length) for length in given]


def check_room(
  prompts: Sequence[Sequence[int]], sizes: Sequence[int], frame: int, max_positions: int
) -> None:
  """Raises UserError where a prompt, its canvas and `frame` further tokens do not fit."""
  for number, (prompt, size) in enumerate(zip(prompts, sizes, strict=True), 1):
    needed = len(prompt) + size + frame
    if needed > max_positions:
      raise UserError(
        f"prompt {number} has {len(prompt)} tokens; with {size} to generate, <s> and </s> that "
        f"is {needed}, and the model has {max_positions} positions; shorten either"
      )


def check_fits(tokens: int, max_positions: int, what: str) -> None:
  """Raises UserError where a row is longer than the model."""
  if tokens > max_positions:
    raise UserError(
      f"{what} has {tokens} tokens with its gaps, and the model {max_positions} positions; shorten "
      f"it"
    )
