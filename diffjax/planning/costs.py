"""What a run of a compiled program costs, with loops counted as often as they run.

XLA's own cost analysis counts the body of a loop once. Here every instruction counts as often as
it runs: FLOPs of matrix products, bytes between HBM and the cores, bytes that collectives bring in.
Of branches the busiest counts.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from diffjax.planning import hlo, loops, products, traffic
from diffjax.planning.groups import members
from diffjax.planning.hlo import Computation, Instruction, Module

_COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
  "collective-permute", "collective-broadcast",
)  # fmt: skip
_LINES = 10  # of the code whose traffic is told
_SCATTERED = "all-reduce-scatter"  # how a TPU's computations that keep a share of a sum are called
_NAMED = re.compile(r"%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:true|false)_computation=%([\w.\-]+)")


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


def count(
  module: Module,
  *,
  unknown_trips: Callable[[str], float] = lambda name: 1.0,
  slices: Sequence[int],
) -> Costs:
  """Adds up the whole program.

  Args:
    module: the program.
    unknown_trips: how often a loop is taken to run, by its operation's path, where that depends
      on data.
    slices: the slice that each partition lies on.
  """
  return _Counter(module, unknown_trips, slices).costs()


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
    lines = sorted((Traffic(*item) for item in self._traffic.items()), key=lambda t: -t.bytes)
    moved = sum(self._traffic.values())
    return Costs(self._flops, moved, tuple(lines[:_LINES]), tuple(collectives), tuple(self._loops))

  def _visit(self, computation: Computation, times: float, *, fused: bool) -> None:
    for instruction in computation.instructions.values():
      opcode, attributes = instruction.opcode, instruction.attributes
      self._flops += times * products.flops(instruction, computation)
      self._collective(instruction, computation, times, fused)
      if not fused:
        moved = times * traffic.hbm_bytes(instruction, computation, self._module)
        if moved:
          line = self._module.source(instruction.name) or hlo.operation_of(instruction)
          self._traffic[line] = self._traffic.get(line, 0) + moved
      if opcode == "while":
        body = self._module.called(instruction, "body")
        condition = self._module.called(instruction, "condition")
        name = hlo.path_of(instruction)
        trips = loops.trips(instruction, computation, condition, body)
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
    names = _NAMED.findall(listed[1]) if listed else _BRANCHES.findall(attributes)
    return [self._module.computations[name] for name in names]

  def _collective(
    self, instruction: Instruction, computation: Computation, times: float, fused: bool
  ) -> None:
    kind, attributes = instruction.opcode.removesuffix("-start"), instruction.attributes
    between = re.search(r'_xla_megascale_transfer_type="(\w+)"', attributes)
    if between and kind == "send":  # through the hosts: every chip with its likes in other slices
      kind = between[1].lower().replace("_", "-")
    elif kind not in _COLLECTIVES:
      return
    if fused:  # one collective in the shade of several fusions, which all name it
      channel = re.search(r"channel_id=(\d+)", attributes)
      if channel and channel[1] in self._channels:
        return
      self._channels.update([channel[1]] if channel else [])
    apart = [self._slices.index(number) for number in sorted(set(self._slices))]
    groups = [apart] if between else members(attributes, len(self._slices))
    group = max(map(len, groups), default=1)
    given = [computation.instructions[name] for name in instruction.operands]
    given = given[:1] if between else given  # the other is a token
    size = sum(hlo.shape_bytes(operand.shape) for operand in given)
    if kind == "all-reduce" and computation.name.startswith(_SCATTERED):
      kind = "reduce-scatter"
    entering = {
      "all-gather": size * (group - 1),
      "all-reduce": 2 * size * (group - 1) / group,
      "collective-permute": size,
      "collective-broadcast": size,
    }.get(kind, size * (group - 1) / group)
    reached = max(len({self._slices[member] for member in each}) for each in groups)
    key = (kind, 2 if kind == "collective-permute" else group, reached)
    added = times * entering
    moved = _Moved(times, added, added, self._module.source(instruction.name))
    self._moved[key] = _together(self._moved.get(key, _NOTHING), moved)
