"""Word embeddings, on one device or where every device holds some rows of the table."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.config import ModelConfig
from diffjax.models.layers import EMBEDDING_SITE, Norm, dropout
from diffjax.types import Array, Layout, Shards

_TABLE = nn.initializers.normal(0.02)
_TRAINED_MASK_SHARE = 0.15 * 0.8  # of the tokens of ESM-2's training
_EXCHANGED = 2**24  # numbers at one time, where the result itself is not larger


class Embedding(nn.Module):
  """Word embeddings, with learned positions, the first type and a norm where the model has them."""

  config: ModelConfig
  dtype: jnp.dtype
  mask_id: int
  shards: Shards | None = None

  @nn.compact
  def __call__(self, tokens: Array, layout: Layout, keys: Array | None) -> Array:
    """tokens int32[B, L] -> [B, L, D]."""
    config = self.config
    table = lambda name, rows: self.param(name, _TABLE, (rows, config.width))
    x = look_up(table("tokens", config.table_rows), tokens, dtype=self.dtype, shards=self.shards)
    x = x.astype(jnp.float32)
    if config.zero_mask_embedding:
      x = _zero_masks(x, tokens == self.mask_id, layout.segments)
    if config.token_types:
      x = x + _whole(table("types", config.token_types), self.shards)[0]
    if config.positions == "learned":
      offset = config.position_offset
      positions = _whole(table("positions", config.max_positions + offset), self.shards)
      x = x + positions[layout.positions + offset]
    x = x.astype(self.dtype)
    if config.embedding_norm:
      x = Norm(config.norm_kind, config.norm_epsilon, self.dtype, name="norm")(x)
    return dropout(x, keys, config.dropout, site=EMBEDDING_SITE, layer=config.layers)


def _whole(table: Array, shards: Shards | None) -> Array:
  """A small table on every device: looked up in parts of its width, it would spread every row."""
  if shards is None:
    return table
  return jax.lax.with_sharding_constraint(table, NamedSharding(shards.mesh, P()))


def _zero_masks(x: Array, masks: Array, segments: Array) -> Array:
  """ESM-2's token dropout: masks embed as 0, the rest grows by their share in the segment.

  The scale, (1 - 0.12) / (1 - share), keeps the mean size at what training had.
  """
  same = segments[:, :, None] == segments[:, None, :]  # [B, L, L]
  kept = (same & ~masks[:, None, :]).sum(-1) / same.sum(-1)  # 1 - share, 0 only where all are masks
  scale = (1 - _TRAINED_MASK_SHARE) / jnp.where(kept > 0, kept, 1)
  return jnp.where(masks, 0, scale)[..., None] * x


def look_up(
  table: Array, tokens: Array, *, dtype: jnp.dtype, shards: Shards | None = None
) -> Array:
  """The rows of a table.

  On a mesh the table stays where it is: each device finds its rows for all positions of those that
  share the table with it, and they are added up at the positions' owners; one of them is not 0.
  The gradient goes the way back, and no device ever holds more of it than its own rows.

  Args:
    table: [V, D], split by vocabulary.
    tokens: int32[B, L], split by rows.
    dtype: in which rows are exchanged on a mesh, hence that of the result there; on one device it
      is the table's. In bfloat16 they are rounded before positions are added to them, not after.
    shards: how B, L and V are split, or None on one device.

  Returns:
    [B, L, D]; on a mesh split by rows and positions.
  """
  return table[tokens] if shards is None else _look_up(table, tokens, jnp.dtype(dtype), shards)


# Derived by hand: JAX's own transpose of the loop would make an array of the table's size in every
# round, and sum gradients over devices that have the same.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _look_up(table: Array, tokens: Array, dtype: jnp.dtype, shards: Shards) -> Array:
  vocabulary, shared, _ = _axes(shards)
  others = tuple(name for name in vocabulary if name not in shared)

  def find(table: Array, tokens: Array) -> Array:
    def found(tokens: Array) -> Array:
      x = table.at[_own(tokens, len(table), vocabulary)].get(mode="fill", fill_value=0)
      x = x.astype(dtype)
      if shared:
        x = jax.lax.psum_scatter(x, shared, tiled=True)
      return jax.lax.psum(x, others) if others else x

    x = jax.lax.map(found, _pieces(tokens, table.shape[1], shared, shards))
    return x.reshape(-1, table.shape[1])[: tokens.size].reshape(*tokens.shape, -1)

  positions = P(shards.rows, shards.sequence)
  return jax.shard_map(
    find,
    mesh=shards.mesh,
    in_specs=(P(shards.vocabulary), positions),
    out_specs=positions,
    check_vma=False,
  )(table, tokens)


def _forward(table, tokens, dtype, shards):
  return _look_up(table, tokens, dtype, shards), (table, tokens)


def _backward(dtype, shards, saved, gradient):
  del dtype
  vocabulary, shared, apart = _axes(shards)

  def add_up(table: Array, tokens: Array, gradient: Array) -> Array:
    ids = _pieces(tokens, table.shape[1], shared, shards)
    gradient = gradient.reshape(-1, table.shape[1])
    size = ids.shape[1] // _size(shared, shards)
    gradient = jnp.pad(gradient, ((0, len(ids) * size - len(gradient)), (0, 0)))

    def add(total: Array, piece: tuple[Array, Array]) -> tuple[Array, None]:
      tokens, x = piece
      if shared:
        x = jax.lax.all_gather(x, shared, tiled=True)
      rows = _own(tokens, len(total), vocabulary)
      return total.at[rows].add(x.astype(jnp.float32), mode="drop"), None

    zeros = jnp.zeros(table.shape, jnp.float32)
    total, _ = jax.lax.scan(add, zeros, (ids, gradient.reshape(len(ids), size, -1)))
    return (jax.lax.psum(total, apart) if apart else total).astype(table.dtype)

  positions = P(shards.rows, shards.sequence)
  d_table = jax.shard_map(
    add_up,
    mesh=shards.mesh,
    in_specs=(P(shards.vocabulary), positions, positions),
    out_specs=P(shards.vocabulary),
    check_vma=False,
  )(*saved, gradient)
  return d_table, None


_look_up.defvjp(_forward, _backward)


def _axes(shards: Shards) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
  """Axes longer than 1 that split the vocabulary; it and positions; positions alone."""
  positions = (*shards.rows, shards.sequence)
  long = lambda names: tuple(name for name in names if shards.mesh.shape[name] > 1)
  vocabulary = long(shards.vocabulary)
  shared = tuple(name for name in vocabulary if name in positions)
  return vocabulary, shared, tuple(name for name in long(positions) if name not in vocabulary)


def _size(names: tuple[str, ...], shards: Shards) -> int:
  return math.prod(shards.mesh.shape[name] for name in names)


def _pieces(tokens: Array, width: int, shared: tuple[str, ...], shards: Shards) -> Array:
  """The ids of all shards that share the table, int32[pieces, positions of a piece]; -1: none.

  In pieces of each shard's positions, so that their rows take no more memory on a larger mesh.
  """
  sharing = _size(shared, shards)
  most = max(tokens.size, _EXCHANGED // width)
  count = -(-tokens.size * sharing // most)
  size = -(-tokens.size // count)
  ids = jnp.pad(jnp.ravel(tokens), (0, count * size - tokens.size), constant_values=-1)
  ids = ids.reshape(count, size)
  return jax.lax.all_gather(ids, shared, axis=1, tiled=True) if shared else ids


def _own(tokens: Array, rows: int, vocabulary: tuple[str, ...]) -> Array:
  """Which of this shard's `rows` the ids are; out of range: another's."""
  own = tokens - (jax.lax.axis_index(vocabulary) * rows if vocabulary else 0)
  return jnp.where((own >= 0) & (own < rows), own, rows)
