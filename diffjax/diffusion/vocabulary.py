"""Streams hidden states through the vocabulary projection; [P, V] logits never exist.

The vocabulary is the cost of a multilingual model: XLM-R's table has three times the parameters
of the whole base trunk. Both the loss and the sampler go through here, which is why the file is
long. Either visits only the positions that count, a chunk of them at a time. The loss forms its
own gradient during the visit: three matmuls a chunk (logits, features' gradient, table's
gradient), nothing recomputed, nothing stacked. A prediction keeps a few numbers of each position.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from diffjax.diffusion.draws import Draw, draw_grouped, group_noise, kept
from diffjax.diffusion.draws import draw as draw
from diffjax.types import GENERATOR, Array, Head, Shards


class _Visit(NamedTuple):
  """What one pass over the scored positions returns."""

  loss: Array  # float32[]
  nll: Array  # float32[P]  -log p(target), 0 where not scored
  features: Array | None  # gradients of the loss, [P, D], [V, D], [V]
  table: Array | None
  bias: Array | None


def cross_entropy(
  features: Array,
  head: Head,
  targets: Array,
  nll_weight: Array,
  smooth_weight: Array | None = None,
  *,
  chunk: int,
  shards: Shards | None = None,
) -> tuple[Array, Array]:
  """sum_p nll_weight_p (-log p(target_p)) + smooth_weight_p mean_v (-log p_p(v)).

  Probabilities and the mean are over the allowed rows of the head. Differentiable with respect to
  features, head.table and head.bias, to first order; the weights and targets are data.

  Args:
    features: [P, D], after the head's transform.
    head: its table, bias and allowed rows are used.
    targets: int32[P], allowed rows.
    nll_weight: float32[P]; 0 where the position does not count.
    smooth_weight: float32[P] for label smoothing, or None.
    chunk: positions whose logits exist at one time.
    shards: how P and V are split over a mesh, or None on one device. Every shard of positions
      streams its own; collectives inside the loop run over the vocabulary axis alone.

  Returns:
    The summed loss float32[], and -log p(target) float32[P], 0 where both weights are 0; the
    latter carries no gradient.
  """
  return _cross_entropy(
    features, head.table, head.bias, head.allowed, targets, nll_weight, smooth_weight, chunk, shards
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _cross_entropy(
  features: Array,
  table: Array,
  bias: Array,
  allowed: Array,
  targets: Array,
  nll_weight: Array,
  smooth_weight: Array | None,
  chunk: int,
  shards: Shards | None,
) -> tuple[Array, Array]:
  arguments = features, table, bias, allowed, targets, nll_weight, smooth_weight
  visit = _visit_shards(*arguments, chunk=chunk, shards=shards, with_gradient=False)
  return visit.loss, visit.nll


def _forward(features, table, bias, allowed, targets, nll_weight, smooth_weight, chunk, shards):
  arguments = features, table, bias, allowed, targets, nll_weight, smooth_weight
  visit = _visit_shards(*arguments, chunk=chunk, shards=shards, with_gradient=True)
  return (visit.loss, visit.nll), (visit.features, visit.table, visit.bias)


def _backward(chunk, shards, gradients, cotangents):
  del chunk, shards
  scale = cotangents[0]
  features, table, bias = (g * scale.astype(g.dtype) for g in gradients)
  return features, table, bias, None, None, None, None


_cross_entropy.defvjp(_forward, _backward)


def _visit_shards(*arguments: Array | None, chunk: int, shards: Shards | None, with_gradient: bool):
  """`_visit` on one device, or on every shard of a mesh with the sums completed."""
  if shards is None:
    return _visit(*arguments, chunk=chunk, vocabulary=None, with_gradient=with_gradient)
  positions, rows = P(shards.rows), P(shards.heads)

  def visit(*local: Array | None) -> _Visit:
    part = _visit(*local, chunk=chunk, vocabulary=shards.heads, with_gradient=with_gradient)
    total = lambda x: None if x is None else jax.lax.psum(x, shards.rows)
    return part._replace(loss=total(part.loss), table=total(part.table), bias=total(part.bias))

  gradients = (positions, rows, rows) if with_gradient else (None, None, None)
  return jax.shard_map(
    visit,
    mesh=shards.mesh,
    in_specs=(positions, rows, rows, rows, positions, positions, positions),
    out_specs=_Visit(P(), positions, *gradients),
    check_vma=False,
  )(*arguments)


def _visit(
  features: Array,
  table: Array,
  bias: Array,
  allowed: Array,
  targets: Array,
  nll_weight: Array,
  smooth_weight: Array | None,
  *,
  chunk: int,
  vocabulary: str | None,
  with_gradient: bool,
) -> _Visit:
  """One shard's pass: scored positions first, then as many chunks as hold any."""
  over_rows = (lambda x: jax.lax.psum(x, vocabulary)) if vocabulary else (lambda x: x)
  length, dtype = features.shape[0], features.dtype
  chunk = min(chunk, length)
  matmul = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  weights = table.astype(dtype)  # [V, D]
  first_row = jax.lax.axis_index(vocabulary) * table.shape[0] if vocabulary else 0
  allowed_count = over_rows(allowed.sum().astype(jnp.float32))

  scored = nll_weight != 0
  if smooth_weight is not None:
    scored |= smooth_weight != 0
  order = jnp.argsort(~scored, stable=True).astype(jnp.int32)
  order = jnp.pad(order, (0, -length % chunk), constant_values=length)  # length: out of range
  chunks = -(-scored.sum() // chunk)

  def body(carry: tuple[Array, _Visit]) -> tuple[Array, _Visit]:
    number, total = carry
    rows = jax.lax.dynamic_slice(order, (number * chunk,), (chunk,))
    take = lambda x: x.at[rows].get(mode="fill", fill_value=0)
    f, target, weight = take(features), take(targets) - first_row, take(nll_weight)
    logits = jnp.where(allowed, matmul(f, weights.T) + bias, -jnp.inf)  # [chunk, V]
    top = logits.max(-1)
    if vocabulary:
      top = jax.lax.pmax(top, vocabulary)
    exponentials = jnp.exp(logits - top[:, None])
    normalizer = over_rows(exponentials.sum(-1))
    # Relative to the top logit throughout: log-probabilities near 0 keep their digits.
    log_normalizer = jnp.log(normalizer)
    mine = (target >= 0) & (target < table.shape[0])
    column = jnp.where(mine, target, 0)
    target_logit = jnp.take_along_axis(logits, column[:, None], axis=-1)[:, 0]
    nll = log_normalizer - over_rows(jnp.where(mine, target_logit - top, 0))
    nll = jnp.where(take(scored), nll, 0)  # the last chunk may reach past the scored ones
    loss = weight @ nll
    if smooth_weight is not None:
      smooth = take(smooth_weight)
      mean_logit = over_rows(jnp.where(allowed, logits - top[:, None], 0).sum(-1)) / allowed_count
      loss += smooth @ (log_normalizer - mean_logit)
    total = total._replace(loss=total.loss + loss, nll=total.nll.at[rows].set(nll, mode="drop"))
    if not with_gradient:
      return number + 1, total

    mass = weight if smooth_weight is None else weight + smooth
    d_logits = exponentials * (mass / normalizer)[:, None]
    if smooth_weight is not None:
      d_logits -= jnp.where(allowed, (smooth / allowed_count)[:, None], 0)
    d_logits = d_logits.at[jnp.arange(chunk), column].add(jnp.where(mine, -weight, 0))
    narrow = d_logits.astype(dtype)
    d_features = over_rows(matmul(narrow, weights)).astype(dtype)
    return number + 1, total._replace(
      features=total.features.at[rows].set(d_features, mode="drop"),
      table=total.table + matmul(narrow.T, f),
      bias=total.bias + d_logits.sum(0),
    )

  gradients = (None, None, None)
  if with_gradient:
    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)
    gradients = (jnp.zeros_like(features), zeros(table), zeros(bias))
  start = _Visit(jnp.float32(0), jnp.zeros(length, jnp.float32), *gradients)
  _, visit = jax.lax.while_loop(
    lambda carry: carry[0] < chunks, body, (jnp.zeros_like(chunks), start)
  )
  return visit


