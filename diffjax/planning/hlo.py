"""The text of a compiled program (optimized HLO): its instructions, shapes and source lines."""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_ITEM_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}  # others end in their bits
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")  # of a shape: type, sizes, layout
_NAME = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
  """One line of the text."""

  name: str
  shape: str  # with layouts
  opcode: str
  operands: tuple[str, ...]
  arguments: str  # the text between its parentheses
  attributes: str  # the text after them


class Computation(NamedTuple):
  """A function of the program; the last instruction marked ROOT is what it returns."""

  name: str
  instructions: dict[str, Instruction]
  root: str
  parameters: tuple[str, ...]


class Module:
  """A parsed program."""

  def __init__(self, text: str):
    """Reads all of the text."""
    self.computations = {part.name: part for part in _computations(text)}
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    self.entry = self.computations[entry[1]]
    self._sources = _Sources(text)
    self._instructions: dict[str, Instruction] = {}
    self._homes: dict[str, Computation] = {}
    self._callers: dict[str, list[Instruction]] = {}
    for computation in self.computations.values():
      self._instructions |= computation.instructions
      self._homes |= dict.fromkeys(computation.parameters, computation)
    for instruction in self._instructions.values():
      if instruction.opcode in ("fusion", "while"):
        called = self.called(instruction, "calls" if instruction.opcode == "fusion" else "body")
        self._callers.setdefault(called.name, []).append(instruction)

  def source(self, name: str, index: int = 0) -> str:
    """The line of this package that a value comes from, models/layers.py:NN, or ''.

    Where its own instruction has none (what XLA makes, what a scan stacks), that of what it was
    made from counts.

    Args:
      name: of an instruction.
      index: of the element, if it returns several.
    """
    return self._trace(name, index, frozenset())

  def _trace(self, name: str, index: int, seen: frozenset[tuple[str, int]]) -> str:
    instruction = self._instructions.get(name)
    if instruction is None or (name, index) in seen:
      return ""
    seen |= {(name, index)}
    opcode, operands = instruction.opcode, instruction.operands
    if opcode != "while" and (own := self._sources.of(instruction.attributes)):
      return own
    if opcode in ("fusion", "while"):
      called = self.called(instruction, "calls" if opcode == "fusion" else "body")
      root = called.instructions[called.root]
      inner = root.operands[index] if root.opcode == "tuple" else root.name
      return self._trace(inner, 0, seen)
    if opcode == "get-tuple-element":
      place = int(re.search(r"index=(\d+)", instruction.attributes)[1])
      return self._trace(operands[0], place, seen)
    if opcode == "parameter":
      return self._trace_argument(name, index, seen)
    if opcode == "dynamic-update-slice":
      operands = operands[1:2]
    return self._trace(operands[0], 0, seen) if operands else ""

  def _trace_argument(self, name: str, index: int, seen: frozenset[tuple[str, int]]) -> str:
    """Of a parameter: what its computation is called with, where there is one call of it."""
    computation = self._homes[name]
    callers = self._callers.get(computation.name, [])
    if len(callers) != 1:
      return ""
    if callers[0].opcode == "fusion":
      return self._trace(callers[0].operands[computation.parameters.index(name)], 0, seen)
    started = self._instructions.get(callers[0].operands[0])
    if started and started.opcode == "tuple":
      return self._trace(started.operands[index], 0, seen)
    return ""

  def operation(self, name: str) -> str:
    """The last part of an instruction's path in the traced function."""
    instruction = self._instructions.get(name)
    return operation_of(instruction) if instruction else ""

  def called(self, instruction: Instruction, field: str) -> Computation | None:
    """The computation that an instruction names as `field`, if it does."""
    match = re.search(rf"\b{field}=%?([\w.\-]+)", instruction.attributes)
    return self.computations.get(match[1]) if match else None


def path_of(instruction: Instruction) -> str:
  """Where an instruction is in the traced function."""
  return attribute_of(instruction, "op_name")


def attribute_of(instruction: Instruction, name: str) -> str:
  """A quoted attribute, or ''."""
  match = re.search(rf'\b{name}="([^"]*)"', instruction.attributes)
  return match[1] if match else ""


def operation_of(instruction: Instruction) -> str:
  """The last part of its path, or its opcode."""
  return path_of(instruction).rpartition("/")[2] or instruction.opcode


