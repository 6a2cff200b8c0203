"""A run from its config to its last checkpoint, read from top to bottom."""

import dataclasses
import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffjax import model as models
from diffjax import sharding
from diffjax.checkpoints import Checkpoints
from diffjax.config import (
  EvaluationConfig,
  ExperimentConfig,
  ModelConfig,
  config_from_dict,
  flatten,
)
from diffjax.data import pipeline, plan, sources
from diffjax.diffusion import objectives, schedules, vocabulary
from diffjax.evaluation import tasks
from diffjax.models import transformer
from diffjax.sampling import Sampler
from diffjax.tokenizers import SentencePieceTokenizer
from diffjax.training import metrics, optimizer, state, step
from diffjax.types import Batch, Example, Params, UserError

# Fields that a resumed run may change, because the trained weights do not depend on them.
_FREE_FIELDS = ("training.log_every", "training.eval_every", "training.checkpoint_every",
                "training.keep_checkpoints", "evaluation", "mesh", "data.workers",
                "data.validation", "data.test", "compute.remat")  # fmt: skip


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

  # The model: architecture and tokenizer, its weights still on the host or not made.
  model = _starting_point(config)
  mesh = sharding.make_mesh(config.mesh)
  for length in config.data.lengths:
    rows = config.data.rows(length)
    sharding.check_rows(rows // config.training.microbatches, mesh, "a microbatch")

  # The data: every batch is a function of (seed, number).
  source = sources.open_source(config.data.train)
  index = functools.partial(
    plan.length_index,
    tokenizer=model.tokenizer,
    max_length=config.data.max_length,
    too_long=config.data.too_long,
    cache_dir=workdir / "cache",
  )
  _claim(workdir, config, model.tokenizer)
  batch_plan = plan.Plan(index(source), config.data, config.seed)

  # The functions: each jitted once, beside its shardings and donation.
  update = optimizer.make(config.optimizer, steps=config.training.steps)
  rate = jax.jit(optimizer.learning_rate(config.optimizer, steps=config.training.steps))
  bind = functools.partial(
    transformer.bind,
    config=model.config,
    contract=model.contract,
    compute=config.compute,
    constrain=functools.partial(sharding.constrain_rows, mesh=mesh),
  )
  loss = functools.partial(
    step.loss_sums,
    bind=bind,
    mask_id=model.contract.mask_id,
    chunk=config.compute.vocabulary_chunk,
    shards=_shards(mesh),
  )
  objective = make_objective(config)
  train_step = functools.partial(
    step.train_step,
    loss=functools.partial(loss, objective=objective, train=True),
    optimizer=update,
    microbatches=config.training.microbatches,
    ema_decay=config.optimizer.ema_decay,
  )
  create = functools.partial(state.create, optimizer=update, ema=config.optimizer.ema_decay > 0)
  abstract = jax.eval_shape(create, transformer.shapes(model.config))
  placed, rows = sharding.shardings(abstract, mesh), sharding.rows(mesh)
  once = sharding.replicated(mesh)
  train_step = jax.jit(
    train_step, in_shardings=(placed, rows), out_shardings=(placed, once), donate_argnums=0
  )
  # Validation draws its own noise, the same at every validation, and weighs no twin twice.
  plain = dataclasses.replace(objective, coupled=False, label_smoothing=0.0, seed=config.seed + 1)
  validation_step = jax.jit(
    functools.partial(
      step.validation_step, loss=functools.partial(loss, objective=plain, train=False)
    ),
    in_shardings=(placed.params, rows, once),
    out_shardings=once,
  )

  with Checkpoints(
    workdir / models.CHECKPOINTS,
    keep=config.training.keep_checkpoints,
    metric=config.evaluation.metric,
  ) as saved:
    # The state: the newest checkpoint, else the imported weights, else fresh ones.
    start = saved.latest()
    if start is not None:
      targets = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed
      )
      restored = saved.restore(start, state.items(targets))
      current = abstract.replace(step=jax.device_put(np.int32(start), once), **restored)
    elif model.params is not None:
      current = jax.jit(create, out_shardings=placed)(jax.device_put(model.params, placed.params))
    else:
      fresh = lambda key: create(transformer.init(key, model.config))
      current = jax.jit(fresh, out_shardings=placed)(jax.random.key(config.seed))
    start = start or 0
    model = dataclasses.replace(model, params=None)  # the state holds them now
    validation = _Validation.open(config, model, index)
    meta = {**model.meta(), "config": dataclasses.asdict(config)}

    steps = config.training.steps
    batches = pipeline.batches(
      source,
      model.tokenizer,
      batch_plan,
      data=config.data,
      start=start,
      stop=steps,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    measured: dict[str, float] = {}
    with metrics.Reporter(workdir, start=start, steps=steps) as report, _Stop() as stop:
      if start:
        report.say(f"resuming {workdir} at step {start} of {steps}")
      pending = None  # the metrics of step n are read while step n + 1 runs
      for number, batch in enumerate(_placed(batches, rows), start + 1):
        current, updates = train_step(current, batch)
        if pending:
          report.step(*pending[:2], **pending[2])
        write = number % config.training.log_every == 0 or number == steps or stop.asked
        details = {"learning_rate": float(rate(number - 1)), "write": write}
        pending = (number, updates, details)

        last = number == steps or stop.asked
        every = config.training.eval_every
        scores = None
        if validation and ((every and number % every == 0) or number == steps):
          report.step(*pending[:2], **pending[2])
          pending = None
          report.status("validating")
          params = current.params if current.ema_params is None else current.ema_params
          scores = validation.run(params, validation_step, rows)
          measured = scores
          report.write(number, "validation", scores)
          shown = "  ".join(
            f"{name} {value:.4g}" for name, value in scores.items() if not name.startswith("nll_")
          )
          report.say(f"validation at step {number}: {shown}")
        if last or scores is not None or number % config.training.checkpoint_every == 0:
          saved.save(number, state.items(current), meta, scores)
        saved.check()
        if last:
          if pending:
            report.step(*pending[:2], **pending[2])
          if stop.asked and number < steps:
            report.say(f"stopped at step {number} of {steps}, saved; the same command resumes")
          start = number
          break
  return {**measured, "step": start}


def make_objective(config: ExperimentConfig) -> objectives.Objective:
  """The config's diffusion section as the science layer wants it."""
  section = dataclasses.asdict(config.diffusion)
  schedule = schedules.make(section.pop("schedule"), power=section.pop("power"))
  return objectives.Objective(schedule=schedule, seed=config.seed, **section)


def _starting_point(config: ExperimentConfig) -> models.Model:
  """The model that training starts from; params None where they are still to be drawn."""
  tokenizer = None
  if config.data.tokenizer:
    tokenizer = SentencePieceTokenizer.load(models.resolve(config.data.tokenizer))
  if not config.init_from:
    size = config.model.vocab_size or tokenizer.vocab_size
    architecture = dataclasses.replace(config.model, vocab_size=size)
    model = models.Model(architecture, tokenizer.contract, None, tokenizer, config.compute)
  else:
    model = models.load(config.init_from, compute=config.compute)
    architecture = _imported_architecture(config, model.config)
    model = dataclasses.replace(model, config=architecture, tokenizer=tokenizer or model.tokenizer)
  if model.tokenizer is None:
    raise UserError(f"{config.init_from} has no tokenizer; set config.data.tokenizer")
  if model.tokenizer.contract != model.contract:
    raise UserError(
      f"config.data.tokenizer has {model.tokenizer.contract}, the weights have {model.contract}; "
      f"use the tokenizer that belongs to these weights"
    )
  models.check_tokenizer(model.tokenizer, model.config)
  model.contract.check(model.config.vocab_size)
  if config.data.max_length > model.config.max_positions:
    raise UserError(
      f"config.data.max_length = {config.data.max_length}: the weights have "
      f"{model.config.max_positions} positions"
    )
  return model


def _imported_architecture(config: ExperimentConfig, weights: ModelConfig) -> ModelConfig:
  """The weights' architecture with the experiment's dropout; what the config says must agree."""
  rates = {name: getattr(config.model, name) for name in ("dropout", "attention_dropout")}
  weights = dataclasses.replace(weights, **rates)
  if config.model.is_complete:
    size = config.model.vocab_size or weights.vocab_size
    ours, theirs = flatten(dataclasses.replace(config.model, vocab_size=size)), flatten(weights)
    for name in (name for name in ours if ours[name] != theirs[name]):
      raise UserError(
        f"config.model.{name} = {ours[name]!r}, but {config.init_from} has {theirs[name]!r}; set "
        f"all sizes to 0 to take the architecture from the weights"
      )
  return weights


def _claim(workdir: Path, config: ExperimentConfig, tokenizer: SentencePieceTokenizer) -> None:
  """Writes config and tokenizer into the workdir, or checks that the run there is this one."""
  file = workdir / models.CONFIG_FILE
  if file.is_file():
    before = config_from_dict(json.loads(file.read_text()))
    then, now = _bound(before), _bound(config)
    for name in (name for name in now if then[name] != now[name]):
      raise UserError(
        f"{workdir} holds a run with config.{name} = {then[name]!r}, not {now[name]!r}; choose "
        f"another workdir, or remove this one to start over"
      )
  elif workdir.is_dir() and any(workdir.iterdir()):
    raise UserError(f"{workdir} is not empty and holds no run; choose another workdir")
  workdir.mkdir(parents=True, exist_ok=True)
  tokenizer.save(workdir / models.TOKENIZER)
  temporary = file.with_suffix(".tmp")
  temporary.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
  os.replace(temporary, file)


def _bound(config: ExperimentConfig) -> dict[str, Any]:
  """The fields that a resumed run may not change."""
  free = _FREE_FIELDS
  if config.optimizer.decay in ("constant", "inverse_sqrt"):
    free += ("training.steps",)  # the curve so far does not depend on where it ends
  is_free = lambda name: any(name == field or name.startswith(field + ".") for field in free)
  return {name: value for name, value in flatten(config).items() if not is_free(name)}


def _shards(mesh: jax.sharding.Mesh) -> vocabulary.Shards | None:
  if mesh.size == 1:
    return None  # one device streams without shard_map, which saves its copies
  return vocabulary.Shards(mesh, sharding.BATCH_AXES, "tensor")


def _placed(batches: Iterator[Batch], rows: jax.sharding.Sharding) -> Iterator[Batch]:
  """Every process's rows as one global array."""
  for batch in batches:
    yield jax.tree.map(functools.partial(jax.make_array_from_process_local_data, rows), batch)


@dataclasses.dataclass(frozen=True)
class _Validation:
  """Held-out batches for the loss, and examples to decode when the metric asks for text."""

  config: EvaluationConfig
  batches: list[Batch]
  examples: list[Example]
  sampler: Sampler

  @classmethod
  def open(
    cls,
    config: ExperimentConfig,
    model: models.Model,
    index: Callable[[sources.Source], np.ndarray],
  ) -> "_Validation | None":
    if config.data.validation.kind == "none":
      return None
    source = sources.open_source(config.data.validation)
    lengths = index(source)
    batches = pipeline.evaluation_batches(
      source, model.tokenizer, lengths, data=config.data,
      batch_size=config.evaluation.batch_size, limit=config.evaluation.examples,
    )  # fmt: skip
    examples = []
    if config.evaluation.metric != "loss":
      kept = np.flatnonzero(lengths >= 0)[: config.evaluation.examples]
      examples = [source[int(i)] for i in kept]
    return cls(config.evaluation, list(batches), examples, Sampler(model))

  def run(
    self,
    params: Params,
    validation_step: Callable[..., step.Sums],
    rows: jax.sharding.Sharding,
  ) -> dict[str, float]:
    """The mean loss over the batches, and the scores of the decoded examples."""
    numbered = enumerate(_placed(iter(self.batches), rows))
    sums = [validation_step(params, batch, np.int32(number)) for number, batch in numbered]
    scores = metrics.values(jax.tree.map(lambda *parts: sum(np.asarray(p) for p in parts), *sums))
    if self.examples:
      report = tasks.evaluate(
        self.sampler, self.examples, num_steps=self.config.num_steps,
        strategy=self.config.strategy, temperature=self.config.temperature,
        batch_size=self.config.batch_size, params=params,
      )  # fmt: skip
      scores |= report.mean
    return scores


class _Stop:
  """Turns the first SIGINT or SIGTERM into a request; the second one acts as it always did."""

  def __init__(self):
    self.asked = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> "_Stop":
    for number in (signal.SIGINT, signal.SIGTERM):
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number: int, frame: Any) -> None:
    del frame
    self.asked = True
    signal.signal(number, self._before[number])
