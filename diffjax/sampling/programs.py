"""The compiled programs: parameters and strategy are traced, so neither recompiles.

Several devices share the rows in one of two ways. Where the model fits each of them, every device
runs a program of its own on its rows, with a whole copy of the parameters: rows need nothing of
each other, and a device whose rows are final waits for nobody. Where the parameters lie on a mesh
(sharding.make_mesh), one program runs on all of it, and no device ever holds the whole model.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax import sharding
from diffjax.config import ComputeConfig, Contract, ModelConfig
from diffjax.diffusion import generation, likelihood, strategies, vocabulary
from diffjax.model import Model
from diffjax.models import transformer
from diffjax.sampling.layout import Rows, Scored
from diffjax.sharding import ROWS
from diffjax.types import GENERATOR, Array, Params, Shards

_BY_ROW = P(ROWS)
SPLIT_DECODED = generation.Decoded(_BY_ROW, _BY_ROW, _BY_ROW, P(), P(None, ROWS))
SPLIT_SCORES = _BY_ROW
SPLIT_LENGTHS = (_BY_ROW, _BY_ROW)


def mesh_of(params: Params) -> Mesh | None:
  """The mesh that the parameters lie on, as sharding.make_mesh makes it; None: one device."""
  for leaf in jax.tree.leaves(params):
    laid_out = getattr(leaf, "sharding", None)
    if isinstance(laid_out, NamedSharding):
      mesh = laid_out.mesh
      return mesh if mesh.axis_names == sharding.AXES and mesh.size > 1 else None
  return None


def row_parts(mesh: Mesh) -> int:
  """Into how many parts a model's mesh splits the rows of a batch, which are a multiple of it."""
  return mesh.size // mesh.shape["tensor"]


def laid_out_for_rows(params: Params, mesh: Mesh) -> Params:
  """Parameters on a mesh, as they lie on that `without_sequence`; nothing is copied.

  A canvas is too short to be cut by position, so the devices along that axis take other rows.
  """
  target = sharding.without_sequence(mesh)
  if target == mesh:
    return params

  def relabel(leaf: Any) -> Any:
    if not isinstance(getattr(leaf, "sharding", None), NamedSharding):
      return leaf
    parts = [shard.data for shard in leaf.addressable_shards]
    wanted = NamedSharding(target, leaf.sharding.spec)
    return jax.make_array_from_single_device_arrays(leaf.shape, wanted, parts)

  return jax.tree.map(relabel, params)


def place_rows(batch: Any, mesh: Mesh | None) -> Any:
  """Arrays with rows, split over a model's mesh; for any other, as they are.

  Args:
    batch: of NumPy; where several processes share the mesh, all of them hold the same.
    mesh: as `over_devices` takes it.
  """
  if mesh is None or mesh.axis_names == (ROWS,):
    return batch
  by_row = sharding.rows(mesh)
  place = lambda x: jax.make_array_from_callback(x.shape, by_row, x.__getitem__)
  return jax.tree.map(place, batch)


def devices_for(params: Params) -> list[jax.Device]:
  """Those that can share the rows, each with the whole model: all local ones of its kind.

  Of parameters that lie on several devices, one stands for all: see `mesh_of`.
  """
  leaf = jax.tree.leaves(params)[0]
  lie_on = leaf.devices() if isinstance(leaf, jax.Array) else {jax.local_devices()[0]}
  home = next(iter(lie_on))
  return [home] if len(lie_on) > 1 else jax.local_devices(backend=home.platform)


