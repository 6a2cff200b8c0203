"""Batch n is a function of (seed, n): random access, every example in its place."""

import concurrent.futures
import dataclasses
import json

import numpy as np
import pytest

from diffjax.config import Contract, DataConfig, SourceConfig
from diffjax.data import measuring, mixture, plan, sources
from diffjax.types import Example, UserError

LENGTHS = np.random.default_rng(0).integers(3, 41, 300).astype(np.int32)
LENGTHS[::17] = plan.DROPPED
INDEX = plan.LengthIndex(LENGTHS, np.abs(LENGTHS), np.full_like(LENGTHS, 3))


def data(**changes) -> DataConfig:
  return DataConfig(**{"max_length": 40, "buckets": (10, 20, 40), "batch_size": 8, **changes})


def test_batches_do_not_depend_on_what_was_asked_before():
  numbers = [31, 0, 5, 100, 31]
  forward = plan.Plan(INDEX, data(), 3)
  for number in numbers:
    have, want = forward.batch(number), plan.Plan(INDEX, data(), 3).batch(number)
    np.testing.assert_array_equal(have.examples, want.examples)
    assert have.length == want.length


@pytest.mark.parametrize("unit", ["rows", "tokens"])
def test_an_epoch_has_every_kept_example_at_most_once_in_the_smallest_bucket_that_holds_it(unit):
  section = data(batch_unit=unit, batch_size=8 if unit == "rows" else 160)
  chosen = plan.Plan(INDEX, section, 3)
  seen = []
  for number in range(chosen.batches_per_epoch):
    examples, length, prompted, rows = chosen.batch(number)
    assert prompted.tolist() == [True] * len(examples)
    assert rows.tolist() == list(range(len(examples)))
    assert len(examples) == section.rows(length)
    smaller = max((n for n in section.lengths if n < length), default=0)
    assert ((LENGTHS[examples] <= length) & (LENGTHS[examples] > smaller)).all()
    seen += examples.tolist()
  assert len(seen) == len(set(seen))
  kept = (LENGTHS != plan.DROPPED).sum()
  rows = [section.rows(length) for length in section.lengths]
  assert kept - sum(n - 1 for n in rows) <= len(seen) <= kept


def test_epochs_and_seeds_shuffle_anew():
  chosen = plan.Plan(INDEX, data(), 3)
  first = [chosen.batch(n).examples.tolist() for n in range(chosen.batches_per_epoch)]
  second = [
    chosen.batch(n + chosen.batches_per_epoch).examples.tolist()
    for n in range(chosen.batches_per_epoch)
  ]
  assert first != second
  assert plan.Plan(INDEX, data(), 4).batch(0).examples.tolist() != first[0]
  lengths = [chosen.batch(n).length for n in range(chosen.batches_per_epoch)]
  assert lengths != sorted(lengths)  # batches of one length do not come in a block


def test_prompts_are_dropped_by_seed_number_and_row():
  drops = lambda number, seed=3, **changes: (
    ~plan.Plan(INDEX, data(prompt_dropout=0.25, **changes), seed).batch(number).prompted
  )
  batches = range(1000)
  chosen = plan.Plan(INDEX, data(prompt_dropout=0.25), 3)
  dropped = np.stack([~chosen.batch(number).prompted for number in batches])  # [1000, 8]
  for share in (dropped.mean(), *dropped.mean(0)):
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 1000) ** 0.5
  assert abs(np.corrcoef(dropped.T) - np.eye(8)).max() < 5 / 1000**0.5
  np.testing.assert_array_equal(drops(700), dropped[700])
  np.testing.assert_array_equal(drops(700, batch_size=6), dropped[700, :6])
  assert any((drops(number, seed=4) != dropped[number]).any() for number in range(4))


def test_too_few_examples_for_one_batch_is_refused():
  with pytest.raises(
    UserError, match=r"no length bucket fills a batch.*without a row: 18 too long"
  ):
    plan.Plan(INDEX, data(batch_size=500), 0)


# ---- Mixtures

