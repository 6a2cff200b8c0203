"""The compiled functions of a run and the shapes they take, from a config and a mesh alone.

Nothing here reads data, weights or files, so that the very program that trains can be compiled for
devices that are not there (diffjax/planning/).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding

from diffjax import model as models
from diffjax import sharding
from diffjax.config import Contract, ExperimentConfig, LoraConfig, ModelConfig
from diffjax.diffusion import objectives, schedules
from diffjax.models import attention, lora, transformer
from diffjax.training import length, optimizer, state, step
from diffjax.training.adaptation import Annealing
from diffjax.training.start import freezes
from diffjax.types import Array, Params, Shards


class Program(NamedTuple):
  """What a run computes. Shapes are ShapeDtypeStructs that carry their shardings."""

  train_step: Callable  # (state, frozen, batch) -> (state, Updates); the state is donated
  # (params, frozen, batch, int32[], openness float32[] or None) -> (Sums | None, LengthSums | None)
  validation_step: Callable
  first: Callable  # (given parameters, key) -> the state before the first step
  state: state.TrainState
  frozen: Params  # {} where all is trained
  rows: NamedSharding  # of a batch


def build(
  config: ExperimentConfig, model: models.Model, annealing: Annealing | None, mesh: Mesh
) -> Program:
  """Every function is jitted once, beside its shardings and donation; none is compiled yet.

  Args:
    config: the experiment.
    model: its architecture and contract; the parameters are not read.
    annealing: of the attention of what were causal weights, or None.
    mesh: as sharding.make_mesh makes it.

  Raises:
    UserError: a parameter, or the length of a row, does not divide over the mesh; the attention
      kernel asked for cannot compute it.
  """
  alone, shards = config.length.alone, sharding.shards(mesh)
  for row_length in config.data.lengths:
    attention.chosen(  # refuses what cannot be
      model.config, config.compute, length=row_length, shards=shards, training=True,
      opened=annealing is not None,
    )  # fmt: skip
  bind = functools.partial(
    transformer.bind,
    config=model.config,
    contract=model.contract,
    compute=config.compute,
    lora=config.lora,
    shards=shards,
  )
  loss = functools.partial(
    step.loss_sums,
    bind=bind,
    mask_id=model.contract.mask_id,
    chunk=config.compute.vocabulary_chunk,
    shards=shards,
  )
  objective = make_objective(config, model.contract)
  length_loss = make_length_loss(config, model, shards) if config.length.weight else None
  update = optimizer.make(config.optimizer, steps=config.training.steps)
  shapes = transformer.shapes(model.config, config.lora)
  frozen, trained = lora.split(shapes, length_head=True) if freezes(config) else ({}, shapes)
  create = functools.partial(state.create, optimizer=update, ema=config.optimizer.ema_decay > 0)
  abstract = jax.eval_shape(create, trained)
  placed, placed_frozen = sharding.shardings(abstract, mesh), sharding.shardings(frozen, mesh)
  train_step = functools.partial(
    step.train_step,
    loss=None if alone else functools.partial(loss, objective=objective, train=True),
    length=length_loss,
    length_weight=config.length.weight,
    optimizer=update,
    learning_rate=optimizer.learning_rate(config.optimizer, steps=config.training.steps),
    microbatches=config.training.microbatches,
    ema_decay=config.optimizer.ema_decay,
    opening=functools.partial(annealing.opened, seed=config.seed) if annealing else None,
    placed=placed.params if mesh.size > 1 else None,
  )
  # Validation draws its own noise, the same at every validation, and weighs no twin twice.
  plain = dataclasses.replace(objective, coupled=False, label_smoothing=0.0, seed=config.seed + 1)
  validation_step = functools.partial(
    step.validation_step,
    loss=None if alone else functools.partial(loss, objective=plain, train=False),
    length=length_loss,
  )
  first = functools.partial(
    _first, create=create, model=model.config, adapters=config.lora, freeze=freezes(config)
  )
  rows, once = sharding.rows(mesh), sharding.replicated(mesh)
  return Program(
    train_step=jax.jit(
      train_step,
      in_shardings=(placed, placed_frozen, rows),
      out_shardings=(placed, once),
      donate_argnums=0,
    ),
    validation_step=jax.jit(
      validation_step,
      in_shardings=(placed.params, placed_frozen, rows, once, once),
      out_shardings=once,
    ),
    first=jax.jit(first, out_shardings=placed, donate_argnums=0),
    state=_with_layout(abstract, placed),
    frozen=_with_layout(frozen, placed_frozen),
    rows=rows,
  )


def layout(shapes: Any) -> Any:
  """The shardings that a tree of ShapeDtypeStructs carries."""
  return jax.tree.map(lambda leaf: leaf.sharding, shapes)


def count(shapes: Params) -> int:
  """How many numbers a tree holds."""
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _with_layout(shapes: Any, placed: Any) -> Any:
  attach = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(attach, shapes, placed)


def _first(
  given: Params,
  key: Array,
  *,
  create: Callable[[Params], state.TrainState],
  model: ModelConfig,
  adapters: LoraConfig,
  freeze: bool,
) -> state.TrainState:
  """The state before the first step: the trained leaves given, and random ones for the others."""
  params = transformer.init(key, model, adapters)
  trained = lora.split(params, length_head=True)[1] if freeze else params
  return create({**trained, **given})  # whole parts of the network are given, or nothing of them


def make_objective(config: ExperimentConfig, contract: Contract) -> objectives.Objective:
  """The config's diffusion section as the science layer wants it, blocks as the contract has it."""
  section = dataclasses.asdict(config.diffusion)
  del section["attention"]
  section["block_size"] = contract.block_size
  schedule = schedules.make(section.pop("schedule"), power=section.pop("power"))
  return objectives.Objective(schedule=schedule, seed=config.seed, **section)


def make_length_loss(
  config: ExperimentConfig, model: models.Model, shards: Shards | None = None
) -> Callable[..., tuple[Array, length.LengthSums]]:
  """(params, frozen, batch) -> the summed loss of the model's length head."""

  def read(params: Params, segments: Array, tokens: Array) -> Array:
    return transformer.length_logits(
      params,
      segments,
      tokens,
      config=model.config,
      contract=model.contract,
      compute=config.compute,
      lora=config.lora,
      shards=shards,
    )

  return functools.partial(length.loss_sums, read=read, eos_id=model.contract.eos_id)
