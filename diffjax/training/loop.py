"""A run from its config to its last checkpoint, read from top to bottom."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from diffjax import model as models
from diffjax import sharding
from diffjax.checkpoints import Checkpoints
from diffjax.config import Contract, ExperimentConfig, LoraConfig, ModelConfig
from diffjax.data import pipeline, plan, sources
from diffjax.diffusion import objectives, schedules, vocabulary
from diffjax.models import lora, transformer
from diffjax.training import length, metrics, optimizer, state, step
from diffjax.training.start import CACHE, check_workdir, claim, freezes, place, starting_point
from diffjax.training.supervision import Stop
from diffjax.training.validation import Validation
from diffjax.types import GENERATOR, Array, Params, UserError


def train(config: ExperimentConfig, workdir: str | Path) -> dict[str, float]:
  """Trains to config.training.steps, resuming from the newest checkpoint in the workdir.

  The workdir receives config.json, tokenizer/, checkpoints/ and metrics.jsonl. SIGINT or SIGTERM
  finishes the step, saves and returns.

  Returns:
    The last validation's metrics (empty without a validation source), and the "step" reached.

  Raises:
    UserError: the config contradicts the weights, the data, the devices or the workdir.
  """
  workdir = Path(workdir)

  # The model: architecture and tokenizer, its weights on the host, in a checkpoint, or unmade.
  meta = check_workdir(workdir, config)
  begin = starting_point(config, workdir, meta)
  model, annealing, alone = begin.model, begin.annealing, config.length.alone
  mesh = sharding.make_mesh(config.mesh)
  for row_length in config.data.lengths:
    rows = config.data.rows(row_length)
    sharding.check_rows(rows // config.training.microbatches, mesh, "a microbatch")

  # The data: every batch is a function of (seed, number). All of it is opened before anything is
  # written, so that a mistake leaves no run behind.
  source = sources.open_source(config.data.train)
  if meta is not None and (different := sources.changes(meta["data"], source.identity)):
    raise UserError(
      f"the training data of {workdir} changed since it began: {'; '.join(different)}; restore it, "
      f"or choose another workdir"
    )
  index = functools.partial(
    plan.length_index,
    tokenizer=model.tokenizer,
    contract=model.contract,
    max_length=config.data.max_length,
    too_long=config.data.too_long,
    cache_dir=workdir / CACHE,
    on_bad_record=config.data.on_bad_record,
    workers=config.data.workers,
  )
  if config.data.test.kind != "none":
    sources.open_source(config.data.test)  # rather now than after the last step
  batch_plan = plan.Plan(index(source), config.data, config.seed)
  validation = Validation.open(config, dataclasses.replace(model, params=None), index, mesh)

  # The functions: each jitted once, beside its shardings and donation.
  update = optimizer.make(config.optimizer, steps=config.training.steps)
  bind = functools.partial(
    transformer.bind,
    config=model.config,
    contract=model.contract,
    compute=config.compute,
    lora=config.lora,
    constrain=functools.partial(sharding.constrain_rows, mesh=mesh),
  )
  loss = functools.partial(
    step.loss_sums,
    bind=bind,
    mask_id=model.contract.mask_id,
    chunk=config.compute.vocabulary_chunk,
    shards=_shards(mesh),
  )
  objective = make_objective(config, model.contract)
  length_loss = make_length_loss(config, model) if config.length.weight else None
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
  )
  create = functools.partial(state.create, optimizer=update, ema=config.optimizer.ema_decay > 0)
  shapes = transformer.shapes(model.config, config.lora)
  frozen, trained = lora.split(shapes, length_head=True) if freezes(config) else ({}, shapes)
  abstract = jax.eval_shape(create, trained)
  placed, placed_frozen = sharding.shardings(abstract, mesh), sharding.shardings(frozen, mesh)
  rows, once = sharding.rows(mesh), sharding.replicated(mesh)
  train_step = jax.jit(
    train_step,
    in_shardings=(placed, placed_frozen, rows),
    out_shardings=(placed, once),
    donate_argnums=0,
  )
  # Validation draws its own noise, the same at every validation, and weighs no twin twice.
  plain = dataclasses.replace(objective, coupled=False, label_smoothing=0.0, seed=config.seed + 1)
  validation_step = jax.jit(
    functools.partial(
      step.validation_step,
      loss=None if alone else functools.partial(loss, objective=plain, train=False),
      length=length_loss,
    ),
    in_shardings=(placed.params, placed_frozen, rows, once, once),
    out_shardings=once,
  )

  claim(workdir, config, model.tokenizer)
  with Checkpoints(
    workdir / models.CHECKPOINTS,
    keep=config.training.keep_checkpoints,
    metric=config.evaluation.metric,
  ) as saved:
    # The state: the newest checkpoint, else the imported weights, and fresh ones for what these
    # lack. Frozen weights are imported at every start, and no checkpoint holds them.
    frozen, given = {}, model.params or {}
    if freezes(config):
      frozen, given = lora.split(given, length_head=True)
      frozen = place(frozen, placed_frozen, config.lora.frozen_dtype)
    start = saved.latest()
    if start is not None:
      targets = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed
      )
      restored = saved.restore(start, state.items(targets))
      current = abstract.replace(step=jax.device_put(np.int32(start), once), **restored)
    else:
      first = functools.partial(
        _first, create=create, model=model.config, adapters=config.lora, freeze=freezes(config)
      )
      current = jax.jit(first, out_shardings=placed, donate_argnums=0)(
        place(given, {name: placed.params[name] for name in given}),
        jax.random.key(config.seed, impl=GENERATOR),
      )
    start = start or 0
    del given
    model = dataclasses.replace(model, params=None)  # the state holds them now
    begin = begin._replace(model=model)
    meta = {
      "config": dataclasses.asdict(config),
      "lora": dataclasses.asdict(config.lora),
      "data": source.identity,
    }

    steps = config.training.steps
    batches = pipeline.batches(
      source,
      model.tokenizer,
      model.contract,
      batch_plan,
      data=config.data,
      start=start,
      stop=steps,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    measured: dict[str, float] = {}
    with (
      metrics.Reporter(
        workdir, start=start, steps=steps, length_weight=config.length.weight
      ) as report,
      Stop() as stop,
    ):
      for note in begin.notes:
        report.say(note)
      if freezes(config):
        parts = ["adapters"] * bool(config.lora.rank) + ["length head"] * bool(config.length.weight)
        said = f"{_count(trained):,} of {_count(shapes):,} numbers are trained"
        report.say(f"{said}, in the {' and the '.join(parts)}")
      report.say(batch_plan.counts.describe())
      if start:
        report.say(f"resuming {workdir} at step {start} of {steps}")
      pending = None  # the metrics of step n are read while step n + 1 runs
      for number, batch in enumerate(report.waiting_for(batches), start + 1):
        current, updates = train_step(current, frozen, sharding.place_rows(batch, rows))
        if pending:
          report.step(*pending)
        write = number % config.training.log_every == 0 or number == steps or stop.asked
        pending = (number, updates, write)

        last = number == steps or stop.asked
        every = config.training.eval_every
        scores = None
        if validation and ((every and number % every == 0) or number == steps):
          report.step(*pending)
          pending = None
          report.status("validating")
          params = current.params if current.ema_params is None else current.ema_params
          openness = annealing.openness(number) if annealing else None
          scores = validation.run(params, frozen, openness, validation_step, rows)
          measured = scores
          report.write(number, "validation", scores)
          shown = "  ".join(
            f"{name} {value:.4g}" for name, value in scores.items() if not name.startswith("nll_")
          )
          how = f" (attention {openness:.2f} open)" if annealing and openness < 1 else ""
          report.say(f"validation at step {number}{how}: {shown}")
          report.resume_clock()
        if last or scores is not None or number % config.training.checkpoint_every == 0:
          if annealing and annealing.openness(number) < 1:
            scores = None  # of another attention than the finished model's: never the best
          saved.save(number, state.items(current), {**meta, **begin.meta(number)}, scores)
        saved.check()
        if last:
          if pending:
            report.step(*pending)
          if stop.asked and number < steps:
            report.say(f"stopped at step {number} of {steps}, saved; the same command resumes")
          start = number
          break
  return {**measured, "step": start}


def _count(shapes: Params) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


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
  config: ExperimentConfig, model: models.Model
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
    )

  return functools.partial(length.loss_sums, read=read, eos_id=model.contract.eos_id)


def _shards(mesh: jax.sharding.Mesh) -> vocabulary.Shards | None:
  if mesh.size == 1:
    return None  # one device streams without shard_map, which saves its copies
  return vocabulary.Shards(mesh, sharding.BATCH_AXES, "tensor")
