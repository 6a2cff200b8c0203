"""Batch n is a function of (seed, n): random access, every example in its place."""

import dataclasses

import numpy as np
import pytest

from diffjax.config import Contract, DataConfig, SourceConfig
from diffjax.data import plan, sources
from diffjax.types import UserError

LENGTHS = np.random.default_rng(0).integers(3, 41, 300).astype(np.int32)
LENGTHS[::17] = plan.DROPPED


def data(**changes) -> DataConfig:
  return DataConfig(**{"max_length": 40, "buckets": (10, 20, 40), "batch_size": 8, **changes})


def test_batches_do_not_depend_on_what_was_asked_before():
  numbers = [31, 0, 5, 100, 31]
  forward = plan.Plan(LENGTHS, data(), 3)
  for number in numbers:
    have, want = forward.batch(number), plan.Plan(LENGTHS, data(), 3).batch(number)
    np.testing.assert_array_equal(have.examples, want.examples)
    assert have.length == want.length


@pytest.mark.parametrize("unit", ["rows", "tokens"])
def test_an_epoch_has_every_kept_example_at_most_once_in_the_smallest_bucket_that_holds_it(unit):
  section = data(batch_unit=unit, batch_size=8 if unit == "rows" else 160)
  chosen = plan.Plan(LENGTHS, section, 3)
  seen = []
  for number in range(chosen.batches_per_epoch):
    examples, length, prompted = chosen.batch(number)
    assert prompted.tolist() == [True] * len(examples)
    assert len(examples) == section.rows(length)
    smaller = max((n for n in section.lengths if n < length), default=0)
    assert ((LENGTHS[examples] <= length) & (LENGTHS[examples] > smaller)).all()
    seen += examples.tolist()
  assert len(seen) == len(set(seen))
  kept = (LENGTHS != plan.DROPPED).sum()
  rows = [section.rows(length) for length in section.lengths]
  assert kept - sum(n - 1 for n in rows) <= len(seen) <= kept


def test_epochs_and_seeds_shuffle_anew():
  chosen = plan.Plan(LENGTHS, data(), 3)
  first = [chosen.batch(n).examples.tolist() for n in range(chosen.batches_per_epoch)]
  second = [
    chosen.batch(n + chosen.batches_per_epoch).examples.tolist()
    for n in range(chosen.batches_per_epoch)
  ]
  assert first != second
  assert plan.Plan(LENGTHS, data(), 4).batch(0).examples.tolist() != first[0]
  lengths = [chosen.batch(n).length for n in range(chosen.batches_per_epoch)]
  assert lengths != sorted(lengths)  # batches of one length do not come in a block


def test_prompts_are_dropped_by_seed_number_and_row():
  drops = lambda number, seed=3, **changes: (
    ~plan.Plan(LENGTHS, data(prompt_dropout=0.25, **changes), seed).batch(number).prompted
  )
  batches = range(1000)
  chosen = plan.Plan(LENGTHS, data(prompt_dropout=0.25), 3)
  dropped = np.stack([~chosen.batch(number).prompted for number in batches])  # [1000, 8]
  for share in (dropped.mean(), *dropped.mean(0)):
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 1000) ** 0.5
  assert abs(np.corrcoef(dropped.T) - np.eye(8)).max() < 5 / 1000**0.5
  np.testing.assert_array_equal(drops(700), dropped[700])
  np.testing.assert_array_equal(drops(700, batch_size=6), dropped[700, :6])
  assert any((drops(number, seed=4) != dropped[number]).any() for number in range(4))


def test_too_few_examples_for_one_batch_is_refused():
  with pytest.raises(UserError, match=r"no length bucket fills a batch.*18 dropped"):
    plan.Plan(LENGTHS, data(batch_size=500), 0)


CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=99)


class Words:
  sha256 = "words"

  def __init__(self):
    self.calls = 0

  def encode(self, text: str) -> list[int]:
    self.calls += 1
    return [3] * len(text.split())


def test_the_length_index_is_made_once_and_remade_when_its_cause_changes(tmp_path):
  source = sources.open_source(SourceConfig(kind="generator", limit=40))
  tokenizer = Words()
  index = lambda contract=CONTRACT, **changes: plan.length_index(
    source,
    tokenizer,
    contract,
    **{"max_length": 40, "too_long": "drop", "cache_dir": tmp_path, **changes},
  )
  first = index()
  words = [len(source[n].inputs.split()) + len(source[n].targets.split()) + 2 for n in range(40)]
  np.testing.assert_array_equal(first, [n if n <= 40 else plan.DROPPED for n in words])
  calls = tokenizer.calls
  np.testing.assert_array_equal(index(), first)
  assert tokenizer.calls == calls
  assert (index(too_long="keep_end") != first).any()
  assert tokenizer.calls > calls
  padded = index(dataclasses.replace(CONTRACT, end="predicted", end_padding=8))
  assert ((padded > first) | (padded == plan.DROPPED)).any()
