"""Predictions as JSON lines, written group by group; the same evaluation goes on after a stop.

A file's name ends with a hash of all that decides its lines: the model's weights, the questions,
the settings. So lines of one file always belong together, and what is there is done.
"""

import glob
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Predictions:
  """The lines of one file and of its shares, by question number."""

  def __init__(self, path: Path, *, share: tuple[int, int] = (0, 1)):
    """Reads what is there; a line that a stop has torn is dropped.

    Args:
      path: NAME.jsonl.
      share: (k, n): of n processes that share the questions, this is number k; each writes a file
        of its own, NAME.k-of-n.jsonl, and all of them are read.
    """
    index, count = share
    self.path = path
    self._own = path if count == 1 else path.with_suffix(f".{index}-of-{count}.jsonl")
    self._shares = sorted(path.parent.glob(f"{glob.escape(path.stem)}.*-of-*.jsonl"))
    self.lines: dict[int, dict[str, Any]] = {}
    for file in {path, self._own, *self._shares}:
      self.lines |= {line["number"]: line for line in _read(file)}

  def append(self, lines: Iterable[dict[str, Any]]) -> None:
    """Adds lines, each with its question's `number`; on disk when this returns."""
    new = list(lines)
    self._own.parent.mkdir(parents=True, exist_ok=True)
    with self._own.open("ab") as file:
      file.truncate(_whole(self._own))  # what was torn
      file.write(b"".join(map(_line, new)))
      file.flush()
      os.fsync(file.fileno())
    self.lines |= {line["number"]: line for line in new}

  def finish(self) -> None:
    """Puts all lines into one file, in the order of the questions."""
    data = b"".join(_line(self.lines[number]) for number in sorted(self.lines))
    temporary = self.path.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(self.path)
    for file in self._shares:
      file.unlink()


def _line(line: dict[str, Any]) -> bytes:
  text = json.dumps(line, ensure_ascii=False, allow_nan=False)
  return text.encode("utf-8", "replace") + b"\n"


def _whole(path: Path) -> int:
  """Bytes up to the end of the last whole line."""
  data = path.read_bytes() if path.exists() else b""
  return data.rfind(b"\n") + 1


def _read(path: Path) -> list[dict[str, Any]]:
  """The whole lines; what is none, as after a disk was full, will be predicted again."""
  if not path.exists():
    return []
  lines = []
  for text in path.read_bytes()[: _whole(path)].splitlines():
    try:
      line = json.loads(text)
    except ValueError:
      continue
    if isinstance(line, dict) and isinstance(line.get("number"), int):
      lines.append(line)
  return lines
