"""The parts of a Transformer block. Parameters are float32; activations have the compute dtype."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.config import LoraConfig, ModelConfig, RotaryConfig
from diffjax.models.attention import attend, check_length
from diffjax.types import Array, Layout, Shards

KeysValues = tuple[Array, Array]  # [B, L, key heads, K] each
Rotation = tuple[Array, Array]  # cosines and sines, float32[B, L, 1, K/2] each

LAYER_INPUT = "layer_input"  # what rematerialisation calls the hidden states a layer is given

_KERNEL = nn.initializers.normal(0.02)

# Where values are dropped; the site is folded into a row's key together with the layer.
EMBEDDING_SITE, ATTENTION_SITE, FEED_FORWARD_SITE, PROBABILITY_SITE = range(4)
_SITES = 4
_TARGETS = ("query", "key", "value", "output", "up", "gate", "down")
_LORA_SITES = {name: (1 + n) << 16 for n, name in enumerate(_TARGETS)}  # beyond those of any layer

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "silu": jax.nn.silu,
  "relu": jax.nn.relu,
}


class Context(NamedTuple):
  """What every layer of a forward pass shares."""

  layout: Layout
  rotations: tuple[Rotation, ...] = ()  # none; one; or one of global and one of local layers
  keys: Array | None = None  # dropout keys [B]; None drops nothing
  stored: Layout | None = None  # of keys and values from a cache, which are seen too


def dropout(
  x: Array, keys: Array | None, rate: float, *, site: int, layer: Array | int = 0
) -> Array:
  """Drops elements of x [B, ...] with `rate`, each row by its own key [B]; None drops nothing.

  Keyed by row, layer and site, so that a row's mask is the same on any mesh and in any microbatch.
  """
  if keys is None or rate == 0:
    return x
  draw = lambda key: jax.random.bernoulli(
    jax.random.fold_in(key, layer * _SITES + site), 1 - rate, x.shape[1:]
  )
  return jnp.where(jax.vmap(draw)(keys), x / (1 - rate), 0).astype(x.dtype)


def constrain(x: Array, shards: Shards | None) -> Array:
  """Keeps hidden states [B, L, D] split by rows and positions: XLA then gathers the weights.

  Raises UserError where the positions do not divide over the mesh.
  """
  if shards is None:
    return x
  check_length(x.shape[1], shards)
  spec = P(shards.rows, shards.sequence)
  return jax.lax.with_sharding_constraint(x, NamedSharding(shards.mesh, spec))


class Norm(nn.Module):
  """Normalisation over the last axis, with float32 statistics.

  layer: (x - mean) / sqrt(variance + epsilon) * scale + bias (1607.06450), or without the bias;
  rms: x / sqrt(mean(x^2) + epsilon) * scale (1910.07467).
  """

  kind: str
  epsilon: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [..., D] -> [..., D]."""
    width = x.shape[-1:]
    x = x.astype(jnp.float32)
    if self.kind != "rms":
      x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
    x = x * self.param("scale", nn.initializers.ones, width)
    if self.kind == "layer":
      x = x + self.param("bias", nn.initializers.zeros, width)
    return x.astype(self.dtype)


