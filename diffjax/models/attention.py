"""From queries, keys and values to what they mix to: who sees whom, on which kernel, on which mesh.

Four ways to the same numbers. xla: scores and a mask as arrays, all at once up to a bound, beyond
it some queries at a time. cudnn: flash attention of NVIDIA GPUs in half precision, told who sees
whom by a mask. splash: the kernel for TPUs in splash.py, told by segments, order and positions.
written out: with dropout on probabilities, which no fused kernel has. `compute.attention` asks for
one; 'auto' takes what suits the device and the length, and `chosen` says what that is.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from diffjax.config import ComputeConfig, ModelConfig
from diffjax.models.splash import splash
from diffjax.types import Array, Layout, Shards, UserError

# From here on the scores of a row cost more to move than to make again: at 512 positions, heads of
# 64 and float32 scores, XLA moves 4 MB for 67 MFLOP.
SPLASH_LENGTH = 512
CHUNKED_PAIRS = 2048 * 2048  # more pairs of a query and a key in a row are not scored at once
MASK_PAIRS = 8192 * 8192  # nor written down as a mask for cuDNN
_FIELD = "config.compute.attention"


def attend(
  query: Array,
  key: Array,
  value: Array,
  *,
  queries: Layout,
  keys: Layout,
  kernel: str = "xla",
  window: int = 0,
  local: Array | bool = False,
  shards: Shards | None = None,
  drop: Callable[[Array], Array] | None = None,
) -> Array:
  """softmax over the visible keys of q k / sqrt(K), times v.

  A query sees the keys of its own segment whose order is <= its own, or that the layout opens, in
  a local layer those at most `window` positions away. A query that sees none gets finite numbers.

  Args:
    query: [B, Q, H, K].
    key: [B, L, key heads, K]; consecutive query heads share one (2305.13245).
    value: as key.
    queries: the layout of the Q positions.
    keys: of the L positions. Where L is not Q (a cache), xla computes whatever `kernel` says.
    kernel: `compute.attention`.
    window: positions that a local layer sees to either side; 0: no layer is local.
    local: bool[], whether this layer is.
    shards: rows, positions and heads of queries then stay where they are, and keys and values of
      a row are gathered over the sequence axis; None: on one device.
    drop: drops attention probabilities, float32[B, key heads, shared, Q, L].

  Returns:
    [B, Q, H, K].

  Raises:
    UserError: the kernel cannot do it; heads or positions do not divide over the mesh.
  """
  cached = query.shape[1] != key.shape[1]
  name = _choose(
    "xla" if cached else kernel,
    device=_device(shards),
    length=query.shape[1],
    local_length=query.shape[1] // _parts(shards),
    width=query.shape[3],
    dtype=query.dtype,
    dropped=drop is not None,
    opened=queries.opened is not None,
  )
  if name == "written out":
    visible = _visible(queries, keys, window, jnp.asarray(local))
    return _write_out(query, key, value, visible[:, None], drop)
  mix = {
    "xla": _mix_at_once,
    "chunked xla": _mix_in_chunks,
    "cudnn": functools.partial(_mix_at_once, implementation="cudnn"),
    "splash": functools.partial(splash, interpret=_device(shards).platform == "cpu"),
  }[name]
  local = jnp.asarray(local)
  if shards is None:
    return mix(query, key, value, queries=queries, keys=keys, window=window, local=local)
  return _mix_shards(mix, query, key, value, queries, keys, local, window, shards, cached)


def chosen(
  config: ModelConfig,
  compute: ComputeConfig,
  *,
  length: int,
  shards: Shards | None = None,
  training: bool = False,
  opened: bool = False,
) -> str:
  """The kernel of a row of `length` positions: xla, chunked xla, cudnn, splash or written out.

  Args:
    config: the architecture.
    compute: whose `attention` asks for a kernel.
    length: positions of a row, over the whole mesh.
    shards: the mesh, whose devices need not be there; None: this process's device.
    training: whether dropout is on.
    opened: whether causal attention is partly opened.

  Raises:
    UserError: as `attend`.
  """
  check_length(length, shards)
  return _choose(
    compute.attention,
    device=_device(shards),
    length=length,
    local_length=length // _parts(shards),
    width=config.head_width,
    dtype=jnp.dtype(compute.dtype),
    dropped=training and config.attention_dropout > 0,
    opened=opened,
  )


def check_length(length: int, shards: Shards | None) -> None:
  """Raises UserError unless the positions of a row divide over the mesh's sequence axis."""
  parts = _parts(shards)
  if length % parts:
    below = length // parts * parts
    nearest = " and ".join(str(n) for n in (below, below + parts) if n)
    raise UserError(
      f"config.mesh.sequence = {parts} does not divide rows of {length} positions; nearest lengths "
      f"that it does are {nearest}"
    )


