"""Numbered records of text files, all random access: what a task turns into examples.

A record is a dict of its fields, texts as `str`. Whatever is wrong with one is told with the place
it stands at (`file:line`, or file or builder and row).
"""

import abc
import bisect
import glob
import gzip
import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.config import SourceConfig
from diffjax.types import BadData, MissingInput, UserError

Record = Mapping[str, object]

_CHUNK = 1 << 24  # bytes that are looked through at a time


class Records(abc.ABC):
  """A numbered collection of records; can be pickled, and read from several threads.

  `identity` has an entry for everything that the records depend on: a file's name and the SHA-256
  of its content, for instance.
  """

  identity: dict[str, str]

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def __getitem__(self, number: int) -> Record:
    """Record `number`. Raises UserError, with its place, where it is none."""

  @abc.abstractmethod
  def where(self, number: int) -> str:
    """The place of a record, such as `file:line`."""

  def error(self, number: int, reason: str) -> UserError:
    """The error that names a record's place."""
    return BadData(f"{self.where(number)}: {reason}; mend the record or remove it")


def open_records(config: SourceConfig) -> Records:
  """The records of a source's files: of kind jsonl, parquet, pairs, text or tfds.

  Raises:
    UserError: a file is missing, empty or damaged, paired files differ in length, a library is
      not installed, or a TFDS builder is not prepared as array_record.
  """
  from diffjax.data import prepared

  kinds = {"jsonl": _Jsonl, "pairs": _Pairs, "text": _Text}
  kinds |= {"parquet": prepared.ParquetRecords, "tfds": prepared.TfdsRecords}
  return kinds[config.kind](config)


def find_files(pattern: str) -> list[Path]:
  """The files of a path or of a pattern (`part-*.jsonl`), by name. Raises UserError for none."""
  if os.path.exists(pattern) or not glob.has_magic(pattern):
    return [Path(pattern)]
  found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
  if not found:
    raise MissingInput(f"{pattern}: no file has such a name; give a path or pattern that fits some")
  return found


# ---- Lines of text -------------------------------------------------------------------------------


class Lines:
  """The lines of a UTF-8 text file, plain or .gz; line endings and a byte-order mark removed.

  A plain file stays on disk and is mapped; a packed one is unpacked into memory.
  """

  def __init__(self, path: str | Path):
    """Finds the lines. Raises UserError when the file is missing, empty or damaged."""
    self.path = Path(path)
    self._content = self._open()
    self._stamp = self._read_stamp()
    self._find_lines()

  def _open(self) -> bytes | mmap.mmap:
    try:
      with self.path.open("rb") as file:
        if self.path.suffix == ".gz":
          return gzip.decompress(file.read())
        size = os.fstat(file.fileno()).st_size
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise MissingInput(f"{self.path}: damaged .gz file ({error}); copy it again") from None
    except OSError as error:
      raise MissingInput(f"{self.path}: {error.strerror}; give a readable file") from None

  def _read_stamp(self) -> tuple[int, int]:
    status = self.path.stat()
    return status.st_size, status.st_mtime_ns

  def _find_lines(self) -> None:
    """Starts and ends of the lines, and the content's SHA-256, chunk by chunk."""
    content, mark = self._content, 3 if self._content[:3] == b"\xef\xbb\xbf" else 0
    digest, found, blank = hashlib.sha256(), [], True
    for start in range(mark, len(content), _CHUNK):
      chunk = content[start : start + _CHUNK]
      digest.update(chunk)
      blank = blank and not chunk.strip()
      found.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + start)
    if blank:
      raise MissingInput(f"{self.path} is empty; give a file with one example a line")
    ends = np.concatenate(found)
    if content[-1:] != b"\n":
      ends = np.append(ends, len(content))
    self._ends = ends
    self._starts = np.concatenate([[mark], ends[:-1] + 1])
    self.sha256 = digest.hexdigest()

  def __len__(self) -> int:
    return len(self._ends)

  def __getitem__(self, number: int) -> str:
    line = self._content[self._starts[number] : self._ends[number]].removesuffix(b"\r")
    try:
      return line.decode()
    except UnicodeDecodeError as error:
      raise self.error(number, f"not valid UTF-8 at byte {error.start + 1}") from None

  def __iter__(self) -> Iterator[str]:
    return (self[number] for number in range(len(self)))

  def where(self, number: int) -> str:
    """`file:line`."""
    return f"{self.path}:{number + 1}"

  def error(self, number: int, reason: str) -> UserError:
    """The error that names a line."""
    return BadData(f"{self.where(number)}: {reason}; mend the line or remove it")

  def __getstate__(self) -> dict[str, Any]:
    state = dict(self.__dict__)
    if isinstance(self._content, mmap.mmap):
      state["_content"] = None
    return state

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    if self._content is None:
      if self._read_stamp() != self._stamp:
        raise UserError(f"{self.path} was changed while it is in use; start the command again")
      self._content = self._open()


