"""The mesh, and one table that says how every array lies on it."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.config import MeshConfig
from diffjax.types import Shards, UserError

AXES = ("data", "fsdp", "tensor", "sequence")
ROWS = "rows"  # the one axis of a sampler's mesh
BATCH_AXES = ("data", "fsdp")  # rows of a batch are split over both

# The logical axes of a dimension -> the mesh axes that split it.
LOGICAL_AXES = {
  "vocabulary": ("fsdp", "tensor"),
  "heads": "tensor",
  "inner": "tensor",
  "width": "fsdp",
  "stack": None,
  "whole": None,
}

# How a parameter's path ends -> the logical axis of each dimension. Optimizer moments and averages
# end in the same paths, so that one table covers the whole state; exactly one rule must match.
PARAMETER_RULES = (
  (r"embedding/tokens", ("vocabulary", "whole")),
  (r"embedding/(positions|types)", ("whole", "width")),
  (r"embedding/norm/(scale|bias)", ("whole",)),
  (r"layers/attention/(query|key|value)/kernel", ("stack", "width", "heads", "whole")),
  (r"layers/attention/(query|key|value)/bias", ("stack", "heads", "whole")),
  (r"layers/attention/(query|key|value)/lora_a", ("stack", "width", "whole")),
  (r"layers/attention/(query|key|value)/lora_b", ("stack", "whole", "heads", "whole")),
  (r"layers/attention/(query_norm|key_norm)/scale", ("stack", "whole")),
  (r"layers/attention/output/kernel", ("stack", "heads", "whole", "width")),
  (r"layers/attention/output/lora_a", ("stack", "heads", "whole", "whole")),
  (r"layers/(attention/output|ffn/down)/lora_b", ("stack", "whole", "width")),
  (r"layers/ffn/(gate|up)/kernel", ("stack", "width", "inner")),
  (r"layers/ffn/(gate|up)/bias", ("stack", "inner")),
  (r"layers/ffn/(gate|up)/lora_a", ("stack", "width", "whole")),
  (r"layers/ffn/(gate|up)/lora_b", ("stack", "whole", "inner")),
  (r"layers/ffn/down/kernel", ("stack", "inner", "width")),
  (r"layers/ffn/down/lora_a", ("stack", "inner", "whole")),
  (r"layers/(attention/output|ffn/down)/bias", ("stack", "whole")),
  (r"layers/(attention_norm|ffn_norm)/(scale|bias)", ("stack", "whole")),
  (r"final_norm/(scale|bias)", ("whole",)),
  (r"head/dense/kernel", ("width", "whole")),
  (r"head/(dense/bias|norm/(scale|bias))", ("whole",)),
  (r"head/bias", ("vocabulary",)),
  (r"head/table", ("vocabulary", "whole")),
  (r"length_head/attention/(query|key|value)/kernel", ("width", "heads", "whole")),
  (r"length_head/attention/(query|key|value)/bias", ("heads", "whole")),
  (r"length_head/attention/output/kernel", ("heads", "whole", "width")),
  (r"length_head/(ffn/up|hidden)/kernel", ("width", "inner")),
  (r"length_head/(ffn/up|hidden)/bias", ("inner",)),
  (r"length_head/ffn/down/kernel", ("inner", "width")),
  (r"length_head/(attention/output|ffn/down)/bias", ("whole",)),
  (r"length_head/(attention_norm|ffn_norm)/(scale|bias)", ("whole",)),
  (r"length_head/classes/kernel", ("inner", "whole")),  # any number of classes, so not split
  (r"length_head/classes/bias", ("whole",)),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh over all devices, or over those given, which need not be there (a topology's).

  Devices of several slices, or of hosts that a slower network joins, are laid out so that it is
  crossed by the axis data alone, else by fsdp.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [getattr(config, axis) for axis in AXES]
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(1, len(devices) // math.prod(s for s in sizes if s != -1))
  if math.prod(sizes) != len(devices):
    raise UserError(
      f"config.mesh: {' x '.join(f'{a}={s}' for a, s in zip(AXES, sizes, strict=True))} needs "
      f"{math.prod(sizes)} devices, there are {len(devices)}; set one axis to -1 (the rest)"
    )
  # A tall mesh on a torus needs axes that share a physical one.
  slices = {getattr(device, "slice_index", 0) for device in devices}
  if len(slices) > 1:
    across, inside = _over_slices(sizes, len(slices))
    grid = mesh_utils.create_hybrid_device_mesh(
      inside, across, devices, allow_split_physical_axes=True
    )
  else:
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _over_slices(sizes: Sequence[int], slices: int) -> tuple[list[int], list[int]]:
  """Each axis' size across slices, and inside one. Raises UserError where no axis can be cut."""
  for axis in BATCH_AXES:
    place = AXES.index(axis)
    if sizes[place] % slices == 0:
      across = [slices if n == place else 1 for n in range(len(sizes))]
      return across, [size // over for size, over in zip(sizes, across, strict=True)]
  raise UserError(
    f"config.mesh: {slices} slices must divide data = {sizes[0]} or fsdp = {sizes[1]}; set data to "
    f"{slices}"
  )


def rows_mesh(devices: Sequence[jax.Device]) -> Mesh:
  """Devices of one process that share the rows of a sampler's batch, each a whole model."""
  grid = mesh_utils.create_device_mesh((len(devices),), devices)
  return Mesh(grid, (ROWS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, P())


def rows(mesh: Mesh) -> NamedSharding:
  """The leading axis, rows of a batch, is split over data and fsdp."""
  return NamedSharding(mesh, P(BATCH_AXES))


def shards(mesh: Mesh) -> Shards | None:
  """How activations lie on the mesh; None on one device, where nothing need be said."""
  if mesh.size == 1:
    return None
  return Shards(mesh, BATCH_AXES, "sequence", "tensor", LOGICAL_AXES["vocabulary"])


def place_rows(batch: Any, rows: NamedSharding) -> Any:
  """Every process's own rows of a batch (NumPy) as one global array."""
  place = functools.partial(jax.make_array_from_process_local_data, rows)
  return jax.tree.map(place, batch)


def check_rows(count: int, mesh: Mesh, what: str) -> None:
  """Raises UserError unless the rows of a batch divide over the mesh."""
  parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  if count % parts:
    below = count // parts * parts
    nearest = [n for n in (below, below + parts) if n]
    raise UserError(
      f"{what} = {count} rows must divide over data x fsdp = {parts} devices; nearest are {nearest}"
    )


def shardings(tree: Any, mesh: Mesh) -> Any:
  """A NamedSharding for every leaf of a tree of parameters, moments or a whole training state.

  Args:
    tree: arrays or ShapeDtypeStructs; scalars are replicated.

  Raises:
    UserError: a leaf that no rule or more than one rule matches, or a dimension that does not
      divide over its mesh axis.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(mesh, _spec(_path_name(path), leaf.shape, mesh)), tree
  )


def _path_name(path: tuple[Any, ...]) -> str:
  names = (getattr(entry, "key", getattr(entry, "name", None)) for entry in path)
  return "/".join(str(name) for name in names if name is not None)


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  if not shape:
    return P()
  matches = [axes for rule, axes in PARAMETER_RULES if re.search(f"(^|/){rule}$", path)]
  if len(matches) != 1 or len(matches[0]) != len(shape):
    raise UserError(
      f"parameter {path} {shape}: {len(matches)} sharding rules match, exactly one with "
      f"{len(shape)} axes must; see PARAMETER_RULES in diffjax/sharding.py"
    )
  axes = tuple(LOGICAL_AXES[name] for name in matches[0])
  for size, axis, name in zip(shape, axes, matches[0], strict=True):
    parts = math.prod(mesh.shape[part] for part in _names(axis))
    if size % parts:
      below = next(n for n in range(parts, 0, -1) if size % n == 0)
      above = next(n for n in range(parts, size + 1) if size % n == 0)
      raise UserError(
        f"config.mesh.{' x '.join(_names(axis))} = {parts} does not divide {name} {size} of "
        f"{path}; nearest that do are {below} and {above}"
      )
  return P(*axes)


def _names(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (axis,) if isinstance(axis, str) else axis or ()
