"""A run from its config to its last checkpoint, read from top to bottom."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from diffjax import model as models
from diffjax import sharding
from diffjax.checkpoints import Checkpoints
from diffjax.config import ExperimentConfig
from diffjax.data import pipeline, plan, sources
from diffjax.models import lora
from diffjax.training import metrics, programs, state
from diffjax.training.start import CACHE, check_workdir, claim, freezes, place, starting_point
from diffjax.training.supervision import Stop
from diffjax.training.validation import Validation
from diffjax.types import GENERATOR, UserError


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
  model, annealing = begin.model, begin.annealing
  mesh = sharding.make_mesh(config.mesh)
  for row_length in config.data.lengths:
    count = config.data.rows(row_length)
    sharding.check_rows(count // config.training.microbatches, mesh, "a microbatch")

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
  program = programs.build(config, model, annealing, mesh)

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
      frozen = place(frozen, programs.layout(program.frozen), config.lora.frozen_dtype)
    start = saved.latest()
    if start is not None:
      restored = saved.restore(start, state.items(program.state))
      step = jax.device_put(np.int32(start), program.state.step.sharding)
      current = program.state.replace(step=step, **restored)
    else:
      placed = programs.layout(program.state.params)
      given = place(given, {name: placed[name] for name in given})
      current = program.first(given, jax.random.key(config.seed, impl=GENERATOR))
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
        trained, others = programs.count(program.state.params), programs.count(program.frozen)
        said = f"{trained:,} of {trained + others:,} numbers are trained"
        report.say(f"{said}, in the {' and the '.join(parts)}")
      report.say(batch_plan.counts.describe())
      if start:
        report.say(f"resuming {workdir} at step {start} of {steps}")
      pending = None  # the metrics of step n are read while step n + 1 runs
      for number, batch in enumerate(report.waiting_for(batches), start + 1):
        current, updates = program.train_step(
          current, frozen, sharding.place_rows(batch, program.rows)
        )
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
          scores = validation.run(params, frozen, openness, program.validation_step, program.rows)
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
