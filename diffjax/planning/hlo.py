"""What a compiled program does, read from its text (optimized HLO) with loops counted as they run.

XLA's own cost analysis counts the body of a loop once. Here every instruction counts as often as
it runs: FLOPs of matrix products, bytes between HBM and the cores, bytes that collectives bring in.
Of branches the busiest counts. Over the usual length, because one reading of the text serves all.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_ITEM_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}  # others end in their bits
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
  "collective-permute", "collective-broadcast",
)  # fmt: skip
_LINES = 10  # of the code whose traffic is told
_SCATTERED = "all-reduce-scatter"  # how a TPU's computations that keep a share of a sum are called
# Instructions that move nothing themselves.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
  "after-all", "partition-id", "replica-id", "optimization-barrier", "add-dependency", "iota",
}  # fmt: skip
# Calls to the compiler itself: memory is set aside, slices that lie side by side are one array.
_VIRTUAL = {
  "AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "AsyncCollectiveStart",
  "AsyncCollectiveDone",
}  # fmt: skip
_UNKNOWN_BRANCHES = re.compile(r"(?:true|false)_computation=%([\w.\-]+)")


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


class Collective(NamedTuple):
  """Collectives of one kind, over groups of one size."""

  kind: str
  group: int  # chips of a group
  slices: int  # that a group reaches over
  count: float  # a step
  bytes: float  # a step, that have to enter every chip
  largest: str  # the source line of the one that brings in most


class Loop(NamedTuple):
  """A loop and how often it runs, each time it is reached."""

  name: str  # the path of its operation in the traced function
  trips: float
  is_known: bool  # False: the estimate given was taken


class Traffic(NamedTuple):
  """What a line of the code moves between HBM and the cores."""

  source: str  # or the operation, where no line of ours is behind it
  bytes: float  # a step


class Costs(NamedTuple):
  """Of one device and one run of the program."""

  flops: float  # of dots and convolutions
  hbm_bytes: float
  traffic: tuple[Traffic, ...]  # of which the most
  collectives: tuple[Collective, ...]
  loops: tuple[Loop, ...]


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
    return _operation(instruction) if instruction else ""

  def called(self, instruction: Instruction, field: str) -> Computation | None:
    """The computation that an instruction names as `field`, if it does."""
    match = re.search(rf"\b{field}=%?([\w.\-]+)", instruction.attributes)
    return self.computations.get(match[1]) if match else None

  def costs(
    self,
    *,
    unknown_trips: Callable[[str], float] = lambda name: 1.0,
    slices: Sequence[int],
  ) -> Costs:
    """Adds up the whole program.

    Args:
      unknown_trips: how often a loop is taken to run, by its operation's path, where that depends
        on data.
      slices: the slice that each partition lies on.
    """
    return _Counter(self, unknown_trips, slices).costs()


def _path(instruction: Instruction) -> str:
  """Where an instruction is in the traced function."""
  return _attribute(instruction, "op_name")


def _attribute(instruction: Instruction, name: str) -> str:
  match = re.search(rf'\b{name}="([^"]*)"', instruction.attributes)
  return match[1] if match else ""


def _operation(instruction: Instruction) -> str:
  return _path(instruction).rpartition("/")[2] or instruction.opcode


def shape_bytes(shape: str, *, hbm_only: bool = False) -> int:
  """Bytes of an array or tuple of arrays, padded to its tiles where the layout has some.

  Args:
    shape: as the text has it, such as bf16[32,512]{1,0:T(8,128)(2,1)S(1)}.
    hbm_only: arrays in other memories (a layout with S(n)) count nothing.
  """
  return sum(_array_bytes(*match.groups(), hbm_only) for match in _ARRAY.finditer(shape))


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


def _dims(shape: str) -> list[int]:
  match = _ARRAY.search(shape)
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


class _Moved(NamedTuple):
  """Bytes of a group of collectives, gathered while counting."""

  count: float
  bytes: float
  most: float
  largest: str


_NOTHING = _Moved(0, 0, 0, "")


def _together(one: _Moved, other: _Moved) -> _Moved:
  most = max(one, other, key=lambda moved: moved.most)
  return _Moved(one.count + other.count, one.bytes + other.bytes, most.most, most.largest)


class _Counter:
  """One walk over a program."""

  def __init__(self, module: Module, unknown_trips: Callable[[str], float], slices: Sequence[int]):
    self._module, self._unknown, self._slices = module, unknown_trips, slices
    self._flops = 0.0
    self._traffic: dict[str, float] = {}
    self._moved: dict[tuple[str, int, int], _Moved] = {}
    self._loops: list[Loop] = []
    self._channels: set[str] = set()  # of collectives that run in the shade of several fusions

  def costs(self) -> Costs:
    self._visit(self._module.entry, 1.0, fused=False)
    collectives = sorted(
      (Collective(*key, *moved[:2], moved.largest) for key, moved in self._moved.items()),
      key=lambda c: -c.bytes,
    )
    traffic = sorted((Traffic(*item) for item in self._traffic.items()), key=lambda t: -t.bytes)
    moved = sum(self._traffic.values())
    return Costs(
      self._flops, moved, tuple(traffic[:_LINES]), tuple(collectives), tuple(self._loops)
    )

  def _visit(self, computation: Computation, times: float, *, fused: bool) -> None:
    for instruction in computation.instructions.values():
      opcode, attributes = instruction.opcode, instruction.attributes
      if opcode in ("dot", "convolution"):
        self._flops += times * _product_flops(instruction, computation)
      elif opcode == "custom-call":
        self._flops += times * _stated(attributes, "flops")
      self._collective(instruction, computation, times, fused)
      if not fused:
        moved = times * self._hbm_bytes(instruction, computation)
        if moved:
          line = self._module.source(instruction.name) or _operation(instruction)
          self._traffic[line] = self._traffic.get(line, 0) + moved
      if opcode == "while":
        body = self._module.called(instruction, "body")
        condition = self._module.called(instruction, "condition")
        name = _path(instruction)
        trips = _trips(instruction, computation, condition, body)
        self._loops.append(
          Loop(name, self._unknown(name) if trips is None else trips, trips is not None)
        )
        self._visit(body, times * self._loops[-1].trips, fused=False)
      elif opcode == "conditional":
        self._take_branch(self._branches(attributes), times)
      elif opcode in ("fusion", "call", "async-start"):
        find = functools.partial(self._module.called, instruction)
        called = find("calls") or find("to_apply")
        if called:
          self._visit(called, times, fused=fused or opcode != "call")

  def _take_branch(self, branches: list[Computation], times: float) -> None:
    """Adds the branch that computes, or else moves, most."""
    ways = []
    for branch in branches:
      ways.append(_Counter(self._module, self._unknown, self._slices))
      ways[-1]._visit(branch, times, fused=False)
    way = max(ways, key=lambda way: (way._flops, sum(way._traffic.values())))
    self._flops += way._flops
    for line, moved in way._traffic.items():
      self._traffic[line] = self._traffic.get(line, 0) + moved
    for key, moved in way._moved.items():
      self._moved[key] = _together(self._moved.get(key, _NOTHING), moved)
    self._loops += way._loops

  def _branches(self, attributes: str) -> list[Computation]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    names = _NAME.findall(listed[1]) if listed else _UNKNOWN_BRANCHES.findall(attributes)
    return [self._module.computations[name] for name in names]

  def _collective(
    self, instruction: Instruction, computation: Computation, times: float, fused: bool
  ) -> None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in _COLLECTIVES:
      return
    attributes = instruction.attributes
    if fused:  # one collective in the shade of several fusions, which all name it
      channel = re.search(r"channel_id=(\d+)", attributes)
      if channel and channel[1] in self._channels:
        return
      self._channels.update([channel[1]] if channel else [])
    groups = _groups(attributes, len(self._slices))
    group = max(map(len, groups), default=1)
    given = [computation.instructions[name] for name in instruction.operands]
    size = sum(shape_bytes(operand.shape) for operand in given)
    if kind == "all-reduce" and computation.name.startswith(_SCATTERED):
      kind = "reduce-scatter"
    entering = {
      "all-gather": size * (group - 1),
      "all-reduce": 2 * size * (group - 1) / group,
      "collective-permute": size,
      "collective-broadcast": size,
    }.get(kind, size * (group - 1) / group)
    reached = max(len({self._slices[member] for member in members}) for members in groups)
    key = (kind, 2 if kind == "collective-permute" else group, reached)
    added = times * entering
    moved = _Moved(times, added, added, self._module.source(instruction.name))
    self._moved[key] = _together(self._moved.get(key, _NOTHING), moved)

  def _hbm_bytes(self, instruction: Instruction, computation: Computation) -> float:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
      return 0
    own = functools.partial(shape_bytes, hbm_only=True)
    operands = [computation.instructions[name] for name in dict.fromkeys(instruction.operands)]
    if opcode in ("copy-start", "slice-start", "async-start"):
      target = _start_target(instruction)
      near = not any(own(operand.shape) for operand in operands)
      return (0 if near else shape_bytes(target)) + own(target)
    if opcode == "custom-call" and _attribute(instruction, "custom_call_target") in _VIRTUAL:
      return 0
    called = self._module.called(instruction, "calls") if opcode == "fusion" else None
    if called is None:
      return sum(
        _read_by(instruction, operand.name, computation, self._module) for operand in operands
      ) + _written(instruction, computation, self._module)
    reads = 0.0
    for name, parameter in zip(instruction.operands, called.parameters, strict=False):
      if own(computation.instructions[name].shape):
        reads += _read(called, parameter, self._module)
    written = _written(called.instructions[called.root], called, self._module)
    return reads + min(written, own(instruction.shape))


def _start_target(instruction: Instruction) -> str:
  """What copy-start (target, source, ...) or slice-start ((sources), target, ...) fills."""
  arrays = [match[0] for match in _ARRAY.finditer(instruction.shape)]
  return arrays[0 if instruction.opcode == "copy-start" else len(instruction.operands)]


def _read(computation: Computation, name: str, module: Module) -> float:
  """Bytes read of a value inside a fusion: of what is only sliced, the slices."""
  whole = shape_bytes(computation.instructions[name].shape, hbm_only=True)
  if not whole:
    return 0
  total = 0.0
  for user in computation.instructions.values():
    if name in user.operands:
      total += _read_by(user, name, computation, module)
  return min(whole, total)


def _read_by(user: Instruction, name: str, computation: Computation, module: Module) -> float:
  """Bytes that one instruction reads of a value."""
  whole = shape_bytes(computation.instructions[name].shape, hbm_only=True)
  first = user.operands and user.operands[0] == name
  if user.opcode in ("dynamic-slice", "slice", "gather") and first:
    return min(whole, shape_bytes(user.shape))
  if user.opcode in ("dynamic-update-slice", "scatter") and first:
    return 0  # in place
  if user.opcode == "bitcast" and user.name != computation.root:
    return _read(computation, user.name, module) or whole
  if user.opcode == "fusion":
    called = module.called(user, "calls")
    inner = (p for p, n in zip(called.parameters, user.operands, strict=False) if n == name)
    return sum(_read(called, parameter, module) for parameter in inner)
  return whole


def _written(instruction: Instruction, computation: Computation, module: Module) -> float:
  """Bytes written by what an instruction returns: of an update in place, the update."""
  get = computation.instructions.get
  if instruction.opcode == "tuple":
    return sum(_written(get(name), computation, module) for name in instruction.operands)
  if instruction.opcode in ("dynamic-update-slice", "scatter"):
    place = 1 if instruction.opcode == "dynamic-update-slice" else -1
    own = shape_bytes(instruction.shape, hbm_only=True)
    return min(own, shape_bytes(get(instruction.operands[place]).shape))
  if instruction.opcode == "bitcast":
    return _written(get(instruction.operands[0]), computation, module)
  if instruction.opcode == "parameter":
    return 0
  if instruction.opcode == "fusion":
    called = module.called(instruction, "calls")
    inner = _written(called.instructions[called.root], called, module)
    return min(inner, shape_bytes(instruction.shape, hbm_only=True))
  return shape_bytes(instruction.shape, hbm_only=True)


def _stated(attributes: str, field: str) -> float:
  """What a kernel's own cost estimate says."""
  match = re.search(rf'"cost_estimate":\s*\{{[^}}]*"{field}":\s*"?([\d.e+]+)', attributes)
  return float(match[1]) if match else 0.0


