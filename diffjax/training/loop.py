"""A run from its config to its last checkpoint, read from top to bottom."""

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffjax import hosts, sharding, tokenizers
from diffjax import model as models
from diffjax.checkpoints import Checkpoints
from diffjax.config import ExperimentConfig
from diffjax.data import pipeline, plan, sources
from diffjax.models import lora
from diffjax.training import programs, state
from diffjax.training.profiling import Profiler
from diffjax.training.reporter import Reporter
from diffjax.training.start import (
  CACHE,
  Start,
  check_workdir,
  claim,
  freezes,
  place,
  starting_point,
)
from diffjax.training.supervision import Stop, Watchdog, alone_in, check_finite
from diffjax.training.validation import Validation
from diffjax.types import GENERATOR, Params, Preempted, UserError

_PREPARING = 24 * 3600.0  # seconds that others wait while the first process measures the data
_CLAIMING = 300.0
_NO_STEP = {"validation": "validating", "save": "saving", "other": "profiling"}


def train(config: ExperimentConfig, workdir: str | Path) -> dict[str, float]:
  """Trains to config.training.steps, resuming from the newest checkpoint in the workdir.

  The workdir receives config.json, tokenizer/, checkpoints/ and what the reporter writes. Several
  processes (diffjax/hosts.py) train together, each with its rows of every batch, in a workdir that
  all of them see; the first one writes.

  Returns:
    The last validation's metrics (empty without a validation source), and the "step" reached.

  Raises:
    UserError: the config contradicts the weights, the data, the devices or the workdir.
    Preempted: SIGINT or SIGTERM came; the step was finished and saved.
    Diverged: the loss or the gradient of a step is not finite; it was not saved.
    Unavailable: another process did not come.
  """
  workdir = Path(workdir)
  report = Reporter(workdir, config)  # its clock runs from here
  with (
    Stop(report.ended) as stop,
    Watchdog(config.training.stall_seconds, report.ended) as watchdog,
  ):

    def between() -> None:
      """Of the batches of a validation: it goes on, unless the run is to stop."""
      watchdog.beat()
      if stop.due():
        raise Preempted("stopped while validating")

    job = _open(config, workdir, report, between)
    with (
      _claimed(workdir, config, job.begin.model.tokenizer),
      report,
      Checkpoints(
        workdir / models.CHECKPOINTS,
        keep=config.training.keep_checkpoints,
        metric=config.evaluation.metric,
      ) as saved,
    ):
      report.enter("restore")
      report.introduce(job.begin.model, parameters=_size(job.program), mesh=job.mesh)
      with watchdog.inside("restoring", size=_bytes(job.program)):
        first = _first_state(config, job, saved)
      job = job.without_weights()  # the state holds them now
      return _steps(config, workdir, job, first, report, saved, stop, watchdog)


class _Job(NamedTuple):
  """What a run works with: all of it opened, nothing of it written."""

  begin: Start
  source: sources.Source
  plan: plan.Plan
  validation: Validation | None
  mesh: jax.sharding.Mesh
  program: programs.Program

  def without_weights(self) -> "_Job":
    """The same, the weights of the model let go."""
    model = dataclasses.replace(self.begin.model, params=None)
    return self._replace(begin=self.begin._replace(model=model))


class _First(NamedTuple):
  """What the steps of this process begin with."""

  step: int  # so many are made
  state: state.TrainState
  frozen: Params


