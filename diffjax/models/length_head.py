"""Predicts how many tokens answer a prompt, from the trunk's hidden states (2308.12219, sec. 3)."""

import jax.numpy as jnp
from flax import linen as nn

from diffjax.config import LoraConfig, ModelConfig
from diffjax.models.layers import Attention, Context, FeedForward, Norm, Project
from diffjax.types import Array, Layout, Shards


class LengthHead(nn.Module):
  """One post-norm block with ReLU, the mean over the real positions, and a classifier.

  logits = W_classes tanh(W_hidden mean_l block(hidden)_l + b) + b'. The block has the trunk's
  width, heads and inner width, and otherwise its own plain form, whatever the trunk's is; its
  kernel and its place on a mesh are the trunk's.
  """

  config: ModelConfig
  dtype: jnp.dtype
  kernel: str = "xla"
  shards: Shards | None = None

  @nn.compact
  def __call__(self, hidden: Array, layout: Layout) -> Array:
    """hidden [B, L, D] -> float32[B, classes]; a row is one example, segment 0 its padding."""
    trunk = self.config
    plain = ModelConfig(
      width=trunk.width, heads=trunk.heads, ffn_width=trunk.ffn_width, layers=1, activation="relu"
    )
    # The block sees all of the row, also over a causal trunk.
    context = Context(Layout(layout.segments, layout.positions, jnp.zeros_like(layout.order)))
    norm = lambda name: Norm("layer", plain.norm_epsilon, self.dtype, name=name)
    attention = Attention(
      plain, self.dtype, LoraConfig(), self.kernel, self.shards, name="attention"
    )
    y, _ = attention(hidden, 0, context)
    x = norm("attention_norm")(hidden + y)
    x = norm("ffn_norm")(x + FeedForward(plain, self.dtype, name="ffn")(x, 0, context))
    real = (layout.segments > 0).astype(jnp.float32)[..., None]  # [B, L, 1]
    mean = (x.astype(jnp.float32) * real).sum(1) / jnp.maximum(real.sum(1), 1)  # [B, D]
    shapes = {
      "hidden": (trunk.width, trunk.ffn_width), "classes": (trunk.ffn_width, trunk.length_classes)
    }  # fmt: skip
    classify = lambda name: Project("bd,df->bf", shapes[name], jnp.dtype("float32"), name=name)
    return classify("classes")(jnp.tanh(classify("hidden")(mean)))