def _product_flops(instruction: Instruction, computation: Computation) -> float:
  out = math.prod(_dims(instruction.shape))
  left, right = (_dims(computation.instructions[name].shape) for name in instruction.operands[:2])
  if instruction.opcode == "dot":
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    summed = [int(place) for place in match[1].split(",") if place] if match else []
    return 2 * out * math.prod(left[place] for place in summed)
  return _convolution_flops(instruction, left, right)


def _convolution_flops(instruction: Instruction, left: list[int], right: list[int]) -> float:
  """2 x batch x outputs x inputs x pairs of (position, tap) that meet: padding costs nothing."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
  out = dict(zip(labels[3], _dims(instruction.shape), strict=False))
  into, kernel = (dict(zip(labels[n], d, strict=False)) for n, d in ((1, left), (2, right)))
  window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
  fields = dict(part.split("=") for part in window[1].split()) if window else {}
  spatial = sorted(label for label in out if label.isdigit())
  pairs = 1
  for place, label in enumerate(spatial):
    numbers = {name: sizes.split("x")[place] for name, sizes in fields.items()}
    pad = numbers.get("pad", "0_0")
    pairs *= _meetings(
      into[label],
      kernel[label],
      out[label],
      stride=int(numbers.get("stride", 1)),
      low=int(pad[: pad.rindex("_")]),
      dilation=int(numbers.get("lhs_dilate", 1)),
      spread=int(numbers.get("rhs_dilate", 1)),
    )
  groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
  batch = out["b"] / (int(groups[1]) if groups else 1)
  return 2 * batch * out["f"] * kernel["i"] * pairs


@functools.cache
def _meetings(
  size: int, taps: int, out: int, *, stride: int, low: int, dilation: int, spread: int
) -> int:
  """How many (output, tap) pairs of one dimension fall on a real input."""
  total, last = 0, (size - 1) * dilation
  for tap in range(taps):
    places = (o * stride - low + tap * spread for o in range(out))
    total += sum(0 <= place <= last and place % dilation == 0 for place in places)
  return total


def _trips(
  loop: Instruction, around: Computation, condition: Computation, body: Computation
) -> float | None:
  """How often a loop runs; None where that depends on data."""
  stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if stated:
    return int(stated[1])
  compare = condition.instructions[condition.root]
  direction = re.search(r"direction=(\w+)", compare.attributes)
  if compare.opcode != "compare" or not direction or len(compare.operands) != 2:
    return None
  left, right = (condition.instructions[name] for name in compare.operands)
  if left.opcode == "constant" and direction[1] == "GT":
    left, right, direction = right, left, re.match(r"(\w+)", "LT")
  place = re.search(r"index=(\d+)", left.attributes)
  end = _constant(right, condition)
  if not place or end is None or direction[1] not in ("LT", "LE"):
    return None
  number = int(place[1])
  tuple_ = around.instructions.get(loop.operands[0]) if loop.operands else None
  start = 0
  if tuple_ and tuple_.opcode == "tuple":
    start = _constant(around.instructions[tuple_.operands[number]], around) or 0
  pace = _pace(body, number)
  return max(0, -(-(end + (direction[1] == "LE") - start) // pace))


def _pace(body: Computation, number: int) -> int:
  """What the loop's counter grows by; 1 where the text does not say."""
  root = body.instructions[body.root]
  if root.opcode != "tuple":
    return 1
  grown = _origin(body.instructions[root.operands[number]], body)
  if grown.opcode != "add":
    return 1
  constants = [_constant(body.instructions[name], body) for name in grown.operands]
  return next((value for value in constants if value), 1)


