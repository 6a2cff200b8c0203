"""Slices of TPU pods and hosts of GPUs by name: how many chips, hosts, links; which are legal."""

import math
import re
from typing import NamedTuple

from diffjax.chips import CHIPS, Chip
from diffjax.types import UserError

_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_BOXES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_CUBE = 4  # larger boxes are made of cubes of 4 x 4 x 4 chips, and wrap around in every direction
_LONGEST = 32
# Chips of the largest job; the side of a pod of two dimensions, which alone wraps around.
_LARGEST = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
_SIDE = {"v3": 32, "v5e": 16, "v6e": 16}
_SINGLE_HOST = 8  # chips of the largest slice of v5e and v6e on one host
# How an accelerator type begins; of v3, v4, v5p and TPU7x its number counts TensorCores.
_TYPE_NAMES = {"v5e": "v5litepod"}


class Topology(NamedTuple):
  """One or more equal slices of a pod, or hosts of GPUs."""

  chip: Chip
  shape: tuple[int, ...]  # of a slice, in chips; of GPUs (hosts, GPUs of a host)
  slices: int = 1

  @property
  def is_gpu(self) -> bool:
    """Whether its chips are GPUs."""
    return self.chip.is_gpu

  @property
  def name(self) -> str:
    """As `parse` reads it."""
    several = f"{self.slices}*" if self.slices > 1 else ""
    return f"{several}{self.chip.name}:{'x'.join(map(str, self.shape))}"

  @property
  def slice_chips(self) -> int:
    """Chips of one slice."""
    return math.prod(self.shape)

  @property
  def chips(self) -> int:
    """Chips of all slices."""
    return self.slices * self.slice_chips

  @property
  def devices(self) -> int:
    """What JAX shows of all slices."""
    return self.chips * self.chip.devices

  @property
  def hosts(self) -> int:
    """Hosts of all slices: processes of a run."""
    if self.is_gpu:
      return self.shape[0]
    alone = self.slice_chips <= _chips_of_a_host_alone(self.chip)
    return self.slices * (1 if alone else self.slice_chips // self.chip.chips_per_host)

  @property
  def together(self) -> int:
    """Devices that share a slice, or a host of GPUs: what lies beyond is behind the network."""
    return self.devices // (self.hosts if self.is_gpu else self.slices)

  @property
  def host_bytes(self) -> float:
    """Memory of one host, by its share of chips."""
    return self.chip.host_bytes * (self.chips / self.hosts) / self.chip.chips_per_host

  @property
  def accelerator_type(self) -> str:
    """How one slice is asked for: v5p-128 is 64 chips; '' for GPUs."""
    if self.is_gpu:
      return ""
    return _type_name(self.chip, self.slice_chips)

  @property
  def link_bandwidth(self) -> float:
    """Bytes/s that the links inside a slice can bring into its worst placed chip; 0: no links.

    Along a direction that wraps around, from both sides; else a chip at the end has one link.
    """
    if self.is_gpu:
      return self.chip.link_bandwidth if self.shape[1] > 1 else 0.0
    sides = [n for n in self.shape if n > 1]
    links = sum(2 if self._wraps(n) else 1 for n in sides)
    return self.chip.link_bandwidth / self.chip.links * links

  def _wraps(self, side: int) -> bool:
    if len(self.shape) == 3:
      return all(n % _CUBE == 0 for n in self.shape)
    return side == _SIDE[self.chip.name]


def parse(text: str) -> Topology:
  """A topology by its shape, v5p:4x4x4, or by an accelerator type, v5p-128.

  `2*v5e:16x16` are two slices. GPUs: `h100:8` is one host with 8, `h200:16x8` 16 hosts.

  Raises:
    UserError: nothing like it exists; names the nearest that do.
  """
  match = re.fullmatch(r"(?:(\d+)\*)?([a-z][a-z0-9]*)([:-])(\d+(?:x\d+)*)", text.strip().lower())
  name = match and {"v5litepod": "v5e", "v5": "v5p"}.get(match[2], match[2])
  if not match or name not in CHIPS:
    raise UserError(
      f"--topology={text}: write CHIP:SHAPE, such as v5p:4x4x4, v5e:2x4, 2*v5e:16x16 or h100:8, or "
      f"an accelerator type, such as v5p-128; chips: {', '.join(CHIPS)}"
    )
  slices, chip = int(match[1] or 1), CHIPS[name]
  shape = tuple(int(side) for side in match[4].split("x"))
  if slices < 1 or min(shape) < 1:
    raise UserError(f"--topology={text}: numbers must be >= 1")
  if chip.is_gpu:
    return _gpus(text, chip, shape, slices)
  if match[3] == ":":
    if shape not in legal_shapes(chip):
      raise _illegal(text, chip, math.prod(shape))
    return Topology(chip, shape, slices)
  found = [s for s in legal_shapes(chip) if _type_name(chip, math.prod(s)) == _typed(name, shape)]
  if not found:
    raise _illegal(text, chip, max(1, math.prod(shape) // chip.cores))
  return Topology(chip, min(found, key=max), slices)  # the most compact one


def legal_shapes(chip: Chip) -> list[tuple[int, ...]]:
  """The shapes that a slice of these chips can have, by number of chips."""
  if chip.name == "v3":
    return [(2, 2), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32)]
  if chip.name in _SIDE:
    return list(_SQUARES)
  sides = range(_CUBE, _LONGEST + 1, _CUBE)
  boxes = [(a, b, c) for a in sides for b in sides for c in sides if a <= b <= c]
  boxes = [box for box in boxes if math.prod(box) <= _LARGEST[chip.name]]
  return list(_SMALL_BOXES) + sorted(boxes, key=lambda box: (math.prod(box), max(box)))


def _chips_of_a_host_alone(chip: Chip) -> int:
  return _SINGLE_HOST if chip.name in ("v5e", "v6e") else chip.chips_per_host


def _type_name(chip: Chip, chips: int) -> str:
  return f"{_TYPE_NAMES.get(chip.name, chip.name)}-{chips * chip.cores}"


def _typed(name: str, shape: tuple[int, ...]) -> str:
  return f"{_TYPE_NAMES.get(name, name)}-{'x'.join(map(str, shape))}"


def _gpus(text: str, chip: Chip, shape: tuple[int, ...], slices: int) -> Topology:
  hosts, each = (1, *shape) if len(shape) == 1 else shape[:2]
  most = chip.chips_per_host
  if len(shape) > 2 or slices > 1 or each > most or (hosts > 1 and each != most):
    raise UserError(
      f"--topology={text}: write {chip.name}:N for N GPUs of one host, up to {most}, or "
      f"{chip.name}:HOSTSx{most}"
    )
  return Topology(chip, (hosts, each))


def _illegal(text: str, chip: Chip, chips: int) -> UserError:
  legal = sorted(legal_shapes(chip), key=lambda s: abs(math.log(math.prod(s) / chips)))[:3]
  near = (Topology(chip, shape) for shape in legal)
  told = ", ".join(f"{t.name} ({t.accelerator_type}, {t.chips} chips)" for t in near)
  return UserError(f"--topology={text} is no slice of {chip.name}; nearest are {told}")
