"""Where a run starts: which model, from which weights, in which folder."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from diffjax import model as models
from diffjax.config import ExperimentConfig, ModelConfig, config_from_dict, flatten
from diffjax.tokenizers import SentencePieceTokenizer
from diffjax.types import UserError

# Fields that a resumed run may change, because the trained weights do not depend on them.
_FREE_FIELDS = ("training.log_every", "training.eval_every", "training.checkpoint_every",
                "training.keep_checkpoints", "evaluation", "mesh", "data.workers",
                "data.validation", "data.test", "compute.remat")  # fmt: skip


def starting_point(config: ExperimentConfig) -> models.Model:
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


def claim(workdir: Path, config: ExperimentConfig, tokenizer: SentencePieceTokenizer) -> None:
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
