"""Where a run starts: which model, from which weights, in which folder."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffjax import model as models
from diffjax.checkpoints import Checkpoints
from diffjax.config import (
  ExperimentConfig,
  ModelConfig,
  contract_from_dict,
  flatten,
  load_config,
  model_config_from_dict,
)
from diffjax.tokenizers import SentencePieceTokenizer
from diffjax.types import UserError

CACHE = "cache"  # in the workdir: length indices

# Fields that a resumed run may change, because the trained weights do not depend on them.
_FREE_FIELDS = (
  "training.log_every",
  "training.eval_every",
  "training.checkpoint_every",
  "training.keep_checkpoints",
  "evaluation",
  "mesh",
  "data.workers",
  "data.validation",
  "data.test",
  "compute.remat",
)


def check_workdir(workdir: Path, config: ExperimentConfig) -> dict[str, Any] | None:
  """Whether the folder can hold this run; writes nothing.

  Returns:
    The newest checkpoint's meta, or None where there is none yet.

  Raises:
    UserError: the folder holds another run, or something that is no run.
  """
  file = workdir / models.CONFIG_FILE
  if file.is_file():
    then, now = _bound(load_config(file)), _bound(config)
    for name in (name for name in now if then[name] != now[name]):
      raise UserError(
        f"{workdir} holds a run with config.{name} = {then[name]!r}, not {now[name]!r}; choose "
        f"another workdir, or remove this one to start over"
      )
  elif workdir.exists() and not workdir.is_dir():
    raise UserError(f"{workdir} is a file; choose another workdir")
  elif workdir.is_dir() and any(entry.name != CACHE for entry in workdir.iterdir()):
    raise UserError(f"{workdir} is not empty and holds no run; choose another workdir")
  if not (workdir / models.CHECKPOINTS).is_dir():
    return None
  with Checkpoints(workdir / models.CHECKPOINTS, read_only=True) as saved:
    newest = saved.latest()
    return None if newest is None else saved.meta(newest)


def claim(workdir: Path, config: ExperimentConfig, tokenizer: SentencePieceTokenizer) -> None:
  """Writes config and tokenizer into a workdir that was checked."""
  workdir.mkdir(parents=True, exist_ok=True)
  file = workdir / models.CONFIG_FILE
  temporary = file.with_suffix(".tmp")
  temporary.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
  os.replace(temporary, file)
  tokenizer.save(workdir / models.TOKENIZER)


def starting_point(
  config: ExperimentConfig, workdir: Path, meta: Mapping[str, Any] | None
) -> models.Model:
  """The model that training starts from.

  Its params are None where they are in a checkpoint or still to be drawn; a resumed run needs
  neither `init_from` nor `data.tokenizer` any more.

  Args:
    config: the experiment.
    workdir: where a resumed run keeps its tokenizer.
    meta: of the newest checkpoint, or None.

  Raises:
    UserError: weights, tokenizer and config contradict each other.
  """
  if meta is not None:
    architecture = model_config_from_dict(meta["model"])
    contract = contract_from_dict(meta["contract"])
    tokenizer = models.tokenizer_of_run(workdir, meta)
    return models.Model(architecture, contract, None, tokenizer, config.compute)
  tokenizer = None
  if config.data.tokenizer:
    tokenizer = SentencePieceTokenizer.load(models.resolve(config.data.tokenizer))
  if not config.init_from:
    size = config.model.vocab_size or tokenizer.vocab_size
    architecture = dataclasses.replace(config.model, vocab_size=size)
    model = models.Model(architecture, tokenizer.contract, None, tokenizer, config.compute)
  else:
    model = models.load(config.init_from, compute=config.compute, on_host=True)
    architecture = _imported_architecture(config, model.config)
    tokenizer = tokenizer or model.tokenizer
    if tokenizer is None:
      raise UserError(f"{config.init_from} has no tokenizer; set config.data.tokenizer")
    known = dataclasses.replace(model.contract, known_ids=tokenizer.vocab_size)
    if tokenizer.contract != known:
      raise UserError(
        f"the tokenizer has {tokenizer.contract}, the weights have {model.contract}; use the "
        f"tokenizer that belongs to these weights"
      )
    model = dataclasses.replace(model, config=architecture, contract=known, tokenizer=tokenizer)
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
  ours, theirs, default = flatten(config.model), flatten(weights), flatten(ModelConfig())
  said = {
    name: value
    for name, value in ours.items()
    if name != "vocab_size" and (config.model.is_complete or value != default[name])
  }
  if config.model.vocab_size:
    said["vocab_size"] = config.model.vocab_size
  for name in (name for name, value in said.items() if value != theirs[name]):
    raise UserError(
      f"config.model.{name} = {said[name]!r}, but {config.init_from} has {theirs[name]!r}; leave "
      f"the model's fields out to take the architecture from the weights"
    )
  return weights


def _bound(config: ExperimentConfig) -> dict[str, Any]:
  """The fields that a resumed run may not change."""
  free = _FREE_FIELDS
  if config.optimizer.decay in ("constant", "inverse_sqrt"):
    free += ("training.steps",)  # the curve so far does not depend on where it ends
  is_free = lambda name: any(name == field or name.startswith(field + ".") for field in free)
  return {name: value for name, value in flatten(config).items() if not is_free(name)}
