"""From an example's text to a row of ids with its canvas, in NumPy (2308.12219; its own layout).

<s> prompt target </s> <pad>*      prompt and target tokenised apart; the canvas is target </s>

Where the model predicts its end, the canvas may be filled up with further </s>, so that it learns
to stop early in a canvas that is too long (LLaDA's fine-tuning, 2502.09992) or in its last block.
A row may hold several examples, one after the other, each with its own <s> and its own segment.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from diffjax.config import Contract
from diffjax.tokenizers import Tokenizer
from diffjax.types import Example

TooLong = Literal["drop", "keep_start", "keep_end", "keep_ends"]


class Row(NamedTuple):
  """One example as ids; everything from `canvas_start` on may be noised."""

  tokens: np.ndarray  # int32[n]
  canvas_start: int


class Size(NamedTuple):
  """Tokens of one example."""

  row: int | None  # as it is read; None where it is dropped
  full: int  # before anything is cut
  canvas: int  # the target with its </s>


def prompt_ids(text: str, tokenizer: Tokenizer, contract: Contract) -> list[int]:
  """The ids between <s> and the canvas.

  Where `contract.chat`, the prompt is a user's turn in the tokenizer's chat template, the answer's
  opening included; a beginning <s> of the template is the row's own. No prompt stays none.

  Raises:
    UserError: `contract.chat`, and the tokenizer has no chat template.
  """
  if not contract.chat or not text:
    return tokenizer.encode(text)
  ids = tokenizer.encode(tokenizer.chat_prompt(text), parse_special=True)
  return ids[1:] if ids[:1] == [contract.bos_id] else ids


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
    contract: the model's, which says what <s> and </s> are, whether a prompt is a turn of a chat,
      and the multiple `end_padding` of which the target's length with its </s> becomes.
    max_length: of the row, with <s> and </s>.
    too_long: what to do with a longer one: drop it; keep the start or the end of its prompt; or
      keep its ends, a quarter of the room for the start, where the instruction stands. <s> and the
      whole target with all its </s> always survive.

  Returns:
    The row; None where it is dropped, as is every example whose target alone does not fit, or
    has no tokens.
  """
  prompt, canvas = _ids(example, tokenizer, contract)
  kept = _kept(len(prompt), len(canvas), max_length=max_length, too_long=too_long)
  if kept is None:
    return None
  start, end = kept
  prompt = prompt[:start] + prompt[len(prompt) - end :]
  return Row(np.asarray([contract.bos_id, *prompt, *canvas], np.int32), 1 + len(prompt))


def measure(
  example: Example,
  tokenizer: Tokenizer,
  contract: Contract,
  *,
  max_length: int,
  too_long: TooLong,
) -> Size:
  """How long the row of `encode` is, and would be; arguments as there."""
  prompt, canvas = map(len, _ids(example, tokenizer, contract))
  kept = _kept(prompt, canvas, max_length=max_length, too_long=too_long)
  return Size(None if kept is None else 1 + sum(kept) + canvas, 1 + prompt + canvas, canvas)


def _ids(example: Example, tokenizer: Tokenizer, contract: Contract) -> tuple[list[int], list[int]]:
  """The whole prompt, and the canvas: the target and its ends; [] where the target is empty."""
  prompt, target = (
    prompt_ids(example.inputs, tokenizer, contract),
    tokenizer.encode(example.targets),
  )
  if not target:
    return prompt, []
  ends = 1
  if contract.end_padding:
    ends += -(len(target) + 1) % contract.end_padding
  return prompt, target + [contract.eos_id] * ends


def _kept(
  prompt: int, canvas: int, *, max_length: int, too_long: TooLong
) -> tuple[int, int] | None:
  """How many tokens of a prompt are kept at its start and at its end; None drops the example."""
  room = max_length - 1 - canvas
  if not canvas or room < 0 or (room < prompt and too_long == "drop"):
    return None
  if room >= prompt or too_long == "keep_start":
    return min(prompt, room), 0
  start = room // 4 if too_long == "keep_ends" else 0
  return start, room - start


def pad(
  rows: Sequence[Row | None], *, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Stacks rows of one example to one length.

  Args:
    rows: of at most `length` tokens; None is a row of padding alone.
    length: L.
    pad_id: fills the rest.

  Returns:
    tokens int32[B, L], segments int32[B, L] (0 on padding), canvas bool[B, L].
  """
  return pack([[] if row is None else [row] for row in rows], length=length, pad_id=pad_id)


def pack(
  rows: Sequence[Sequence[Row]], *, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Stacks rows of several examples to one length.

  Args:
    rows: the examples of every row, together of at most `length` tokens.
    length: L.
    pad_id: fills the rest.

  Returns:
    tokens int32[B, L], segments int32[B, L] (1, 2, ... in a row; 0 on padding), canvas bool[B, L].
  """
  tokens = np.full((len(rows), length), pad_id, np.int32)
  segments = np.zeros((len(rows), length), np.int32)
  canvas = np.zeros((len(rows), length), bool)
  for number, examples in enumerate(rows):
    start = 0
    for segment, row in enumerate(examples, 1):
      end = start + len(row.tokens)
      tokens[number, start:end] = row.tokens
      segments[number, start:end] = segment
      canvas[number, start + row.canvas_start : end] = True
      start = end
  return tokens, segments, canvas
