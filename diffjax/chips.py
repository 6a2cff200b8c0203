"""What accelerators can do, by their makers' public pages: peaks, memories, links.

Peaks are for dense bfloat16 products. Nothing here is measured.
"""

from typing import NamedTuple

import jax

_GIGA, _TERA = 1e9, 1e12
_MIB, _GIB = 2**20, 2**30
_BITS = 8


class Chip(NamedTuple):
  """One chip as it is sold; JAX sees it as `devices` devices."""

  name: str  # as a topology spells it
  peak_flops: float  # dense bfloat16 FLOP/s of the chip
  hbm_bytes: float
  hbm_bandwidth: float  # bytes/s
  link_bandwidth: float  # bytes/s into the chip over all its ICI or NVLink links, one direction
  network_bandwidth: float  # bytes/s of the data center network, the chip's share of its host's
  chips_per_host: int  # of a slice with several hosts
  host_bytes: float  # memory of such a host
  links: int = 1  # that make up link_bandwidth; of a torus two in every direction
  cores: int = 1  # TensorCores, which accelerator types of v3, v4 and v5p count
  devices: int = 1  # that JAX shows for one chip
  compute_capability: str = ""  # of GPUs

  @property
  def is_gpu(self) -> bool:
    """Whether it is a GPU; else a TPU."""
    return bool(self.compute_capability)

  @property
  def device_flops(self) -> float:
    """Peak FLOP/s of one JAX device."""
    return self.peak_flops / self.devices

  @property
  def device_hbm(self) -> float:
    """Bytes of HBM of one JAX device."""
    return self.hbm_bytes / self.devices


def _tpu(
  name: str,
  tflops: float,
  hbm: float,
  hbm_gbps: float,
  link_gbps: float,
  network_gbits: float,
  host: float,
  **rest: int,
) -> Chip:
  return Chip(
    name, tflops * _TERA, hbm * _GIB, hbm_gbps * _GIGA, link_gbps * _GIGA,
    network_gbits * _GIGA / _BITS, 4, host * _GIGA, **rest,
  )  # fmt: skip


def _gpu(
  name: str,
  tflops: float,
  mebibytes: float,
  hbm_gbps: float,
  link_gbps: float,
  network_gbits: float,
  capability: str,
) -> Chip:
  return Chip(
    name, tflops * _TERA, mebibytes * _MIB, hbm_gbps * _GIGA, link_gbps * _GIGA,
    network_gbits * _GIGA / _BITS, 8, 2e12, compute_capability=capability,
  )  # fmt: skip


# TPUs: the Cloud TPU documentation's page of each version ("TPU v5p", "TPU7x (Ironwood)", ...).
# Its ICI figures are of both directions together, hence half of them here; of v4 it is the links'
# 50 GB/s each way. v3's links are those of "A Domain Specific Supercomputer for Training Deep
# Neural Networks" (CACM 2020). The network of v3 and v4 is a host's 100 and 200 Gbit/s over its 4
# chips. Hosts of v5e and v6e are those of slices with several; their single hosts hold up to 8
# chips, with twice the memory.
# GPUs: NVIDIA's data sheets of the SXM modules, and of the DGX systems around them for network and
# host; products with sparsity off. Memory is in MiB, as nvidia-smi shows it: the GB of the names
# are neither decimal nor binary.
CHIPS: dict[str, Chip] = {
  chip.name: chip
  for chip in (
    _tpu("v3", 123, 32, 900, 328, 25, 335, links=4, cores=2, devices=2),
    _tpu("v4", 275, 32, 1200, 300, 50, 407, links=6, cores=2),
    _tpu("v5e", 197, 16, 819, 200, 25, 192, links=4),
    _tpu("v5p", 459, 95, 2765, 600, 50, 448, links=6, cores=2),
    _tpu("v6e", 918, 32, 1638, 400, 100, 720, links=4),
    _tpu("tpu7x", 2307, 192, 7380, 600, 100, 960, links=6, cores=2, devices=2),
    _gpu("a100", 312, 81920, 2039, 300, 200, "8.0"),
    _gpu("h100", 989, 81559, 3350, 450, 400, "9.0"),
    _gpu("h200", 989, 143771, 4800, 450, 400, "9.0"),
    _gpu("b200", 2250, 183359, 8000, 900, 400, "10.0"),
  )
}

# How JAX spells them. Cards that are slower than the SXM modules, and A100s of 40 GB, are not here.
_KINDS = {
  "TPU v3": "v3",
  "TPU v4": "v4",
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
  "TPU7x": "tpu7x",
  "NVIDIA A100-SXM4-80GB": "a100",
  "NVIDIA H100 80GB HBM3": "h100",
  "NVIDIA H200": "h200",
  "NVIDIA B200": "b200",
}


def of_device(device: jax.Device) -> Chip | None:
  """The chip that a device is, or is a part of (see Chip.devices); None where it is not known."""
  name = _KINDS.get(device.device_kind)
  return CHIPS[name] if name else None
