"""What a call may ask for; every mistake is one line."""

import operator
from collections.abc import Sequence

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


def check_batch(batch_size: int) -> None:
  """Raises UserError."""
  if batch_size < 1:
    raise UserError(f"batch_size = {batch_size} must be >= 1")


def check_seed(seed: int) -> None:
  """Raises UserError."""
  if not 0 <= seed < 2**32:
    raise UserError(f"seed = {seed} must be between 0 and 2**32 - 1")


def check_lengths(lengths: int | Sequence[int], prompts: int) -> list[int]:
  """A length for every prompt. Raises UserError."""
  given = list(lengths) if isinstance(lengths, Sequence | np.ndarray) else [lengths] * prompts
  if len(given) != prompts:
    raise UserError(
      f"{len(given)} lengths for {prompts} prompts; give one for each, or one number for all"
    )
  for number, length in enumerate(given, 1):
    if isinstance(length, bool | np.bool_) or not hasattr(length, "__index__") or length < 1:
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
