"""Which examples make up batch n: NumPy functions of (seed, n) and the examples' lengths alone.

There is no iterator and nothing to checkpoint: batch n is random access, so that a run resumes by
counting on.
"""

import hashlib
import json
import secrets
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from diffjax.config import Contract, DataConfig
from diffjax.data import features, measuring, mixture, packing
from diffjax.data.measuring import BAD, DROPPED, EXCLUDED
from diffjax.data.sources import Part, Source
from diffjax.tokenizers import Tokenizer
from diffjax.types import UserError

_INDEX_FORMAT = 3  # of the cached files
_PROMPTS = 1  # the purpose of a draw beside (seed, number); 0 would be no third number at all


class Selection(NamedTuple):
  """The examples of one batch, and the length that its rows are padded to."""

  examples: np.ndarray  # int64[n]  row after row
  length: int
  prompted: np.ndarray  # bool[n]  False where the example goes without its prompt
  rows: np.ndarray  # int64[n]  the row of each, ascending from 0; several where they are packed

  def part(self, start: int, stop: int) -> "Selection":
    """Rows start .. stop - 1 alone, numbered from 0."""
    own = slice(*np.searchsorted(self.rows, (start, stop)))
    return Selection(self.examples[own], self.length, self.prompted[own], self.rows[own] - start)


class Counts(NamedTuple):
  """What becomes of the examples, to be told before training."""

  examples: int
  dropped: int  # too long for a row
  truncated: int  # too long, and cut
  excluded: int  # in a language that the source leaves out
  bad: int  # records that cannot be read
  unused: int  # in a length bucket that has too few for one batch
  rows: int  # of an epoch
  packed: float  # examples of an average row
  padding: float  # share of an epoch's positions

  def describe(self) -> str:
    """One line for people."""
    cases = {
      "cut": self.truncated,
      "in an excluded language": self.excluded,
      "bad": self.bad,
      "in length buckets that do not fill a batch": self.unused,
    }
    told = [f"{self.dropped} too long", *(f"{n} {what}" for what, n in cases.items() if n)]
    packed = f", {self.packed:.1f} examples a row" if self.packed > 1 else ""
    return (
      f"{self.examples} examples: {', '.join(told)}; {self.padding:.1%} of an epoch is "
      f"padding{packed}"
    )


class LengthIndex(NamedTuple):
  """How long every example of a source is, and which part of a mixture it belongs to."""

  rows: np.ndarray  # int32[n]  tokens of its row; DROPPED, EXCLUDED or BAD where it has none
  full: np.ndarray  # int32[n]  tokens before anything is cut; 0 where they were not counted
  canvas: np.ndarray  # int32[n]  of these in the canvas
  parts: tuple[Part, ...] = ()  # of a mixture, consecutive; else one or none
  temperature: float = 1.0  # of a mixture

  @property
  def kept(self) -> np.ndarray:
    """The numbers of the examples that have a row, ascending, int64."""
    return np.flatnonzero(self.rows >= 0)

  def first(self, limit: int) -> np.ndarray:
    """The first `limit` of `kept`; the parts of a mixture take turns until they run out."""
    kept = self.kept
    if len(self.parts) > 1 and len(kept):
      part = np.searchsorted([p.stop for p in self.parts], kept, side="right")
      turn = np.concatenate([np.arange(n) for n in np.bincount(part)])
      kept = kept[np.lexsort((part, turn))]
    return kept[:limit]

  def describe_lost(self, start: int = 0, stop: int | None = None) -> str:
    """Why examples start .. stop - 1 have no row, for people."""
    rows = self.rows[start:stop]
    cases = {DROPPED: "too long", EXCLUDED: "in an excluded language", BAD: "bad"}
    counted = {told: int((rows == case).sum()) for case, told in cases.items()}
    return ", ".join(f"{count} {told}" for told, count in counted.items() if count) or "none lost"


def length_index(
  source: Source,
  tokenizer: Tokenizer,
  contract: Contract,
  *,
  max_length: int,
  too_long: features.TooLong,
  cache_dir: Path | None,
  on_bad_record: Literal["stop", "skip"] = "stop",
  workers: int = 0,
) -> LengthIndex:
  """Measures every example, as measuring.measure, whose arguments and errors these are.

  Made once and kept in `cache_dir`, unless that is None, under a fingerprint of all it depends on.
  A file there that is damaged is made again.
  """
  template = tokenizer.chat_prompt("x") if contract.chat else ""
  identity = [source.fingerprint, tokenizer.sha256, template, max_length, too_long]
  identity += [contract.end_padding, on_bad_record, _INDEX_FORMAT]
  name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
  file = cache_dir / f"lengths-{name}.npy" if cache_dir else None
  sizes = _read_sizes(file, len(source)) if file else None
  if sizes is None:
    sizes = measuring.measure(
      source, tokenizer, contract, max_length=max_length, too_long=too_long,
      on_bad_record=on_bad_record, workers=workers,
    )  # fmt: skip
    if file:
      file.parent.mkdir(parents=True, exist_ok=True)
      # Hosts that share the folder may have processes of one number.
      temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}.npy")
      np.save(temporary, sizes)
      temporary.replace(file)
  return LengthIndex(*sizes, source.parts, source.temperature)