def _open(
  config: ExperimentConfig, workdir: Path, report: Reporter, between: Callable[[], None]
) -> _Job:
  """Model, data and functions; a mistake in any of them leaves no run behind."""
  # The model: architecture and tokenizer, its weights on the host, in a checkpoint, or unmade.
  meta = check_workdir(workdir, config)
  begin = starting_point(config, workdir, meta)
  mesh = sharding.make_mesh(config.mesh)
  for row_length in config.data.lengths:
    count = config.data.rows(row_length)
    sharding.check_rows(count // config.training.microbatches, mesh, "a microbatch")

  # The data: every batch is a function of (seed, number).
  report.enter("data")
  source = sources.open_source(config.data.train)
  if meta is not None and (different := sources.changes(meta["data"], source.identity)):
    raise UserError(
      f"the training data of {workdir} changed since it began: {'; '.join(different)}; restore it, "
      f"or choose another workdir"
    )
  index = functools.partial(
    _length_index,
    tokenizer=begin.model.tokenizer,
    contract=begin.model.contract,
    max_length=config.data.max_length,
    too_long=config.data.too_long,
    cache_dir=workdir / CACHE,
    on_bad_record=config.data.on_bad_record,
    workers=config.data.workers,
  )
  if config.data.test.kind != "none":
    sources.open_source(config.data.test)  # rather now than after the last step
  batch_plan = plan.Plan(index(source), config.data, config.seed)
  unloaded = dataclasses.replace(begin.model, params=None)
  validation = Validation.open(config, unloaded, index, mesh, between)

  # The functions: each jitted once, beside its shardings and donation.
  program = programs.build(config, begin.model, begin.annealing, mesh)
  return _Job(begin, source, batch_plan, validation, mesh, program)


def _length_index(source: sources.Source, **how: Any) -> plan.LengthIndex:
  """The first process measures the data, and the others read what it found."""
  work = functools.partial(plan.length_index, source, **how)
  return hosts.in_turn("the data is measured", work, _PREPARING)


@contextlib.contextmanager
def _claimed(
  workdir: Path, config: ExperimentConfig, tokenizer: tokenizers.Tokenizer
) -> Iterator[None]:
  """The workdir is this run's: config and tokenizer are in it, and no other run trains there."""
  with alone_in(workdir):
    if hosts.is_first():
      claim(workdir, config, tokenizer)
    hosts.barrier("the workdir is claimed", _CLAIMING)
    hosts.check_shared(workdir)
    yield


def _steps(
  config: ExperimentConfig,
  workdir: Path,
  job: _Job,
  first: _First,
  report: Reporter,
  saved: Checkpoints,
  stop: Stop,
  watchdog: Watchdog,
) -> dict[str, float]:
  """All steps, as `train` says."""
  model, program, annealing = job.begin.model, job.program, job.begin.annealing
  start, steps, current = first.step, config.training.steps, first.state
  meta = {
    "config": dataclasses.asdict(config),
    "lora": dataclasses.asdict(config.lora),
    "data": job.source.identity,
  }
  if stop.due() and start < steps:
    raise Preempted(f"stopped before step {start + 1} of {steps}; the same command resumes")
  batches = pipeline.batches(
    job.source,
    model.tokenizer,
    model.contract,
    job.plan,
    data=config.data,
    start=start,
    stop=steps,
    blocks=sharding.row_blocks(job.mesh),
  )
  measured: dict[str, float] = {}
  given_up = False

  @contextlib.contextmanager
  def inside(phase: str) -> Iterator[None]:
    """Something that is no step, as watchdog and goodput count it."""
    size = _bytes(program) if phase == "save" else 0
    with watchdog.inside(_NO_STEP[phase], size=size), report.inside(phase):
      yield

  with Profiler(
    workdir,
    start=start,
    first=config.training.profile_start,
    steps=config.training.profile_steps,
    report=types.SimpleNamespace(inside=inside, say=report.say),
  ) as profiler:
    report.begin(start)
    for note in (*job.begin.notes, *_what_is_trained(config, program), job.plan.counts.describe()):
      report.say(note)

    pending = None  # the metrics of step n are read while step n + 1 runs
    shapes = set()
    number = start
    for number, batch in enumerate(report.waiting_for(batches), start + 1):
      watchdog.step(compiles=batch.tokens.shape not in shapes)
      shapes.add(batch.tokens.shape)
      profiler.before(number, current)
      current, updates = program.train_step(
        current, first.frozen, sharding.place_rows(batch, program.rows)
      )
      if pending:
        _settle(pending, report, saved)
      last = stop.due() or number == steps
      pending = number, updates, number % config.training.log_every == 0 or last

      every = config.training.eval_every
      validates = job.validation and ((every and number % every == 0) or number == steps)
      if validates or last or number % config.training.checkpoint_every == 0:
        _settle(pending, report, saved)  # a state is known to be good before it is saved
        pending = None
        scores = None
        if validates:
          try:
            with inside("validation"):
              scores = measured = _validate(number, current, first.frozen, job, report)
            last = stop.due() or last
          except Preempted:  # there may be little time left, and what was trained counts more
            last = given_up = True
          if annealing and annealing.openness(number) < 1:
            scores = None  # of another attention than the finished model's: never the best
        with inside("save"):
          saved.save(number, state.items(current), {**meta, **job.begin.meta(number)}, scores)
      saved.check()
      if last:
        break
  report.enter("save")  # until what is written in the background is there
  with watchdog.inside(_NO_STEP["save"], size=_bytes(program)):
    saved.wait()
  if number < steps or given_up:
    without = ", saved without its validation" if given_up else ", saved"
    raise Preempted(f"stopped at step {number} of {steps}{without}; the same command resumes")
  return {**measured, "step": number}


def _first_state(config: ExperimentConfig, job: _Job, saved: Checkpoints) -> _First:
  """The newest checkpoint, else the imported weights, and fresh ones for what these lack.

  Frozen weights are imported at every start, and no checkpoint holds them.
  """
  program = job.program
  frozen, given = {}, job.begin.model.params or {}
  if freezes(config):
    frozen, given = lora.split(given, length_head=True)
    frozen = place(frozen, programs.layout(program.frozen), config.lora.frozen_dtype)
  start = saved.latest()
  if start is not None:
    restored = saved.restore(start, state.items(program.state))
    step = jax.device_put(np.int32(start), program.state.step.sharding)
    return _First(start, program.state.replace(step=step, **restored), frozen)
  placed = programs.layout(program.state.params)
  given = place(given, {name: placed[name] for name in given})
  key = jax.random.key(config.seed, impl=GENERATOR)
  return _First(0, program.first(given, key), frozen)


def _size(program: programs.Program) -> int:
  return programs.count(program.state.params) + programs.count(program.frozen)


def _bytes(program: programs.Program) -> int:
  """Of a checkpoint."""
  leaves = jax.tree.leaves(state.items(program.state))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _what_is_trained(config: ExperimentConfig, program: programs.Program) -> list[str]:
  if not freezes(config):
    return []
  parts = ["adapters"] * bool(config.lora.rank) + ["length head"] * bool(config.length.weight)
  said = f"{programs.count(program.state.params):,} of {_size(program):,} numbers are trained"
  return [f"{said}, in the {' and the '.join(parts)}"]


def _settle(pending: tuple, report: Reporter, saved: Checkpoints) -> None:
  """Reads and reports what a step returned. Raises Diverged where it is not finite."""
  number, updates, _ = pending
  report.step(*pending)
  check_finite(number, updates, saved.latest())


def _validate(
  number: int, current: state.TrainState, frozen: Params, job: _Job, report: Reporter
) -> Mapping[str, float]:
  """The held-out scores of a step, written and said."""
  params = current.params if current.ema_params is None else current.ema_params
  annealing = job.begin.annealing
  openness = annealing.openness(number) if annealing else None
  scores = job.validation.run(
    params, frozen, openness, job.program.validation_step, job.program.rows
  )
  report.write(number, "validation", scores)
  shown = "  ".join(
    f"{name} {value:.4g}" for name, value in scores.items() if not name.startswith("nll_")
  )
  how = f" (attention {openness:.2f} open)" if annealing and openness < 1 else ""
  report.say(f"validation at step {number}{how}: {shown}")
  return scores
