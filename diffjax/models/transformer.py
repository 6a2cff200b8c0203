"""The network: embedding, stacked blocks, the heads; and its binding as a Denoiser.

Over the usual length, because the binding says in one place what every caller may ask of a network.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffjax.config import ComputeConfig, Contract, LoraConfig, ModelConfig
from diffjax.models.embedding import Embedding
from diffjax.models.layers import (
  ACTIVATIONS,
  LAYER_INPUT,
  Block,
  Context,
  KeysValues,
  Norm,
  Project,
  constrain,
  rotations,
)
from diffjax.models.length_head import LengthHead
from diffjax.types import GENERATOR, Array, Cache, Denoiser, Head, Layout, Params, Shards, UserError

_POLICIES = {
  "full": jax.checkpoint_policies.nothing_saveable,
  "save_matmuls": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[LAYER_INPUT],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}
_NO_ADAPTERS = LoraConfig()
_TABLE = nn.initializers.normal(0.02)
_NOBODY = -1  # the segment of what is not there


class VocabularyHead(nn.Module):
  """Hidden states to the features that meet the vocabulary's rows.

  Of a masked LM: dense, activation, norm; linear: the hidden states themselves. The rows of an
  untied head and their bias stand beside it for diffusion/vocabulary.py, which projects.
  """

  config: ModelConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, hidden: Array) -> Array:
    """hidden [..., D] -> features [..., D]."""
    config, width = self.config, self.config.width
    if self.is_initializing():
      if config.head_bias:
        self.param("bias", nn.initializers.zeros, (config.table_rows,))
      if not config.tied:
        self.param("table", _TABLE, (config.table_rows, width))
    if config.head == "linear":
      return hidden
    dense = Project("...d,de->...e", (width, width), self.dtype, config.dense_bias, name="dense")
    x = ACTIVATIONS[config.activation](dense(hidden))
    return Norm(config.norm_kind, config.norm_epsilon, self.dtype, name="norm")(x)


class Transformer(nn.Module):
  """Every architecture of every family, layers stacked on a leading axis."""

  config: ModelConfig
  compute: ComputeConfig
  shards: Shards | None = None
  lora: LoraConfig = LoraConfig()
  mask_id: int = -1

  def setup(self):
    """Builds the parts."""
    config, dtype = self.config, jnp.dtype(self.compute.dtype)
    self.embedding = Embedding(config, dtype, self.mask_id, self.shards)
    block = Block
    if self.compute.remat != "none":
      block = nn.remat(Block, prevent_cse=False, policy=_POLICIES[self.compute.remat])
    self.layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, nn.broadcast, 0),
      length=config.layers,
    )(config, dtype, self.shards, self.lora, self.compute.attention)
    if config.norm == "pre":
      self.final_norm = Norm(config.norm_kind, config.norm_epsilon, dtype)
    self.head = VocabularyHead(config, dtype)
    if config.length_classes:
      self.length_head = LengthHead(config, dtype, self.compute.attention, self.shards)

  def trunk(
    self,
    tokens: Array,
    layout: Layout,
    keys: Array | None,
    stored: KeysValues | None = None,
    stored_layout: Layout | None = None,
  ) -> tuple[Array, KeysValues]:
    """tokens int32[B, L] -> (hidden [B, L, D], keys and values [N, B, L, key heads, K]).

    Keys and values that are `stored`, laid out as `stored_layout`, are seen beside those of tokens.
    """
    x = constrain(self.embedding(tokens, layout, keys), self.shards)
    context = Context(layout, rotations(self.config, layout.positions), keys, stored_layout)
    x, keys_values = self.layers(x, jnp.arange(self.config.layers), context, stored)
    if self.config.norm == "pre":
      x = self.final_norm(x)
    return x, keys_values

  def transform(self, hidden: Array) -> Array:
    """hidden [..., D] -> features [..., D]."""
    return self.head(hidden)

  def length_logits(self, tokens: Array, layout: Layout) -> Array:
    """tokens int32[B, L] -> float32[B, classes]."""
    return self.length_head(self.trunk(tokens, layout, None)[0], layout)

  def __call__(self, tokens: Array, layout: Layout) -> Array:
    """Touches every parameter, for initialisation."""
    if self.config.length_classes:
      self.length_logits(tokens, layout)
    return self.transform(self.trunk(tokens, layout, None)[0])


def make_layout(
  segments: Array,
  *,
  positions: Array | None = None,
  order: Array | None = None,
  opened: Array | None = None,
) -> Layout:
  """Positions restart in every segment and attention is full, unless given otherwise.

  Args:
    segments: int32[B, L]; 0 is padding.
    positions: int32[B, L] or None.
    order: int32[B, L] or None.
    opened: bool[L, L] or None (see Layout).
  """
  if positions is None:
    ramp = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    positions = ramp - jax.lax.cummax(jnp.where(_starts(segments), ramp, 0), axis=1)
  if order is None:
    order = jnp.zeros_like(segments)
  return Layout(segments, positions, order, opened)


def _starts(segments: Array) -> Array:
  """bool[B, L]: whether a position is the first of its segment."""
  changes = segments[:, 1:] != segments[:, :-1]
  return jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)


def open_attention(key: Array, length: int, openness: Array | float) -> Array:
  """bool[L, L], each True with probability `openness`: what causal attention sees of the future.

  Annealed from 0 (causal) to 1 (full) while causal weights become a diffusion model (2410.17891).
  Under one key, what is open stays open as openness grows.
  """
  # Row by row: what a query sees does not depend on how far the row is padded.
  draw = lambda query: jax.random.uniform(jax.random.fold_in(key, query), (length,))
  return jax.vmap(draw)(jnp.arange(length)) < openness


def evaluation_opening(length: int, openness: Array | float) -> Array:
  """bool[L, L]: `open_attention` by the one key that every evaluation of a model uses."""
  return open_attention(jax.random.key(0, impl=GENERATOR), length, openness)


def answer_order(canvas: Array, segments: Array, *, attention: str, block_size: int) -> Array:
  """int32[B, L]: 0 on prompts; on answers 1 (prefix), or 1, 2, ... by blocks of them (blocks).

  Args:
    canvas: bool[B, L], the answers' positions; those of an example are contiguous under 'blocks'.
    segments: int32[B, L].
    attention: 'prefix' or 'blocks'.
    block_size: of 'blocks'.
  """
  if attention == "prefix":
    return canvas.astype(jnp.int32)
  count = jnp.cumsum(canvas, axis=1)  # of answer positions up to each, over the whole row
  before = jax.lax.cummax(jnp.where(_starts(segments), count - canvas, 0), axis=1)
  return jnp.where(canvas, 1 + (count - before - 1) // block_size, 0).astype(jnp.int32)


def _contract_layout(
  segments: Array,
  contract: Contract,
  *,
  canvas: Array | None = None,
  positions: Array | None = None,
  order: Array | None = None,
  opened: Array | None = None,
) -> Layout:
  """The layout given, completed by what the model was trained with."""
  layout = make_layout(segments, positions=positions, order=order, opened=opened)
  if order is None and contract.attention == "causal":
    layout = layout._replace(order=layout.positions)
  if order is None and contract.attention in ("prefix", "blocks"):
    canvas = segments > 0 if canvas is None else canvas
    order = answer_order(
      canvas, segments, attention=contract.attention, block_size=contract.block_size
    )
    layout = layout._replace(order=order)
  if opened is None and contract.openness:
    layout = layout._replace(opened=evaluation_opening(segments.shape[1], contract.openness))
  return layout


def _shift(hidden: Array, segments: Array) -> Array:
  """hidden[:, n] = hidden[:, n - 1] inside a segment [B, L, D]; its first position keeps its own.

  Undoes the output shift of what was a causal model, where output n - 1 predicts token n.
  """
  earlier = jnp.roll(hidden, 1, axis=1)
  return jnp.where(_starts(segments)[..., None], hidden, earlier)


def _at(layout: Layout, places: Array, real: Array) -> Layout:
  """The layout of some places of the row, int32[B, Q]; what is not `real` sees no one real."""
  take = lambda x: jnp.take_along_axis(x, places, axis=1)
  return Layout(
    jnp.where(real, take(layout.segments), _NOBODY), take(layout.positions), take(layout.order)
  )


def _store(whole: Array, places: Array, values: Array) -> Array:
  """whole [B, L, ...] with values [B, Q, ...] at places [B, Q]; places out of range are dropped."""
  return whole.at[jnp.arange(len(places))[:, None], places].set(values, mode="drop")


def _shift_extended(
  hidden: Array, places: Array, real: Array, stored: Array, segments: Array
) -> Array:
  """`_shift` where only some places are computed: hidden [B, Q, D] at places int32[B, Q].

  The output before a place is that of the slot before, if it stands there; else it is stored.
  """
  follows = (places[:, 1:] == places[:, :-1] + 1) & real[:, :-1]
  follows = jnp.pad(follows, ((0, 0), (1, 0)))[..., None]
  before = jnp.take_along_axis(stored, jnp.maximum(places - 1, 0)[..., None], axis=1)
  earlier = jnp.where(follows, jnp.roll(hidden, 1, axis=1), before)
  first = jnp.take_along_axis(_starts(segments), places, axis=1)[..., None]
  return jnp.where(first, hidden, earlier)


def init(key: Array, config: ModelConfig, lora: LoraConfig = _NO_ADAPTERS) -> Params:
  """Fresh parameters, a nested dict of float32 arrays with the names of the file format.

  Raises:
    UserError: `lora` targets a projection that the architecture does not have.
  """
  if lora.rank and "gate" in lora.targets and not config.gated:
    raise UserError(f"config.lora.targets = {lora.targets!r}: this model has no gate; leave it out")
  tokens = jnp.zeros((1, 2), jnp.int32)
  module = Transformer(config, ComputeConfig(), lora=lora)
  return module.init(key, tokens, make_layout(jnp.ones_like(tokens)))["params"]


def shapes(config: ModelConfig, lora: LoraConfig = _NO_ADAPTERS) -> Params:
  """The parameters' shapes and dtypes; nothing is allocated. Raises UserError as `init` does."""
  return jax.eval_shape(functools.partial(init, config=config, lora=lora), jax.random.key(0))


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
  canvas: Array | None = None,
  positions: Array | None = None,
  order: Array | None = None,
  opened: Array | None = None,
  dropout: Array | None = None,
  lora: LoraConfig = _NO_ADAPTERS,
  shards: Shards | None = None,
) -> Denoiser:
  """The network as the rest of the house sees it.

  Args:
    params: as `init` makes them, with the adapters of `lora` where it has a rank.
    segments: int32[B, L]; 0 is padding.
    config: the architecture.
    contract: its attention pattern, openness, output shift and mask id hold unless given here.
    compute: precision and rematerialisation.
    canvas: bool[B, L], the answers with their </s>, which attention 'prefix' and 'blocks' orders;
      default: all that is no padding, as in a row without a prompt.
    positions: int32[B, L]; default: restart in every segment.
    order: int32[B, L]; default: the contract's attention (see Layout).
    opened: bool[L, L]; default: drawn with the contract's openness by a fixed key, if any.
    dropout: a key for every row [B], or None for none.
    lora: the adapters beside the weights.
    shards: how hidden states lie on a mesh; None: on one device.

  Returns:
    The Denoiser. It has `prefill` and `extend` where a position's keys and values stay what they
    are while later ones are written: not under full or partly opened attention, not where masks
    rescale the whole row's embeddings, and not with dropout.
  """
  module = Transformer(config, compute, shards, lora, contract.mask_id)
  layout = _contract_layout(
    segments, contract, canvas=canvas, positions=positions, order=order, opened=opened
  )

  def trunk(xt: Array, t: Array | None) -> Array:
    del t  # these networks are not told the time
    hidden = module.apply({"params": params}, xt, layout, dropout, method="trunk")[0]
    return _shift(hidden, segments) if contract.output_shift else hidden

  def prefill(tokens: Array, stored: Array) -> Cache:
    seen = layout._replace(segments=jnp.where(stored, segments, _NOBODY))
    hidden, (keys, values) = module.apply({"params": params}, tokens, seen, None, method="trunk")
    return Cache(keys, values, hidden, jnp.asarray(stored))

  def extend(tokens: Array, places: Array, real: Array, cache: Cache) -> tuple[Array, Cache]:
    past = layout._replace(segments=jnp.where(cache.stored, segments, _NOBODY))
    kept = cache.keys, cache.values
    hidden, (keys, values) = module.apply(
      {"params": params}, tokens, _at(layout, places, real), None, kept, past, method="trunk"
    )
    targets = jnp.where(real, places, segments.shape[1])  # out of range: dropped
    store = lambda whole, new: _store(whole, targets, new)
    extended = Cache(
      keys=jax.vmap(store)(cache.keys, keys),
      values=jax.vmap(store)(cache.values, values),
      hidden=store(cache.hidden, hidden),
      stored=store(cache.stored, True),
    )
    if contract.output_shift:
      hidden = _shift_extended(hidden, places, real, cache.hidden, segments)
    return hidden, extended

  def transform(head_params: Params, hidden: Array) -> Array:
    return module.apply({"params": {"head": head_params}}, hidden, method="transform")

  own = params.get("head", {})
  table = params["embedding"]["tokens"] if config.tied else own["table"]
  bias = jnp.asarray(own["bias"], jnp.float32) if config.head_bias else jnp.zeros(len(table))
  transforming = {name: part for name, part in own.items() if name in ("dense", "norm")}
  head = Head(transform, transforming, table, bias, allowed_rows(config, contract))
  lasting = contract.attention != "full" and layout.opened is None and dropout is None
  cached = (prefill, extend) if lasting and not config.zero_mask_embedding else (None, None)
  return Denoiser(trunk, head, *cached, output_shift=contract.output_shift)


