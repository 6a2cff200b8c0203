"""The layout of a row, and what survives when it is too long."""

import dataclasses

import numpy as np
import pytest

from diffjax.config import Contract
from diffjax.data import features
from diffjax.types import Example, UserError

CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=99)


class Letters:
  """A letter is an id from 10 on."""

  def encode(self, text: str) -> list[int]:
    return [10 + ord(letter) - ord("a") for letter in text]


def encode(inputs, targets, *, max_length=12, too_long="drop", contract=CONTRACT):
  row = features.encode(
    Example(inputs, targets), Letters(), contract, max_length=max_length, too_long=too_long
  )
  return None if row is None else (row.tokens.tolist(), row.canvas_start)


def test_layout_is_bos_prompt_target_eos():
  assert encode("abc", "xy") == ([0, 10, 11, 12, 33, 34, 2], 4)
  assert encode("", "xy") == ([0, 33, 34, 2], 1)  # plain text: all of it is canvas


def test_a_row_of_exactly_the_length_is_kept():
  assert len(encode("abcdefgh", "xy")[0]) == 12
  assert encode("abcdefghi", "xy") is None


@pytest.mark.parametrize(
  ("policy", "prompt"), [("keep_start", "abc"), ("keep_end", "ghi"), ("keep_ends", "ghi")]
)
def test_the_first_token_and_the_target_always_survive(policy, prompt):
  assert encode("abcdefghi", "xy", max_length=7, too_long=policy) == encode(prompt, "xy")
  assert encode("abcdefghi", "vwxyz", max_length=7, too_long=policy) == encode("", "vwxyz")
  assert encode("a", "uvwxyz", max_length=7, too_long=policy) is None


def test_keep_ends_keeps_the_instruction_and_the_end_of_the_context():
  tokens, start = encode("abcdefghijklmnop", "xy", too_long="keep_ends")
  assert tokens[:start] == [0, *Letters().encode("ab"), *Letters().encode("klmnop")]
  assert tokens[start:] == [33, 34, 2]


POLICIES = ("drop", "keep_start", "keep_end", "keep_ends")


