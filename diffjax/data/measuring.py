"""How long the examples of a source are, and which of them have no row: all are read once."""

import concurrent.futures
import contextlib
import functools
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Literal

import numpy as np
from rich.progress import track

from diffjax.config import Contract
from diffjax.data import features
from diffjax.data.sources import Source
from diffjax.tokenizers import Tokenizer
from diffjax.types import BadData, UserError

DROPPED, EXCLUDED, BAD = -1, -2, -3  # in place of a length: too long, of a language, not readable
_BAD_SHARE = 0.001  # of a part's records may be bad where they are skipped
_CHUNK = 1000  # examples that are measured before the next word about them
_FEWEST = 50000  # examples that are worth the seconds in which processes start

_Chunk = tuple[np.ndarray, dict[int, str]]  # int32[3, n] and, of bad records, what is wrong


def measure(
  source: Source,
  tokenizer: Tokenizer,
  contract: Contract,
  *,
  max_length: int,
  too_long: features.TooLong,
  on_bad_record: Literal["stop", "skip"],
  workers: int,
) -> np.ndarray:
  """Reads and encodes every example, with a progress bar.

  Args:
    source, tokenizer, contract, max_length, too_long: see features.encode.
    on_bad_record: "skip" leaves out records that cannot be read, up to 0.1 % of each part.
    workers: processes that share a source of 50 000 examples or more; 0 is this one alone. The
      result is the same.

  Returns:
    int32[3, n]: tokens of the row, or DROPPED, EXCLUDED or BAD; tokens before anything is cut, 0
    where they were not counted; tokens of the canvas.

  Raises:
    UserError: a record cannot be read, or with "skip" more than 0.1 % of a part's.
  """
  count = len(source)
  work = functools.partial(
    _measure_chunk, source, tokenizer, contract, max_length, too_long, on_bad_record == "skip"
  )
  chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
  sizes, bad = np.zeros((3, count), np.int32), {}
  with contextlib.ExitStack() as stack:
    results = map(work, chunks)
    if workers and count >= _FEWEST:
      pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_take, initargs=(work,)
      )
      stack.callback(pool.shutdown, cancel_futures=True)
      results = pool.map(_measure_taken, chunks)
    told = track(
      results, "measuring examples", total=len(chunks), transient=True, disable=count < 5000
    )
    try:
      for chunk, (found, errors) in zip(chunks, told, strict=True):
        sizes[:, chunk.start : chunk.stop] = found
        bad |= errors
        if errors:
          _check_bad(source, bad, chunk.stop)
    except BrokenProcessPool:
      raise UserError(
        "a process that measures examples died; set config.data.workers = 0, or start a script of "
        "your own under `if __name__ == '__main__':`"
      ) from None
  return sizes


def _check_bad(source: Source, bad: dict[int, str], stop: int) -> None:
  """Raises UserError where a part has too many bad records among the examples before `stop`."""
  for part in source.parts:
    own = [number for number in bad if part.start <= number < part.stop]
    count = part.stop - part.start
    if len(own) > _BAD_SHARE * count:
      raise BadData(
        f"{part.name}: {len(own)} of the first {min(stop, part.stop) - part.start} records are "
        f"bad, of {count} up to {_BAD_SHARE:.1%} are skipped; the first: {bad[own[0]]}"
      )


def _measure_chunk(
  source: Source,
  tokenizer: Tokenizer,
  contract: Contract,
  max_length: int,
  too_long: features.TooLong,
  skip: bool,
  numbers: Sequence[int],
) -> _Chunk:
  """Measures some examples. Raises UserError for a bad record that is not to be skipped."""
  sizes, bad = np.zeros((3, len(numbers)), np.int32), {}
  for place, number in enumerate(numbers):
    try:
      example = source[number]
    except UserError as error:
      if not skip:
        raise
      sizes[0, place], bad[number] = BAD, str(error)
      continue
    if not source.keeps(example, number):
      sizes[0, place] = EXCLUDED
      continue
    row, full, canvas = features.measure(
      example, tokenizer, contract, max_length=max_length, too_long=too_long
    )
    sizes[:, place] = DROPPED if row is None else row, full, canvas
  return sizes, bad


_taken: list[Callable[[Sequence[int]], _Chunk]] = []  # a process's work, sent to it only once


def _take(work: Callable[[Sequence[int]], _Chunk]) -> None:
  _taken[:] = [work]


def _measure_taken(numbers: Sequence[int]) -> _Chunk:
  return _taken[0](numbers)
