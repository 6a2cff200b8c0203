"""Batches of rows, read and tokenised by grain in the order that plan.py decides."""

from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from diffjax.config import Contract, DataConfig
from diffjax.data import features
from diffjax.data.plan import LengthIndex, Plan, Selection
from diffjax.data.sources import Source
from diffjax.tokenizers import Tokenizer
from diffjax.types import Batch, UserError

Blocks = tuple[Sequence[int], int]  # numbers of some of so many equal parts of a batch's rows
WHOLE: Blocks = ((0,), 1)

_THREADS, _AHEAD = 2, 8  # readers of this process, and batches they prepare before they are asked


class _MakeBatch(grain.transforms.Map):
  """Batch number -> this host's rows of it; a class, since reader processes must pickle it."""

  def __init__(
    self,
    source: Source,
    tokenizer: Tokenizer,
    contract: Contract,
    plan: Plan,
    data: DataConfig,
    blocks: Blocks,
  ):
    self._source, self._tokenizer, self._contract = source, tokenizer, contract
    self._plan, self._data, self._blocks = plan, data, blocks

  def map(self, number: int) -> Batch:
    """Reads the examples and lays them out."""
    selection = self._plan.batch(int(number))
    own = [
      _batch(
        self._source,
        self._tokenizer,
        self._contract,
        selection.part(index[0], index[-1] + 1),
        index,
        self._data,
      )
      for index in _own(self._data.rows(selection.length), self._blocks)
    ]
    return _join(own)


def batches(
  source: Source,
  tokenizer: Tokenizer,
  contract: Contract,
  plan: Plan,
  *,
  data: DataConfig,
  start: int,
  stop: int,
  blocks: Blocks = WHOLE,
) -> Iterator[Batch]:
  """This host's rows of batches start .. stop - 1, the same for any number of readers and hosts.

  Args:
    source, tokenizer, contract, plan: what to read, how, and in which order.
    data: the config section.
    start, stop: batch numbers, that is, training steps.
    blocks: of every batch that are this host's; see sharding.row_blocks.

  Raises:
    UserError: the rows of a batch cannot be shared out evenly.
  """
  for length in data.lengths:
    _own(data.rows(length), blocks)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's reader processes ask absl for flags
  make = _MakeBatch(source, tokenizer, contract, plan, data, blocks)
  options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
  dataset = grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options)
  if data.workers:
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers))
  return iter(dataset)


def evaluation_batches(
  source: Source,
  tokenizer: Tokenizer,
  contract: Contract,
  lengths: LengthIndex,
  *,
  data: DataConfig,
  batch_size: int,
  limit: int,
  blocks: Blocks = WHOLE,
) -> Iterator[Batch]:
  """This host's rows of batches of the first `limit` examples that fit, in order.

  The parts of a mixture take turns, and a row holds one example, whatever data.packing. All are
  padded to data.max_length, and the last batch is filled up with rows of padding, so that every
  batch has the same shape.

  Args:
    source, tokenizer, contract: what to read, and how.
    lengths: the source's length index.
    data: the config section.
    batch_size: rows of all hosts together.
    limit: number of examples.
    blocks: of every batch that are this host's; see sharding.row_blocks.

  Raises:
    UserError: no example fits, or the rows of a batch cannot be shared out evenly.
  """
  kept = lengths.first(limit)
  if not len(kept):
    raise UserError(
      f"none of {len(lengths.rows)} held-out examples has a row ({lengths.describe_lost()}); raise "
      f"config.data.max_length = {data.max_length} where they are too long, or give others"
    )
  own = _own(batch_size, blocks)
  for start in range(0, len(kept), batch_size):
    batch = kept[start : start + batch_size]
    made = []
    for index in own:
      examples = batch[index[0] : index[-1] + 1]
      selection = Selection(
        examples, data.max_length, np.ones(len(examples), bool), np.arange(len(examples))
      )
      made.append(_batch(source, tokenizer, contract, selection, index, data))
    yield _join(made)


def _own(rows: int, blocks: Blocks) -> list[np.ndarray]:
  """The rows of the global batch that are one host's, int32[rows / count] a block."""
  numbers, count = blocks
  if rows % count:
    raise UserError(
      f"a batch of {rows} rows cannot be shared out in {count} parts; make it a multiple"
    )
  size = rows // count
  return [np.arange(n * size, (n + 1) * size, dtype=np.int32) for n in numbers]


def _join(batches: Sequence[Batch]) -> Batch:
  if len(batches) == 1:
    return batches[0]
  return Batch(*map(np.concatenate, zip(*batches, strict=True)))


def _batch(
  source: Source,
  tokenizer: Tokenizer,
  contract: Contract,
  selection: Selection,
  index: np.ndarray,
  data: DataConfig,
) -> Batch:
  """As many rows as `index` numbers; those after the selection's last are padding alone."""
  rows: list[list[features.Row]] = [[] for _ in index]
  for number, prompted, place in zip(
    selection.examples, selection.prompted, selection.rows, strict=True
  ):
    example = source[int(number)]
    row = features.encode(
      example if prompted else example._replace(inputs=""), tokenizer, contract,
      max_length=data.max_length, too_long=data.too_long,
    )  # fmt: skip
    rows[place].append(row)
  return Batch(*features.pack(rows, length=selection.length, pad_id=contract.pad_id), index)