# Three parts, the last much smaller than its share.
PARTS = (
  sources.Part("a", 0, 150, 0.5, 1.0, 0),
  sources.Part("b", 150, 280, 0.2, 1.0, 0),
  sources.Part("c", 280, 300, 0.3, 1.0, 0),
)
MIXED = INDEX._replace(parts=PARTS)
SECTIONS = {
  "one length": data(buckets=()),
  "buckets": data(batch_size=4),
  "packed": data(buckets=(), packing=True, max_length=90),
}


def part_of(examples):
  return np.searchsorted([part.stop for part in PARTS], examples, side="right")


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_a_mixture_has_its_shares_and_every_part_goes_through_whole_shuffles(section):
  chosen = plan.Plan(MIXED, section, 3)
  epochs = 40
  drawn = [chosen.batch(n).examples for n in range(epochs * chosen.batches_per_epoch)]
  seen = np.bincount(np.concatenate(drawn), minlength=300)
  by_part = np.array([seen[part.start : part.stop].sum() for part in PARTS])
  weights = np.array([part.weight for part in PARTS])
  np.testing.assert_allclose(by_part / by_part.sum(), weights, atol=0.01)
  np.testing.assert_allclose(by_part, epochs * chosen.examples_per_epoch, rtol=0.02)
  assert not seen[LENGTHS < 0].any()
  if not section.packing:  # of packed rows an epoch's last may be left out
    for part in PARTS:
      own = np.arange(part.start, part.stop)
      own = own[LENGTHS[own] >= 0]
      bucket = np.searchsorted(section.lengths, LENGTHS[own])
      for place in range(len(section.lengths)):
        assert np.ptp(seen[own[bucket == place]]) <= 1


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_a_mixture_is_random_access(section):
  forward = plan.Plan(MIXED, section, 3)
  for number in [31, 0, 5, 100, 31]:
    for have, want in zip(
      forward.batch(number), plan.Plan(MIXED, section, 3).batch(number), strict=True
    ):
      np.testing.assert_array_equal(have, want)


def test_the_order_within_a_mixture_is_mixed():
  chosen = plan.Plan(MIXED, data(buckets=()), 3)
  first = part_of(np.concatenate([chosen.batch(n).examples for n in range(4)]))
  assert set(first) == {0, 1, 2}


def test_shares_are_weights_or_proportional_to_capped_and_tempered_epochs_of_examples():
  np.testing.assert_allclose(mixture.shares(PARTS, np.array([9, 9, 9]), 1.0), [0.5, 0.2, 0.3])
  plain = [
    sources.Part("a", 0, 8, 0.0, 1.0, 0),
    sources.Part("b", 8, 100, 0.0, 1.0, 16),
    sources.Part("c", 100, 104, 0.0, 2.0, 0),
  ]
  counts = np.array([8, 92, 4])
  np.testing.assert_allclose(mixture.shares(plain, counts, 1.0), np.array([8, 16, 8]) / 32)
  roots = np.sqrt([8, 16, 8])
  np.testing.assert_allclose(mixture.shares(plain, counts, 2.0), roots / roots.sum())


def test_a_part_that_has_no_row_is_refused_with_what_became_of_its_examples():
  rows = LENGTHS.copy()
  rows[280:] = plan.DROPPED
  rows[280:283], rows[283] = plan.EXCLUDED, plan.BAD
  told = "part 'c' of the mixture: none of its 20 examples has a row"
  with pytest.raises(UserError, match=rf"{told} \(16 too long, 3 in an excluded language, 1 bad\)"):
    plan.Plan(MIXED._replace(rows=rows), data(), 0)


@pytest.mark.parametrize("seed", range(5))
def test_an_epoch_is_shared_out_by_rounding_and_exactly_in_the_long_run(seed):
  random = np.random.default_rng(seed)
  weights = random.exponential(1, 7) ** 3
  exact = weights / weights.sum() * 100
  counts = mixture.shared_out(100, weights, np.arange(1000))
  assert (counts.sum(1) == 100).all()
  assert (abs(counts - exact) < 1 + 1e-9).all()
  drift = counts.cumsum(0) - exact * np.arange(1, 1001)[:, None]
  assert abs(drift).max() < 6  # logarithmic in the epochs


