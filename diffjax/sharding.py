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
from diffjax.types import Array, UserError

AXES = ("data", "fsdp", "tensor")
ROWS = "rows"  # the one axis of a sampler's mesh
BATCH_AXES = ("data", "fsdp")  # rows of a batch are split over both

# The logical axes of a dimension -> the mesh axis that splits it.
LOGICAL_AXES = {
  "vocabulary": "tensor",
  "heads": "tensor",
  "inner": "tensor",
  "width": "fsdp",
  "stack": None,
  "whole": None,
}

# How a parameter's path ends -> the logical axis of each dimension. Optimizer moments and averages
# end in the same paths, so that one table covers the whole state; exactly one rule must match.
PARAMETER_RULES = (
  (r"embedding/tokens", ("vocabulary", "width")),
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
  (r"head/table", ("vocabulary", "width")),
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


def make_mesh(config: MeshConfig) -> Mesh:
  """The mesh over all devices. Raises UserError when the axes do not multiply to their number."""
  devices = jax.devices()
  sizes = [config.data, config.fsdp, config.tensor]
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(1, len(devices) // math.prod(s for s in sizes if s != -1))
  if math.prod(sizes) != len(devices):
    raise UserError(
      f"config.mesh: {' x '.join(f'{a}={s}' for a, s in zip(AXES, sizes, strict=True))} needs "
      f"{math.prod(sizes)} devices, there are {len(devices)}; set one axis to -1 (the rest)"
    )
  # A tall mesh on a torus needs axes that share a physical one.
  grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


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


def constrain_rows(x: Array, *, mesh: Mesh) -> Array:
  """Keeps an activation [B, ...] split by rows, so that XLA gathers weights and not activations."""
  return jax.lax.with_sharding_constraint(x, rows(mesh))


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
    if axis and size % mesh.shape[axis]:
      legal = [n for n in range(1, mesh.shape[axis] + 1) if size % n == 0]
      raise UserError(
        f"config.mesh.{axis} = {mesh.shape[axis]} does not divide {name} {size} of {path}; "
        f"nearest that does is {legal[-1]}"
      )
  return P(*axes)
