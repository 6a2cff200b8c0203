"""How often the loops of a compiled program run."""

import re

from diffjax.planning.hlo import Computation, Instruction


def trips(
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