def _check_heads(heads: int, what: str, shards: Shards) -> None:
  parts = shards.mesh.shape[shards.heads]
  if heads % parts:
    legal = [n for n in range(1, heads + 1) if heads % n == 0]
    raise UserError(
      f"config.mesh.{shards.heads} = {parts} does not divide {heads} {what}; set it to one of "
      f"{', '.join(map(str, legal))}"
    )


def _parts(shards: Shards | None) -> int:
  return shards.mesh.shape[shards.sequence] if shards else 1


def _device(shards: Shards | None) -> jax.Device:
  """A device of those that will compute; one of a topology need not be there."""
  return shards.mesh.devices.flat[0] if shards else jax.local_devices()[0]


def _choose(
  kernel: str,
  *,
  device: Any,
  length: int,
  local_length: int,
  width: int,
  dtype: jnp.dtype,
  dropped: bool,
  opened: bool,
) -> str:
  obstacle = lambda name: _OBSTACLES[name](device, length, local_length, width, dtype, opened)
  if kernel in _OBSTACLES:
    reason = _DROPPED if dropped else obstacle(kernel)
    if reason:
      raise UserError(f"{_FIELD} = {kernel!r} {reason}, or take 'auto' or 'xla'")
    return kernel
  if dropped:
    return "written out"
  if kernel == "auto":
    worthwhile = {"splash": device.platform == "tpu" and length >= SPLASH_LENGTH, "cudnn": True}
    for name in _OBSTACLES:
      if worthwhile[name] and not obstacle(name):
        return name
  return "chunked xla" if local_length * length > CHUNKED_PAIRS else "xla"


_DROPPED = (
  "drops no attention probabilities: set model.attention_dropout = 0 and keep model.dropout"
)


def _splash_obstacle(
  device: Any, length: int, local_length: int, width: int, dtype: jnp.dtype, opened: bool
) -> str:
  del length, local_length, dtype
  if device.platform not in ("tpu", "cpu"):
    return f"is a kernel for TPUs, here is {device.platform}: set it to 'cudnn'"
  if opened:
    return "does not do partly opened (annealed) attention: set adaptation.anneal_steps = 0"
  if width % 8:
    return f"needs heads of a multiple of 8, not {width}: set model.head_size"
  return ""


def _cudnn_obstacle(
  device: Any, length: int, local_length: int, width: int, dtype: jnp.dtype, opened: bool
) -> str:
  del opened  # a mask says it
  capability = str(getattr(device, "compute_capability", "")).split(".")
  if not capability[0].isdigit():
    return f"needs an NVIDIA GPU, here is {device.platform}: run on one"
  if int(capability[0]) < 8:
    return f"needs compute capability 8.0, this GPU has {device.compute_capability}: run on a newer"
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f"computes in half precision, not {dtype}: set compute.dtype = 'bfloat16'"
  widest = 256 if int(capability[0]) >= 9 else 128
  if width % 8 or width > widest:
    return f"needs heads of a multiple of 8 up to {widest}, not {width}: set model.head_size"
  if length * length > MASK_PAIRS:
    return f"needs rows of at most 8192 positions, not {length}: change the row's length"
  if local_length % 2:  # then the whole row's is even too
    return (
      f"needs an even number of positions on every device, not {local_length} of {length}: change "
      f"the row's length"
    )
  return ""


_OBSTACLES = {"splash": _splash_obstacle, "cudnn": _cudnn_obstacle}