def _read_sizes(file: Path, count: int) -> np.ndarray | None:
  """A kept int32[3, count]; None where there is none or it is damaged."""
  try:
    sizes = np.load(file)
  except (OSError, ValueError, EOFError):
    return None
  return sizes if sizes.shape == (3, count) and sizes.dtype == np.int32 else None


class _Bucket(NamedTuple):
  """The examples of an epoch that come in rows of one length."""

  examples: np.ndarray  # int64[n]
  bounds: np.ndarray  # int64[rows + 1]  row r holds the examples bounds[r] .. bounds[r + 1] - 1


class _Epoch(NamedTuple):
  number: int
  starts: list[tuple[int, int]]  # of every batch: its bucket, and its first row there
  buckets: list[_Bucket]


class Plan:
  """All batches of a run. Every epoch shuffles the examples and the order of the batches.

  A batch holds rows of one length bucket; what does not fill a batch at the end of an epoch's
  bucket waits for another epoch's shuffle. With `data.packing` a row holds several examples, and
  every epoch packs anew. A mixture's epoch has as many examples as all parts have, in their shares.

  A batch is found in the time that its epoch takes to shuffle and pack, and the epoch is then kept.
  Can be pickled, and used from several threads.

  Attributes:
    batches_per_epoch: the same for every epoch.
    examples_per_epoch: float64[parts], how many an epoch reads of each; one number without parts.
    counts: what becomes of the examples.
  """

  def __init__(self, index: LengthIndex, data: DataConfig, seed: int):
    """Plans over a length index.

    Raises:
      UserError: no bucket has enough examples for one batch, or a part has none that fits.
    """
    self._data, self._seed, self._lengths = data, seed, index.rows
    kept, shape = index.kept, (len(data.lengths), max(1, len(index.parts)))
    part = np.searchsorted([p.stop for p in index.parts[:-1]], kept, side="right")
    bucket = np.searchsorted(data.lengths, index.rows[kept])  # the smallest that holds the row
    cell = bucket * shape[1] + part
    sizes = np.bincount(cell, minlength=shape[0] * shape[1])
    cells = np.split(kept[np.argsort(cell, kind="stable")], np.cumsum(sizes)[:-1])
    sizes = sizes.reshape(shape)
    self._members = [cells[n * shape[1] : (n + 1) * shape[1]] for n in range(shape[0])]
    self._expected = sizes.astype(float)  # an epoch's examples
    if shape[1] > 1:
      _check_parts(index)
      shares = mixture.shares(index.parts, sizes.sum(0), index.temperature)
      self._expected *= shares * len(kept) / sizes.sum(0)
    rows = np.array([data.rows(length) for length in data.lengths])
    counts = np.floor(self._expected.sum(1) + 1e-6).astype(np.int64)
    self._draws, self._needed = counts, 0  # an epoch's, by bucket; rows it must have where packed
    epoch_rows = counts
    if data.packing:
      epoch_rows = np.array([len(self._buckets(0, self._random(0))[0].bounds) - 1])
    self._batches = epoch_rows // rows
    self.batches_per_epoch = int(self._batches.sum())
    if not self.batches_per_epoch:
      raise UserError(self._nothing(index, epoch_rows))
    used = self._batches * rows  # of epoch_rows
    if data.packing:
      self._needed = int(used[0])
    elif shape[1] > 1:
      self._draws = used  # a draw that no batch takes would be lost to the shuffles of its part
    read = self._expected * (used / np.maximum(epoch_rows, 1))[:, None]
    self.examples_per_epoch = read.sum(0)
    self.counts = self._count(index, sizes, read, used)
    self._latest: _Epoch | None = None

  def batch(self, number: int) -> Selection:
    """The examples of batch `number` = 0, 1, ..., whatever was asked for before."""
    epoch_number, place = divmod(number, self.batches_per_epoch)
    epoch = self._latest  # read once: another thread may be replacing it
    if epoch is None or epoch.number != epoch_number:
      epoch = self._latest = self._shuffle(epoch_number)
    bucket, start = epoch.starts[place]
    length = self._data.lengths[bucket]
    examples, bounds = epoch.buckets[bucket]
    bounds = bounds[start : start + self._data.rows(length) + 1]
    examples = examples[bounds[0] : bounds[-1]]
    rows = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    return Selection(examples, length, self._prompted(number, len(examples)), rows)

  def _prompted(self, number: int, count: int) -> np.ndarray:
    """Which examples keep their prompt: all but a share, drawn by (seed, number, its place)."""
    random = np.random.default_rng((self._seed, number, _PROMPTS))
    return random.random(count) >= self._data.prompt_dropout

  def _random(self, epoch: int) -> np.random.Generator:
    return np.random.default_rng((self._seed, epoch))

  def _shuffle(self, number: int) -> _Epoch:
    random = self._random(number)
    buckets = self._buckets(number, random)
    starts = [
      (bucket, batch * self._data.rows(self._data.lengths[bucket]))
      for bucket, count in enumerate(self._batches)
      for batch in range(count)
    ]
    order = random.permutation(len(starts))
    return _Epoch(number, [starts[i] for i in order], buckets)

  def _buckets(self, number: int, random: np.random.Generator) -> list[_Bucket]:
    """An epoch's examples in shuffled rows."""
    buckets = []
    for bucket, cells in enumerate(self._members):
      examples = cells[0] if len(cells) == 1 else self._mixed(number, bucket)
      examples = random.permutation(examples)
      if self._data.packing:
        buckets.append(self._packed(examples, random))
      else:
        buckets.append(_Bucket(examples, np.arange(len(examples) + 1)))
    return buckets

  def _mixed(self, number: int, bucket: int) -> np.ndarray:
    """The examples that an epoch draws from the parts of a mixture, part after part."""
    counts = mixture.shared_out(
      int(self._draws[bucket]), self._expected[bucket], np.arange(number + 1)
    )
    starts, stops = counts[:-1].sum(0), counts.sum(0)
    return np.concatenate([
      mixture.drawn(cell, int(start), int(stop), seed=(self._seed, bucket, part))
      for part, (cell, start, stop) in enumerate(
        zip(self._members[bucket], starts, stops, strict=True)
      )
    ])  # fmt: skip

  def _packed(self, examples: np.ndarray, random: np.random.Generator) -> _Bucket:
    """Several examples a row, and the rows in any order; of a mixture's, as many as epoch 0 had."""
    rows = packing.assign_rows(self._lengths[examples], self._data.max_length)
    examples = examples[np.argsort(rows, kind="stable")]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(rows))]).astype(np.int64)
    bounds = packing.split_rows(bounds, self._needed)
    order = random.permutation(len(bounds) - 1)
    sizes = np.diff(bounds)[order]
    shuffled = np.concatenate([[0], np.cumsum(sizes)])
    gather = np.repeat(bounds[:-1][order] - shuffled[:-1], sizes) + np.arange(len(examples))
    return _Bucket(examples[gather], shuffled)

  def _nothing(self, index: LengthIndex, rows: np.ndarray) -> str:
    lengths = self._data.lengths
    needed = {length: self._data.rows(length) for length in lengths}
    there = dict(zip(lengths, rows.tolist(), strict=True))
    return (
      f"no length bucket fills a batch: rows by length {there}, "
      f"rows a batch {needed}, examples without a row: {index.describe_lost()}; "
      f"lower config.data.batch_size or change config.data.buckets"
    )

  def _count(
    self, index: LengthIndex, sizes: np.ndarray, read: np.ndarray, rows: np.ndarray
  ) -> Counts:
    tokens = sum(
      number * self._lengths[cell].mean()
      for cells, numbers in zip(self._members, read, strict=True)
      for cell, number in zip(cells, numbers, strict=True)
      if len(cell)
    )
    return Counts(
      examples=len(index.rows),
      dropped=int((index.rows == DROPPED).sum()),
      truncated=int((index.full[index.kept] > index.rows[index.kept]).sum()),
      excluded=int((index.rows == EXCLUDED).sum()),
      bad=int((index.rows == BAD).sum()),
      unused=int(sizes[self._batches == 0].sum()),
      rows=int(rows.sum()),
      packed=float(read.sum() / rows.sum()),
      padding=float(1 - tokens / (rows @ self._data.lengths)),
    )


def _check_parts(index: LengthIndex) -> None:
  """Raises UserError where no example of a part has a row."""
  for part in index.parts:
    if not (index.rows[part.start : part.stop] >= 0).any():
      lost = index.describe_lost(part.start, part.stop)
      raise UserError(
        f"part {part.name!r} of the mixture: none of its {part.stop - part.start} examples has a "
        f"row ({lost}); raise config.data.max_length or change config.data.too_long where they are "
        f"too long, else leave the part out"
      )
