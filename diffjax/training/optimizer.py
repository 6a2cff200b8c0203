"""AdamW and Adafactor, clipping and the learning-rate curve (2308.12219, appendix)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffjax.config import OptimizerConfig
from diffjax.types import Array, Params

# Matrices and tables; not biases and norms.
_DECAYED = ("kernel", "lora_a", "lora_b", "tokens", "positions", "types", "table")

# Of Adafactor, as its paper chose them.
_DECAY_EXPONENT = 0.8
_SMALLEST_SQUARE = 1e-30
_LARGEST_UPDATE = 1.0  # root mean square of what a matrix' update is before the learning rate
_FACTORED_FROM = 128  # rows and columns of a matrix; a smaller one keeps every second moment


def learning_rate(config: OptimizerConfig, *, steps: int) -> optax.Schedule:
  """The rate of update number `count` = 0, 1, ..., float32[].

  Warmup rises to the peak over `warmup_steps` updates, linearly or as log(n)/log(warmup_steps)
  (the curve of DeepSpeed's WarmupLR, which the paper's published runs most likely had); after it
  the rate is constant, falls as sqrt(warmup_steps / n), or falls to 0 at `steps` along a cosine
  or a line.
  """
  warmup = config.warmup_steps

  def rate(count: Array) -> Array:
    n = jnp.asarray(count, jnp.float32) + 1
    if config.warmup == "logarithmic":
      rising = jnp.log(n) / jnp.log(warmup)
    else:
      rising = n / max(warmup, 1)
    share = jnp.clip((n - 1 - warmup) / max(steps - warmup, 1), 0, 1)
    falling = {
      "constant": jnp.ones_like(n),
      "inverse_sqrt": jnp.sqrt(max(warmup, 1) / n),
      "cosine": 0.5 * (1 + jnp.cos(jnp.pi * share)),
      "linear": 1 - share,
    }[config.decay]
    return config.learning_rate * jnp.where(n < warmup, rising, falling)

  return rate


def make(config: OptimizerConfig, *, steps: int) -> optax.GradientTransformation:
  """Clipping by global norm, then AdamW or Adafactor, with decay on matrices and tables only."""
  rate = learning_rate(config, steps=steps)
  if config.name == "adafactor":
    scaled = scale_by_factored_moments()
  else:
    dtype = jnp.dtype(config.first_moment_dtype)
    scaled = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=dtype)
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.chain(
      scaled,
      optax.add_decayed_weights(config.weight_decay, _decayed),
      optax.scale_by_learning_rate(rate),
    ),
  )


def _decayed(params: Params) -> Params:
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)


class Factors(NamedTuple):
  """The second moments of a matrix, up to a factor: the outer product of the two."""

  rows: Array  # means over the outputs, of the shape of the inputs; the stack's axis before
  columns: Array  # means over the inputs


class FactoredState(NamedTuple):
  """What Adafactor carries."""

  count: Array  # int32[]  updates made
  second: Any  # at every parameter's place its Factors, or all its second moments


def scale_by_factored_moments() -> optax.GradientTransformation:
  """Adafactor's update before the learning rate (1804.04235, algorithm 4), without momentum.

  G^2 is averaged with decay 1 - n^-0.8 as its row means R and column means C. The update is
  U / max(1, RMS(U)) with U = G / sqrt(R C / mean(R)). It is not multiplied by the parameter's
  size, so that a learning rate means what it means for Adam. Every layer of a stack is a matrix
  of its own. A projection's rows are its inputs and its columns its outputs, heads and their
  width together.
  """

  def begin(path: tuple[Any, ...], leaf: Array) -> Array | Factors:
    inputs, outputs = _matrix_axes(path, leaf.shape)
    if not inputs:
      return jnp.zeros(leaf.shape, jnp.float32)
    without = lambda axes: [size for axis, size in enumerate(leaf.shape) if axis not in axes]
    return Factors(jnp.zeros(without(outputs)), jnp.zeros(without(inputs)))

  def init(params: Params) -> FactoredState:
    second = jax.tree_util.tree_map_with_path(begin, params)
    return FactoredState(jnp.zeros((), jnp.int32), second)

  def update(
    gradients: Params, state: FactoredState, params: Params | None = None
  ) -> tuple[Params, FactoredState]:
    del params
    count = optax.safe_increment(state.count)
    decay = 1 - count.astype(jnp.float32) ** -_DECAY_EXPONENT
    structure = jax.tree.structure(gradients)
    scale = lambda path, gradient, second: _scaled(path, gradient, second, decay)
    pairs = jax.tree_util.tree_map_with_path(scale, gradients, state.second)
    updates, second = zip(*structure.flatten_up_to(pairs), strict=True)
    return structure.unflatten(updates), FactoredState(count, structure.unflatten(second))

  return optax.GradientTransformation(init, update)


def _matrix_axes(
  path: tuple[Any, ...], shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The axes of a matrix' inputs and outputs; () twice for what is none, or a small one."""
  names = [entry.key for entry in path]
  first = int(names[0] == "layers")  # after the stack
  count = 2 if "output" in names and names[-1] in ("kernel", "lora_a") else 1  # heads, their width
  inputs = tuple(range(first, first + count))
  outputs = tuple(range(first + count, len(shape)))
  sizes = [math.prod(shape[axis] for axis in axes) for axes in (inputs, outputs)]
  is_large = names[-1] in _DECAYED and outputs and min(sizes) >= _FACTORED_FROM
  return (inputs, outputs) if is_large else ((), ())


def _scaled(
  path: tuple[Any, ...], gradient: Array, second: Array | Factors, decay: Array
) -> tuple[Array, Array | Factors]:
  """One parameter's update and its new second moments."""
  inputs, outputs = _matrix_axes(path, gradient.shape)
  average = lambda old, new: decay * old + (1 - decay) * new
  square = jnp.square(gradient) + _SMALLEST_SQUARE
  if inputs:
    rows = average(second.rows, square.mean(outputs))
    columns = average(second.columns, square.mean(inputs))
    second = Factors(rows, columns)
    rows, columns = jnp.expand_dims(rows, outputs), jnp.expand_dims(columns, inputs)
    # Two roots and no product under one, which could be too small a number.
    scaled = gradient * jax.lax.rsqrt(rows / rows.mean(inputs, keepdims=True))
    scaled = scaled * jax.lax.rsqrt(columns)
  else:
    second = average(second, square)
    scaled = gradient * jax.lax.rsqrt(second)
  own = tuple(range(path[0].key == "layers", gradient.ndim))
  size = jnp.sqrt(jnp.square(scaled).mean(own, keepdims=True))
  return scaled / jnp.maximum(1, size / _LARGEST_UPDATE), second
