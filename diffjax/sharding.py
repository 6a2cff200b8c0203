"""The mesh, and one table that says how every array lies on it."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
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
# Adafactor's row and column means have the path of their matrix and its first or last axes.
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


def axis_sizes(config: MeshConfig, devices: int) -> list[int]:
  """Devices along each of AXES. Raises UserError where they do not multiply to `devices`."""
  sizes = [getattr(config, axis) for axis in AXES]
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(1, devices // math.prod(s for s in sizes if s != -1))
  if math.prod(sizes) != devices:
    raise UserError(
      f"config.mesh: {' x '.join(f'{a}={s}' for a, s in zip(AXES, sizes, strict=True))} needs "
      f"{math.prod(sizes)} devices, there are {devices}; set one axis to -1 (the rest)"
    )
  return sizes


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh over all devices, or over those given, which need not be there (a topology's).

  Devices of several slices, or of hosts that a slower network joins, are laid out so that it is
  crossed by the axis data, and by fsdp where data is too small.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = axis_sizes(config, len(devices))
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
  data, fsdp = sizes[:2]
  over_data = math.gcd(data, slices)
  over_fsdp = slices // over_data
  if fsdp % over_fsdp:
    raise UserError(
      f"config.mesh: {slices} slices do not divide over data = {data} and fsdp = {fsdp}; set data "
      f"to a multiple of {slices}"
    )
  across = [over_data, over_fsdp, *(1 for _ in sizes[2:])]
  return across, [size // over for size, over in zip(sizes, across, strict=True)]


def rows_mesh(devices: Sequence[jax.Device]) -> Mesh:
  """Devices of one process that share the rows of a sampler's batch, each a whole model."""
  grid = mesh_utils.create_device_mesh((len(devices),), devices)
  return Mesh(grid, (ROWS,), axis_types=(AxisType.Auto,))


def without_sequence(mesh: Mesh) -> Mesh:
  """The mesh with its axis sequence counted to data: its devices take rows, whole.

  Every device keeps the shard of a parameter that it has, as none is split by sequence.
  """
  data, fsdp, tensor, sequence = mesh.devices.shape
  if sequence == 1:
    return mesh
  grid = mesh.devices.transpose(0, 3, 1, 2).reshape(data * sequence, fsdp, tensor, 1)
  return Mesh(grid, AXES, axis_types=mesh.axis_types)


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, P())


def rows(mesh: Mesh) -> NamedSharding:
  """The leading axis, rows of a batch, is split over data and fsdp."""
  return NamedSharding(mesh, P(BATCH_AXES))


def shards(mesh: Mesh) -> Shards | None:
  """How activations lie on the mesh; None on one device, where nothing need be said.

  One of another platform than this process runs on, as of a topology that is planned for, is said:
  kernels are chosen by it.
  """
  if mesh.size == 1 and mesh.devices.flat[0].platform == jax.default_backend():
    return None
  return Shards(mesh, BATCH_AXES, "sequence", "tensor", LOGICAL_AXES["vocabulary"])


def row_blocks(mesh: Mesh) -> tuple[tuple[int, ...], int]:
  """Which of a batch's equal blocks of rows the devices of this process hold, and of how many.

  They need not be neighbours: a host's chips are a square of the torus, which the mesh goes along.
  Processes that share rows (tensor or sequence spans them) hold the same blocks.
  """
  count = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  held = rows(mesh).addressable_devices_indices_map((count,)).values()
  return tuple(sorted({index[0].indices(count)[0] for index in held})), count


