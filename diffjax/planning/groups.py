"""Which partitions meet in a collective, in any of the spellings of HLO."""

import math
import re
from collections.abc import Sequence


def members(attributes: str, devices: int) -> list[list[int]]:
  """The partitions of every group of a collective.

  Args:
    attributes: of the instruction.
    devices: that run the program.
  """
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
