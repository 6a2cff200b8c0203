"""Which examples make up batch n: NumPy functions of (seed, n) and the examples' lengths alone.

There is no iterator and nothing to checkpoint: batch n is random access, so that a run resumes by
counting on.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from diffjax.config import Contract, DataConfig
from diffjax.data import features
from diffjax.data.sources import Source
from diffjax.tokenizers import Tokenizer
from diffjax.types import UserError

DROPPED = -1  # in a length index
_PROMPTS = 1  # the purpose of a draw beside (seed, number); 0 would be no third number at all


class Selection(NamedTuple):
  """The examples of one batch, and the length that they are padded to."""

  examples: np.ndarray  # int64[B]
  length: int
  prompted: np.ndarray  # bool[B]  False where the row goes without its prompt


class Counts(NamedTuple):
  """What becomes of the examples, to be told before training."""

  examples: int
  dropped: int  # too long for a row
  unused: int  # in a length bucket that has too few for one batch
  padding: float  # share of an epoch's positions

  def describe(self) -> str:
    """One line for people."""
    return (
      f"{self.examples} examples: {self.dropped} too long, {self.unused} in length buckets that do "
      f"not fill a batch; {self.padding:.0%} of an epoch is padding"
    )


class _Epoch(NamedTuple):
  number: int
  starts: list[tuple[int, int]]  # of every batch: its bucket, and where it begins there
  shuffled: list[np.ndarray]  # of every bucket: its examples


def length_index(
  source: Source,
  tokenizer: Tokenizer,
  contract: Contract,
  *,
  max_length: int,
  too_long: features.TooLong,
  cache_dir: Path | None,
) -> np.ndarray:
  """Tokens of every example's row, int32[examples]; DROPPED where the policy drops it.

  Made once, with a progress bar, and kept in `cache_dir` under a fingerprint of all it depends on.

  Raises:
    UserError: a record cannot be read.
  """
  identity = [source.fingerprint, tokenizer.sha256, max_length, too_long, contract.end_padding]
  name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
  file = cache_dir / f"lengths-{name}.npy" if cache_dir else None
  if file and file.is_file():
    return np.load(file)
  lengths = np.full(len(source), DROPPED, np.int32)
  for number in track(
    range(len(source)), "measuring examples", transient=True, disable=len(source) < 5000
  ):
    row = features.encode(
      source[number], tokenizer, contract, max_length=max_length, too_long=too_long
    )
    if row is not None:
      lengths[number] = len(row.tokens)
  if file:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.npy")
    np.save(temporary, lengths)
    temporary.replace(file)
  return lengths


class Plan:
  """All batches of a run. Every epoch shuffles the examples and the order of the batches.

  A batch holds examples of one length bucket; what does not fill a batch at the end of an epoch's
  bucket waits for another epoch's shuffle. Can be pickled, and used from several threads.
  """

  def __init__(self, lengths: np.ndarray, data: DataConfig, seed: int):
    """Plans over a length index.

    Raises:
      UserError: no bucket has enough examples for one batch.
    """
    self._data, self._seed = data, seed
    kept = np.flatnonzero(lengths != DROPPED)
    buckets = np.searchsorted(data.lengths, lengths[kept])  # the smallest that holds the row
    self._members = [kept[buckets == bucket] for bucket in range(len(data.lengths))]
    rows = [data.rows(length) for length in data.lengths]
    self._batches = [len(m) // n for m, n in zip(self._members, rows, strict=True)]
    self.batches_per_epoch = sum(self._batches)
    if not self.batches_per_epoch:
      counts = {n: len(m) for n, m in zip(data.lengths, self._members, strict=True)}
      raise UserError(
        f"no length bucket fills a batch: examples by length {counts}, {len(lengths) - len(kept)} "
        f"dropped as too long, rows a batch {dict(zip(data.lengths, rows, strict=True))}; lower "
        f"config.data.batch_size or change config.data.buckets"
      )
    positions = np.array(self._batches) * rows * data.lengths
    full = np.array([lengths[m].mean() if len(m) else 0 for m in self._members]) / data.lengths
    self.counts = Counts(
      examples=len(lengths),
      dropped=len(lengths) - len(kept),
      unused=sum(len(m) for m, n in zip(self._members, self._batches, strict=True) if not n),
      padding=float(1 - positions @ full / positions.sum()),
    )
    self._latest: _Epoch | None = None

  def batch(self, number: int) -> Selection:
    """The examples of batch `number` = 0, 1, ..., whatever was asked for before."""
    epoch_number, place = divmod(number, self.batches_per_epoch)
    epoch = self._latest  # read once: another thread may be replacing it
    if epoch is None or epoch.number != epoch_number:
      epoch = self._latest = self._shuffle(epoch_number)
    bucket, start = epoch.starts[place]
    length = self._data.lengths[bucket]
    examples = epoch.shuffled[bucket][start : start + self._data.rows(length)]
    return Selection(examples, length, self._prompted(number, len(examples)))

  def _prompted(self, number: int, rows: int) -> np.ndarray:
    """Which rows keep their prompt: all but a share that is drawn by (seed, number, row)."""
    random = np.random.default_rng((self._seed, number, _PROMPTS))
    return random.random(rows) >= self._data.prompt_dropout

  def _shuffle(self, number: int) -> _Epoch:
    random = np.random.default_rng((self._seed, number))
    shuffled = [random.permutation(members) for members in self._members]
    starts = [
      (bucket, batch * self._data.rows(self._data.lengths[bucket]))
      for bucket, count in enumerate(self._batches)
      for batch in range(count)
    ]
    order = random.permutation(len(starts))
    return _Epoch(number, [starts[i] for i in order], shuffled)
