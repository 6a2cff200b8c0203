"""Answers as JSON lines, written batch by batch, which the same command continues after a stop.

Beside `answers.jsonl` lies `answers.jsonl.settings.json`: what the answers were made with. Lines
are only ever added to answers of the same settings and prompts.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffjax.types import UserError

if TYPE_CHECKING:
  from diffjax.sampling import Generation


class AnswerFile:
  """A file of answers to some prompts, in their order. Nothing is written before `append`."""

  def __init__(
    self, path: Path, prompts: Sequence[str], settings: Mapping[str, Any], *, writes: bool = True
  ):
    """Finds out how far the file is.

    Args:
      path: of the answers.
      prompts: all prompts, those that have an answer included.
      settings: all that decides the answers besides the prompts; plain JSON values.
      writes: False where another process reads and writes the file, and this one only counts.

    Raises:
      UserError: the folder does not exist, or the file holds anything but answers to the first of
        these prompts under these settings.
    """
    self.path, self.writes = path, writes
    self.settings_path = path.with_name(f"{path.name}.settings.json")
    self._prompts, self._size, self.done = prompts, 0, 0
    if not writes:
      return
    self._settings = json.loads(json.dumps(settings))  # as it will be read back
    if not path.parent.is_dir():
      raise UserError(f"--output {path}: the folder does not exist; make it first")
    data = _read(path)
    lines = [line + b"\n" for line in data.split(b"\n")[:-1]]  # what follows the last is torn
    if data:
      self._check_settings()
    self.done = self._check_answers(lines)  # prompts that have their answer
    self._size = sum(map(len, lines[: self.done]))

  def append(self, answers: Sequence["Generation"]) -> None:
    """Adds the answers to the prompts that come next; on disk when this returns."""
    if not self.writes:
      self.done += len(answers)
      return
    lines = [
      json.dumps({"prompt": prompt} | record(answer), ensure_ascii=False, allow_nan=False) + "\n"
      for prompt, answer in zip(self._prompts[self.done :], answers, strict=False)
    ]
    data = "".join(lines).encode("utf-8", "replace")
    try:
      if not self._size:
        _write_whole(self.settings_path, json.dumps(self._settings, indent=2) + "\n")
      with self.path.open("ab") as file:
        file.truncate(self._size)  # what was torn
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      raise UserError(
        f"--output {self.path}: {error.strerror}; give a path that can be written"
      ) from None
    self.done += len(lines)
    self._size += len(data)

  def _check_settings(self) -> None:
    remedy = "give another path, or delete it to start over"
    try:
      made_with = json.loads(self.settings_path.read_text())
    except (OSError, ValueError):
      raise UserError(
        f"--output {self.path} exists, and {self.settings_path.name}, which says what it was made "
        f"with, cannot be read beside it; {remedy}"
      ) from None
    for name, value in self._settings.items():
      if name not in made_with or made_with[name] != value:
        raise UserError(
          f"--output {self.path} was made with {name} = {made_with.get(name)!r}, now it is "
          f"{value!r}; {remedy}"
        )

  def _check_answers(self, lines: Sequence[bytes]) -> int:
    remedy = "give another path, or delete it to start over"
    if len(lines) > len(self._prompts):
      raise UserError(
        f"--output {self.path} has {len(lines)} answers, and there are {len(self._prompts)} "
        f"prompts; {remedy}"
      )
    for number, line in enumerate(lines):
      try:
        prompt = json.loads(line)["prompt"]
      except (ValueError, TypeError, KeyError):
        if number == len(lines) - 1:
          return number  # torn, as a crash of the machine leaves it
        raise UserError(f"--output {self.path}:{number + 1} is no answer; {remedy}") from None
      if prompt != self._prompts[number]:
        raise UserError(
          f"--output {self.path}:{number + 1} answers another prompt than the one at its place; "
          f"{remedy}"
        )
    return len(lines)


def record(answer: "Generation") -> dict[str, Any]:
  """An answer as JSON values, its trace left out; None for what is infinite."""
  values = {
    field.name: getattr(answer, field.name)
    for field in dataclasses.fields(answer)
    if field.name not in ("trace", "candidates")
  }
  values["scores"] = [_finite(score) for score in answer.scores]
  values = {name: _finite(value) for name, value in values.items()}
  if answer.candidates:
    values["candidates"] = [record(candidate) for candidate in answer.candidates]
  return values


def _finite(value: Any) -> Any:
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> bytes:
  try:
    return path.read_bytes() if path.exists() else b""
  except OSError as error:
    raise UserError(f"--output {path}: {error.strerror}; give a path that can be written") from None


def _write_whole(path: Path, text: str) -> None:
  """The file appears only when it is complete."""
  unfinished = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    unfinished.write_text(text)
    unfinished.replace(path)
  finally:
    unfinished.unlink(missing_ok=True)
