"""Where examples come from: files and the built-in generator, all random access.

A file's lines are found once; a .gz is unpacked into memory for that. A line that is no example
stops the run with `file:line: reason`.
"""

import gzip
import hashlib
import inspect
import json
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np

from diffjax.config import SourceConfig
from diffjax.data import generator, world
from diffjax.types import Example, UserError


class Source(Protocol):
  """A numbered collection of examples; can be pickled."""

  fingerprint: str  # changes when any example may have

  def __len__(self) -> int: ...  # noqa: D105

  def __getitem__(self, number: int) -> Example: ...  # noqa: D105


def open_source(config: SourceConfig) -> Source:
  """The source that a config section describes.

  Raises:
    UserError: a file is missing, empty or damaged, or paired files differ in length.
  """
  if config.kind in ("generator", "generator_text"):
    return _Generated(config)
  return {"jsonl": _Jsonl, "pairs": _Pairs, "text": _Text}[config.kind](config)


class Lines:
  """The lines of a UTF-8 text file, plain or .gz; line endings and a byte-order mark removed."""

  def __init__(self, path: str | Path):
    """Finds the lines. Raises UserError when the file is missing, empty or damaged."""
    self.path = Path(path)
    try:
      content = self.path.read_bytes()
      if self.path.suffix == ".gz":
        content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise UserError(f"{self.path}: damaged .gz file ({error}); copy it again") from None
    except OSError as error:
      raise UserError(f"{self.path}: {error.strerror}; give a readable file") from None
    self._content = content.removeprefix(b"\xef\xbb\xbf")
    if not self._content.strip():
      raise UserError(f"{self.path} is empty; give a file with one example a line")
    ends = np.flatnonzero(np.frombuffer(self._content, np.uint8) == ord("\n"))
    if not self._content.endswith(b"\n"):
      ends = np.append(ends, len(self._content))
    self._starts = np.concatenate([[0], ends[:-1] + 1])
    self._ends = ends
    self.sha256 = hashlib.sha256(self._content).hexdigest()

  def __len__(self) -> int:
    return len(self._ends)

  def __getitem__(self, number: int) -> str:
    line = self._content[self._starts[number] : self._ends[number]].removesuffix(b"\r")
    try:
      return line.decode()
    except UnicodeDecodeError as error:
      raise self.error(number, f"not valid UTF-8 at byte {error.start + 1}") from None

  def error(self, number: int, reason: str) -> UserError:
    """The error that names a line."""
    return UserError(f"{self.path}:{number + 1}: {reason}; mend the line or remove it")


class _Jsonl:
  """One {"inputs": text, "targets": text} a line; "task", a text, may group the scores."""

  def __init__(self, config: SourceConfig):
    self._config, self._lines = config, Lines(config.path)
    self.fingerprint = _fingerprint(config, self._lines.sha256)

  def __len__(self) -> int:
    return _limited(len(self._lines), self._config)

  def __getitem__(self, number: int) -> Example:
    line = self._lines[number]
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise self._lines.error(number, f"not JSON ({error})") from None
    if not isinstance(record, dict):
      raise self._lines.error(number, "not an object with inputs and targets")
    record = {"task": "", **record}
    for name in ("inputs", "targets", "task"):
      if not isinstance(record.get(name), str):
        raise self._lines.error(number, f"{name} is {record.get(name)!r}, not text")
    if not record["targets"].strip():
      raise self._lines.error(number, "targets is empty")
    inputs = self._config.template.replace("{inputs}", record["inputs"])
    return Example(inputs, record["targets"], record["task"])


class _Pairs:
  """Line n of one file is answered by line n of another."""

  def __init__(self, config: SourceConfig):
    self._config = config
    self._inputs, self._targets = Lines(config.path), Lines(config.target_path)
    if len(self._inputs) != len(self._targets):
      raise UserError(
        f"{config.path} has {len(self._inputs)} lines, {config.target_path} has "
        f"{len(self._targets)}; paired files must have as many"
      )
    self.fingerprint = _fingerprint(config, self._inputs.sha256 + self._targets.sha256)

  def __len__(self) -> int:
    return _limited(len(self._inputs), self._config)

  def __getitem__(self, number: int) -> Example:
    inputs, targets = self._inputs[number], self._targets[number]
    for lines, text in ((self._inputs, inputs), (self._targets, targets)):
      if not text.strip():
        raise lines.error(number, "the line is empty")
    return Example(self._config.template.replace("{inputs}", inputs), targets)


class _Text:
  """One text a line, nothing but target; empty lines are passed over."""

  def __init__(self, config: SourceConfig):
    self._config, self._lines = config, Lines(config.path)
    self._numbers = [number for number in range(len(self._lines)) if self._lines[number].strip()]
    self.fingerprint = _fingerprint(config, self._lines.sha256)

  def __len__(self) -> int:
    return _limited(len(self._numbers), self._config)

  def __getitem__(self, number: int) -> Example:
    return Example("", self._lines[self._numbers[number]])


class _Generated:
  """Examples of the built-in world: its tasks, or its plain text."""

  def __init__(self, config: SourceConfig):
    self._config = config
    code = inspect.getsource(generator) + inspect.getsource(world)
    self.fingerprint = _fingerprint(config, hashlib.sha256(code.encode()).hexdigest())

  def __len__(self) -> int:
    return self._config.limit

  def __getitem__(self, number: int) -> Example:
    split = self._config.split
    if self._config.kind == "generator_text":
      return Example("", generator.passage(number, split=split))
    return generator.task_example(number, split=split)


def _limited(count: int, config: SourceConfig) -> int:
  return min(count, config.limit) if config.limit else count


def _fingerprint(config: SourceConfig, content: str) -> str:
  identity = [config.kind, config.template, config.limit, config.split, content]
  return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


