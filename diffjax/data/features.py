"""From an example's text to a row of ids with its canvas, in NumPy (2308.12219; its own layout).

<s> prompt target </s> <pad>*      prompt and target tokenised apart; the canvas is target </s>

Where the model predicts its end, the canvas may be filled up with further </s>, so that it learns
to stop early in a canvas that is too long (LLaDA's fine-tuning, 2502.09992) or in its last block.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from diffjax.config import Contract
from diffjax.tokenizers import Tokenizer
from diffjax.types import Example

TooLong = Literal["drop", "keep_start", "keep_end"]


class Row(NamedTuple):
  """One example as ids; everything from `canvas_start` on may be noised."""

  tokens: np.ndarray  # int32[n]
  canvas_start: int


def encode(
  example: Example,
  tokenizer: Tokenizer,
  contract: Contract,
  *,
  max_length: int,
  too_long: TooLong,
) -> Row | None:
  """Lays out one example.

  Args:
    example: an empty prompt makes the whole text canvas.
    tokenizer: both texts go through it, one by one.
    contract: the model's, which says what <s> and </s> are, and the multiple `end_padding` of
      which the target's length with its </s> becomes.
    max_length: of the row, with <s> and </s>.
    too_long: what to do with a longer one: drop it, or keep the start or the end of its prompt.
      <s> and the whole target with all its </s> always survive.

  Returns:
    The row; None where it is dropped, as is every example whose target alone does not fit, or
    has no tokens.
  """
  prompt, target = tokenizer.encode(example.inputs), tokenizer.encode(example.targets)
  ends = 1
  if contract.end_padding:
    ends += -(len(target) + 1) % contract.end_padding
  room = max_length - 1 - len(target) - ends
  if not target or room < 0 or (room < len(prompt) and too_long == "drop"):
    return None
  if room < len(prompt):
    prompt = prompt[:room] if too_long == "keep_start" else prompt[len(prompt) - room :]
  tokens = [contract.bos_id, *prompt, *target, *[contract.eos_id] * ends]
  return Row(np.asarray(tokens, np.int32), 1 + len(prompt))


def pad(
  rows: Sequence[Row | None], *, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Stacks rows to one length.

  Args:
    rows: of at most `length` tokens; None is a row of padding alone.
    length: L.
    pad_id: fills the rest.

  Returns:
    tokens int32[B, L], segments int32[B, L] (0 on padding), canvas bool[B, L].
  """
  tokens = np.full((len(rows), length), pad_id, np.int32)
  segments = np.zeros((len(rows), length), np.int32)
  canvas = np.zeros((len(rows), length), bool)
  for number, row in enumerate(rows):
    if row is not None:
      end = len(row.tokens)
      tokens[number, :end] = row.tokens
      segments[number, :end] = 1
      canvas[number, row.canvas_start : end] = True
  return tokens, segments, canvas