class Prediction(NamedTuple):
  """What the network says about each position [...]; None where it was not asked for."""

  tokens: Array  # int32    allowed rows
  scores: Array  # float32  untempered log-probability of that token over the allowed rows
  entropy: Array | None = None  # float32  nats
  margin: Array | None = None  # float32  probability of the best token less that of the second


class _Seen(NamedTuple):
  """What the rows of the table visited so far say of each position [c]."""

  top: Array  # the largest logit
  mass: Array  # sum exp(logit - top)
  token: Array  # the choice among these rows
  logit: Array  # its own
  rank: Array  # its Gumbel variable relative to top / temperature, where tokens are drawn
  second: Array | None  # the second largest logit
  slope: Array | None  # sum exp(logit - top) (logit - top)


# On a CPU, logits are formed and read a tile of so many vocabulary rows at a time, which stays in
# the cores' caches: 64 000 rows take half the time. Accelerators see all rows at once.
_CPU_TILE = 1024
# Positions at a time there: where only some are wanted, fewer, for less idle work in the last one.
_CPU_PIECE, _CPU_PIECE_WANTED = 256, 64


def predict(
  head: Head,
  hidden: Array,
  *,
  chunk: int,
  draw: Draw,
  keys: Array | None = None,
  needs: frozenset[str] = frozenset(),
  wanted: Array | None = None,
) -> Prediction:
  """A token for every position, and its log-probability; for some, entropy and margin too.

  A position's prediction is a function of its hidden state and its key: neither the others nor
  how many are wanted change a bit of it.

  Args:
    head: the masked-LM head.
    hidden: [P, D], before the head's transform.
    chunk: positions whose logits exist at one time, at the most.
    draw: the argmax, or how to sample.
    keys: a key of type GENERATOR for every position [P], where `draw` samples.
    needs: which of entropy and margin to return too; both of the untempered law.
    wanted: bool[P], positions whose prediction is used: no more chunks are visited than hold them.
      Others may hold anything finite. None: all.
  """
  hidden = jnp.asarray(hidden)
  length, rows = hidden.shape[0], head.table.shape[0]
  features = jax.eval_shape(head.transform, head.params, hidden)
  head = head._replace(
    table=head.table.astype(features.dtype),  # once, before the loops
    bias=jnp.where(head.allowed, head.bias, -jnp.inf),
  )
  piece, tile = _CPU_PIECE if wanted is None else _CPU_PIECE_WANTED, min(_CPU_TILE, rows)
  if draw.truncated:  # not known before all logits are, which are then read many times
    piece, tile = max(16, min(_CPU_PIECE_WANTED, 2**20 // rows)), rows
  stream = functools.partial(_stream, head, draw=draw, needs=needs)
  key_data = jax.random.key_data(keys) if draw.sampled else None
  return jax.lax.platform_dependent(
    hidden,
    key_data,
    wanted,
    cpu=functools.partial(stream, piece=min(piece, chunk, length), tile=tile),
    default=functools.partial(stream, piece=min(chunk, length), tile=rows),
  )


def _stream(
  head: Head,
  hidden: Array,
  key_data: Array | None,
  wanted: Array | None,
  *,
  draw: Draw,
  needs: frozenset[str],
  piece: int,
  tile: int,
) -> Prediction:
  """Wanted positions first, `piece` of them at a time, then as many pieces as hold any."""
  length = hidden.shape[0]
  order, count = jnp.arange(length), length
  if wanted is not None:
    order, count = jnp.argsort(~wanted, stable=True), wanted.sum()
  order = jnp.pad(order, (0, -length % piece), constant_values=length)  # length: out of range

  def body(carry: tuple[Array, Prediction]) -> tuple[Array, Prediction]:
    number, so_far = carry
    places = jax.lax.dynamic_slice(order, (number * piece,), (piece,))
    take = lambda x: x.at[places].get(mode="fill", fill_value=0)
    keys = None if key_data is None else jax.random.wrap_key_data(take(key_data), impl=GENERATOR)
    features = head.transform(head.params, take(hidden))
    found = _predict_piece(head, features, keys, draw=draw, needs=needs, tile=tile)
    write = lambda all_, x: all_.at[places].set(x, mode="drop")
    return number + 1, jax.tree.map(write, so_far, found)

  zeros = jnp.zeros(length, jnp.float32)
  start = Prediction(
    tokens=jnp.zeros(length, jnp.int32),
    scores=zeros,
    entropy=zeros if "entropy" in needs else None,
    margin=zeros if "margin" in needs else None,
  )
  unfinished = lambda carry: carry[0] * piece < count
  return jax.lax.while_loop(unfinished, body, (jnp.int32(0), start))[1]


def _predict_piece(
  head: Head,
  features: Array,
  keys: Array | None,
  *,
  draw: Draw,
  needs: frozenset[str],
  tile: int,
) -> Prediction:
  """The prediction of features [c, D], over all rows of the table, `tile` of them at a time.

  Logits stand as [tile, c]: reduced over the rows, neighbouring positions share the vector units.
  """
  rows, positions = head.table.shape[0], features.shape[0]

  def visit(seen: _Seen, table: Array, bias: Array, first: Array, number: Array) -> _Seen:
    logits = jnp.matmul(table, features.T, preferred_element_type=jnp.float32) + bias[:, None]
    noise = None if keys is None else group_noise(keys, number, tile)
    return _absorb(seen, logits, first, noise, draw)

  def body(number: Array, seen: _Seen) -> _Seen:
    # The last tile reaches back where `tile` does not divide the rows; those count once.
    first = jnp.minimum(number * tile, rows - tile)
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, first, tile)
    again = first + jnp.arange(tile) < number * tile
    return visit(seen, cut(head.table), jnp.where(again, -jnp.inf, cut(head.bias)), first, number)

  full = lambda value: jnp.full(positions, value, jnp.float32)
  lowest = jnp.finfo(jnp.float32).min  # -inf would make differences NaN
  start = _Seen(
    top=full(lowest),
    mass=full(0),
    token=jnp.zeros(positions, jnp.int32),
    logit=full(lowest),
    rank=full(-jnp.inf),
    second=full(-jnp.inf) if "margin" in needs else None,
    slope=full(0) if "entropy" in needs else None,
  )
  if tile == rows:  # nothing is cut: the table may be sharded
    seen = visit(start, head.table, head.bias, jnp.int32(0), jnp.int32(0))
  else:
    seen = jax.lax.fori_loop(0, -(-rows // tile), body, start)
  log_mass, margin, entropy = jnp.log(seen.mass), None, None
  if seen.second is not None:
    margin = -jnp.expm1(seen.second - seen.top) / seen.mass
  if seen.slope is not None:
    entropy = jnp.maximum(log_mass - seen.slope / seen.mass, 0)
  # Relative to the top logit throughout: scores near 0 keep their digits.
  return Prediction(seen.token, (seen.logit - seen.top) - log_mass, entropy, margin)


def _absorb(seen: _Seen, logits: Array, first: Array, noise: Array | None, draw: Draw) -> _Seen:
  """`seen` and the logits [tile, c] of the rows from `first` on; -inf where not allowed."""
  index = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
  # Not argmax, whose pairs of value and index do not go through the vector units of a CPU.
  tile_top = logits.max(0)
  best = jnp.where(logits == tile_top, index, logits.shape[0] - 1).min(0)
  top = jnp.maximum(seen.top, tile_top)
  fall = seen.top - top  # <= 0
  relative = logits - top
  weights, shrink = jnp.exp(relative), jnp.exp(fall)
  mass = seen.mass * shrink + weights.sum(0)

  if noise is None:
    better, local, logit, rank = tile_top > seen.top, best, tile_top, seen.rank
  else:
    tempered = relative / draw.temperature
    if draw.truncated:
      tempered = jnp.where(kept(tempered, draw), tempered, -jnp.inf)
    local, rank = draw_grouped(tempered, noise)
    before = seen.rank + fall / draw.temperature
    better, rank = rank > before, jnp.maximum(rank, before)
    logit = jnp.take_along_axis(logits, local[None], axis=0)[0]

  second, slope = seen.second, seen.slope
  if second is not None:
    others = jnp.where(index == best, -jnp.inf, logits).max(0)
    second = jnp.maximum(jnp.minimum(seen.top, tile_top), jnp.maximum(second, others))
  if slope is not None:
    # exp(-200) is 0 already; -inf itself would make 0 * inf.
    slope = shrink * (slope + seen.mass * fall) + (weights * jnp.maximum(relative, -200)).sum(0)
  return _Seen(
    top=top,
    mass=mass,
    token=jnp.where(better, first + local, seen.token),
    logit=jnp.where(better, logit, seen.logit),
    rank=rank,
    second=second,
    slope=slope,
  )