def shape_bytes(shape: str, *, hbm_only: bool = False) -> int:
  """Bytes of an array or tuple of arrays, padded to its tiles where the layout has some.

  Args:
    shape: as the text has it, such as bf16[32,512]{1,0:T(8,128)(2,1)S(1)}.
    hbm_only: arrays in other memories (a layout with S(n)) count nothing.
  """
  return sum(_array_bytes(*match.groups(), hbm_only) for match in ARRAY.finditer(shape))


@functools.cache
def _array_bytes(kind: str, dims: str, layout: str | None, hbm_only: bool) -> int:
  layout = layout or ""
  if hbm_only and re.search(r"S\([1-9]", layout):
    return 0
  bits = _ITEM_BITS.get(kind) if kind in _ITEM_BITS else int((re.search(r"\d+", kind) or "0")[0])
  sizes = [int(size) for size in dims.split(",") if size]
  order, _, tiling = layout.partition(":")
  tile = re.match(r"T\(([\d,]+)\)", tiling)
  if sizes and tile and order:
    minor = [int(place) for place in order.split(",")]  # minor-most first
    for place, side in zip(minor, reversed(tile[1].split(",")), strict=False):
      sizes[place] = -(-sizes[place] // int(side)) * int(side)
  return math.prod(sizes) * bits // 8


def sizes_of(shape: str) -> list[int]:
  """The sizes of the first array of a shape."""
  match = ARRAY.search(shape)
  return [int(size) for size in match[2].split(",") if size]


def _computations(text: str) -> Iterator[Computation]:
  name, instructions, root = "", {}, ""
  for line in text.splitlines():
    if line.endswith("{") and not line.startswith((" ", "HloModule")):
      header = re.match(r"(?:ENTRY )?%?([\w.\-]+) ", line)
      name, instructions, root = (header[1] if header else ""), {}, ""
    elif line.startswith("}") and name:
      numbered = (i for i in instructions.values() if i.opcode == "parameter")
      parameters = sorted(numbered, key=lambda i: int(i.arguments))
      yield Computation(name, instructions, root, tuple(p.name for p in parameters))
      name = ""
    elif name and " = " in line:
      instruction = _instruction(line)
      if instruction:
        instructions[instruction.name] = instruction
        if line.lstrip().startswith("ROOT "):
          root = instruction.name


def _instruction(line: str) -> Instruction | None:
  left, _, right = line.partition(" = ")
  name = left.split()[-1].removeprefix("%")
  end = _closing(right, 0) + 1 if right.startswith("(") else right.find(" ")
  opened = right.find("(", end)
  if end <= 0 or opened < 0:
    return None
  shape, opcode = right[:end], right[end:opened].strip()
  closed = _closing(right, opened)
  inside = right[opened + 1 : closed]
  return Instruction(name, shape, opcode, tuple(_NAME.findall(inside)), inside, right[closed + 1 :])


def _closing(text: str, start: int) -> int:
  depth = 0
  for match in re.compile(r"[()]").finditer(text, start):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return match.start()
  return len(text)


class _Sources:
  """Source lines by the tables at the head of the text, or by the metadata itself."""

  def __init__(self, text: str):
    table = functools.partial(_table, text)
    self._files = {n: rest.strip('"') for n, rest in table("FileNames")}
    number = lambda field, rest: int((re.search(rf"{field}=(\d+)", rest) or [0, 0])[1])
    self._lines = {
      n: (number("file_name_id", rest), number("line", rest)) for n, rest in table("FileLocations")
    }
    self._frames = {
      n: (number("file_location_id", rest), number("parent_frame_id", rest))
      for n, rest in table("StackFrames")
    }

  def of(self, attributes: str) -> str:
    frame = re.search(r"stack_frame_id=(\d+)", attributes)
    here, seen = int(frame[1]) if frame else 0, set()
    while here in self._frames and here not in seen:
      seen.add(here)
      location, here = self._frames[here]
      file, line = self._lines.get(location, (0, 0))
      own = _own(self._files.get(file, ""))
      if own:
        return f"{own}:{line}"
    file = re.search(r'source_file="([^"]*)"', attributes)
    line = re.search(r"source_line=(\d+)", attributes)
    own = _own(file[1]) if file and line else ""
    return f"{own}:{line[1]}" if own else ""


def _table(text: str, title: str) -> Iterator[tuple[int, str]]:
  start = text.find(f"\n{title}\n")
  if start < 0:
    return
  for line in text[start + len(title) + 2 :].split("\n"):
    number, _, rest = line.partition(" ")
    if not number.isdigit():
      return
    yield int(number), rest


def _own(path: str) -> str:
  _, found, rest = path.rpartition("/diffjax/")
  return rest if found else ""
