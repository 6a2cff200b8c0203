"""Attention as one Pallas kernel for TPUs: no score leaves the chip, forward or backward.

Blocks of keys stream past a block of queries while a running maximum and sum keep the softmax
exact (2205.14135). A query sees the keys of its own segment whose order is <= its own, at most
`reach` positions away in a local layer: full, causal, prefix and block attention are one kernel,
whatever the data. A block of which no query sees a key is neither fetched again nor computed; one
that all of them see is not masked. Written here because the kernels that ship with JAX know
segments but no order, other than as an array [L, L] of every row.

Inside a kernel scores stand as [keys, queries], so that what belongs to a query (maximum, sum)
is one line along the lanes, and queries and outputs are held as [K, positions].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from diffjax.types import Array, Layout

_LANES = 128
_BLOCKS = (512, 256, _LANES)  # positions of a block: the largest that divides the padded row
_UNSEEN = -1e30  # the score of a key that is not seen
_LOWEST = -1e20  # where running maxima start: above _UNSEEN, so that exp(_UNSEEN - any) is 0
_NO_QUERY, _NO_KEY = -2, -3  # segments of what fills up a block; real ones are -1, 0, 1, ...
_ROWWISE = pltpu.CompilerParams(
  dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
)


class _Sight(NamedTuple):
  """Who sees whom, as the kernels read it."""

  queries: Array  # int32[B, 3, Q]  segment, order, position
  keys: Array  # int32[B, L, 3]
  kinds: Array  # int32[B * query blocks * key blocks]  0: none is seen, 2: all are, 1: look
  reach: Array  # int32[1]  positions that are seen to either side


class _Form(NamedTuple):
  """What is fixed when a kernel is compiled."""

  rows: int
  heads: int
  key_heads: int
  query_blocks: int
  key_blocks: int
  query_block: int
  key_block: int
  width: int
  local: bool  # whether positions count
  interpret: bool

  @property
  def shared(self) -> int:
    """Query heads that share a key head."""
    return self.heads // self.key_heads

  def block(self, row: Array, query_block: Array, key_block: Array) -> Array:
    """Where a pair of blocks stands in `_Sight.kinds`."""
    return (row * self.query_blocks + query_block) * self.key_blocks + key_block


def splash(
  query: Array,
  key: Array,
  value: Array,
  *,
  queries: Layout,
  keys: Layout,
  window: int,
  local: Array | bool,
  interpret: bool,
) -> Array:
  """softmax over the visible keys of q k / sqrt(K), times v; 0 where a query sees no key.

  Args:
    query: [B, Q, H, K].
    key: [B, L, key heads, K]; consecutive query heads share one.
    value: as key.
    queries: of the Q positions; `opened` has no part in it.
    keys: of the L positions.
    window: positions that a local layer sees to either side; 0: no layer is local.
    local: bool[], whether this layer is.
    interpret: emulates the kernel with ordinary operations, for machines without a TPU.

  Returns:
    [B, Q, H, K]. Probabilities and the gradients of scores are rounded to the inputs' dtype before
    they are multiplied; sums are float32.
  """
  rows, count, heads, width = query.shape
  query_block, key_block = _block(count), _block(key.shape[1])
  query = _fill(query, query_block)
  key, value = _fill(key, key_block), _fill(value, key_block)
  form = _Form(
    rows, heads, key.shape[2], query.shape[1] // query_block, key.shape[1] // key_block,
    query_block, key_block, width, window > 0, interpret,
  )  # fmt: skip
  reach = jnp.where(local, window, jnp.iinfo(jnp.int32).max // 2).astype(jnp.int32)
  sight = _sight(queries, keys, reach, form)
  query = query.transpose(0, 2, 3, 1)  # [B, H, K, Q]
  key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))  # [B, key heads, L, K]
  return _mix(form, query, key, value, sight).transpose(0, 3, 1, 2)[:, :count]


def _block(length: int) -> int:
  padded = -(-length // _LANES) * _LANES
  return next(size for size in _BLOCKS if padded % size == 0)


def _fill(x: Array, block: int, value: int = 0) -> Array:
  """x [B, L, ...] with L filled up to whole blocks."""
  widths = [(0, 0)] * x.ndim
  widths[1] = (0, -x.shape[1] % block)
  return jnp.pad(x, widths, constant_values=value)


def _sight(queries: Layout, keys: Layout, reach: Array, form: _Form) -> _Sight:
  def lay(layout: Layout, block: int, nobody: int) -> Array:
    segments = _fill(layout.segments, block, nobody)
    rest = (_fill(x, block) for x in (layout.order, layout.positions))
    return jnp.stack([segments, *rest], axis=-1).astype(jnp.int32)  # [B, L, 3]

  asking = lay(queries, form.query_block, _NO_QUERY)
  asked = lay(keys, form.key_block, _NO_KEY)
  kinds = _kinds(asking, asked, reach, form)
  return _Sight(asking.transpose(0, 2, 1), asked, kinds.reshape(-1), reach[None])


def _kinds(asking: Array, asked: Array, reach: Array, form: _Form) -> Array:
  """int32[B, query blocks, key blocks], by the extremes of blocks alone: 1 where they leave open.

  Args:
    asking: int32[B, Q, 3].
    asked: int32[B, L, 3].
    reach: int32[].
    form: its block sizes.
  """

  def extremes(x: Array, block: int, axis: int) -> tuple[Array, Array]:
    x = x.reshape(form.rows, -1, block, 3)
    return jnp.expand_dims(x.min(2), axis), jnp.expand_dims(x.max(2), axis)

  (low, high), (key_low, key_high) = (
    extremes(asking, form.query_block, 2),
    extremes(asked, form.key_block, 1),
  )
  segment, order, position = range(3)
  some = (low <= key_high)[..., segment] & (key_low <= high)[..., segment]
  some &= (high >= key_low)[..., order]
  every = (low == high)[..., segment] & (key_low == key_high)[..., segment]
  every &= (low == key_low)[..., segment] & (low >= key_high)[..., order]
  if form.local:
    some &= ((low - key_high <= reach) & (key_low - high <= reach))[..., position]
    every &= ((high - key_low <= reach) & (key_high - low <= reach))[..., position]
  return jnp.where(some, 1 + (every & some), 0).astype(jnp.int32)


def _dot(left: Array, right: Array, axes: tuple[int, int]) -> Array:
  """float32 product of two matrices that sums over an axis of each."""
  precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
  numbers = ((axes[0],), (axes[1],)), ((), ())
  return jax.lax.dot_general(
    left, right, numbers, precision=precision, preferred_element_type=jnp.float32
  )


def _scores(query, key, sight, *, form: _Form, masked: bool) -> Array:
  """float32[keys, queries] of a pair of blocks, from refs."""
  scores = _dot(key[0, 0], query[0, 0], (1, 0)) * form.width**-0.5
  if not masked:
    return scores
  asking, asked, reach = sight
  segment, order, position = range(3)
  of_queries = lambda which: asking[0, which : which + 1, :]  # [1, queries]
  of_keys = lambda which: asked[0, :, which : which + 1]  # [keys, 1]
  seen = (of_queries(segment) == of_keys(segment)) & (of_queries(order) >= of_keys(order))
  if form.local:
    seen &= jnp.abs(of_queries(position) - of_keys(position)) <= reach[0]
  return jnp.where(seen, scores, _UNSEEN)


def _by_kind(kind: Array, add) -> None:
  """Runs add(masked) as a pair of blocks needs it, or not at all."""
  pl.when(kind == 1)(functools.partial(add, True))
  pl.when(kind == 2)(functools.partial(add, False))


def _forward_kernel(
  kinds, reach, query, key, value, asking, asked, out, logsum, total, top, mass, *, form: _Form
):
  """One query block against one key block; total, top and mass run over the key blocks."""
  row, number, other = pl.program_id(0), pl.program_id(2), pl.program_id(3)

  @pl.when(other == 0)
  def start():
    total[...] = jnp.zeros_like(total)
    mass[...] = jnp.zeros_like(mass)
    top[...] = jnp.full_like(top, _LOWEST)

  def add(masked: bool):
    scores = _scores(query, key, (asking, asked, reach), form=form, masked=masked)
    higher = jnp.maximum(top[...], scores.max(0, keepdims=True))  # [1, queries]
    fade = jnp.exp(top[...] - higher)
    weights = jnp.exp(scores - higher)
    mass[...] = mass[...] * fade + weights.sum(0, keepdims=True)
    values = value[0, 0]
    total[...] = total[...] * fade + _dot(values, weights.astype(values.dtype), (0, 0))
    top[...] = higher

  _by_kind(kinds[form.block(row, number, other)], add)

  @pl.when(other == form.key_blocks - 1)
  def finish():
    weight = jnp.where(mass[...] == 0, 1, mass[...])
    out[0, 0] = (total[...] / weight).astype(out.dtype)
    logsum[0, 0] = top[...] + jnp.log(weight)


def _slopes(query, key, value, upstream, logsum, shift, sight, *, form: _Form, masked: bool):
  """Probabilities and gradients of the scores of a pair of blocks, float32[keys, queries]."""
  scores = _scores(query, key, sight, form=form, masked=masked)
  weights = jnp.exp(scores - logsum[0, 0])
  slopes = weights * (_dot(value[0, 0], upstream[0, 0], (1, 0)) - shift[0, 0])
  return weights, slopes * form.width**-0.5


def _query_kernel(
  kinds, reach, query, key, value, asking, asked, upstream, logsum, shift, out, total,
  *, form: _Form,
):  # fmt: skip
  """The gradient of one query block, summed over the key blocks."""
  row, number, other = pl.program_id(0), pl.program_id(2), pl.program_id(3)

  @pl.when(other == 0)
  def start():
    total[...] = jnp.zeros_like(total)

  def add(masked: bool):
    _, slopes = _slopes(
      query, key, value, upstream, logsum, shift, (asking, asked, reach), form=form, masked=masked
    )
    keys = key[0, 0]
    total[...] += _dot(keys, slopes.astype(keys.dtype), (0, 0))

  _by_kind(kinds[form.block(row, number, other)], add)

  @pl.when(other == form.key_blocks - 1)
  def finish():
    out[0, 0] = total[...].astype(out.dtype)


def _key_kernel(
  kinds, reach, query, key, value, asking, asked, upstream, logsum, shift, key_out, value_out,
  key_total, value_total, *, form: _Form,
):  # fmt: skip
  """The gradients of one block of keys and values, summed over query blocks and sharing heads."""
  row, number, other = pl.program_id(0), pl.program_id(2), pl.program_id(3)

  @pl.when(other == 0)
  def start():
    key_total[...] = jnp.zeros_like(key_total)
    value_total[...] = jnp.zeros_like(value_total)

  def add(masked: bool):
    weights, slopes = _slopes(
      query, key, value, upstream, logsum, shift, (asking, asked, reach), form=form, masked=masked
    )
    above, asker = upstream[0, 0], query[0, 0]
    value_total[...] += _dot(weights.astype(above.dtype), above, (1, 1))
    key_total[...] += _dot(slopes.astype(asker.dtype), asker, (1, 1))

  _by_kind(kinds[form.block(row, other % form.query_blocks, number)], add)

  @pl.when(other == form.shared * form.query_blocks - 1)
  def finish():
    key_out[0, 0] = key_total[...].astype(key_out.dtype)
    value_out[0, 0] = value_total[...].astype(value_out.dtype)


def _specs(form: _Form, *, keys_outside: bool):
  """Block specs (query side, line of a query, key side, query ids, key ids) of a kernel.

  The grid is (rows, heads, query blocks, key blocks); with keys outside (rows, key heads, key
  blocks, sharing heads x query blocks). A block that is not needed is block 0, so that a run of
  them is fetched once.
  """

  def place(row, head, third, fourth, kinds):
    if keys_outside:
      query_head, asking, asked = (
        head * form.shared + fourth // form.query_blocks, fourth % form.query_blocks, third
      )  # fmt: skip
      needed = kinds[form.block(row, asking, asked)] > 0
      return query_head, head, jnp.where(needed, asking, 0), asked
    needed = kinds[form.block(row, third, fourth)] > 0
    return head, head // form.shared, third, jnp.where(needed, fourth, 0)

  def spec(shape, index):
    def index_map(row, head, third, fourth, kinds, reach):
      del reach
      return index(row, *place(row, head, third, fourth, kinds))

    return pl.BlockSpec(shape, index_map)

  return (
    spec((1, 1, form.width, form.query_block), lambda b, h, g, i, j: (b, h, 0, i)),
    spec((1, 1, 1, form.query_block), lambda b, h, g, i, j: (b, h, 0, i)),
    spec((1, 1, form.key_block, form.width), lambda b, h, g, i, j: (b, g, j, 0)),
    spec((1, 3, form.query_block), lambda b, h, g, i, j: (b, 0, i)),
    spec((1, form.key_block, 3), lambda b, h, g, i, j: (b, j, 0)),
  )


def _call(
  kernel, operands, sight: _Sight, *, form, grid, specs, out_specs, out_shape, scratch, dots
):
  pairs = form.rows * form.heads * form.query_blocks * form.query_block
  pairs *= form.key_blocks * form.key_block
  moved = sum(x.size * x.dtype.itemsize for x in (*operands, *jax.tree.leaves(out_shape)))
  return pl.pallas_call(
    functools.partial(kernel, form=form),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=grid,
      in_specs=specs,
      out_specs=out_specs,
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
    ),
    out_shape=out_shape,
    interpret=form.interpret,
    compiler_params=_ROWWISE,
    cost_estimate=pl.CostEstimate(
      flops=2 * dots * pairs * form.width, transcendentals=pairs, bytes_accessed=moved
    ),
    name=f"splash{kernel.__name__.removesuffix('_kernel')}",
  )(sight.kinds, sight.reach, *operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(form: _Form, query: Array, key: Array, value: Array, sight: _Sight) -> Array:
  return _forward(form, query, key, value, sight)[0]


def _forward(form: _Form, query: Array, key: Array, value: Array, sight: _Sight):
  """[B, H, K, Q] and the residuals of its gradient."""
  asker, line, store, asking, asked = _specs(form, keys_outside=False)
  out, logsum = _call(
    _forward_kernel,
    (query, key, value, sight.queries, sight.keys),
    sight,
    form=form,
    grid=(form.rows, form.heads, form.query_blocks, form.key_blocks),
    specs=[asker, store, store, asking, asked],
    out_specs=[asker, line],
    out_shape=[
      jax.ShapeDtypeStruct(query.shape, query.dtype),
      jax.ShapeDtypeStruct((*query.shape[:2], 1, query.shape[3]), jnp.float32),
    ],
    scratch=[(form.width, form.query_block), (1, form.query_block), (1, form.query_block)],
    dots=2,
  )
  return out, (query, key, value, sight, out, logsum)


def _backward(form: _Form, residuals, upstream: Array):
  """Gradients of queries, keys and values: d scores = p * (d p - sum of p * d p)."""
  query, key, value, sight, out, logsum = residuals
  shift = out.astype(jnp.float32) * upstream.astype(jnp.float32)
  shift = shift.sum(2, keepdims=True)  # [B, H, 1, Q]
  operands = (query, key, value, sight.queries, sight.keys, upstream, logsum, shift)

  def specs(keys_outside: bool):
    asker, line, store, asking, asked = _specs(form, keys_outside=keys_outside)
    return [asker, store, store, asking, asked, asker, line, line], asker, store

  run = functools.partial(_call, operands=operands, sight=sight, form=form)
  inputs, asker, _ = specs(False)
  query_slope = run(
    _query_kernel,
    grid=(form.rows, form.heads, form.query_blocks, form.key_blocks),
    specs=inputs,
    out_specs=asker,
    out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
    scratch=[(form.width, form.query_block)],
    dots=3,
  )
  inputs, _, store = specs(True)
  key_slope, value_slope = run(
    _key_kernel,
    grid=(form.rows, form.key_heads, form.key_blocks, form.shared * form.query_blocks),
    specs=inputs,
    out_specs=[store, store],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (key, value)],
    scratch=[(form.key_block, form.width)] * 2,
    dots=4,
  )
  return query_slope, key_slope, value_slope, None


_mix.defvjp(_forward, _backward)
