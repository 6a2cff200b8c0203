"""Rows, keys and shapes."""

import hashlib

import numpy as np
import pytest
from letter_models import CONTRACT

from diffjax.sampling import layout
from diffjax.sampling.layout import Request, Shape, plan_batches


def test_rows_are_laid_out_as_trained():
  words = layout.key_words([[7, 40, 8], [9]])
  requests = [
    Request(*layout.framed(prompt, size, CONTRACT), word, True)
    for prompt, size, word in zip([[7, 40, 8], [9]], [2, 3], words, strict=True)
  ]
  rows = layout.lay_out(requests, Shape(4, 8, 8), pad_id=1)
  assert [rows.tokens[b][rows.segments[b] > 0].tolist() for b in range(2)] == [
    [0, 7, 40, 8, 2, 2, 2], [0, 9, 2, 2, 2, 2],
  ]  # fmt: skip
  assert (rows.tokens[rows.segments == 0] == 1).all()
  assert rows.segments.sum(1).tolist() == [7, 6, 0, 0]
  places = [rows.places[b][rows.real[b]].tolist() for b in range(4)]
  assert places == [[4, 5], [2, 3, 4], [], []]
  assert rows.closing.tolist() == [6, 5, 0, 0]
  answers = [np.flatnonzero(row).tolist() for row in rows.answer]
  assert answers == [[4, 5, 6], [2, 3, 4, 5], [], []]


def test_key_words_are_the_hash_the_sample_and_the_count_of_equals():
  words = layout.key_words([[5, 6], [7], [5, 6], [5, 6]])
  digest = hashlib.sha256(b"\x05\0\0\0\x06\0\0\0").digest()
  expected = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")]
  assert words[0].tolist() == [*expected, 0, 0]
  assert words[:, 3].tolist() == [0, 0, 1, 2]
  assert (words[0, :2] == words[3, :2]).all()
  assert (words[0, :2] != words[1, :2]).all()
  later = layout.key_words([[7], [5, 6], [5, 6]], [0, 2, 2])
  assert (later == words[[1, 2, 3]] + np.uint32([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])).all()
  assert layout.sample_words(words[3], 5).tolist() == [*expected, 5, 2]


@pytest.mark.parametrize("strict", [False, True])
def test_planned_batches_hold_every_row_once_and_fit(strict):
  random = np.random.default_rng(0)
  for count in (0, 1, 5, 32, 100):
    canvases = random.integers(1, 200, count)
    lengths = np.minimum(canvases + random.integers(3, 320, count), 514)
    plan = plan_batches(lengths, canvases, batch_size=24, max_positions=514, strict=strict)
    assert sorted(i for members, _ in plan for i in members) == list(range(count))
    for members, shape in plan:
      assert len(members) <= shape.rows <= 24
      assert max(lengths[i] for i in members) <= shape.length <= 514
      assert max(canvases[i] for i in members) <= shape.canvas
    if count == 1:
      assert plan[0][1].rows == (24 if strict else 1)


def test_strict_shapes_depend_on_the_row_alone():
  lengths, canvases = [20, 40, 100, 33, 20], [3, 9, 40, 9, 8]
  plan = lambda rows: plan_batches(
    [lengths[i] for i in rows],
    [canvases[i] for i in rows],
    batch_size=4, max_positions=514, strict=True,
  )  # fmt: skip
  together = {i: shape for members, shape in plan(range(5)) for i in members}
  assert all(plan([i])[0][1] == together[i] for i in range(5))
  assert together[0] == Shape(4, 32, 8)
  assert together[2] == Shape(4, 128, 64)


def test_canvases_that_are_filled_in_blocks_are_whole_blocks():
  for multiple in (1, 3, 12, 50):
    plan = plan_batches(
      [40] * 9, range(1, 10), batch_size=4, max_positions=514, strict=True, multiple=multiple
    )
    for members, shape in plan:
      assert shape.canvas % multiple == 0
      assert max(members) + 1 <= shape.canvas