def _mix_shards(
  mix: Callable[..., Array],
  query: Array,
  key: Array,
  value: Array,
  queries: Layout,
  keys: Layout,
  local: Array,
  window: int,
  shards: Shards,
  cached: bool,
) -> Array:
  """`mix` on every device: of its rows, its heads and its queries, over all keys of the row."""
  _check_heads(query.shape[2], "heads", shards)
  _check_heads(key.shape[2], "key heads", shards)
  rows, heads = shards.rows, shards.heads
  # A cache lies whole, and its queries are few.
  positions = None if cached or _parts(shards) == 1 else shards.sequence
  if positions:
    check_length(query.shape[1], shards)
  split = P(rows, positions, heads)
  opened = None if queries.opened is None else P(positions)

  def part(query, key, value, queries, keys, local):
    if positions:
      whole = functools.partial(jax.lax.all_gather, axis_name=positions, axis=1, tiled=True)
      key, value = whole(key), whole(value)
    return mix(query, key, value, queries=queries, keys=keys, window=window, local=local)

  of_queries = Layout(*[P(rows, positions)] * 3, opened)
  return jax.shard_map(
    part,
    mesh=shards.mesh,
    in_specs=(split, split, split, of_queries, Layout(*[P(rows)] * 3), P()),
    out_specs=split,
    check_vma=False,  # Pallas calls do not say over which axes their results vary
  )(query, key, value, queries, keys._replace(opened=None), local)


def _visible(queries: Layout, keys: Layout, window: int, local: Array) -> Array:
  """bool[B, Q, L], [query, key]: who sees whom; a local layer only to `window` positions away."""
  in_order = queries.order[:, :, None] >= keys.order[:, None, :]
  if queries.opened is not None:
    in_order |= queries.opened
  visible = (queries.segments[:, :, None] == keys.segments[:, None, :]) & in_order
  if window:
    near = jnp.abs(queries.positions[:, :, None] - keys.positions[:, None, :]) <= window
    visible &= near | ~local
  return visible


def _mix_at_once(
  query: Array,
  key: Array,
  value: Array,
  *,
  queries: Layout,
  keys: Layout,
  window: int,
  local: Array,
  implementation: str | None = None,
) -> Array:
  visible = _visible(queries, keys, window, local)[:, None]  # [B, 1, Q, L]
  return jax.nn.dot_product_attention(
    query, key, value, mask=visible, implementation=implementation
  )


def _mix_in_chunks(
  query: Array,
  key: Array,
  value: Array,
  *,
  queries: Layout,
  keys: Layout,
  window: int,
  local: Array,
) -> Array:
  """As at once, for CHUNKED_PAIRS / L queries at a time, which the backward pass scores again."""
  rows, count = query.shape[:2]
  size = min(count, max(1, CHUNKED_PAIRS // key.shape[1]))
  chunks = -(-count // size)

  def cut(x: Array, axis: int) -> Array:
    """[..., Q, ...] -> [chunks, ..., size, ...], filled up."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, chunks * size - count)
    x = jnp.pad(x, widths)
    x = x.reshape(*x.shape[:axis], chunks, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)

  opened = None if queries.opened is None else cut(queries.opened, 0)
  layouts = Layout(*(cut(x, 1) for x in queries[:3]), opened)

  @jax.checkpoint
  def mix(chunk: tuple[Array, Layout]) -> Array:
    query, queries = chunk
    return _mix_at_once(query, key, value, queries=queries, keys=keys, window=window, local=local)

  mixed = jax.lax.map(mix, (cut(query, 1), layouts))  # [chunks, B, size, H, K]
  return jnp.moveaxis(mixed, 0, 1).reshape(rows, -1, *query.shape[2:])[:, :count]


def _write_out(
  query: Array, key: Array, value: Array, visible: Array, drop: Callable[[Array], Array]
) -> Array:
  """Attention whose probabilities are dropped; written out, since fused kernels cannot.

  Not split by hand: a row's mask is drawn whole, so that it is the same on any mesh.
  """
  rows, length, heads, size = query.shape
  key_heads = key.shape[2]
  query = query.reshape(rows, length, key_heads, heads // key_heads, size)
  scores = jnp.einsum("bqngk,bsnk->bngqs", query, key, preferred_element_type=jnp.float32)
  scores = jnp.where(visible[:, None], scores / jnp.sqrt(size), jnp.finfo(jnp.float32).min)
  probabilities = drop(jax.nn.softmax(scores, axis=-1))
  mixed = jnp.einsum("bngqs,bsnk->bqngk", probabilities.astype(value.dtype), value)
  return mixed.reshape(rows, length, heads, size)