def place_rows(batch: Any, rows: NamedSharding) -> Any:
  """Every process's own rows of a batch (NumPy) as one global array; see `row_blocks`."""
  numbers, count = row_blocks(rows.mesh)

  def place(own: np.ndarray) -> jax.Array:
    size = len(own) // len(numbers)  # rows of a block
    shape = (count * size, *own.shape[1:])

    def read(index: tuple[slice, ...]) -> np.ndarray:
      block = numbers.index(index[0].indices(shape[0])[0] // size)
      return own[block * size : (block + 1) * size]

    return jax.make_array_from_callback(shape, rows, read)

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
  found, form = jax.tree_util.tree_flatten_with_path(tree)
  leaves = [(path := _path_name(keys), x.shape, _leaf_axes(path, x.shape)) for keys, x in found]
  _check_sizes(leaves, mesh)
  specs = [P(*(LOGICAL_AXES[name] for name in axes)) for _, _, axes in leaves]
  return jax.tree.unflatten(form, [NamedSharding(mesh, spec) for spec in specs])


def describe(tree: Any) -> list[str]:
  """A line for every leaf: path, dtype[shape], mesh axes of each dimension, shape and bytes.

  Shape and bytes are those on one device; in the axes - is whole and + joins several.

  Args:
    tree: arrays or ShapeDtypeStructs with NamedShardings.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [f"{_path_name(path)}  {describe_array(leaf, leaf.sharding)}" for path, leaf in leaves]


def describe_array(array: Any, sharding: NamedSharding) -> str:
  """`dtype[shape] [axes] [shape on one device] bytes on it`; the array need not be there."""
  axes = (*sharding.spec, *(None,) * (len(array.shape) - len(sharding.spec)))
  split = ", ".join("+".join(_names(axis)) or "-" for axis in axes)
  local = sharding.shard_shape(tuple(array.shape))
  size = math.prod(local) * array.dtype.itemsize
  return f"{array.dtype}{list(array.shape)}  [{split}]  {list(local)}  {size:,}"


def local_bytes(tree: Any) -> int:
  """What one device holds of a tree as `describe` takes it."""
  local = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape))
  return sum(local(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def replicated_over_fsdp(tree: Any, *, share: float = 0.01) -> list[str]:
  """Paths of leaves that every device along fsdp holds alike, though they are not small.

  Args:
    tree: as `describe` takes it.
    share: of all numbers of the tree, above which a leaf is not small.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  total = sum(leaf.size for _, leaf in leaves)
  return [
    _path_name(path)
    for path, leaf in leaves
    if leaf.size > share * total
    and leaf.sharding.mesh.shape["fsdp"] > 1
    and "fsdp" not in {name for axis in leaf.sharding.spec for name in _names(axis)}
  ]


def _path_name(path: tuple[Any, ...]) -> str:
  names = (getattr(entry, "key", getattr(entry, "name", None)) for entry in path)
  return "/".join(str(name) for name in names if name is not None)


def logical_axes(path: str, count: int) -> tuple[str, ...]:
  """The logical axis of each dimension of a leaf, as PARAMETER_RULES says.

  Args:
    path: of names, joined by /.
    count: of the leaf's dimensions.

  Raises:
    UserError: not exactly one rule matches, or one of another number of dimensions.
  """
  matrix, _, part = path.rpartition("/")
  is_mean = part in ("rows", "columns")
  own = matrix if is_mean else path
  matches = [axes for rule, axes in PARAMETER_RULES if re.search(f"(^|/){rule}$", own)]
  if is_mean:
    matches = [_mean_axes(axes, count, part) for axes in matches]
  if len(matches) != 1 or len(matches[0]) != count:
    raise UserError(
      f"parameter {path} of {count} dimensions: {len(matches)} sharding rules match, exactly one "
      f"with as many axes must; see PARAMETER_RULES in diffjax/sharding.py"
    )
  return matches[0]


def _mean_axes(axes: tuple[str, ...], count: int, part: str) -> tuple[str, ...]:
  """`count` axes of a matrix' row or column means; () where it cannot have as many."""
  stack = axes[:1] if axes[0] == "stack" else ()
  inside, kept = axes[len(stack) :], count - len(stack)
  if not 0 < kept < len(inside):
    return ()
  return stack + (inside[:kept] if part == "rows" else inside[-kept:])


def _leaf_axes(path: str, shape: tuple[int, ...]) -> tuple[str, ...]:
  return logical_axes(path, len(shape)) if shape else ()


def _check_sizes(
  leaves: Sequence[tuple[str, tuple[int, ...], tuple[str, ...]]], mesh: Mesh
) -> None:
  """Raises UserError, with the nearest that all leaves allow, unless all divide over the mesh.

  Args:
    leaves: path, shape and logical axes of each.
    mesh: as `make_mesh` makes it.
  """
  split: dict[tuple[int, tuple[str, ...]], tuple[str, str]] = {}  # the first of every size
  for path, shape, axes in leaves:
    for size, name in zip(shape, axes, strict=True):
      split.setdefault((size, _names(LOGICAL_AXES[name])), (name, path))

  def uneven(fsdp: int, tensor: int) -> list[tuple[int, tuple[str, ...]]]:
    parts = {"fsdp": fsdp, "tensor": tensor}
    return [(size, on) for size, on in split if size % math.prod(parts[axis] for axis in on)]

  asked = mesh.shape["fsdp"], mesh.shape["tensor"]
  if not (wrong := uneven(*asked)):
    return
  size, on = wrong[0]
  name, path = split[size, on]
  devices = mesh.size // mesh.shape["sequence"]  # data takes those that fsdp and tensor leave
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  legal = [
    pair
    for pair in itertools.product(divisors, divisors)
    if devices % math.prod(pair) == 0 and not uneven(*pair)
  ]
  apart = lambda pair: sum(abs(math.log(n / m)) for n, m in zip(pair, asked, strict=True))
  fsdp, tensor = min(legal, key=apart)
  raise UserError(
    f"config.mesh.{' x '.join(on)} = {math.prod(mesh.shape[axis] for axis in on)} does not divide "
    f"{name} {size} of {path}; nearest that all parameters allow: fsdp = {fsdp}, tensor = {tensor}"
  )


def _names(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (axis,) if isinstance(axis, str) else axis or ()