class Project(nn.Module):
  """An einsum with a kernel of full shape W, a bias over the output axes, and a low-rank adapter.

  x W + b, and where `lora` names this projection + (alpha / rank) drop(x) A B (2106.09685), so
  that W + A B is never formed. B starts at 0, hence the sum at x W + b.
  """

  equation: str
  kernel_shape: tuple[int, ...]
  dtype: jnp.dtype
  bias: bool = True
  lora: LoraConfig = LoraConfig()

  @nn.compact
  def __call__(self, x: Array, layer: Array | int = 0, keys: Array | None = None) -> Array:
    """Applies the einsum `equation` to (x, kernel); the layer and the keys [B] are for dropout."""
    x = x.astype(self.dtype)
    kernel = self.param("kernel", _KERNEL, self.kernel_shape)
    y = jnp.einsum(self.equation, x, kernel.astype(self.dtype))
    read, rest = self.equation.split(",")
    axes, written = rest.split("->")
    sizes = dict(zip(axes, self.kernel_shape, strict=True))
    summed = [axis for axis in axes if axis in read]
    kept = [axis for axis in axes if axis not in read]
    if self.bias:
      bias = self.param("bias", nn.initializers.zeros, tuple(sizes[axis] for axis in kept))
      y = y + bias.astype(self.dtype)
    if not (self.lora.rank and self.name in self.lora.targets):
      return y
    start = nn.initializers.normal(1 / math.sqrt(math.prod(sizes[axis] for axis in summed)))
    rank = self.lora.rank
    a = self.param("lora_a", start, (*(sizes[axis] for axis in summed), rank))
    b = self.param("lora_b", nn.initializers.zeros, (rank, *(sizes[axis] for axis in kept)))
    x = dropout(x, keys, self.lora.dropout, site=_LORA_SITES[self.name], layer=layer)
    low_axes = "".join(axis for axis in read if axis not in summed) + "r"
    low = jnp.einsum(f"{read},{''.join(summed)}r->{low_axes}", x, a.astype(self.dtype))
    high = jnp.einsum(f"{low_axes},r{''.join(kept)}->{written}", low, b.astype(self.dtype))
    return y + self.lora.alpha / rank * high


def rotations(config: ModelConfig, positions: Array) -> tuple[Rotation, ...]:
  """Rotary positions of global and, where they differ, of local layers; () where none are used.

  Args:
    config: the architecture.
    positions: int32[B, L].
  """
  if config.positions != "rotary":
    return ()
  rotary, size = config.rotary, config.head_width
  speeds = [_stretched(_speeds(rotary.theta, size), rotary)]
  if rotary.local_theta:
    speeds.append(_speeds(rotary.local_theta, size))  # what is near needs no stretching
  angles = [positions[:, :, None, None].astype(jnp.float32) * s.astype(np.float32) for s in speeds]
  return tuple((jnp.cos(angle), jnp.sin(angle)) for angle in angles)


def _speeds(theta: float, size: int) -> np.ndarray:
  """Radians per position of every pair of a head, float64[K/2]: theta^(-2i/K)."""
  return theta ** -(np.arange(0, size, 2) / size)


def _stretched(speeds: np.ndarray, rotary: RotaryConfig) -> np.ndarray:
  """Llama 3.1's scaling: slow pairs are divided by the factor, fast ones kept, blended between."""
  turns = rotary.original_positions * speeds / (2 * np.pi)
  share = (turns - rotary.low_frequency) / (rotary.high_frequency - rotary.low_frequency)
  share = np.clip(share, 0, 1)  # of the unchanged speed
  return share * speeds + (1 - share) * speeds / rotary.factor


def _rotate(x: Array, rotation: Rotation) -> Array:
  """Turns the pairs (i, i + K/2) of x [B, L, H, K] by their angles, in float32 (2104.09864)."""
  cos, sin = rotation
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)


class Attention(nn.Module):
  """Multi-head attention inside segments, as far as the layout's order lets a query see.

  With fewer key heads than heads, consecutive query heads share one (2305.13245). `kernel` is
  `compute.attention`, see attention.py.
  """

  config: ModelConfig
  dtype: jnp.dtype
  lora: LoraConfig = LoraConfig()
  kernel: str = "xla"
  shards: Shards | None = None

  @nn.compact
  def __call__(
    self, x: Array, layer: Array, context: Context, stored: KeysValues | None = None
  ) -> tuple[Array, KeysValues]:
    """x [B, L, D] and the layer's number -> ([B, L, D], the keys and values of x).

    The keys and values `stored`, laid out as `context.stored` says, are attended to as well.
    """
    config, keys, layout = self.config, context.keys, context.layout
    width, heads, size = config.width, config.heads, config.head_width
    local = layer % config.global_every != 0

    def project(name: str, heads: int) -> Array:
      bias = config.attention_bias != "none"
      shape = (width, heads, size)
      part = Project("bld,dhk->blhk", shape, self.dtype, bias, self.lora, name=name)
      y = part(x, layer, keys)
      if name == "value":
        return y
      if config.query_key_norm:
        y = Norm("rms", config.norm_epsilon, self.dtype, name=f"{name}_norm")(y)
      if context.rotations:
        y = _rotate(y, _choose(context.rotations, local))
      return y

    query = project("query", heads)  # [B, L, H, K]
    own = project("key", config.key_heads), project("value", config.key_heads)
    (key, value), seen = own, layout
    if stored is not None:
      key, value = (jnp.concatenate(both, axis=1) for both in zip(stored, own, strict=True))
      join = lambda past, new: jnp.concatenate([past, new], axis=1)
      seen = Layout(*map(join, context.stored[:3], layout[:3]))
    rate, drop = config.attention_dropout, None
    if keys is not None and rate > 0:
      drop = functools.partial(dropout, keys=keys, rate=rate, site=PROBABILITY_SITE, layer=layer)
    mixed = attend(
      query, key, value, queries=layout, keys=seen, kernel=self.kernel, window=config.window,
      local=local, shards=self.shards, drop=drop,
    )  # fmt: skip
    bias = config.attention_bias == "all"
    shape = (heads, size, width)
    output = Project("blhk,hkd->bld", shape, self.dtype, bias, self.lora, name="output")
    return output(mixed, layer, keys), own


