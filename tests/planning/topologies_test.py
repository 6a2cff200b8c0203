"""Topologies by shape and by accelerator type; what does not exist names what does."""

import pytest

from diffjax.planning import topologies
from diffjax.types import UserError

# text -> chips, hosts, devices, accelerator type
KNOWN = {
  "v5p:4x4x4": (64, 16, 64, "v5p-128"),
  "v5p-8": (4, 1, 4, "v5p-8"),
  "v5p-16": (8, 2, 8, "v5p-16"),
  "v4-32": (16, 4, 16, "v4-32"),
  "v4:2x2x2": (8, 2, 8, "v4-16"),
  "v5e-8": (8, 1, 8, "v5litepod-8"),
  "v5litepod-256": (256, 64, 256, "v5litepod-256"),
  "v6e:8x8": (64, 16, 64, "v6e-64"),
  "v3-32": (16, 4, 32, "v3-32"),
  "tpu7x:4x4x4": (64, 16, 128, "tpu7x-128"),
  "2*v5e:16x16": (512, 128, 512, "v5litepod-256"),
  "h100:8": (8, 1, 8, ""),
  "h200:16x8": (128, 16, 128, ""),
}


@pytest.mark.parametrize("text", KNOWN)
def test_known_ones(text):
  found = topologies.parse(text)
  chips, hosts, devices, kind = KNOWN[text]
  assert (found.chips, found.hosts, found.devices) == (chips, hosts, devices)
  assert found.accelerator_type == kind
  assert topologies.parse(found.name) == found


@pytest.mark.parametrize("chip", ["v3", "v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_a_type_name_is_the_compact_shape_of_as_many_chips(chip):
  for shape in topologies.legal_shapes(topologies.CHIPS[chip]):
    by_shape = topologies.Topology(topologies.CHIPS[chip], shape)
    by_type = topologies.parse(by_shape.accelerator_type)
    assert by_type.chips == by_shape.chips
    assert max(by_type.shape) <= max(shape)


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("v5p:3x4x4", "v5p:2x4x4 (v5p-64, 32 chips)"),
    ("v5e:4x2", "v5e:2x4 (v5litepod-8, 8 chips)"),
    ("v5e-12", "v5e:4x4 (v5litepod-16, 16 chips)"),
    ("v5p-128x2", "v5p:"),
    ("v9:2x2", "write CHIP:SHAPE"),
    ("h100:2x4", "h100:HOSTSx8"),
    ("h100:16", "up to 8"),
    ("0*v5e:2x2", "must be >= 1"),
  ],
)
def test_others_name_what_exists(text, told):
  with pytest.raises(UserError) as error:
    topologies.parse(text)
  assert told in str(error.value)
  assert "\n" not in str(error.value)


def test_links_are_those_of_the_worst_placed_chip():
  bandwidth = lambda text: topologies.parse(text).link_bandwidth / 1e9
  assert bandwidth("v5p:4x4x4") == 600  # a torus: both ways in each of 3 directions
  assert bandwidth("v5p:2x2x2") == 300  # no way around
  assert bandwidth("v5p:2x2x1") == 200
  assert bandwidth("v5e:16x16") == 2 * bandwidth("v5e:8x8") == 200
  assert bandwidth("v5e:1x1") == 0
  assert bandwidth("h100:8") == 450
