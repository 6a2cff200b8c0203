"""FLOPs of the matrix products in a compiled program."""

import functools
import math
import re

from diffjax.planning import hlo
from diffjax.planning.hlo import Computation, Instruction


def _stated(attributes: str, field: str) -> float:
  """What a kernel's own cost estimate says."""
  match = re.search(rf'"cost_estimate":\s*\{{[^}}]*"{field}":\s*"?([\d.e+]+)', attributes)
  return float(match[1]) if match else 0.0


def flops(instruction: Instruction, computation: Computation) -> float:
  """Of a dot, a convolution, or a kernel that says how many it has; 0 of all else."""
  if instruction.opcode == "custom-call":
    return _stated(instruction.attributes, "flops")
  if instruction.opcode not in ("dot", "convolution"):
    return 0.0
  out = math.prod(hlo.sizes_of(instruction.shape))
  left, right = (
    hlo.sizes_of(computation.instructions[name].shape) for name in instruction.operands[:2]
  )
  if instruction.opcode == "dot":
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    summed = [int(place) for place in match[1].split(",") if place] if match else []
    return 2 * out * math.prod(left[place] for place in summed)
  return _convolution_flops(instruction, left, right)


def _convolution_flops(instruction: Instruction, left: list[int], right: list[int]) -> float:
  """2 x batch x outputs x inputs x pairs of (position, tap) that meet: padding costs nothing."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
  out = dict(zip(labels[3], hlo.sizes_of(instruction.shape), strict=False))
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
