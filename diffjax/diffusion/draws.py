"""How a token is drawn from a vocabulary's logits: temperature, truncation, and exact noise."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import Array, UserError

# Of what is traced as float32: smaller numbers are 0 on the device, larger ones infinite.
_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("temperature", "top_p", "top_k"),
  meta_fields=("sampled", "truncated"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
  """How tokens are drawn from the logits; the numbers are traced (see `draw`)."""

  temperature: np.ndarray | Array  # float32[]  above 0
  top_p: np.ndarray | Array  # float32[]  in (0, 1]
  top_k: np.ndarray | Array  # int32[]  0: all
  sampled: bool  # False: the argmax, whatever the numbers
  truncated: bool  # whether top_p or top_k leaves anything out


def draw(*, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0) -> Draw:
  """The argmax at temperature 0; else samples of softmax(logits / temperature).

  Args:
    temperature: 0, or a normal number of float32.
    top_p: of the probability at this temperature, the smallest set of tokens that has as much; 1
      leaves nothing out.
    top_k: the so many likeliest tokens; 0 leaves nothing out. With top_p, what both keep; tokens
      that tie with the last one kept are kept.

  Raises:
    UserError: an illegal value.
  """
  if temperature != 0 and not _TINY <= temperature <= _HUGE:
    raise UserError(
      f"temperature = {temperature} must be 0, which is argmax, or from {_TINY:.2g} to {_HUGE:.2g}"
    )
  if not _TINY <= top_p <= 1:
    raise UserError(f"top_p = {top_p} must be in [{_TINY:.2g}, 1] (1 leaves nothing out)")
  if not 0 <= top_k < 2**31:
    raise UserError(f"top_k = {top_k} must be a whole number >= 0 (0 leaves nothing out)")
  return Draw(
    temperature=np.float32(temperature or 1),
    top_p=np.float32(top_p),
    top_k=np.int32(top_k),
    sampled=temperature > 0,
    truncated=temperature > 0 and (top_p < 1 or top_k > 0),
  )


def _group_size(rows: int) -> int:
  """About sqrt(rows), which needs the least noise: a power of 2 that divides `rows`."""
  return min(rows & -rows, 2 ** (rows.bit_length() // 2))


def group_noise(keys: Array, number: Array, rows: int) -> Array:
  """Gumbel variables [groups + group size, c] for the tile `number`, by the positions' keys [c]."""
  size = _group_size(rows)
  # mode 'high': an ordinary float32 Gumbel variable loses the right tail, that is, it makes rare
  # tokens rarer than they are (2409.02908).
  noise = lambda key: jax.random.gumbel(
    jax.random.fold_in(key, number), (rows // size + size,), mode="high"
  )
  return jax.vmap(noise, out_axes=1)(keys)


def draw_grouped(logits: Array, noise: Array) -> tuple[Array, Array]:
  """Samples softmax(logits) exactly: a group of rows by its mass, then one row within the group.

  A Gumbel maximum over the groups and another one over the rows of one group need a small part of
  the random numbers of one over all rows, which cost more than the logits do.

  Args:
    logits: float32[tile, c], at most 0; -inf where not allowed.
    noise: as `group_noise` makes it.

  Returns:
    The row int32[c], and the group's log mass plus its Gumbel variable [c], which is a Gumbel
    variable about the log mass of the whole tile: the largest among tiles wins. -inf: no mass.
  """
  size = _group_size(logits.shape[0])
  grouped = logits.reshape(-1, size, logits.shape[1])  # [groups, size, c]
  ranks = jnp.log(jnp.exp(grouped).sum(1)) + noise[: len(grouped)]
  group = jnp.argmax(ranks, axis=0)  # [c]
  members = jnp.take_along_axis(grouped, group[None, None], axis=0)[0]  # [size, c]
  member = jnp.argmax(members + noise[len(grouped) :], axis=0)
  return (group * size + member).astype(jnp.int32), ranks.max(0)


def kept(tempered: Array, draw: Draw) -> Array:
  """bool[V, c]: rows that are both of the top_k likeliest and of the top_p of probability.

  The likeliest one always, also where float32 rounds the others' probabilities to 0.
  """
  top = tempered.max(0)
  weights = jnp.exp(tempered - top)
  ones = jnp.ones_like(weights)
  everything = lambda: jnp.ones(weights.shape, bool)
  best = lambda: _largest(tempered, ones, draw.top_k)
  nucleus = lambda: _largest(tempered, weights, draw.top_p * weights.sum(0))
  both = jax.lax.cond(draw.top_k > 0, best, everything) & jax.lax.cond(
    draw.top_p < 1, nucleus, everything
  )
  return both | (tempered == top)


def _largest(values: Array, weights: Array, goal: Array) -> Array:
  """bool[V, c]: the fewest largest values [V, c] whose weights sum to goal [c]; all that tie.

  All of them where the goal is out of reach. By bisection over float32's own order, in 32 passes:
  sorting a vocabulary takes longer.
  """
  bits = jax.lax.bitcast_convert_type(values, jnp.int32)
  ordered = jnp.where(bits < 0, bits ^ jnp.int32(2**31 - 1), bits)  # as integers, as the floats

  def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds
    middle = (low & high) + ((low ^ high) >> 1)  # their mean, which their sum would overflow
    enough = jnp.where(ordered >= middle, weights, 0).sum(0) >= goal
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  bound = lambda value: jnp.full(values.shape[1], value, jnp.int32)
  limits = jnp.iinfo(jnp.int32)
  low, _ = jax.lax.fori_loop(0, 32, halve, (bound(limits.min), bound(limits.max)))
  return ordered >= low
