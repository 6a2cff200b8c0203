"""The layout of a row, and what survives when it is too long."""

import dataclasses

import numpy as np
import pytest

from diffjax.config import Contract
from diffjax.data import features
from diffjax.types import Example

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


@pytest.mark.parametrize(("policy", "prompt"), [("keep_start", "abc"), ("keep_end", "ghi")])
def test_the_first_token_and_the_target_always_survive(policy, prompt):
  assert encode("abcdefghi", "xy", max_length=7, too_long=policy) == encode(prompt, "xy")
  assert encode("abcdefghi", "vwxyz", max_length=7, too_long=policy) == encode("", "vwxyz")
  assert encode("a", "uvwxyz", max_length=7, too_long=policy) is None


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
  rows = [features.Row(np.array([0, 10, 33, 2], np.int32), 2), None]
  tokens, segments, canvas = features.pad(rows, length=6, pad_id=1)
  np.testing.assert_array_equal(tokens, [[0, 10, 33, 2, 1, 1], [1] * 6])
  np.testing.assert_array_equal(segments, [[1, 1, 1, 1, 0, 0], [0] * 6])
  np.testing.assert_array_equal(canvas, [[0, 0, 1, 1, 0, 0], [0] * 6])
  assert (tokens.dtype, segments.dtype, canvas.dtype) == (np.int32, np.int32, bool)
