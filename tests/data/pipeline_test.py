"""The same batches for any number of hosts and reader processes, from any step on."""

import dataclasses

import numpy as np
import pytest

from diffjax.config import DataConfig, SourceConfig
from diffjax.data import pipeline, plan, sources
from diffjax.tokenizers import SentencePieceTokenizer, train_sentencepiece

SECTION = DataConfig(max_length=64, buckets=(32, 64), batch_size=8)
DROPPING = dataclasses.replace(SECTION, prompt_dropout=0.5)
PACKING = dataclasses.replace(DROPPING, buckets=(), max_length=192, batch_size=4, packing=True)
MIXTURE = (sources.Part("a", 0, 70, 1.0, 1.0, 0), sources.Part("b", 70, 100, 3.0, 1.0, 0))


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
  source = sources.open_source(SourceConfig(kind="generator", limit=100))
  file = tmp_path_factory.mktemp("tokenizer") / "sp.model"
  lines = [text for n in range(100) for text in source[n][:2]]
  train_sentencepiece(lines, vocab_size=120, path=file, kind="bpe")
  tokenizer = SentencePieceTokenizer.load(file)
  lengths = plan.length_index(
    source, tokenizer, tokenizer.contract, max_length=64, too_long="drop", cache_dir=None
  )
  return source, tokenizer, lengths


def read(setup, *, section=SECTION, **options):
  source, tokenizer, lengths = setup
  chosen = plan.Plan(lengths, section, 0)
  options = {"start": 0, "stop": 6, **options}
  return list(
    pipeline.batches(source, tokenizer, tokenizer.contract, chosen, data=section, **options)
  )


def assert_equal(have, want):
  assert len(have) == len(want)
  for one, other in zip(have, want, strict=True):
    for name in one._fields:
      np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_rows_are_the_examples_that_the_plan_names(setup):
  source, tokenizer, lengths = setup
  selection = plan.Plan(lengths, SECTION, 0).batch(2)
  batch = read(setup)[2]
  assert batch.tokens.shape == (8, selection.length)
  np.testing.assert_array_equal(batch.index, np.arange(8))
  for row, number in enumerate(selection.examples):
    example = source[int(number)]
    target = batch.tokens[row][batch.canvas[row]]
    assert tokenizer.decode(target[:-1]) == example.targets
    assert target[-1] == tokenizer.eos_id
    prompt = batch.tokens[row][(batch.segments[row] > 0) & ~batch.canvas[row]]
    assert (prompt[0], tokenizer.decode(prompt[1:])) == (tokenizer.bos_id, example.inputs)


def test_starting_later_gives_the_later_batches(setup):
  assert_equal(read(setup, start=3), read(setup)[3:])


@pytest.mark.parametrize("section", [DROPPING, PACKING], ids=["buckets", "packed"])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_read_their_blocks_of_the_same_batches(setup, hosts, section):
  setup = (*setup[:2], setup[2]._replace(parts=MIXTURE))
  parts = [read(setup, section=section, blocks=((host,), hosts)) for host in range(hosts)]
  joined = [
    type(same[0])(*(np.concatenate(field) for field in zip(*same, strict=True)))
    for same in zip(*parts, strict=True)
  ]
  assert_equal(joined, read(setup, section=section))


def test_blocks_of_a_host_need_not_be_neighbours(setup):
  whole, some = read(setup, section=PACKING), read(setup, section=PACKING, blocks=((0, 3), 4))
  assert len(whole) == len(some) > 0
  for batch, own in zip(whole, some, strict=True):
    size = len(batch.index) // 4
    for field, part in zip(batch, own, strict=True):
      np.testing.assert_array_equal(part, np.concatenate([field[:size], field[-size:]]))


def test_packed_rows_are_the_examples_that_the_plan_names(setup):
  source, tokenizer, lengths = setup
  section = dataclasses.replace(PACKING, prompt_dropout=0.0)
  batches = read(setup, section=section, stop=2)
  chosen = plan.Plan(lengths, section, 0)
  for number, batch in enumerate(batches):
    examples, _, _, rows = chosen.batch(number)
    assert batch.segments.max() > 1
    for row in range(4):
      for segment, example in enumerate(examples[rows == row], 1):
        own = batch.segments[row] == segment
        target = batch.tokens[row][own & batch.canvas[row]]
        prompt = batch.tokens[row][own & ~batch.canvas[row]]
        assert target[-1] == tokenizer.eos_id
        assert tokenizer.decode(target[:-1]) == source[int(example)].targets
        assert (prompt[0], tokenizer.decode(prompt[1:])) == (
          tokenizer.bos_id, source[int(example)].inputs,
        )  # fmt: skip


def test_a_row_without_its_prompt_is_the_answer_alone(setup):
  tokenizer, chosen = setup[1], plan.Plan(setup[2], DROPPING, 0)
  shown = []
  pairs = zip(read(setup, section=DROPPING), read(setup), strict=True)
  for number, (have, want) in enumerate(pairs):
    prompted = chosen.batch(number).prompted
    shown += prompted.tolist()
    assert have.tokens.shape == want.tokens.shape
    for row in range(8):
      answer = lambda batch, row=row: batch.tokens[row][batch.canvas[row]].tolist()
      assert answer(have) == answer(want)
      tokens, rest = have.tokens[row], (have.segments[row] > 0) & ~have.canvas[row]
      if prompted[row]:
        np.testing.assert_array_equal(tokens, want.tokens[row])
      else:
        assert tokens[rest].tolist() == [tokenizer.bos_id]
        assert have.canvas[row, 1]
  assert 10 < sum(shown) < 38  # of 48


def test_evaluation_drops_no_prompt(setup):
  source, tokenizer, lengths = setup
  evaluated = lambda section: list(
    pipeline.evaluation_batches(
      source, tokenizer, tokenizer.contract, lengths, data=section, batch_size=8, limit=10
    )
  )
  assert_equal(evaluated(DROPPING), evaluated(SECTION))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_reader_processes_change_nothing(setup, workers):
  section = dataclasses.replace(PACKING, workers=workers)
  setup = (*setup[:2], setup[2]._replace(parts=MIXTURE))
  assert_equal(read(setup, section=section, start=2), read(setup, section=PACKING, start=2))


def test_evaluation_batches_keep_the_order_and_fill_the_last(setup):
  source, tokenizer, lengths = setup
  batches = list(
    pipeline.evaluation_batches(
      source, tokenizer, tokenizer.contract, lengths, data=SECTION, batch_size=8, limit=10
    )
  )
  assert [b.tokens.shape for b in batches] == [(8, 64)] * 2
  rows = np.concatenate([b.segments.any(1) for b in batches])
  assert rows.tolist() == [True] * 10 + [False] * 6
  kept = lengths.kept
  last = batches[1]
  assert tokenizer.decode(last.tokens[1][last.canvas[1]]) == source[int(kept[9])].targets
