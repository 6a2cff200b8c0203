"""Streams hidden states through the vocabulary projection; [P, V] logits never exist.

The vocabulary is the cost of a multilingual model: XLM-R's table has three times the parameters
of the whole base trunk. Both the loss and the sampler go through here, which is why the file is
long. Either visits only the positions that count, a chunk of them at a time. The loss forms its
own gradient during the visit: three matmuls a chunk (logits, features' gradient, table's
gradient), nothing recomputed, nothing stacked. A prediction keeps a few numbers of each position.

On a mesh a device holds some rows of the table and never sees the others; the positions come to
it. Shards of positions that share a table visit theirs together: those that count stand in one
row, across the shards, and a visit takes the next of them, whoever's they are. One shard may so
have many and another none without either waiting, and all make the same number of visits, which
they must, as they meet inside.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from diffjax.diffusion.draws import Draw, draw_grouped, group_noise, kept
from diffjax.diffusion.draws import draw as draw
from diffjax.types import GENERATOR, Array, Head, Shards


class _Axes(NamedTuple):
  """Mesh axes longer than 1, by what they mean to a visit; none on one device."""

  vocabulary: tuple[str, ...] = ()  # split the rows of the table
  shared: tuple[str, ...] = ()  # of these, the ones that split positions too
  apart: tuple[str, ...] = ()  # split positions alone: nothing is exchanged over them in the loop
  parts: int = 1  # of the table
  sharing: int = 1  # shards of positions that are visited together


def _axes(shards: Shards | None, positions: tuple[str, ...]) -> _Axes:
  """The axes of a mesh that splits positions over the axes `positions`."""
  if shards is None:
    return _Axes()
  long = lambda names: tuple(name for name in names if shards.mesh.shape[name] > 1)
  size = lambda names: math.prod(shards.mesh.shape[name] for name in names)
  vocabulary = long(shards.vocabulary)
  shared = tuple(name for name in vocabulary if name in positions)
  apart = tuple(name for name in long(positions) if name not in vocabulary)
  return _Axes(vocabulary, shared, apart, size(vocabulary), size(shared))


def _sum(x: Array, names: tuple[str, ...]) -> Array:
  return jax.lax.psum(x, names) if names else x


def _visit_size(chunk: int, positions: int, table: Array, axes: _Axes) -> int:
  """How many positions a visit takes, of `positions` on each shard and table [V / parts, D].

  `chunk` on one device. On a mesh more, by as much as its part of the table is smaller: its logits
  take the memory of chunk x V, and its matmuls stay large. A multiple of the parts.
  """
  if axes.parts == 1:
    return min(chunk, positions)
  rows, width = table.shape
  # The features themselves take no more memory than the logits may.
  size = max(1, chunk * axes.parts * rows // max(rows, width))
  return -(-min(size, axes.sharing * positions) // axes.parts) * axes.parts


class _Queue(NamedTuple):
  """The positions that count, of all shards that are visited together, in one row."""

  order: Array  # int32[P]  this shard's positions, those that count first
  count: Array  # int32[]   how many do
  before: Array  # int32[]   how many of earlier shards stand before them
  total: Array  # int32[]   of all shards
  axes: tuple[str, ...]  # over which they are apart

  def turn(self, number: Array, size: int) -> tuple[Array, Array]:
    """Which positions visit `number` takes.

    Returns:
      int32[size], this shard's positions among them, out of range at those of others; and
      bool[size], False where the row has ended.
    """
    slots = number * size + jnp.arange(size, dtype=jnp.int32)
    own = slots - self.before
    mine = (own >= 0) & (own < self.count)
    places = jnp.where(mine, self.order[jnp.where(mine, own, 0)], len(self.order))
    return places, slots < self.total

  def take(self, x: Array, places: Array) -> Array:
    """x [P, ...] of all shards at their places -> [size, ...]; exact, since one shard has each."""
    return _sum(x.at[places].get(mode="fill", fill_value=0), self.axes)


def _queue(counts: Array, axes: _Axes) -> _Queue:
  """Lines up the positions where `counts`, bool[P] of this shard, is True."""
  order = jnp.argsort(~counts, stable=True).astype(jnp.int32)
  count = counts.sum(dtype=jnp.int32)
  before, total = jnp.int32(0), count
  if axes.shared:
    each = jax.lax.all_gather(count, axes.shared)  # [sharing]
    earlier = jnp.arange(axes.sharing) < jax.lax.axis_index(axes.shared)
    before, total = jnp.where(earlier, each, 0).sum(), each.sum()
  return _Queue(order, count, before, total, axes.shared)


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
    features: [..., D], after the head's transform; [B, L, D] on a mesh.
    head: its table, bias and allowed rows are used.
    targets: int32[...], allowed rows.
    nll_weight: float32[...]; 0 where the position does not count.
    smooth_weight: float32[...] for label smoothing, or None.
    chunk: positions whose logits exist at one time; on a mesh the logits of as many more as the
      vocabulary has shards, each device holding its rows of them: chunk x V numbers either way.
    shards: how B, L and V are split over a mesh, or None on one device. No device ever holds more
      of the table and of its gradient than its own rows.

  Returns:
    The summed loss float32[], and -log p(target) float32[...], 0 where both weights are 0; the
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
    return _visit(*arguments, chunk=chunk, axes=_Axes(), with_gradient=with_gradient)
  axes = _axes(shards, (*shards.rows, shards.sequence))
  positions, rows = P(shards.rows, shards.sequence), P(shards.vocabulary)

  def visit(*local: Array | None) -> _Visit:
    part = _visit(*local, chunk=chunk, axes=axes, with_gradient=with_gradient)
    total = lambda x: None if x is None else _sum(x, axes.apart)
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
  axes: _Axes,
  with_gradient: bool,
) -> _Visit:
  """One shard's pass: as many visits as hold scored positions of those that share its table.

  What it returns of the loss and the table is of all of them; nll and the gradient of features are
  of its own positions.
  """
  shape, dtype = features.shape, features.dtype
  features, targets = features.reshape(-1, shape[-1]), jnp.ravel(targets)
  nll_weight = jnp.ravel(nll_weight)
  over_rows = functools.partial(_sum, names=axes.vocabulary)
  matmul = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  weights = table.astype(dtype)  # [V, D]
  first_row = 0
  if axes.vocabulary:
    first_row = jax.lax.axis_index(axes.vocabulary) * table.shape[0]
  allowed_count = over_rows(allowed.sum().astype(jnp.float32))

  scored = nll_weight != 0
  if smooth_weight is not None:
    smooth_weight = jnp.ravel(smooth_weight)
    scored |= smooth_weight != 0
  queue, size = _queue(scored, axes), _visit_size(chunk, len(scored), table, axes)

  def body(carry: tuple[Array, _Visit]) -> tuple[Array, _Visit]:
    number, total = carry
    places, busy = queue.turn(number, size)
    take = functools.partial(queue.take, places=places)
    f, target, weight = take(features), take(targets) - first_row, take(nll_weight)
    logits = jnp.where(allowed, matmul(f, weights.T) + bias, -jnp.inf)  # [size, V]
    top = logits.max(-1)
    if axes.vocabulary:
      top = jax.lax.pmax(top, axes.vocabulary)
    exponentials = jnp.exp(logits - top[:, None])
    normalizer = over_rows(exponentials.sum(-1))
    # Relative to the top logit throughout: log-probabilities near 0 keep their digits.
    log_normalizer = jnp.log(normalizer)
    mine = (target >= 0) & (target < table.shape[0])
    column = jnp.where(mine, target, 0)
    target_logit = jnp.take_along_axis(logits, column[:, None], axis=-1)[:, 0]
    nll = log_normalizer - over_rows(jnp.where(mine, target_logit - top, 0))
    nll = jnp.where(busy, nll, 0)
    loss = weight @ nll
    if smooth_weight is not None:
      smooth = take(smooth_weight)
      mean_logit = over_rows(jnp.where(allowed, logits - top[:, None], 0).sum(-1)) / allowed_count
      loss += smooth @ (log_normalizer - mean_logit)
    total = total._replace(loss=total.loss + loss, nll=total.nll.at[places].set(nll, mode="drop"))
    if not with_gradient:
      return number + 1, total

    mass = weight if smooth_weight is None else weight + smooth
    d_logits = exponentials * (mass / normalizer)[:, None]
    if smooth_weight is not None:
      d_logits -= jnp.where(allowed, (smooth / allowed_count)[:, None], 0)
    # Compared, not scattered: a scatter would write and read all of d_logits twice more.
    hit = jnp.arange(table.shape[0], dtype=jnp.int32) == target[:, None]  # [size, V]
    d_logits -= jnp.where(hit, weight[:, None], 0)
    narrow = d_logits.astype(dtype)
    d_features = _completed(matmul(narrow, weights), dtype, axes.vocabulary)
    return number + 1, total._replace(
      features=total.features.at[places].set(d_features, mode="drop"),
      table=total.table + matmul(narrow.T, f),
      bias=total.bias + d_logits.sum(0),
    )

  gradients = (None, None, None)
  if with_gradient:
    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)
    gradients = (jnp.zeros_like(features), zeros(table), zeros(bias))
  start = _Visit(jnp.float32(0), jnp.zeros(len(scored), jnp.float32), *gradients)
  _, visit = jax.lax.while_loop(
    lambda carry: carry[0] * size < queue.total, body, (jnp.int32(0), start)
  )
  visit = visit._replace(nll=visit.nll.reshape(shape[:-1]))
  return visit._replace(features=visit.features.reshape(shape)) if with_gradient else visit


def _completed(part: Array, dtype: jnp.dtype, names: tuple[str, ...]) -> Array:
  """The sum of float32[size, D] over mesh axes, in `dtype`: added wide, handed out narrow."""
  if not names:
    return part.astype(dtype)
  own = jax.lax.psum_scatter(part, names, tiled=True).astype(dtype)
  return jax.lax.all_gather(own, names, tiled=True)


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
  shards: Shards | None = None,
) -> Prediction:
  """A token for every position, and its log-probability; for some, entropy and margin too.

  A position's prediction is a function of its hidden state and its key: neither the others nor
  how many are wanted change a bit of it. A mesh changes it by rounding alone: a draw's noise
  belongs to rows of the table, wherever they lie.

  Args:
    head: the masked-LM head.
    hidden: [..., D], before the head's transform; on a mesh [B, C, D], split by rows.
    chunk: positions whose logits exist at one time, at the most; on a mesh see `cross_entropy`.
    draw: the argmax, or how to sample.
    keys: a key of type GENERATOR for every position [...], where `draw` samples.
    needs: which of entropy and margin to return too; both of the untempered law.
    wanted: bool[...], positions whose prediction is used: no more are visited, but for those that
      fill a chunk. Others may hold anything finite. None: all.
    shards: how B and V are split over a mesh, or None on one device. Where tokens are sampled,
      positions change places with rows of the table: a device sees all logits of a few of them.
  """
  hidden = jnp.asarray(hidden)
  rows = head.table.shape[0]
  axes = _axes(shards, shards.rows if shards else ())
  if shards:  # the transform is a layer like any other: not one to be run in the loop on each shard
    hidden = head.transform(head.params, hidden)
    head = head._replace(transform=lambda params, features: features, params={})
  features = jax.eval_shape(head.transform, head.params, hidden)
  table = head.table.astype(features.dtype)  # once, before the loops
  bias = jnp.where(head.allowed, head.bias, -jnp.inf)
  piece, tile = _CPU_PIECE if wanted is None else _CPU_PIECE_WANTED, min(_CPU_TILE, rows)
  if draw.truncated:  # not known before all logits are, which are then read many times
    piece, tile = max(16, min(_CPU_PIECE_WANTED, 2**20 // rows)), rows
  key_data = jax.random.key_data(keys) if draw.sampled else None

  def stream(*arrays: Array | Draw | None, chunk: int, tile: int) -> Prediction:
    local = functools.partial(_stream, head, needs=needs, chunk=chunk, tile=tile, axes=axes)
    if shards is None:
      return local(*arrays)
    positions, split = P(shards.rows), P(shards.vocabulary)
    return jax.shard_map(
      local,
      mesh=shards.mesh,
      in_specs=(split, split, positions, positions, positions, P()),
      out_specs=positions,
      check_vma=False,
    )(*arrays)

  return jax.lax.platform_dependent(
    table,
    bias,
    hidden,
    key_data,
    wanted,
    draw,
    cpu=functools.partial(stream, chunk=min(piece, chunk), tile=tile),
    default=functools.partial(stream, chunk=chunk, tile=rows),
  )


def _stream(
  head: Head,
  table: Array,
  bias: Array,
  hidden: Array,
  key_data: Array | None,
  wanted: Array | None,
  draw: Draw,
  *,
  needs: frozenset[str],
  chunk: int,
  tile: int,
  axes: _Axes,
) -> Prediction:
  """One shard's pass: as many visits as hold wanted positions of those that share its table."""
  shape = hidden.shape[:-1]
  hidden = hidden.reshape(-1, hidden.shape[-1])
  length = len(hidden)
  wanted = jnp.ones(length, bool) if wanted is None else jnp.ravel(wanted)
  if key_data is not None:
    key_data = key_data.reshape(length, -1)
  queue, size = _queue(wanted, axes), _visit_size(chunk, length, table, axes)

  def body(carry: tuple[Array, Prediction]) -> tuple[Array, Prediction]:
    number, so_far = carry
    places, _ = queue.turn(number, size)
    features = head.transform(head.params, queue.take(hidden, places))
    data = None if key_data is None else queue.take(key_data, places)
    found = _predict_piece(
      table, bias, features, data, draw=draw, needs=needs, tile=tile, axes=axes
    )
    write = lambda all_, x: all_.at[places].set(x, mode="drop")
    return number + 1, jax.tree.map(write, so_far, found)

  zeros = jnp.zeros(length, jnp.float32)
  start = Prediction(
    tokens=jnp.zeros(length, jnp.int32),
    scores=zeros,
    entropy=zeros if "entropy" in needs else None,
    margin=zeros if "margin" in needs else None,
  )
  unfinished = lambda carry: carry[0] * size < queue.total
  _, predicted = jax.lax.while_loop(unfinished, body, (jnp.int32(0), start))
  return jax.tree.map(lambda x: x.reshape(shape), predicted)