def logits(denoiser: Denoiser, tokens: Array) -> Array:
  """float32[B, L, V] of a clean or noised row, nothing suppressed. For small checks only."""
  head = denoiser.head
  features = head.transform(head.params, denoiser.trunk(tokens, None))
  projected = jnp.einsum(
    "bld,vd->blv", features, head.table.astype(features.dtype), preferred_element_type=jnp.float32
  )
  return projected + head.bias


def length_logits(
  params: Params,
  segments: Array,
  tokens: Array,
  *,
  config: ModelConfig,
  contract: Contract,
  compute: ComputeConfig,
  lora: LoraConfig = _NO_ADAPTERS,
  shards: Shards | None = None,
) -> Array:
  """float32[B, classes] of the length head over the trunk's hidden states, without dropout.

  Args:
    params: as `init` makes them for a config with length_classes > 0.
    segments: int32[B, L], one prompt to a row, without its answer; 0 is padding.
    tokens: int32[B, L].
    config: the architecture.
    contract: as `bind` takes it; the head reads the hidden states where they arise, unshifted.
    compute: precision and rematerialisation.
    lora: the adapters beside the weights.
    shards: how hidden states lie on a mesh; None: on one device.
  """
  module = Transformer(config, compute, shards, lora, contract.mask_id)
  layout = _contract_layout(segments, contract, canvas=jnp.zeros(segments.shape, bool))
  return module.apply({"params": params}, tokens, layout, method="length_logits")
