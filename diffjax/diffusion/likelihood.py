"""How likely a model holds a given text: bounds by exact-count masking, and the exact value.

A masked diffusion model that reveals positions in a uniformly random order has, of a text x of n
positions, by Jensen's inequality over the orders,

  log p(x) >= n E_l E_masks [ (1 / l) sum_{i masked} log p(x_i | what is not masked) ]

where l is uniform on 1 .. n and exactly l positions are masked (LLaDA, 2502.09992; the same value
as the bound over times of MDLM, 2406.07524, with far less variance than masking by coins). The
model's network is called once for every sample of (l, mask), so samples are rows.

The order: `plan` lays out the rows, `samples` is compiled over them, in batches of any size,
`estimate` puts their values together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion import vocabulary
from diffjax.types import Array, Denoiser, UserError

# What a row's key is folded with.
_COUNT, _POSITIONS = range(2)


class Plan(NamedTuple):
  """The rows [R] of an estimate: samples of the first block, then of the second, and so on."""

  scored: np.ndarray  # bool[R, L]  what may be masked and is scored in the row
  low: np.ndarray  # float32[R]  the stratum of l / n: [low, high)
  high: np.ndarray  # float32[R]
  blocks: int  # as many samples of each


def plan(target: np.ndarray, *, samples: int, block_size: int = 0) -> Plan:
  """The rows that bound the log-likelihood of one target.

  Two samples share each stratum of the share of masked positions, which is what gives the
  standard error of a stratified estimate; so `samples` is rounded up to an even number a block.

  Args:
    target: bool[L], the positions whose likelihood is asked for.
    samples: at least so many in all, >= 1.
    block_size: of attention 'blocks': log p(x) = sum_b log p(x_b | earlier blocks), and every
      sample masks positions of one block, whose later ones it does not see; 0: one block.

  Raises:
    UserError: samples < 1, or an empty target.
  """
  if samples < 1:
    raise UserError(f"samples = {samples} must be >= 1 (more of them: a smaller standard error)")
  places = np.flatnonzero(target)
  if not len(places):
    raise UserError("the target is empty: give one with at least one token")
  blocks = -(-len(places) // block_size) if block_size else 1
  strata = -(-samples // (2 * blocks))
  member = np.zeros((blocks, len(target)), bool)
  member[np.arange(len(places)) // (block_size or len(places)), places] = True
  edges = np.linspace(0, 1, strata + 1, dtype=np.float32)
  return Plan(
    scored=np.repeat(member, 2 * strata, axis=0),
    low=np.tile(np.repeat(edges[:-1], 2), blocks),
    high=np.tile(np.repeat(edges[1:], 2), blocks),
    blocks=blocks,
  )


def samples(
  denoiser: Denoiser,
  keys: Array,
  tokens: Array,
  scored: Array,
  low: Array,
  high: Array,
  *,
  mask_id: int,
  chunk: int,
) -> Array:
  """One sample of the bound from every row: n / l sum_{i masked} log p(x_i | the rest), in nats.

  Args:
    denoiser: bound to the layout of these rows; under attention 'blocks' by the whole answer, so
      that a block does not see later ones.
    keys: a key for every row [R].
    tokens: int32[R, L], clean.
    scored, low, high: as `plan` makes them, or a part of its rows; others may be added that score
      nothing, whose value is 0.
    mask_id: what masked positions become.
    chunk: positions whose logits exist at one time.

  Returns:
    float32[R]
  """
  masked, weight = draw_masks(keys, scored, low, high)
  return weight * log_likelihoods(
    denoiser, jnp.where(masked, mask_id, tokens), tokens, masked, chunk=chunk
  ).sum(-1)


def draw_masks(keys: Array, scored: Array, low: Array, high: Array) -> tuple[Array, Array]:
  """Masks exactly l of each row's n scored positions: l = floor(u n) + 1, u uniform in [low, high).

  Noise is keyed by row and position, so that padding a row does not change its mask.

  Args:
    keys: a key for every row [R].
    scored: bool[R, L].
    low, high: float32[R] in [0, 1]; 0 and 1 make l uniform on 1 .. n.

  Returns:
    masked bool[R, L], and n / l float32[R], 0 where n is 0.
  """
  fold = lambda purpose: jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys)
  uniform = jax.vmap(jax.random.uniform)(fold(_COUNT))  # [R]
  count = scored.sum(-1)
  share = low + (high - low) * uniform
  masks = jnp.clip(jnp.floor(share * count).astype(jnp.int32) + 1, 1, jnp.maximum(count, 1))

  places = jnp.arange(scored.shape[1])
  at_place = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(fold(_POSITIONS), places)
  noise = jnp.where(scored, jax.vmap(jax.vmap(jax.random.uniform))(at_place), jnp.inf)
  order = jnp.argsort(noise, axis=-1, stable=True)
  ranks = jnp.argsort(order, axis=-1)
  return (ranks < masks[:, None]) & scored, count / masks


def log_likelihoods(
  denoiser: Denoiser, xt: Array, tokens: Array, scored: Array, *, chunk: int
) -> Array:
  """log p(token | xt) at the scored positions, in nats; 0 elsewhere.

  With xt = tokens, causal attention and an output shift of 1, no position sees its own token, and
  a row's sum is its exact log-likelihood, left to right.

  Args:
    denoiser: bound to the layout of these rows.
    xt: int32[R, L], what the network sees.
    tokens: int32[R, L], allowed rows where scored.
    scored: bool[R, L].
    chunk: positions whose logits exist at one time.

  Returns:
    float32[R, L]
  """
  hidden = denoiser.trunk(xt, None)
  head = denoiser.head
  _, nll = vocabulary.cross_entropy(
    head.transform(head.params, hidden.reshape(-1, hidden.shape[-1])),
    head,
    jnp.where(scored, tokens, 0).reshape(-1),
    scored.reshape(-1).astype(jnp.float32),
    chunk=chunk,
  )
  return -nll.reshape(tokens.shape)


def estimate(values: np.ndarray, *, blocks: int) -> tuple[float, float]:
  """The bound on the log-likelihood, and its standard error; in nats, float64.

  Args:
    values: what `samples` returns of all rows of a plan, in its order, [R].
    blocks: of the plan.

  Returns:
    The sum over blocks of the samples' means; the standard error, from the differences of the
    pairs that share a stratum, whose square is an unbiased estimate of the variance.
  """
  pairs = np.asarray(values, np.float64).reshape(blocks, -1, 2)
  count = pairs[0].size
  variance = (pairs[..., 0] - pairs[..., 1]) ** 2 / count**2
  return float((pairs.sum((1, 2)) / count).sum()), float(np.sqrt(variance.sum()))
