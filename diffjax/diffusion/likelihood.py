"""How likely a model holds a given text: bounds by exact-count masking, and the exact value.

A masked diffusion model that reveals positions in a uniformly random order has, of a text x of n
positions, by Jensen's inequality over the orders,

  log p(x) >= n E_l E_masks [ (1 / l) sum_{i masked} log p(x_i | what is not masked) ]

where l is uniform on 1 .. n and exactly l positions are masked (LLaDA, 2502.09992; the same value
as the bound over times of MDLM, 2406.07524, with far less variance than masking by coins). The
model's network is called once for every sample of (l, mask), so samples are rows. Where all masks
of a short text are no more rows than the samples would be, all of them are tried, and no error is
left.

The order: `plan` lays out the rows, `samples` is compiled over them, in batches of any size,
`estimate` puts their values together.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion import vocabulary
from diffjax.types import Array, Denoiser, Shards, UserError

# What a row's key is folded with.
_COUNT, _POSITIONS = range(2)


class Plan(NamedTuple):
  """The rows of an estimate: `each` of the first set of positions, then of the second, and so on.

  Either the sets are blocks, of which every row masks a random part; or every set is masked as it
  is, in one row, and the sets are all there are.
  """

  sets: np.ndarray  # bool[M, L]  what may be masked and is scored in a row
  each: int  # rows of a set: 1 where all masks are tried, else even
  weights: np.ndarray  # float64[M]  of one row of the set, in the bound

  @property
  def count(self) -> int:
    """R, how many rows there are."""
    return len(self.sets) * self.each

  @property
  def enumerated(self) -> bool:
    """Whether all masks are tried."""
    return self.each == 1

  def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `samples` takes of these rows: scored bool[n, L]; low, high float32[n].

    Args:
      numbers: int[n], each in 0 .. count - 1.
    """
    which, number = np.divmod(np.asarray(numbers), self.each)
    strata = self.each // 2
    if self.enumerated:  # a share of 1: all of the set
      low = high = np.ones(len(which))
    else:  # two rows share the stratum of l / n in [low, high)
      low, high = number // 2 / strata, (number // 2 + 1) / strata
    return self.sets[which], low.astype(np.float32), high.astype(np.float32)


def plan(target: np.ndarray, *, samples: int, block_size: int = 0) -> Plan:
  """The rows that bound the log-likelihood of one target.

  Where trying all 2^n - 1 masks takes no more rows than sampling would, all are tried. Else two
  samples share each stratum of the share of masked positions, which is what gives the standard
  error of a stratified estimate; so `samples` is rounded up to an even number a block.

  Args:
    target: bool[L], the positions whose likelihood is asked for.
    samples: at least so many in all, >= 1; of a short target fewer may say all.
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
  size = block_size or len(places)
  blocks = [places[start : start + size] for start in range(0, len(places), size)]
  each = 2 * -(-samples // (2 * len(blocks)))
  if sum(2 ** len(block) - 1 for block in blocks) > len(blocks) * each:
    weights = np.full(len(blocks), 1 / each)
    return Plan(_sets(blocks, len(target)), each, weights)
  masks = [
    (mask, 1 / (count * math.comb(len(block), count)))
    for block in blocks
    for count in range(1, len(block) + 1)
    for mask in itertools.combinations(block, count)
  ]
  return Plan(_sets([mask for mask, _ in masks], len(target)), 1, np.array([w for _, w in masks]))


def _sets(members: Sequence[Sequence[int]], length: int) -> np.ndarray:
  sets = np.zeros((len(members), length), bool)
  for row, places in zip(sets, members, strict=True):
    row[list(places)] = True
  return sets


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
  shards: Shards | None = None,
) -> Array:
  """One sample of the bound from every row: n / l sum_{i masked} log p(x_i | the rest), in nats.

  Args:
    denoiser: bound to the layout of these rows; under attention 'blocks' by the whole answer, so
      that a block does not see later ones.
    keys: a key for every row [R].
    tokens: int32[R, L], clean.
    scored, low, high: as `Plan.rows` has them; rows may be added that score nothing, whose value
      is 0.
    mask_id: what masked positions become.
    chunk: positions whose logits exist at one time.
    shards: how rows and vocabulary lie on a mesh; None: on one device.

  Returns:
    float32[R]
  """
  masked, weight = draw_masks(keys, scored, low, high)
  return weight * log_likelihoods(
    denoiser, jnp.where(masked, mask_id, tokens), tokens, masked, chunk=chunk, shards=shards
  ).sum(-1)


def draw_masks(keys: Array, scored: Array, low: Array, high: Array) -> tuple[Array, Array]:
  """Masks exactly l of each row's n scored positions: l = floor(u n) + 1, u uniform in [low, high).

  Noise is keyed by row and position, so that padding a row does not change its mask.

  Args:
    keys: a key for every row [R].
    scored: bool[R, L].
    low, high: float32[R] in [0, 1]; 0 and 1 make l uniform on 1 .. n, 1 and 1 make it n.

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
  denoiser: Denoiser,
  xt: Array,
  tokens: Array,
  scored: Array,
  *,
  chunk: int,
  shards: Shards | None = None,
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
    shards: how rows and vocabulary lie on a mesh; None: on one device.

  Returns:
    float32[R, L]
  """
  hidden = denoiser.trunk(xt, None)
  head = denoiser.head
  # On a mesh rows stay rows, each on its device; on one device they are one line of positions.
  line = (lambda x: x) if shards else (lambda x: x.reshape(-1, *x.shape[2:]))
  _, nll = vocabulary.cross_entropy(
    head.transform(head.params, line(hidden)),
    head,
    line(jnp.where(scored, tokens, 0)),
    line(scored.astype(jnp.float32)),
    chunk=chunk,
    shards=shards,
  )
  return -nll.reshape(tokens.shape)


def estimate(values: np.ndarray, plan: Plan) -> tuple[float, float]:
  """The bound on the log-likelihood, and its standard error; in nats, float64.

  Args:
    values: what `samples` returns of all rows of the plan, in its order, [R].
    plan: whose rows they are.

  Returns:
    The weighted sum; and its standard error, 0 where all masks were tried, else from the
    differences of the pairs that share a stratum, whose square is an unbiased estimate of the
    variance.
  """
  values = np.asarray(values, np.float64).reshape(len(plan.sets), plan.each)
  bound = float((plan.weights * values.sum(1)).sum())
  if plan.enumerated:
    return bound, 0.0
  pairs = values.reshape(len(values), -1, 2)
  variance = ((pairs[..., 0] - pairs[..., 1]) ** 2).sum(1) * plan.weights**2
  return bound, float(np.sqrt(variance.sum()))
