"""From an example's text to a row of ids with its canvas, in NumPy (2308.12219; its own layout).

<s> prompt target </s> <pad>*      prompt and target tokenised apart; the canvas is target </s>

Where the model predicts its end, the canvas may be filled up with further </s>, so that it learns
to stop early in a canvas that is too long (LLaDA's fine-tuning, 2502.09992) or in its last block.
A row may hold several examples, one after the other, each with its own <s> and its own segment.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from diffjax.config import Contract
from diffjax.tokenizers import Tokenizer, chat
from diffjax.types import Example, UserError

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
  opening included; a beginning <s> of the template is the row's own. Special tokens are the
  template's alone: those in the text are literal text. No prompt stays none.

  Raises:
    UserError: `contract.chat`, and the tokenizer has no chat template, or it refuses the text.
  """
  if not contract.chat or not text:
    return tokenizer.encode(text)
  turn = _turn_ids(*chat.split(tokenizer.chat_prompt, text), tokenizer)
  return _without_bos(turn, contract)


def prompt_end(text: str, tokenizer: Tokenizer, contract: Contract, *, room: int) -> list[int]:
  """`prompt_ids`, without the beginning of the text where that takes more than `room` ids.

  Raises:
    UserError: as `prompt_ids`, or the words of the chat template alone take more.
  """
  ids = prompt_ids(text, tokenizer, contract)
  if len(ids) <= room:
    return ids
  kept = _cut(text, ids, tokenizer, contract, surplus=len(ids) - room, too_long="keep_end")
  if kept is None:
    raise UserError(
      f"the chat template of {tokenizer.name} leaves no room for a text in {room} positions; ask "
      f"for a shorter answer"
    )
  return kept


def _without_bos(ids: list[int], contract: Contract) -> list[int]:
  return ids[1:] if ids[:1] == [contract.bos_id] else ids


def _turn_ids(head: str, said: str, tail: str, tokenizer: Tokenizer) -> list[int]:
  """A template's words with the user's between them: as one text, unless those hold special tokens.

  As one text pieces may join across the borders, as in what a model was pretrained on.
  """
  parsed = functools.partial(tokenizer.encode, parse_special=True)
  literal = tokenizer.encode(said)
  if parsed(said) == literal:
    return parsed(head + said + tail)
  return parsed(head) + literal + parsed(tail)


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
      keep its ends, a quarter of the room for the start, where the instruction stands. <s>, the
      words of a chat's template and the whole target with all its </s> always survive.

  Returns:
    The row; None where it is dropped, as is every example whose target alone does not fit (in a
    chat: with the template's words), or has no tokens.
  """
  prompt, canvas, _ = _lay_out(
    example, tokenizer, contract, max_length=max_length, too_long=too_long
  )
  if prompt is None:
    return None
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
  prompt, canvas, full = _lay_out(
    example, tokenizer, contract, max_length=max_length, too_long=too_long
  )
  row = None if prompt is None else 1 + len(prompt) + len(canvas)
  return Size(row, full, len(canvas))


def _lay_out(
  example: Example,
  tokenizer: Tokenizer,
  contract: Contract,
  *,
  max_length: int,
  too_long: TooLong,
) -> tuple[list[int] | None, list[int], int]:
  """The prompt as far as it is kept (None: the example is dropped), the canvas, and the row's
  tokens before anything is cut. The canvas is the target and its ends; [] where that is empty.
  """
  prompt, canvas = (
    prompt_ids(example.inputs, tokenizer, contract),
    tokenizer.encode(example.targets),
  )
  if canvas:
    ends = 1 + (-(len(canvas) + 1) % contract.end_padding if contract.end_padding else 0)
    canvas = canvas + [contract.eos_id] * ends
  full = 1 + len(prompt) + len(canvas)
  if canvas and full <= max_length:
    return prompt, canvas, full
  if not canvas or too_long == "drop":
    return None, canvas, full
  kept = _cut(
    example.inputs, prompt, tokenizer, contract, surplus=full - max_length, too_long=too_long
  )
  return kept, canvas, full


def _cut(
  text: str,
  prompt: list[int],
  tokenizer: Tokenizer,
  contract: Contract,
  *,
  surplus: int,
  too_long: TooLong,
) -> list[int] | None:
  """The prompt without so many of its text's ids; None where the text has fewer."""
  start, stop = _text_in_turn(text, prompt, tokenizer, contract)
  room = stop - start - surplus  # for ids of the text
  if room < 0:
    return None
  first = {"keep_start": room, "keep_end": 0, "keep_ends": room // 4}[too_long]
  return prompt[: start + first] + prompt[stop - (room - first) :]


def _text_in_turn(
  text: str, ids: list[int], tokenizer: Tokenizer, contract: Contract
) -> tuple[int, int]:
  """Where the text begins and ends in the ids of its turn; a piece across a border is no text's.

  What the turn shares with one that ends with the text is no part of the template's end, and what
  it shares with one that begins with the text is none of its beginning.
  """
  if not contract.chat or not text:
    return 0, len(ids)
  head, said, tail = chat.split(tokenizer.chat_prompt, text)
  opened, closed = _turn_ids(head, said, "", tokenizer), _turn_ids("", said, tail, tokenizer)
  stop = _shared(_without_bos(opened, contract), ids)
  start = len(ids) - _shared(closed[::-1], ids[::-1])
  return start, max(start, stop)


def _shared(one: list[int], other: list[int]) -> int:
  """How many ids two lists begin with alike."""
  pairs = enumerate(zip(one, other, strict=False))
  return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def pack(
  rows: Sequence[Sequence[Row]], *, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Stacks rows of one example or several to one length.

  Args:
    rows: the examples of every row, together of at most `length` tokens; none is padding alone.
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
