"""The parts of a Transformer block. Parameters are float32; activations have the compute dtype."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffjax.config import ModelConfig
from diffjax.types import Array, Layout

KeysValues = tuple[Array, Array]  # [B, L, H, K] each

_KERNEL = nn.initializers.normal(0.02)

# Where hidden states are dropped; the site is folded into a row's key together with the layer.
EMBEDDING_SITE, ATTENTION_SITE, FEED_FORWARD_SITE, PROBABILITY_SITE = range(4)
_SITES = 4


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


class Norm(nn.Module):
  """Layer normalisation over the width, with float32 statistics."""

  epsilon: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [..., D] -> [..., D]."""
    width = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, width)
    bias = self.param("bias", nn.initializers.zeros, width)
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return ((x - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


class Project(nn.Module):
  """An einsum with a kernel of full shape and a bias over the output axes."""

  equation: str
  kernel_shape: tuple[int, ...]
  bias_shape: tuple[int, ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Applies the einsum `equation` to (x, kernel) and adds the bias."""
    kernel = self.param("kernel", _KERNEL, self.kernel_shape)
    bias = self.param("bias", nn.initializers.zeros, self.bias_shape)
    y = jnp.einsum(self.equation, x.astype(self.dtype), kernel.astype(self.dtype))
    return y + bias.astype(self.dtype)


class Attention(nn.Module):
  """Multi-head attention inside segments, as far as the layout's order lets a query see."""

  config: ModelConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: Array, layout: Layout, keys: Array | None, layer: Array
  ) -> tuple[Array, KeysValues]:
    """x [B, L, D] -> ([B, L, D], the keys and values it attended to)."""
    width, heads, head_width = self.config.width, self.config.heads, self.config.head_width
    project = lambda name: Project(
      "bld,dhk->blhk", (width, heads, head_width), (heads, head_width), self.dtype, name=name
    )(x)
    query, key, value = project("query"), project("key"), project("value")  # [B, L, H, K]
    segments, order = layout.segments, layout.order
    visible = (segments[:, :, None] == segments[:, None, :]) & (
      order[:, :, None] >= order[:, None, :]
    )
    visible = visible[:, None]  # [B, 1, L, L]
    rate = self.config.attention_dropout
    if keys is not None and rate > 0:
      mixed = _attend_with_dropout(query, key, value, visible, keys, rate, layer)
    else:
      mixed = jax.nn.dot_product_attention(query, key, value, mask=visible)
    output = Project(
      "blhk,hkd->bld", (heads, head_width, width), (width,), self.dtype, name="output"
    )
    return output(mixed), (key, value)


def _attend_with_dropout(
  query: Array, key: Array, value: Array, visible: Array, keys: Array, rate: float, layer: Array
) -> Array:
  """Attention whose probabilities are dropped; written out, since fused kernels cannot."""
  scores = jnp.einsum("bqhk,bshk->bhqs", query, key, preferred_element_type=jnp.float32)
  scores = jnp.where(visible, scores / jnp.sqrt(query.shape[-1]), jnp.finfo(jnp.float32).min)
  probabilities = jax.nn.softmax(scores, axis=-1)
  probabilities = dropout(probabilities, keys, rate, site=PROBABILITY_SITE, layer=layer)
  return jnp.einsum("bhqs,bshk->bqhk", probabilities.astype(value.dtype), value)


class FeedForward(nn.Module):
  """Two projections with the exact (erf) GELU between them."""

  config: ModelConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, L, D] -> [B, L, D]."""
    width, inner = self.config.width, self.config.ffn_width
    x = Project("bld,df->blf", (width, inner), (inner,), self.dtype, name="up")(x)
    x = jax.nn.gelu(x, approximate=False)
    return Project("blf,fd->bld", (inner, width), (width,), self.dtype, name="down")(x)


class Block(nn.Module):
  """One layer; post-norm as in XLM-R base and large, pre-norm as in XL and XXL.

  Dropout sites follow the released models: after attention always, after the feed-forward part
  only in the post-norm ones.
  """

  config: ModelConfig
  dtype: jnp.dtype
  constrain: Callable[[Array], Array]

  @nn.compact
  def __call__(
    self, x: Array, layer: Array, layout: Layout, keys: Array | None
  ) -> tuple[Array, KeysValues]:
    """x [B, L, D] and the layer's number -> ([B, L, D], keys and values)."""
    config, rate = self.config, self.config.dropout
    norm = lambda name: Norm(config.norm_epsilon, self.dtype, name=name)
    attention = Attention(config, self.dtype, name="attention")
    feed_forward = FeedForward(config, self.dtype, name="ffn")
    drop = lambda y, site: dropout(y, keys, rate, site=site, layer=layer)
    if config.norm == "post":
      y, keys_values = attention(x, layout, keys, layer)
      x = norm("attention_norm")(x + drop(y, ATTENTION_SITE))
      x = norm("ffn_norm")(x + drop(feed_forward(x), FEED_FORWARD_SITE))
    else:
      y, keys_values = attention(norm("attention_norm")(x), layout, keys, layer)
      x = x + drop(y, ATTENTION_SITE)
      x = x + feed_forward(norm("ffn_norm")(x))
    return self.constrain(x), keys_values