def _predict_piece(
  table: Array,
  bias: Array,
  features: Array,
  key_data: Array | None,
  *,
  draw: Draw,
  needs: frozenset[str],
  tile: int,
  axes: _Axes,
) -> Prediction:
  """The prediction of features [c, D], over all rows of the table, of which this shard has some.

  Logits stand as [rows, c]: reduced over the rows, neighbouring positions share the vector units.
  """

  def project(first: Array | int, rows: int) -> Array:
    cut = _cut(table, first, rows), _cut(bias, first, rows)
    logits = jnp.matmul(cut[0], features.T, preferred_element_type=jnp.float32)
    return logits + cut[1][:, None]

  visit = functools.partial(_visit_rows, draw=draw, needs=needs, tile=tile)
  if not (axes.vocabulary and draw.sampled):
    seen = visit(
      project, None if key_data is None else _keys(key_data), shape=(len(table), len(features))
    )
    return _concluded(_merged(seen, len(table), axes) if axes.vocabulary else seen)
  # All rows of some positions for some rows of all positions: as many numbers.
  logits = jax.lax.all_to_all(project(0, len(table)), axes.vocabulary, 1, 0, tiled=True)
  own = logits.shape[1]
  first = jax.lax.axis_index(axes.vocabulary) * own
  seen = visit(
    functools.partial(_cut, logits), _keys(_cut(key_data, first, own)), shape=logits.shape
  )
  gather = lambda x: jax.lax.all_gather(x, axes.vocabulary, tiled=True)
  return jax.tree.map(gather, _concluded(seen))


