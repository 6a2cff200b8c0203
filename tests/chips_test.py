"""The table of chips: what JAX shows is found in it, and its figures are of the right size."""

from types import SimpleNamespace

import jax
import pytest

from diffjax import chips

KINDS = {
  "TPU v4": "v4",
  "TPU v5 lite": "v5e",
  "TPU v5p": "v5p",
  "TPU v5": "v5p",
  "TPU v6 lite": "v6e",
  "TPU7x": "tpu7x",
  "NVIDIA H100 80GB HBM3": "h100",
  "NVIDIA H200": "h200",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_is_found_by_its_kind(kind):
  assert chips.of_device(SimpleNamespace(device_kind=kind)).name == KINDS[kind]


def test_an_unknown_device_is_no_chip():
  assert chips.of_device(jax.devices()[0]) is None  # a CPU
  assert chips.of_device(SimpleNamespace(device_kind="NVIDIA H100 PCIe")) is None  # is slower


@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=lambda chip: chip.name)
def test_figures_are_in_their_units(chip):
  assert 1e14 < chip.peak_flops < 1e16
  assert 1e10 < chip.hbm_bytes < 1e12 < 10 * chip.hbm_bandwidth < 1e14
  # Every further way of memory is slower: HBM, links, network.
  assert chip.hbm_bandwidth > chip.link_bandwidth > chip.network_bandwidth > 1e9
  assert chip.host_bytes > chip.chips_per_host * chip.hbm_bytes
  assert chip.device_flops * chip.devices == chip.peak_flops
  assert chip.is_gpu == chip.name.startswith(("a", "b", "h"))
