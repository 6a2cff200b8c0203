"""Where a compiled program's buffers lie, from XLA's dumped buffer assignment."""

import re
from typing import NamedTuple

from diffjax.planning import hlo
from diffjax.planning.hlo import Module


class Buffer(NamedTuple):
  """A stretch of the temporary memory."""

  bytes: int
  shape: str  # without layout
  source: str  # the line that fills it, or the operation where no line of ours is behind it


def memory(assignment: str) -> tuple[float, float, float]:
  """Bytes of HBM of arguments, temporaries, and what is returned in no argument's place.

  Args:
    assignment: XLA's dumped buffer assignment.
  """
  arguments = temporaries = returned = 0.0
  for line in assignment.splitlines():
    match = re.match(r"allocation \d+: size (\d+),(.*)", line)
    if not match or " color " in match[2]:  # colors are other memories
      continue
    if " parameter " in match[2]:
      arguments += int(match[1])
    elif "maybe-live-out" in match[2]:
      returned += int(match[1])
    else:
      temporaries += int(match[1])
  return arguments, temporaries, returned


def largest(assignment: str, module: Module, *, count: int) -> list[Buffer]:
  """The largest stretches of temporary HBM, from XLA's dumped buffer assignment.

  What shares a stretch with something larger, at another time, is not listed.
  """
  values: list[tuple[int, int, str, int, str]] = []
  temporary = False
  for line in assignment.splitlines():
    if line.startswith("allocation "):
      temporary = "preallocated-temp" in line and " color " not in line
    elif temporary:
      match = re.match(r" value: <\d+ (\S+?)(?:\{([\d,]*)\})?(?: \(phi\))? @\d+> "
                       r"\(size=(\d+),offset=(\d+)\): (.*)", line)  # fmt: skip
      if match and not match[5].startswith("("):
        place = int((match[2] or "0").split(",")[0])
        values.append((int(match[3]), int(match[4]), match[1], place, match[5]))
  stretches: dict[tuple[int, int], list[tuple[str, int, str]]] = {}
  for size, offset, name, index, shape in values:
    stretches.setdefault((size, offset), []).append((name, index, shape))
  taken: list[tuple[int, int]] = []
  found: list[Buffer] = []
  for (size, offset), holders in sorted(stretches.items(), key=lambda item: -item[0][0]):
    if any(offset < end and start < offset + size for start, end in taken):
      continue
    taken.append((offset, offset + size))
    traced = ((module.source(name, index), shape) for name, index, shape in holders)
    source, shape = max(traced, key=lambda pair: bool(pair[0]))
    kind, dims, _ = hlo.ARRAY.search(shape).groups()
    told = source or next(filter(None, (module.operation(name) for name, *_ in holders)), "")
    found.append(Buffer(size, f"{kind}[{dims}]", told))
    if len(found) == count:
      break
  return found