@pytest.mark.parametrize("size", [1, 7, 70000])
def test_draws_of_a_part_are_random_access_and_whole_shuffles(size):
  members = np.arange(100, 100 + size)
  all_of_it = mixture.drawn(members, 0, 3 * size, seed=(5, 1))
  for shuffle in all_of_it.reshape(3, size):
    assert sorted(shuffle) == members.tolist()
  for start, stop in ((0, 1), (size - 1, size + 1), (size // 2, 2 * size), (size, size)):
    np.testing.assert_array_equal(
      mixture.drawn(members, start, stop, seed=(5, 1)), all_of_it[start:stop]
    )
  assert not len(mixture.drawn(members[:0], 0, 0, seed=(5, 1)))
  if size > 1:
    assert (mixture.drawn(members, 0, size, seed=(5, 2)) != all_of_it[:size]).any()


def test_held_out_parts_take_turns():
  first = MIXED.first(30)
  assert np.bincount(part_of(first)).tolist() == [10, 10, 10]
  assert sorted(MIXED.first(10**6)) == MIXED.kept.tolist()
  np.testing.assert_array_equal(INDEX.first(30), INDEX.kept[:30])
  assert not len(MIXED._replace(rows=np.full_like(LENGTHS, plan.DROPPED)).first(30))


# ---- The length index

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
  np.testing.assert_array_equal(first.rows, [n if n <= 40 else plan.DROPPED for n in words])
  np.testing.assert_array_equal(first.full, words)
  np.testing.assert_array_equal(
    first.canvas, [len(source[n].targets.split()) + 1 for n in range(40)]
  )
  calls = tokenizer.calls
  again = index()
  for have, want in zip(again[:3], first[:3], strict=True):
    np.testing.assert_array_equal(have, want)
  assert again.parts == first.parts == source.parts
  assert tokenizer.calls == calls
  cut = index(too_long="keep_end")
  np.testing.assert_array_equal(cut.rows, np.minimum(first.full, 40))
  assert tokenizer.calls > calls
  padded = index(dataclasses.replace(CONTRACT, end="predicted", end_padding=8))
  assert ((padded.rows > first.rows) | (padded.rows == plan.DROPPED)).any()


def test_a_damaged_index_is_made_again(tmp_path):
  source = sources.open_source(SourceConfig(kind="generator", limit=9))
  index = lambda: plan.length_index(
    source, Words(), CONTRACT, max_length=40, too_long="drop", cache_dir=tmp_path
  )
  want = index().rows
  (file,) = tmp_path.iterdir()
  whole = file.read_bytes()
  for content in (b"", whole[:70], whole[:-3], bytes(len(whole)), b"PK" + whole[2:]):
    file.write_bytes(content)
    np.testing.assert_array_equal(index().rows, want)
    assert file.read_bytes() == whole
  np.save(file, np.zeros((3, 8), np.int32))  # of another source
  np.testing.assert_array_equal(index().rows, want)
  assert list(tmp_path.iterdir()) == [file]


def test_hosts_that_write_one_index_at_once_do_not_share_a_temporary_file(tmp_path, monkeypatch):
  source = sources.open_source(SourceConfig(kind="generator", limit=5))
  written, save = [], np.save
  monkeypatch.setattr(np, "save", lambda path, sizes: written.append(path) or save(path, sizes))
  for _ in range(2):
    plan.length_index(source, Words(), CONTRACT, max_length=40, too_long="drop", cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    file.unlink()
  assert len(set(written)) == 2


def in_processes(workers):
  """The index of a mixture with excluded and bad examples, as many processes measure it."""
  source = Spoilt()
  return plan.length_index(
    source, Words(), CONTRACT, max_length=40, too_long="drop", cache_dir=None,
    on_bad_record="skip", workers=workers,
  )  # fmt: skip


class Spoilt:
  """A mixture of two parts, of which some examples are left out and some cannot be read."""

  parts = (sources.Part("a", 0, 1500, 0.0, 1.0, 0), sources.Part("b", 1500, 5000, 0.0, 1.0, 0))
  fingerprint, temperature = "", 1.0

  def __len__(self):
    return 5000

  def __getitem__(self, number):
    if number in (700, 1600, 3333, 4999):
      raise UserError(f"record {number} is bad")
    return Example("word " * (number % 50), "a word")

  def keeps(self, example, number):
    return number % 11 > 0


def test_any_number_of_processes_makes_the_same_index(monkeypatch):
  monkeypatch.setattr(measuring, "_FEWEST", 1)
  alone = in_processes(0)
  assert np.flatnonzero(alone.rows == plan.BAD).tolist() == [700, 1600, 3333, 4999]
  monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Threads)
  monkeypatch.setattr(measuring, "_CHUNK", 77)
  for have, want in zip(in_processes(3)[:3], alone[:3], strict=True):
    np.testing.assert_array_equal(have, want)


class Threads(concurrent.futures.ThreadPoolExecutor):
  """Takes a context of processes, and needs none."""

  def __init__(self, workers, context, **options):
    assert context.get_start_method() == "spawn"
    super().__init__(workers, **options)


@pytest.mark.slow
def test_real_processes_make_the_same_index(monkeypatch):
  alone = in_processes(2)  # too few examples for processes
  monkeypatch.setattr(measuring, "_FEWEST", 1)
  for have, want in zip(in_processes(2)[:3], alone[:3], strict=True):
    np.testing.assert_array_equal(have, want)


def write(path, texts):
  lines = [json.dumps({"inputs": text, "targets": "a word"}) for text in texts]
  path.write_text("\n".join(lines))
  return path


def measured(config, **options):
  return plan.length_index(
    sources.open_source(config), Words(), CONTRACT,
    **{"max_length": 40, "too_long": "drop", "cache_dir": None, **options},
  )  # fmt: skip


def test_examples_of_an_excluded_language_are_counted_and_have_no_row(tmp_path):
  german = "Das ist ein Satz, der nicht auf Englisch ist und von einem Hund handelt."
  file = write(tmp_path / "mixed.jsonl", ["A dog is in the house of the man.", german])
  section = SourceConfig(kind="jsonl", path=str(file), exclude_language="german")
  index = measured(section)
  assert index.rows[1] == plan.EXCLUDED
  assert index.kept.tolist() == [0]
  chosen = plan.Plan(index, data(batch_size=1), 0)
  assert chosen.counts.excluded == 1
  assert "1 in an excluded language" in chosen.counts.describe()


def test_bad_records_stop_or_are_skipped_up_to_one_in_a_thousand(tmp_path):
  file = write(tmp_path / "some.jsonl", ["one two"] * 1999)
  good = file.read_text()
  section = SourceConfig(kind="jsonl", path=str(file))
  file.write_text(f"{good}\nnot json")
  with pytest.raises(UserError, match=r"some.jsonl:2000: not JSON"):
    measured(section)
  index = measured(section, on_bad_record="skip")
  assert np.flatnonzero(index.rows == plan.BAD).tolist() == [1999]
  chosen = plan.Plan(index, data(), 0)
  assert (chosen.counts.bad, chosen.counts.examples) == (1, 2000)
  file.write_text("not json\n" * 3 + good)
  with pytest.raises(
    UserError, match=r"some: 3 of the first 1000 records are bad, of 2002 .*0.1%.*some.jsonl:1: "
  ):
    measured(section, on_bad_record="skip")


def test_bad_records_are_counted_part_by_part(tmp_path):
  few, many = (write(tmp_path / f"{n}.jsonl", ["one two"] * n) for n in (500, 3000))
  few.write_text(few.read_text() + "\nnot json")
  parts = tuple(SourceConfig(kind="jsonl", path=str(file)) for file in (many, few))
  with pytest.raises(UserError, match=r"500: 1 of the first 501 records are bad.*500.jsonl:501: "):
    measured(SourceConfig(kind="mixture", parts=parts), on_bad_record="skip")
