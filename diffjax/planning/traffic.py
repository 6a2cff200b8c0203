"""Bytes that the instructions of a compiled program move between HBM and the cores.

Of what is only sliced, the slices count; of an update in place, the update.
"""

import functools

from diffjax.planning import hlo
from diffjax.planning.hlo import Computation, Instruction, Module

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


def hbm_bytes(instruction: Instruction, computation: Computation, module: Module) -> float:
  """Bytes that an instruction outside a fusion moves between HBM and the cores."""
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith("-done"):
    return 0
  own = functools.partial(hlo.shape_bytes, hbm_only=True)
  operands = [computation.instructions[name] for name in dict.fromkeys(instruction.operands)]
  if opcode in ("copy-start", "slice-start", "async-start"):
    target = _start_target(instruction)
    near = not any(own(operand.shape) for operand in operands)
    return (0 if near else hlo.shape_bytes(target)) + own(target)
  if opcode == "custom-call" and hlo.attribute_of(instruction, "custom_call_target") in _VIRTUAL:
    return 0
  called = module.called(instruction, "calls") if opcode == "fusion" else None
  if called is None:
    return sum(
      _read_by(instruction, operand.name, computation, module) for operand in operands
    ) + _written(instruction, computation, module)
  reads = 0.0
  for name, parameter in zip(instruction.operands, called.parameters, strict=False):
    if own(computation.instructions[name].shape):
      reads += _read(called, parameter, module)
  written = _written(called.instructions[called.root], called, module)
  return reads + min(written, own(instruction.shape))


def _start_target(instruction: Instruction) -> str:
  """What copy-start (target, source, ...) or slice-start ((sources), target, ...) fills."""
  arrays = [match[0] for match in hlo.ARRAY.finditer(instruction.shape)]
  return arrays[0 if instruction.opcode == "copy-start" else len(instruction.operands)]


def _read(computation: Computation, name: str, module: Module) -> float:
  """Bytes read of a value inside a fusion: of what is only sliced, the slices."""
  whole = hlo.shape_bytes(computation.instructions[name].shape, hbm_only=True)
  if not whole:
    return 0
  total = 0.0
  for user in computation.instructions.values():
    if name in user.operands:
      total += _read_by(user, name, computation, module)
  return min(whole, total)


def _read_by(user: Instruction, name: str, computation: Computation, module: Module) -> float:
  """Bytes that one instruction reads of a value."""
  whole = hlo.shape_bytes(computation.instructions[name].shape, hbm_only=True)
  first = user.operands and user.operands[0] == name
  if user.opcode in ("dynamic-slice", "slice", "gather") and first:
    return min(whole, hlo.shape_bytes(user.shape))
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
    own = hlo.shape_bytes(instruction.shape, hbm_only=True)
    return min(own, hlo.shape_bytes(get(instruction.operands[place]).shape))
  if instruction.opcode == "bitcast":
    return _written(get(instruction.operands[0]), computation, module)
  if instruction.opcode == "parameter":
    return 0
  if instruction.opcode == "fusion":
    called = module.called(instruction, "calls")
    inner = _written(called.instructions[called.root], called, module)
    return min(inner, hlo.shape_bytes(instruction.shape, hbm_only=True))
  return hlo.shape_bytes(instruction.shape, hbm_only=True)