def _constant(instruction: Instruction, computation: Computation) -> int | None:
  origin = _origin(instruction, computation)
  if origin.opcode != "constant" or not re.fullmatch(r"-?\d+", origin.arguments.strip()):
    return None
  return int(origin.arguments)


def _origin(instruction: Instruction, computation: Computation) -> Instruction:
  """What a value is a copy of."""
  while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start", "convert"):
    before = computation.instructions.get(instruction.operands[0]) if instruction.operands else None
    if before is None:
      break
    instruction = before
  return instruction


def _groups(attributes: str, devices: int) -> list[list[int]]:
  """The partitions of every group of a collective, in any of the spellings of HLO."""
  pairs = re.search(r"source_target_pairs=\{(\{[\d,{}\s]*\})\}", attributes)
  listed = re.search(r"replica_groups=\{(\{[\d,{}\s]*\})\}", attributes)
  if pairs or listed:
    found = re.findall(r"\{([\d,\s]*)\}", (pairs or listed)[1])
    return [[int(number) for number in group.split(",") if number.strip()] for group in found]
  counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
  if counted:
    groups, dims = _numbers(counted[1]), _numbers(counted[2])
    order = _numbers(counted[3]) if counted[3] else list(range(len(dims)))
    return _cut(_transposed(dims, order), math.prod(groups[1:]))
  named = re.search(r"replica_groups=@?\w*mesh\w*\[([^\]]*)\]\s*(?:[^{]*?)\{([^}]*)\}", attributes)
  if named:
    return _mesh_groups(named[1], named[2])
  return [list(range(devices))]