def _cut(x: Array, first: Array | int, count: int) -> Array:
  return x if count == len(x) else jax.lax.dynamic_slice_in_dim(x, first, count)


def _keys(key_data: Array) -> Array:
  return jax.random.wrap_key_data(key_data, impl=GENERATOR)


def _visit_rows(
  logits: Callable[[Array, int], Array],
  keys: Array | None,
  *,
  shape: tuple[int, int],
  draw: Draw,
  needs: frozenset[str],
  tile: int,
) -> _Seen:
  """What all rows say, `tile` of them at a time.

  Args:
    logits: (first, count) -> float32[count, c] of the rows from `first` on; -inf: not allowed.
    keys: of the positions [c], where `draw` samples.
    shape: (rows, c).
    draw, needs: as in `predict`.
    tile: more than there are rows stands for all.
  """
  rows, positions = shape
  tile = min(tile, rows)

  def visit(seen: _Seen, logits: Array, first: Array, number: Array) -> _Seen:
    noise = None if keys is None else group_noise(keys, number, tile)
    return _absorb(seen, logits, first, noise, draw)

  def body(number: Array, seen: _Seen) -> _Seen:
    # The last tile reaches back where `tile` does not divide the rows; those count once.
    first = jnp.minimum(number * tile, rows - tile)
    again = first + jnp.arange(tile) < number * tile
    return visit(seen, jnp.where(again[:, None], -jnp.inf, logits(first, tile)), first, number)

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
  if tile == rows:
    return visit(start, logits(0, rows), jnp.int32(0), jnp.int32(0))
  return jax.lax.fori_loop(0, -(-rows // tile), body, start)


def _merged(seen: _Seen, rows: int, axes: _Axes) -> _Seen:
  """What all shards have seen, each of its own `rows`, where the choice is the argmax."""
  token = seen.token + jax.lax.axis_index(axes.vocabulary) * rows
  top = jax.lax.pmax(seen.top, axes.vocabulary)
  # The earliest of ties.
  best = jax.lax.pmin(jnp.where(seen.top == top, token, axes.parts * rows), axes.vocabulary)
  fall = seen.top - top  # <= 0
  shrink = jnp.exp(fall)
  second, slope = seen.second, seen.slope
  if second is not None:
    second = jax.lax.pmax(jnp.where(token == best, second, seen.top), axes.vocabulary)
  if slope is not None:
    slope = jax.lax.psum(shrink * (slope + seen.mass * fall), axes.vocabulary)
  mass = jax.lax.psum(seen.mass * shrink, axes.vocabulary)
  return seen._replace(top=top, mass=mass, token=best, logit=top, second=second, slope=slope)


def _concluded(seen: _Seen) -> Prediction:
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