def _choose(rotations: tuple[Rotation, ...], local: Array) -> Rotation:
  if len(rotations) == 1:
    return rotations[0]
  return jax.tree.map(lambda far, near: jnp.where(local, near, far), *rotations)


class FeedForward(nn.Module):
  """down(activation(up x)), or gated: down(activation(gate x) * up x) (2002.05202)."""

  config: ModelConfig
  dtype: jnp.dtype
  lora: LoraConfig = LoraConfig()

  @nn.compact
  def __call__(self, x: Array, layer: Array, context: Context) -> Array:
    """x [B, L, D] -> [B, L, D]."""
    config = self.config

    def project(name: str, x: Array) -> Array:
      into = name != "down"
      shape = (config.width, config.ffn_width) if into else (config.ffn_width, config.width)
      equation = "bld,df->blf" if into else "blf,fd->bld"
      part = Project(equation, shape, self.dtype, config.dense_bias, self.lora, name=name)
      return part(x, layer, context.keys)

    activation = ACTIVATIONS[config.activation]
    up = project("up", x)
    inner = activation(project("gate", x)) * up if config.gated else activation(up)
    return project("down", inner)


class Block(nn.Module):
  """One layer; its norms after each half (post, as in BERT) or before (pre, as in GPT-2).

  Dropout sites follow the released masked LMs: after attention always, after the feed-forward part
  only in the post-norm ones.
  """

  config: ModelConfig
  dtype: jnp.dtype
  shards: Shards | None = None
  lora: LoraConfig = LoraConfig()
  kernel: str = "xla"

  @nn.compact
  def __call__(
    self, x: Array, layer: Array, context: Context, stored: KeysValues | None = None
  ) -> tuple[Array, KeysValues]:
    """As Attention: x [B, L, D] and the layer's number -> ([B, L, D], the keys and values of x)."""
    config = self.config
    x = checkpoint_name(x, LAYER_INPUT)
    norm = lambda name: Norm(config.norm_kind, config.norm_epsilon, self.dtype, name=name)
    attention = Attention(config, self.dtype, self.lora, self.kernel, self.shards, name="attention")
    feed_forward = FeedForward(config, self.dtype, self.lora, name="ffn")
    drop = lambda y, site: dropout(y, context.keys, config.dropout, site=site, layer=layer)
    if config.norm == "post":
      y, keys_values = attention(x, layer, context, stored)
      x = norm("attention_norm")(x + drop(y, ATTENTION_SITE))
      x = norm("ffn_norm")(x + drop(feed_forward(x, layer, context), FEED_FORWARD_SITE))
    else:
      normed = norm("attention_norm")(x)
      if not config.first_attention_norm:
        normed = jnp.where(layer == 0, x, normed)
      y, keys_values = attention(normed, layer, context, stored)
      x = x + drop(y, ATTENTION_SITE)
      x = x + feed_forward(norm("ffn_norm")(x), layer, context)
    return constrain(x, self.shards), keys_values
