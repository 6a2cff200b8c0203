"""The network: embeddings, stacked blocks, the masked-LM head; and its binding as a Denoiser."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffjax.config import ComputeConfig, Contract, ModelConfig
from diffjax.models.layers import EMBEDDING_SITE, Block, KeysValues, Norm, Project, dropout
from diffjax.types import Array, Denoiser, Head, Layout, Params

_POLICIES = {
  "full": jax.checkpoint_policies.nothing_saveable,
  "save_matmuls": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def _same(x: Array) -> Array:
  return x


class Embedding(nn.Module):
  """Word, position and type embeddings; normalised where the architecture is post-norm."""

  config: ModelConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, tokens: Array, positions: Array, keys: Array | None) -> Array:
    """tokens, positions int32[B, L] -> [B, L, D]."""
    config = self.config
    table = lambda name, rows: self.param(name, nn.initializers.normal(0.02), (rows, config.width))
    rows = config.max_positions + config.position_offset
    x = table("tokens", config.table_rows)[tokens]
    x = x + table("types", 1)[0] + table("positions", rows)[positions + config.position_offset]
    x = x.astype(self.dtype)
    if config.norm == "post":
      x = Norm(config.norm_epsilon, self.dtype, name="norm")(x)
    return dropout(x, keys, config.dropout, site=EMBEDDING_SITE, layer=config.layers)


class MaskedHead(nn.Module):
  """The masked-LM transform before the tied projection: dense, GELU, norm."""

  config: ModelConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, hidden: Array) -> Array:
    """hidden [..., D] -> features [..., D]."""
    width = self.config.width
    self.param("bias", nn.initializers.zeros, (self.config.table_rows,))  # used by vocabulary.py
    x = Project("...d,de->...e", (width, width), (width,), self.dtype, name="dense")(hidden)
    x = jax.nn.gelu(x, approximate=False)
    return Norm(self.config.norm_epsilon, self.dtype, name="norm")(x)


class Transformer(nn.Module):
  """XLM-R in its post-norm and pre-norm forms, layers stacked on a leading axis."""

  config: ModelConfig
  compute: ComputeConfig
  constrain: Callable[[Array], Array] = _same

  def setup(self):
    """Builds the parts."""
    dtype = jnp.dtype(self.compute.dtype)
    self.embedding = Embedding(self.config, dtype)
    block = Block
    if self.compute.remat != "none":
      block = nn.remat(Block, prevent_cse=False, policy=_POLICIES[self.compute.remat])
    self.layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast, nn.broadcast),
      length=self.config.layers,
    )(self.config, dtype, self.constrain)
    if self.config.norm == "pre":
      self.final_norm = Norm(self.config.norm_epsilon, dtype)
    self.head = MaskedHead(self.config, dtype)

  def trunk(self, tokens: Array, layout: Layout, keys: Array | None) -> tuple[Array, KeysValues]:
    """tokens int32[B, L] -> (hidden [B, L, D], keys and values [N, B, L, H, K])."""
    x = self.constrain(self.embedding(tokens, layout.positions, keys))
    x, keys_values = self.layers(x, jnp.arange(self.config.layers), layout, keys)
    if self.config.norm == "pre":
      x = self.final_norm(x)
    return x, keys_values

  def transform(self, hidden: Array) -> Array:
    """hidden [..., D] -> features [..., D]."""
    return self.head(hidden)

  def __call__(self, tokens: Array, layout: Layout) -> Array:
    """Touches every parameter, for initialisation."""
    return self.transform(self.trunk(tokens, layout, None)[0])


def make_layout(
  segments: Array, *, positions: Array | None = None, order: Array | None = None
) -> Layout:
  """Positions restart in every segment and attention is full, unless given otherwise.

  Args:
    segments: int32[B, L]; 0 is padding.
    positions: int32[B, L] or None.
    order: int32[B, L] or None.
  """
  if positions is None:
    ramp = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    positions = ramp - jax.lax.cummax(jnp.where(starts, ramp, 0), axis=1)
  if order is None:
    order = jnp.zeros_like(segments)
  return Layout(segments, positions, order)


def init(key: Array, config: ModelConfig) -> Params:
  """Fresh parameters, a nested dict of float32 arrays with the names of the file format."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  module = Transformer(config, ComputeConfig())
  return module.init(key, tokens, make_layout(jnp.ones_like(tokens)))["params"]


def shapes(config: ModelConfig) -> Params:
  """The parameters' shapes and dtypes; nothing is allocated."""
  return jax.eval_shape(functools.partial(init, config=config), jax.random.key(0))


def allowed_rows(config: ModelConfig, contract: Contract) -> Array:
  """bool[V]: rows that may be predicted; the mask id and rows that stand for no id may not."""
  rows = jnp.arange(config.table_rows)
  return (rows < (contract.known_ids or config.vocab_size)) & (rows != contract.mask_id)


def bind(
  params: Params,
  segments: Array,
  *,
  config: ModelConfig,
  contract: Contract,
  compute: ComputeConfig,
  positions: Array | None = None,
  order: Array | None = None,
  dropout: Array | None = None,
  constrain: Callable[[Array], Array] = _same,
) -> Denoiser:
  """The network as the rest of the house sees it.

  Args:
    params: as `init` makes them.
    segments: int32[B, L]; 0 is padding.
    positions: int32[B, L]; default: restart in every segment.
    order: int32[B, L]; default: full attention (see Layout).
    dropout: a key for every row [B], or None for none.
    constrain: puts the sharding of the residual stream [B, L, D] on it.
  """
  module = Transformer(config, compute, constrain)
  layout = make_layout(segments, positions=positions, order=order)

  def trunk(xt: Array, t: Array | None) -> Array:
    del t  # these networks are not told the time
    return module.apply({"params": params}, xt, layout, dropout, method="trunk")[0]

  def transform(head_params: Params, hidden: Array) -> Array:
    return module.apply({"params": {"head": head_params}}, hidden, method="transform")

  head = params["head"]
  table = params["embedding"]["tokens"]
  return Denoiser(trunk, Head(transform, head, table, head["bias"], allowed_rows(config, contract)))


def logits(denoiser: Denoiser, tokens: Array) -> Array:
  """float32[B, L, V] of a clean or noised row, nothing suppressed. For small checks only."""
  head = denoiser.head
  features = head.transform(head.params, denoiser.trunk(tokens, None))
  projected = jnp.einsum(
    "bld,vd->blv", features, head.table.astype(features.dtype), preferred_element_type=jnp.float32
  )
  return projected + head.bias