class _Concatenation:
  """The lines of several files, one file after the other."""

  def __init__(self, pattern: str):
    self.files = [Lines(path) for path in find_files(pattern)]
    self._stops = np.cumsum([len(lines) for lines in self.files]).tolist()
    self.identity = identify({lines.path: lines.sha256 for lines in self.files})

  def __len__(self) -> int:
    return self._stops[-1]

  def find(self, number: int) -> tuple[Lines, int]:
    """The file of a line, and the line's number in it."""
    file = bisect.bisect_right(self._stops, number)
    return self.files[file], number - (self._stops[file - 1] if file else 0)

  def __getitem__(self, number: int) -> str:
    lines, place = self.find(number)
    return lines[place]

  def where(self, number: int) -> str:
    lines, place = self.find(number)
    return lines.where(place)


def identify(hashes: Mapping[Path, str]) -> dict[str, str]:
  """`file NAME` -> hash: the name alone, so that data may move, where names tell files apart."""
  unique = len({path.name for path in hashes}) == len(hashes)
  return {f"file {path.name if unique else path}": value for path, value in hashes.items()}


class _Jsonl(Records):
  """One JSON object a line."""

  def __init__(self, config: SourceConfig):
    self._lines = _Concatenation(config.path)
    self.identity = self._lines.identity

  def __len__(self) -> int:
    return len(self._lines)

  def __getitem__(self, number: int) -> Record:
    line = self._lines[number]
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise self.error(number, f"not JSON ({str(error).split(';')[0]})") from None
    if not isinstance(record, dict):
      raise self.error(number, "not an object with fields such as inputs and targets")
    return record

  def where(self, number: int) -> str:
    return self._lines.where(number)


class _Pairs(Records):
  """Line n of one file is answered by line n of another: fields inputs and targets."""

  def __init__(self, config: SourceConfig):
    self._inputs = _Concatenation(config.path)
    self._targets = _Concatenation(config.target_path)
    if len(self._inputs) != len(self._targets):
      raise BadData(
        f"{config.path} has {len(self._inputs)} lines, {config.target_path} has "
        f"{len(self._targets)}; paired files must have as many"
      )
    targets = {f"target {name}": value for name, value in self._targets.identity.items()}
    self.identity = self._inputs.identity | targets

  def __len__(self) -> int:
    return len(self._inputs)

  def __getitem__(self, number: int) -> Record:
    for lines in (self._inputs, self._targets):
      if not lines[number].strip():
        file, place = lines.find(number)
        raise file.error(place, "an empty line in paired text (in both files)")
    return {"inputs": self._inputs[number], "targets": self._targets[number]}

  def where(self, number: int) -> str:
    return self._inputs.where(number)


class _Text(Records):
  """One text a line, nothing but target; empty lines are passed over."""

  def __init__(self, config: SourceConfig):
    self._lines = _Concatenation(config.path)
    self.identity = self._lines.identity
    kept = [number for number in range(len(self._lines)) if self._is_text(number)]
    self._numbers = np.asarray(kept, np.int64)

  def _is_text(self, number: int) -> bool:
    try:
      return bool(self._lines[number].strip())
    except UserError:
      return True  # it is told of when it is read

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, number: int) -> Record:
    return {"inputs": "", "targets": self._lines[int(self._numbers[number])]}

  def where(self, number: int) -> str:
    return self._lines.where(int(self._numbers[number]))