def _mesh_groups(axes: str, chosen: str) -> list[list[int]]:
  """Groups over some axes of a mesh, 'axis'=size each; a part of one is 'axis':(before)size."""
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  picked = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
  dims: list[int] = []
  inside: list[int] = []
  for name, size in sizes.items():
    parts = [(int(before), int(own)) for axis, before, own in picked if axis == name and own]
    if any(axis == name and not own for axis, _, own in picked):
      parts = [(1, size)]
    reached = 1
    for before, own in sorted(parts):
      if before > reached:
        dims.append(before // reached)
      inside.append(len(dims))
      dims.append(own)
      reached = before * own
    if size > reached:
      dims.append(size // reached)
  order = [n for n in range(len(dims)) if n not in inside] + inside
  return _cut(_transposed(dims, order), math.prod(dims[n] for n in inside))


def _transposed(dims: Sequence[int], order: Sequence[int]) -> list[int]:
  """0, 1, ... laid out as `dims`, read in another order of the dimensions."""
  strides = [math.prod(dims[n + 1 :]) for n in range(len(dims))]
  numbers = [0]
  for place in order:
    numbers = [n + step * strides[place] for n in numbers for step in range(dims[place])]
  return numbers


def _cut(numbers: list[int], size: int) -> list[list[int]]:
  return [numbers[n : n + size] for n in range(0, len(numbers), size)]


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",") if number]


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


def largest_buffers(assignment: str, module: Module, *, count: int) -> list[Buffer]:
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
    kind, dims, _ = _ARRAY.search(shape).groups()
    told = source or next(filter(None, (module.operation(name) for name, *_ in holders)), "")
    found.append(Buffer(size, f"{kind}[{dims}]", told))
    if len(found) == count:
      break
  return found