@pytest.mark.parametrize("policy", POLICIES)
def test_measured_sizes_are_those_of_the_rows(policy):
  contract = dataclasses.replace(CONTRACT, end="predicted", end_padding=3)
  for inputs, targets in [("abc", "xy"), ("abcdefghi", "vwx"), ("a", ""), ("", "x" * 13)]:
    sizes = features.measure(
      Example(inputs, targets), Letters(), contract, max_length=12, too_long=policy
    )
    row = encode(inputs, targets, too_long=policy, contract=contract)
    assert sizes.row == (None if row is None else len(row[0]))
    if row is not None:
      assert sizes.canvas == len(row[0]) - row[1]
    if targets:
      assert sizes.full == 1 + len(inputs) + 3 * -(-(len(targets) + 1) // 3)


class Chat(Letters):
  """Its template begins with "<", which is <s>, and a "u"; and closes with an "a"."""

  name = "t"

  def chat_prompt(self, text: str) -> str:
    return f"<u{text}a"

  def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
    return [0 if letter == "<" and parse_special else 10 + ord(letter) - 97 for letter in text]


def test_a_prompt_is_a_turn_of_the_chat_where_the_contract_says_so():
  chat = dataclasses.replace(CONTRACT, chat=True)
  assert features.prompt_ids("bc", Chat(), CONTRACT) == [11, 12]
  assert features.prompt_ids("bc", Chat(), chat) == [30, 11, 12, 10]  # one <s> is enough
  assert features.prompt_ids("", Chat(), chat) == []  # no prompt: a row of plain text
  row = features.encode(Example("bc", "xy"), Chat(), chat, max_length=12, too_long="drop")
  assert row.tokens.tolist() == [0, 30, 11, 12, 10, 33, 34, 2]
  assert row.canvas_start == 5


TURN = ([0, 30], [10])  # of Chat, around a text


@pytest.mark.parametrize(
  ("policy", "said"), [("keep_start", "bcde"), ("keep_end", "fghi"), ("keep_ends", "bghi")]
)
def test_of_a_chats_turn_the_text_alone_is_cut(policy, said):
  chat = dataclasses.replace(CONTRACT, chat=True)
  example = Example("bcdefghi", "xy")
  lay_out = lambda function, size: function(example, Chat(), chat, max_length=size, too_long=policy)
  row = lay_out(features.encode, 10)
  assert row.tokens.tolist() == [*TURN[0], *Letters().encode(said), *TURN[1], 33, 34, 2]
  assert row.canvas_start == 7
  assert lay_out(features.encode, 6).tokens.tolist() == [*TURN[0], *TURN[1], 33, 34, 2]
  assert lay_out(features.encode, 5) is None  # rather than half a turn
  for size in range(3, 15):
    row, measured = lay_out(features.encode, size), lay_out(features.measure, size)
    assert measured == (None if row is None else len(row.tokens), 14, 3)


def test_a_prompt_that_ends_in_so_many_ids_keeps_its_turn():
  chat = dataclasses.replace(CONTRACT, chat=True)
  end = lambda room, contract: features.prompt_end("bcdef", Chat(), contract, room=room)
  assert end(3, CONTRACT) == Letters().encode("def")
  assert end(4, chat) == [30, *Letters().encode("ef"), 10]
  assert end(7, chat) == features.prompt_ids("bcdef", Chat(), chat)
  with pytest.raises(UserError, match=r"chat template of .* no room for a text in 1 positions"):
    end(1, chat)


def test_special_tokens_in_the_text_of_a_chat_are_text():
  chat = dataclasses.replace(CONTRACT, chat=True)
  literal = 10 + ord("<") - 97
  assert features.prompt_ids("b<", Chat(), chat) == [30, 11, literal, 10]
  row = features.encode(Example("<" * 9, "xy"), Chat(), chat, max_length=10, too_long="keep_ends")
  assert row.tokens.tolist() == [*TURN[0], *[literal] * 4, *TURN[1], 33, 34, 2]


@pytest.mark.parametrize("multiple", [1, 2, 3, 4])
def test_answers_are_filled_up_with_ends_to_whole_multiples(multiple):
  contract = dataclasses.replace(CONTRACT, end="predicted", end_padding=multiple)
  for size in range(1, 8):
    target = "xyzxyzx"[:size]
    tokens, start = encode("abc", target, contract=contract, max_length=20)
    plain, same = encode("abc", target, max_length=20)
    assert start == same
    assert (len(tokens) - start) % multiple == 0
    assert 0 <= len(tokens) - len(plain) < multiple  # no block more than it takes
    assert tokens == plain + [CONTRACT.eos_id] * (len(tokens) - len(plain))
  # The ends count as target where a row is too long.
  fits = 1 + 3 + multiple * -(-5 // multiple)
  assert encode("abc", "vxyz", contract=contract, max_length=fits) is not None
  assert encode("abc", "vxyz", contract=contract, max_length=fits - 1) is None
  shorter, start = encode(
    "abc", "vxyz", contract=contract, max_length=fits - 1, too_long="keep_end"
  )
  assert (len(shorter), shorter[:start]) == (fits - 1, [0, 11, 12])


def test_padding_is_segment_zero_and_no_canvas():
  rows = [[features.Row(np.array([0, 10, 33, 2], np.int32), 2)], []]
  tokens, segments, canvas = features.pack(rows, length=6, pad_id=1)
  np.testing.assert_array_equal(tokens, [[0, 10, 33, 2, 1, 1], [1] * 6])
  np.testing.assert_array_equal(segments, [[1, 1, 1, 1, 0, 0], [0] * 6])
  np.testing.assert_array_equal(canvas, [[0, 0, 1, 1, 0, 0], [0] * 6])
  assert (tokens.dtype, segments.dtype, canvas.dtype) == (np.int32, np.int32, bool)
