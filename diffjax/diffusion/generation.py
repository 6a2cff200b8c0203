"""The compiled loop over decoding steps: no return to the host until every row is final.

Over the usual length, because the loop, the blocks around it and the views under it decide together
what a row's result depends on, and are to be read together.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.diffusion import vocabulary
from diffjax.diffusion.guidance import guide
from diffjax.diffusion.strategies import State, Strategy
from diffjax.diffusion.vocabulary import Draw, Prediction
from diffjax.types import Array, Cache, Denoiser, Head, Shards, UserError

# What a position's key is folded with; _START in place of a step's number, for the first state.
_TOKEN_NOISE, _STEP_NOISE = range(2)
_START = 2**31


class Canvas(NamedTuple):
  """Where in its row a strategy writes."""

  places: Array  # int32[B, C]  ascending positions in the row
  real: Array  # bool[B, C]   False on padding slots


class View(NamedTuple):
  """How the loop sees a canvas: the network on the rows around it."""

  see: Callable[[Array], Array]  # the canvas's tokens int32[B, C] -> hidden [B, C, D]
  head: Head


class Trace(NamedTuple):
  """The canvas after every step of the loop."""

  tokens: Array  # int32[S', B, C]    meaningless where masked
  masked: Array  # bool[S', B, C]
  scores: Array  # float32[S', B, C]
  active: Array  # bool[S', B]      whether the step could change the row


class Decoded(NamedTuple):
  """What a loop returns."""

  tokens: Array  # int32[B, C]    the canvas; end_id behind an end
  scores: Array  # float32[B, C]  log-probability of each token at the step that revealed it
  calls: Array  # int32[B]       network calls that the row would need alone
  network_calls: Array  # int32[]        those that were made
  trace: Trace | None


class _Carry(NamedTuple):
  number: Array  # int32[]      the step
  state: State
  canvas: Array  # bool[B, C]   what is not behind a decided end
  stale: Array  # bool[B]      the canvas changed since the row last asked the network
  seen: Array | Prediction  # what the network said then: hidden, or the prediction itself
  calls: Array
  network_calls: Array
  trace: Trace | None


def fill(
  view: View,
  canvas: Canvas,
  keys: Array,
  strategy: Strategy,
  draw: Draw,
  *,
  mask_id: int,
  chunk: int,
  end_id: int | None = None,
  keep_trace: bool = False,
  on_step: Callable[[Trace], None] | None = None,
  shown: Callable[[Trace, Array], Trace] = lambda step, ended: step,
  shards: Shards | None = None,
) -> Decoded:
  """Runs a strategy on a canvas until every row of it is final.

  The network is not called in a step that no row needs it for: where every row waits, or has not
  changed since its last call (the networks are not told the time, so they would say the same).

  Noise is keyed by row, step and position in the row, so that neither the batch mates nor the
  sizes that the row and its canvas are padded to change it.

  Args:
    view: the network around this canvas.
    canvas: what is written.
    keys: a key for every row [B].
    strategy: as strategies.parse makes them, for canvases of at least C.
    draw: argmax, or how tokens are sampled.
    mask_id: stands for a masked position in what the network sees.
    chunk: positions whose logits exist at one time.
    end_id: a token that ends its row: once it is final (see Strategy.settles), neither it nor what
      is behind it is written again; None: none does.
    keep_trace: whether every step is returned; static.
    on_step: called while tracing with a Trace of one step, without the axis S'; what hands it to
      the host is an io_callback of the caller's.
    shown: what a step's trace is turned into before it is kept or handed out, told which rows an
      end has cut, bool[B].
    shards: how the rows lie on a mesh, and the vocabulary's; None: on one device.
  """
  shape = canvas.real.shape

  def project(hidden: Array, wanted: Array | None, noise: Array) -> Prediction:
    return vocabulary.predict(
      view.head,
      hidden,
      chunk=chunk,
      draw=draw,
      keys=_fold(noise, _TOKEN_NOISE) if draw.sampled else None,
      needs=strategy.needs,
      wanted=wanted,
      shards=shards,
    )

  def look(state: State, wanted: Array | None, noise: Array) -> Array | Prediction:
    hidden = view.see(jnp.where(state.masked, mask_id, state.tokens))
    return hidden if draw.sampled else project(hidden, wanted, noise)

  def body(carry: _Carry) -> _Carry:
    state = carry.state
    noise = _position_keys(keys, carry.number, canvas.places)
    arguments = {
      "canvas": carry.canvas, "number": carry.number, "keys": _fold(noise, _STEP_NOISE)
    }  # fmt: skip
    active = ~state.done & ~strategy.waits(state, **arguments)
    asking = active & carry.stale
    reads = strategy.reads(state, **arguments)
    wanted = None if reads is None else reads & active[:, None]
    seen = jax.lax.cond(asking.any(), lambda: look(state, wanted, noise), lambda: carry.seen)
    prediction = project(seen, wanted, noise) if draw.sampled else seen
    stepped = strategy.step(state, prediction, **arguments)
    stepped = jax.tree.map(lambda old, new: _where_rows(active, new, old), state, stepped)
    final = strategy.settles | stepped.done | (carry.number + 1 >= strategy.num_steps)
    stepped, left = _end_rows(stepped, carry.canvas, final, end_id)
    changed = (stepped.masked != state.masked) | (stepped.tokens != state.tokens) & ~stepped.masked
    changed = changed.any(-1)
    one = Trace(stepped.tokens, stepped.masked, stepped.scores, active | changed)
    one = shown(one, (canvas.real & ~left).any(-1))
    if on_step is not None:
      on_step(one)
    trace = carry.trace
    if trace is not None:
      trace = jax.tree.map(lambda all_, x: all_.at[carry.number].set(x), trace, one)
    return _Carry(
      number=carry.number + 1,
      state=stepped,
      canvas=left,
      stale=changed | (carry.stale & ~asking),
      seen=seen,
      calls=carry.calls + asking,
      network_calls=carry.network_calls + asking.any(),
      trace=trace,
    )

  start = _position_keys(keys, jnp.uint32(_START), canvas.places)
  state = strategy.init(canvas.real, _fold(start, _STEP_NOISE))
  trace = None
  if keep_trace:
    first = Trace(state.tokens, state.masked, state.scores, state.done)
    blank = lambda x: jnp.zeros((strategy.step_bucket, *x.shape), x.dtype)
    trace = jax.tree.map(blank, jax.eval_shape(shown, first, state.done))
  unseen = jax.eval_shape(look, state, None, start)
  carry = _Carry(
    number=jnp.int32(0),
    state=state,
    canvas=canvas.real,
    stale=jnp.ones(shape[0], bool),
    seen=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), unseen),
    calls=jnp.zeros(shape[0], jnp.int32),
    network_calls=jnp.int32(0),
    trace=trace,
  )
  unfinished = lambda carry: ~carry.state.done.all() & (carry.number < strategy.num_steps)
  end = jax.lax.while_loop(unfinished, body, carry)
  return Decoded(end.state.tokens, end.state.scores, end.calls, end.network_calls, end.trace)


def _end_rows(
  state: State, canvas: Array, settled: Array, end_id: int | None
) -> tuple[State, Array]:
  """Cuts the canvas of rows `settled` bool[B] at their first end_id; behind it all becomes it."""
  if end_id is None:
    return state, canvas
  ends = canvas & ~state.masked & (state.tokens == end_id) & settled[:, None]
  count = jnp.cumsum(ends, axis=-1)
  final = count > 0  # the first end, and all behind it
  tail = final & ~(ends & (count == 1))
  masked, left = state.masked & ~tail, canvas & ~final
  state = state._replace(
    tokens=jnp.where(tail, end_id, state.tokens),
    masked=masked,
    scores=jnp.where(tail, 0.0, state.scores),
    done=state.done | (final.any(-1) & ~(masked & left).any(-1)),
  )
  return state, left


class Side(NamedTuple):
  """Rows around a canvas; under guidance there are two, whose canvases are filled alike."""

  denoiser: Denoiser
  tokens: Array  # int32[B, L]  what the canvas holds at the start does not matter
  canvas: Canvas
  closing: Array | None = None  # int32[B]  a place that is computed with the canvas: </s> behind it


def generate(
  sides: Sequence[Side],
  keys: Array,
  strategy: Strategy,
  draw: Draw,
  *,
  mask_id: int,
  chunk: int,
  guidance: Array | None = None,
  stored: Sequence[Array] | None = None,
  block_size: int = 0,
  end_id: int | None = None,
  keep_trace: bool = False,
  on_step: Callable[[Trace], None] | None = None,
  shards: Shards | None = None,
) -> Decoded:
  """Fills the canvas of every row by a strategy's steps.

  Args:
    sides: the rows; and, under guidance, those without their prompt.
    keys, strategy, draw, mask_id, chunk, end_id, keep_trace, on_step, shards: see `fill`.
    guidance: float32[], the weight w of `guidance.guide`; None where there is one side.
    stored: bool[B, L] of each side, what is computed once and then read from a cache; None
      computes whole rows in every step. Exact where nothing stored sees the canvas: attention
      'prefix', 'blocks' and 'causal'.
    block_size: fills blocks of so many canvas positions one after the other, each seeing the
      finished ones from the cache, until every row has its end_id; 0 fills the canvas as a whole.
      It divides C; `stored` is given, and the strategy is made for canvases of it.

  Raises:
    UserError: `stored` is given, and the network can keep nothing.
  """
  common = dict(
    mask_id=mask_id, chunk=chunk, end_id=end_id, keep_trace=keep_trace, on_step=on_step,
    shards=shards,
  )  # fmt: skip
  if stored is None:
    view = _guided([whole_rows(*side[:3]) for side in sides], guidance)
    return fill(view, sides[0].canvas, keys, strategy, draw, **common)
  if sides[0].denoiser.prefill is None:
    raise UserError(
      "stored is given, but what this network computes of a prompt changes with the answer; leave "
      "stored out, or take a model of attention 'prefix', 'blocks' or 'causal'"
    )
  caches = [
    _split_cache(side.denoiser.prefill(side.tokens, keep), shards)
    for side, keep in zip(sides, stored, strict=True)
  ]
  if not block_size:
    views = [
      behind_cache(*side[:3], cache, side.closing)
      for side, cache in zip(sides, caches, strict=True)
    ]
    decoded = fill(_guided(views, guidance), sides[0].canvas, keys, strategy, draw, **common)
  else:
    decoded = _fill_blocks(
      sides, caches, keys, strategy, draw, guidance=guidance, block_size=block_size, **common
    )
  asked = sides[0].canvas.real.any(-1)
  return decoded._replace(  # the cache too was a call
    calls=decoded.calls + asked, network_calls=decoded.network_calls + asked.any()
  )


def _split_cache(cache: Cache, shards: Shards | None) -> Cache:
  """The cache as the mesh splits its rows, and its keys and values by heads where they divide."""
  if shards is None:
    return cache
  divides = cache.keys.shape[3] % shards.mesh.shape[shards.heads] == 0
  heads = P(None, shards.rows, None, shards.heads if divides else None)
  rows = P(shards.rows)
  put = lambda x, spec: jax.lax.with_sharding_constraint(x, NamedSharding(shards.mesh, spec))
  return Cache(
    put(cache.keys, heads), put(cache.values, heads), put(cache.hidden, rows),
    put(cache.stored, rows),
  )  # fmt: skip


def _guided(views: Sequence[View], guidance: Array | None) -> View:
  return views[0] if guidance is None else View(*guide(*views, guidance))


class _Blocks(NamedTuple):
  number: Array  # int32[]  the block
  caches: Sequence[Cache]
  ended: Array  # bool[B]
  decoded: Decoded  # so far


def _fill_blocks(
  sides: Sequence[Side],
  caches: Sequence[Cache],
  keys: Array,
  strategy: Strategy,
  draw: Draw,
  *,
  guidance: Array | None,
  block_size: int,
  end_id: int | None,
  keep_trace: bool,
  **common: Any,
) -> Decoded:
  """Block after block: filled, then stored with its final tokens, for the next ones to see."""
  rows, slots = sides[0].canvas.real.shape
  count = slots // block_size
  is_next = block_size == 1 and sides[0].denoiser.output_shift == 1
  filled = sides[0].canvas.real.reshape(rows, count, block_size).any(-1)  # [B, count]
  follows = jnp.pad(filled[:, 1:], ((0, 0), (0, 1)))  # whether a block has one behind it

  def body(carry: _Blocks) -> _Blocks:
    first, so_far = carry.number * block_size, carry.decoded
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, first, block_size, axis=1)
    paste = lambda whole, x: jax.lax.dynamic_update_slice_in_dim(whole, x, first, axis=1)
    blocks = [
      Canvas(cut(side.canvas.places), cut(side.canvas.real) & ~carry.ended[:, None])
      for side in sides
    ]
    views = [
      from_cache(side.denoiser, block, cache)
      if is_next
      else behind_cache(side.denoiser, side.tokens, block, cache)
      for side, block, cache in zip(sides, blocks, carry.caches, strict=True)
    ]

    def shown(step: Trace, ended: Array) -> Trace:
      later = jnp.arange(slots) >= first + block_size
      masked = sides[0].canvas.real & later & ~(carry.ended | ended)[:, None]
      return Trace(
        paste(so_far.tokens, step.tokens),
        paste(masked, step.masked),
        paste(so_far.scores, step.scores),
        step.active,
      )

    block = fill(
      _guided(views, guidance), blocks[0], keys, strategy, draw,
      end_id=end_id, keep_trace=keep_trace, shown=shown, **common,
    )  # fmt: skip
    here = blocks[0].real
    ended = carry.ended | ~follows[:, carry.number]
    if end_id is not None:
      ended |= ((block.tokens == end_id) & here).any(-1)

    def store() -> list[Cache]:
      return [
        side.denoiser.extend(block.tokens, b.places, b.real & ~ended[:, None], cache)[1]
        for side, b, cache in zip(sides, blocks, carry.caches, strict=True)
      ]

    kept = jax.lax.cond(~ended.all(), store, lambda: list(carry.caches))
    trace = so_far.trace
    if keep_trace:
      place = lambda all_, x: jax.lax.dynamic_update_slice_in_dim(
        all_, x, carry.number * strategy.step_bucket, axis=0
      )
      trace = jax.tree.map(place, trace, block.trace)
    keep = lambda new, old: jnp.where(here, new, cut(old))
    decoded = Decoded(
      tokens=paste(so_far.tokens, keep(block.tokens, so_far.tokens)),
      scores=paste(so_far.scores, keep(block.scores, so_far.scores)),
      calls=so_far.calls + (not is_next) * block.calls + ~ended,
      network_calls=so_far.network_calls + (not is_next) * block.network_calls + ~ended.all(),
      trace=trace,
    )
    return _Blocks(carry.number + 1, kept, ended, decoded)

  trace = None
  if keep_trace:
    blank = lambda dtype, *rest: jnp.zeros((count * strategy.step_bucket, rows, *rest), dtype)
    trace = Trace(*(blank(d, slots) for d in (jnp.int32, bool, jnp.float32)), blank(bool))
  start = Decoded(
    tokens=jnp.full((rows, slots), 0 if end_id is None else end_id, jnp.int32),
    scores=jnp.zeros((rows, slots), jnp.float32),
    calls=jnp.zeros(rows, jnp.int32),
    network_calls=jnp.int32(0),
    trace=trace,
  )
  empty = ~sides[0].canvas.real.any(-1)
  carry = _Blocks(jnp.int32(0), list(caches), empty, start)
  unfinished = lambda carry: (carry.number < count) & ~carry.ended.all()
  return jax.lax.while_loop(unfinished, body, carry).decoded


def whole_rows(denoiser: Denoiser, tokens: Array, canvas: Canvas) -> View:
  """The view in which every call computes all of the rows, tokens int32[B, L]."""
  written = jnp.where(canvas.real, canvas.places, tokens.shape[1])  # out of range: dropped
  read = jnp.where(canvas.real, canvas.places, 0)[..., None]

  def see(said: Array) -> Array:
    hidden = denoiser.trunk(write(tokens, written, said), None)
    return jnp.take_along_axis(hidden, read, axis=1)

  return View(see, denoiser.head)


def behind_cache(
  denoiser: Denoiser, tokens: Array, canvas: Canvas, cache: Cache, closing: Array | None = None
) -> View:
  """The view in which a call computes the canvas alone, over what is stored of the rest.

  Exact where nothing stored may see the canvas: attention 'prefix', 'blocks' or 'causal'.

  Args:
    denoiser: with `extend`.
    tokens: int32[B, L], read at `closing` alone.
    canvas: its places are not stored.
    cache: holds everything else that the canvas sees.
    closing: int32[B], one more place of each row that is computed with the canvas, such as that
      of </s> behind it; None: none.
  """
  places, real = canvas
  if closing is not None:
    places = jnp.concatenate([places, closing[:, None]], axis=1)
    real = jnp.concatenate([real, canvas.real.any(-1, keepdims=True)], axis=1)
  fixed = jnp.take_along_axis(tokens, places[:, canvas.places.shape[1] :], axis=1)

  def see(said: Array) -> Array:
    shown = jnp.concatenate([said, fixed], axis=1)
    hidden, _ = denoiser.extend(shown, places, real, cache)
    return hidden[:, : said.shape[1]]

  return View(see, denoiser.head)


def from_cache(denoiser: Denoiser, canvas: Canvas, cache: Cache) -> View:
  """The view in which nothing is computed: with output shift 1, the place before says all.

  Args:
    denoiser: its head is used.
    canvas: one position a row, C = 1, that is not the row's first.
    cache: holds the place before.
  """
  before = jnp.maximum(canvas.places - 1, 0)[..., None]
  return View(lambda said: jnp.take_along_axis(cache.hidden, before, axis=1), denoiser.head)


def write(tokens: Array, places: Array, values: Array) -> Array:
  """tokens int32[B, L] with values [B, C] at places [B, C]; places out of range are dropped."""
  one = lambda row, places, values: row.at[places].set(values, mode="drop")
  return jax.vmap(one)(tokens, places, values)


def _where_rows(rows: Array, new: Array, old: Array) -> Array:
  return jnp.where(rows.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)


def _position_keys(keys: Array, number: Array, positions: Array) -> Array:
  """The key of every position of positions int32[B, C] at one step, from the rows' keys [B]."""
  at_step = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
  return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(at_step, positions)


def _fold(keys: Array, purpose: int) -> Array:
  return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, purpose)))(keys)