def over_devices(
  program: Callable[..., Any], *, split: tuple[int, ...], out_specs: Any
) -> Callable[..., Any]:
  """A program that takes a static `mesh` too, over whose devices its rows are split; None: one.

  Over a mesh of ROWS alone every device computes by itself, and what is returned stays split; over
  a model's mesh all compute together, and every device, so every process, has the whole answer.

  Args:
    program: of positional arrays, and static arguments by name, `shards` among them.
    split: which of its arguments have rows, on their leading axes; the others are whole everywhere
      or, of the parameters, as they lie on the model's mesh.
    out_specs: how what it returns is split over a mesh of ROWS.
  """

  def run(*arguments: Any, mesh: Mesh | None, **static: Any) -> Any:
    if mesh is None:
      return program(*arguments, **static)
    if mesh.axis_names != (ROWS,):
      found = program(*arguments, **static, shards=sharding.shards(mesh))
      return jax.lax.with_sharding_constraint(found, sharding.replicated(mesh))
    bound = functools.partial(program, **static)
    specs = tuple(_BY_ROW if n in split else P() for n in range(len(arguments)))
    # What is whole everywhere is carried through loops beside what is split: nothing to check.
    mapped = jax.shard_map(bound, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
    return mapped(*arguments)

  return run


class Pattern(NamedTuple):
  """What of a decoding is static, beside its shape and strategy."""

  ends: bool = False  # whether a revealed </s> ends its row
  cached: bool = False  # whether what is not canvas is computed once and read from a cache
  block_size: int = 0  # see generation.generate
  keep_trace: bool = False
  watched: bool = False  # whether every step is handed to the host


def decode(
  params: Params,
  sides: tuple[Rows, ...],
  seed: Array,
  strategy: strategies.Strategy,
  draw: vocabulary.Draw,
  guidance: Array | None,
  watcher: Array,
  *,
  model: Model,
  pattern: Pattern,
  watch: Callable[[Array, generation.Trace], None],
  shards: Shards | None = None,
) -> generation.Decoded:
  """Fills the canvases of one batch.

  Args:
    params: the model's, or others for the same network.
    sides: the rows, and under guidance those without their prompt.
    seed: uint32[]; a row's key is the seed's, folded with its words.
    strategy, draw, guidance: see generation.generate.
    watcher: int32[], whom `watch` hands the steps to.
    model: the network; its own parameters are not used.
    pattern: static.
    watch: called on the host with (watcher, step) where the pattern is watched.
    shards: of the model's mesh; None: on one device.

  Returns:
    What was decoded; its `network_calls` are those of one device.
  """
  contract = model.contract
  keys = _row_keys(seed, sides[0].key_words)

  def side(rows: Rows) -> generation.Side:
    denoiser = model.denoiser(rows.segments, params=params, canvas=rows.answer, shards=shards)
    canvas = generation.Canvas(jnp.asarray(rows.places), jnp.asarray(rows.real))
    return generation.Side(denoiser, rows.tokens, canvas, rows.closing)

  stored = None
  if pattern.cached:
    stored = [(rows.segments > 0) & ~rows.answer for rows in sides]
  emit = None
  if pattern.watched:

    def emit(step: generation.Trace) -> None:
      if shards is not None:  # one device hands it out
        step = jax.lax.with_sharding_constraint(step, sharding.replicated(shards.mesh))
      io_callback(watch, None, watcher, step, ordered=True)

  return generation.generate(
    [side(rows) for rows in sides],
    keys,
    strategy,
    draw,
    # A causal model without a mask never sees what stands there.
    mask_id=contract.mask_id if contract.denoises else contract.eos_id,
    chunk=model.compute.vocabulary_chunk,
    guidance=guidance,
    stored=stored,
    block_size=pattern.block_size,
    end_id=contract.eos_id if pattern.ends else None,
    keep_trace=pattern.keep_trace,
    on_step=emit,
    shards=shards,
  )


def can_store(params: Params, rows: Rows, *, model: Model) -> bool:
  """Whether the network offers a cache of what will not change again.

  Asked of the network itself, as parameters may come with attention that is still being opened.
  """
  offers: list[bool] = []

  def bind(params: Params, rows: Rows) -> None:
    denoiser = model.denoiser(rows.segments, params=params, canvas=rows.answer)
    offers.append(denoiser.prefill is not None)

  jax.eval_shape(bind, params, rows)  # computes nothing
  return offers[0]


def block_size(contract: Contract, strategy: str, *, cached: bool) -> int:
  """How many positions are filled before they are stored for the next; 0: the whole canvas."""
  if cached and contract.attention == "causal" and strategy == "left_to_right":
    return 1  # each token is stored once it is written
  return contract.block_size


def score(
  params: Params, rows: Scored, seed: Array, *, model: Model, shards: Shards | None = None
) -> Array:
  """One sample of the bound on a target's log-likelihood from every row, float32[B].

  Of a causal model without a mask, the exact log-likelihood.

  Args:
    params: the model's, or others for the same network.
    rows: their canvases hold the targets.
    seed: uint32[]; a row's key is the seed's, folded with its words.
    model: the network; its own parameters are not used.
    shards: of the model's mesh; None: on one device.
  """
  contract, chunk = model.contract, model.compute.vocabulary_chunk
  denoiser = model.denoiser(rows.segments, params=params, canvas=rows.answer, shards=shards)
  if not contract.denoises:
    tokens = rows.tokens
    exact = likelihood.log_likelihoods(
      denoiser, tokens, tokens, rows.scored, chunk=chunk, shards=shards
    )
    return exact.sum(-1)
  return likelihood.samples(
    denoiser, _row_keys(seed, rows.key_words), rows.tokens, rows.scored, rows.low, rows.high,
    mask_id=contract.mask_id, chunk=chunk, shards=shards,
  )  # fmt: skip


def _row_keys(seed: Array, words: Array) -> Array:
  key = jax.random.key(seed, impl=GENERATOR)
  fold_all = lambda row: functools.reduce(jax.random.fold_in, row, key)
  return jax.vmap(fold_all)(jnp.asarray(words))


def predict_lengths(
  params: Params,
  tokens: Array,
  segments: Array,
  room: Array,
  *,
  model: Model,
  beam: int,
  shards: Shards | None = None,
) -> tuple[Array, Array]:
  """The likeliest answer lengths, best first, and how many of them there is room for.

  Args:
    params: the model's, or others for the same network.
    tokens: int32[B, L], `<s> prompt`.
    segments: int32[B, L].
    room: int32[B], the longest answer that fits.
    model: with a length head.
    beam: how many.
    shards: of the model's mesh; None: on one device.

  Returns:
    int32[B, beam] of which the first of each row's int32[B] are legal.
  """
  logits = model.length_logits(
    tokens, segments, params=params, shards=shards
  )  # class n - 1 is length n
  fits = jnp.arange(1, logits.shape[-1] + 1) <= room[:, None]
  _, classes = jax.lax.top_k(jnp.where(fits, logits, -jnp.inf), beam)
  return classes + 1, jnp.minimum(fits.sum(-1), beam)


class Planned(NamedTuple):
  """A decoding program for parameters that are not there."""

  function: Callable[..., Any]  # jitted: function.lower(*arguments).compile()
  arguments: tuple[Any, ...]  # ShapeDtypeStructs with their shardings


def abstract_decode(
  config: ModelConfig,
  contract: Contract,
  compute: ComputeConfig,
  mesh: Mesh,
  *,
  rows: int,
  length: int,
  canvas: int,
  strategy: str,
  num_steps: int,
  temperature: float = 0.0,
  dtype: str = "float32",
) -> Planned:
  """The program that decodes one batch of a model on a mesh, whose devices need not be there.

  Args:
    config: the architecture.
    contract: its attention decides what is kept in a cache.
    compute: precision of the activations.
    mesh: as sharding.make_mesh makes it; of one device too.
    rows: of the batch; they divide over the mesh's data, fsdp and sequence.
    length: of a row.
    canvas: positions of a row that are written; whole blocks under attention 'blocks'.
    strategy, num_steps, temperature: see sampling.Settings.
    dtype: of the parameters, float32 or bfloat16.

  Raises:
    UserError: a parameter or the rows do not divide over the mesh, or the strategy is unknown.
  """
  mesh = sharding.without_sequence(mesh)
  sharding.check_rows(rows, mesh, "rows")
  model = Model(config, contract, {}, None, compute)
  shapes = transformer.shapes(config)
  params = jax.tree.map(
    lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=layout),
    shapes,
    sharding.shardings(shapes, mesh),
  )
  side = Rows(
    tokens=np.zeros((rows, length), np.int32),
    segments=np.zeros((rows, length), np.int32),
    answer=np.zeros((rows, length), bool),
    places=np.zeros((rows, canvas), np.int32),
    real=np.zeros((rows, canvas), bool),
    closing=np.zeros(rows, np.int32) if contract.end == "given" else None,
    key_words=np.zeros((rows, 4), np.uint32),
  )
  cached = can_store(params, side, model=model)
  size = block_size(contract, strategy, cached=cached)
  pattern = Pattern(ends=contract.end == "predicted", cached=cached, block_size=size)
  parsed = strategies.parse(strategy, num_steps=num_steps, canvas_size=size or canvas)
  draw = vocabulary.draw(temperature=temperature)
  others = np.uint32(0), parsed, draw, None, np.int32(0)
  described = lambda tree, layout: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
    jax.eval_shape(lambda: tree),
  )
  program = over_devices(
    functools.partial(decode, model=model, watch=lambda *_: None), split=(1,), out_specs=None
  )
  return Planned(
    jax.jit(functools.partial(program, mesh=mesh, pattern=pattern)),
    (
      params,
      *described(((side,),), sharding.rows(mesh)),
      *described(others, sharding.replicated(mesh)),
    ),
  )
