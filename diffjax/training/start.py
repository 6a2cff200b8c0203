"""Where a run starts: which model, from which weights, in which folder."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffjax import model as models
from diffjax import tokenizers
from diffjax.checkpoints import Checkpoints
from diffjax.config import (
  AdaptationConfig,
  Contract,
  ExperimentConfig,
  ModelConfig,
  contract_from_dict,
  flatten,
  load_config,
  model_config_from_dict,
)
from diffjax.conversion import adapting, leaves
from diffjax.models import transformer
from diffjax.training import length
from diffjax.training.adaptation import Adapted, Annealing, adapt, trained_contract
from diffjax.training.supervision import LOCK
from diffjax.types import Params, UserError

CACHE = "cache"  # in the workdir: length indices

# Fields that a resumed run may change, because the trained weights do not depend on them.
_FREE_FIELDS = (
  "training.log_every",
  "training.eval_every",
  "training.checkpoint_every",
  "training.keep_checkpoints",
  "evaluation",
  "mesh",
  "training.profile_start",
  "training.profile_steps",
  "training.stall_seconds",
  "data.workers",
  "data.validation",
  "data.test",
  "compute.remat",
  "compute.attention",
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
    for name in (name for name in {**then, **now} if then.get(name) != now.get(name)):
      raise UserError(
        f"{workdir} holds a run with config.{name} = {then.get(name)!r}, not {now.get(name)!r}; "
        f"choose another workdir, or remove this one to start over"
      )
  elif workdir.exists() and not workdir.is_dir():
    raise UserError(f"{workdir} is a file; choose another workdir")
  elif workdir.is_dir() and any(entry.name not in (CACHE, LOCK) for entry in workdir.iterdir()):
    raise UserError(f"{workdir} is not empty and holds no run; choose another workdir")
  if not (workdir / models.CHECKPOINTS).is_dir():
    return None
  with Checkpoints(workdir / models.CHECKPOINTS, read_only=True) as saved:
    newest = saved.latest()
    return None if newest is None else saved.meta(newest)


def claim(workdir: Path, config: ExperimentConfig, tokenizer: tokenizers.Tokenizer) -> None:
  """Writes config and tokenizer into a workdir that was checked."""
  workdir.mkdir(parents=True, exist_ok=True)
  file = workdir / models.CONFIG_FILE
  temporary = file.with_suffix(".tmp")
  temporary.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
  os.replace(temporary, file)
  tokenizer.save(workdir / models.TOKENIZER)


class Start(NamedTuple):
  """What training begins or goes on with."""

  # Its params: what is not in a checkpoint and need not be drawn. None: nothing. Imported weights
  # on a first start; frozen ones always.
  model: models.Model
  annealing: Annealing | None  # None: attention stays as the contract says
  frozen: dict[str, str] | None  # of a run that has any: path, resolved and sha256 of the weights
  notes: list[str]  # lines to print

  def meta(self, step: int) -> dict[str, Any]:
    """What a checkpoint after `step` steps says of the model, its attention and its weights."""
    contract = self.model.contract
    if self.annealing:
      contract = self.annealing.contract(contract, step)
    annealing = self.annealing and self.annealing._asdict()
    model = dataclasses.replace(self.model, contract=contract)
    return {**model.meta(), "annealing": annealing, "frozen": self.frozen}


def starting_point(
  config: ExperimentConfig, workdir: Path, meta: Mapping[str, Any] | None
) -> Start:
  """The model that training starts from.

  A resumed run needs neither `init_from` nor `data.tokenizer` any more, but for weights that stay
  frozen, which are read again.

  Args:
    config: the experiment.
    workdir: where a resumed run keeps its tokenizer.
    meta: of the newest checkpoint, or None.

  Raises:
    UserError: weights, tokenizer and config contradict each other.
  """
  if meta is not None:
    return _resumed(config, workdir, meta)
  tokenizer = None
  if config.data.tokenizer:
    tokenizer = tokenizers.load(models.resolve(config.data.tokenizer))
  if config.init_from:
    start = _imported(config, tokenizer)
  else:
    start = _from_scratch(config, tokenizer)
  model = start.model
  model.contract.check(model.config.vocab_size)
  if config.data.max_length > model.config.max_positions:
    raise UserError(
      f"config.data.max_length = {config.data.max_length}: the weights have "
      f"{model.config.max_positions} positions"
    )
  return start


def _resumed(config: ExperimentConfig, workdir: Path, meta: Mapping[str, Any]) -> Start:
  architecture = model_config_from_dict(meta["model"])
  contract = contract_from_dict(meta["contract"])
  tokenizer = models.tokenizer_of_run(workdir, meta)
  params, frozen = None, meta["frozen"]
  if frozen:
    found, params = models.frozen_weights(meta, config)
    frozen = {**frozen, "path": config.init_from, "resolved": str(found.absolute())}
  annealing = Annealing(**meta["annealing"]) if meta["annealing"] else None
  if annealing:  # the program is the same at every step, whatever the checkpoint's contract says
    contract = dataclasses.replace(contract, attention="causal", openness=0.0)
  model = models.Model(
    architecture, contract, params, tokenizer, config.compute, family=meta["family"]
  )
  return Start(model, annealing, frozen, [])


def _from_scratch(config: ExperimentConfig, tokenizer: tokenizers.Tokenizer) -> Start:
  if config.adaptation != AdaptationConfig():
    raise UserError(
      "config.adaptation is for causal weights; set config.init_from, or leave it out"
    )
  size = config.model.vocab_size or tokenizer.vocab_size
  architecture = dataclasses.replace(config.model, vocab_size=size)
  contract = trained_contract(config, tokenizer.contract)
  model = models.Model(architecture, contract, None, tokenizer, config.compute)
  model, notes = length.with_head(config, model)
  return Start(model, None, None, notes)


def _imported(config: ExperimentConfig, tokenizer: tokenizers.Tokenizer | None) -> Start:
  directory = _pinned(models.resolve(config.init_from))
  source = models.load(directory, compute=config.compute, on_host=True)
  tokenizer = tokenizer or source.tokenizer
  if tokenizer is None:
    missing = tokenizers.missing(models.resolve(config.init_from))
    raise UserError(f"{missing}; or set config.data.tokenizer")
  _check_ids(source.contract, tokenizer)
  contract = dataclasses.replace(source.contract, known_ids=tokenizer.vocab_size)
  architecture = _imported_architecture(config, source.config)
  contract.check(architecture.vocab_size)
  rate, theirs = architecture.dropout, source.config.dropout
  source = dataclasses.replace(source, config=architecture, contract=contract, tokenizer=tokenizer)
  adapted = _under_head(config, source) if config.length.alone else adapt(config, source)
  model, notes = length.with_head(config, adapted.model)
  notes = adapted.notes + notes
  if not config.length.alone:
    contract = trained_contract(config, model.contract)
    model = dataclasses.replace(model, contract=contract)
  if rate != theirs:
    notes.append(f"hidden dropout is config.model.dropout = {rate}; the weights had {theirs}")
  transformer.shapes(model.config, config.lora)  # raises where a target is missing
  frozen = None
  if freezes(config):
    frozen = {
      "path": config.init_from,
      "resolved": str(directory.absolute()),
      "sha256": adapting.weights_sha256(directory),
    }
  return Start(model, adapted.annealing, frozen, notes)


def freezes(config: ExperimentConfig) -> bool:
  """Whether weights stay as they are: beside adapters, or under a length head trained alone."""
  return bool(config.lora.rank) or config.length.alone


def _under_head(config: ExperimentConfig, source: models.Model) -> Adapted:
  """The source as it is, over which only a length head is trained. Raises UserError."""
  contract, asked = source.contract, config.diffusion.attention
  fault = ""
  if not contract.denoises or contract.attention == "causal":
    fault = f"{config.init_from} is no finished diffusion model; train it first"
  elif config.adaptation != AdaptationConfig():
    fault = "no weights are adapted then; leave config.adaptation out"
  elif config.data.chat and not contract.chat:
    fault = "data.chat would need other weights; leave it out"
  elif asked != "own" and (asked, config.diffusion.block_size) != (
    contract.attention,
    contract.block_size,
  ):
    fault = f"diffusion.attention = {asked!r} would need other weights; leave it out"
  elif config.data.end_padding not in (0, contract.end_padding):
    fault = f"data.end_padding = {config.data.end_padding} would need other weights; leave it out"
  if fault:
    raise UserError(f"config.length.alone = True: {fault}")
  params = jax.tree.map(leaves.as_leaf, source.params)
  return Adapted(dataclasses.replace(source, params=params), None, [])


def _pinned(directory: Path) -> Path:
  """The directory; of a run the checkpoint that `load` takes, which may be another one later."""
  if models.kind_of(directory) != "run":
    return directory
  return models.checkpoint_of(directory).directory


def _check_ids(contract: Contract, tokenizer: tokenizers.Tokenizer) -> None:
  """Raises UserError where the tokenizer and the weights mean different ids by one role."""
  for role, number in tokenizer.special_ids.items():
    theirs = getattr(contract, role)
    if theirs != number and (role != "mask_id" or contract.denoises):
      raise UserError(
        f"{role} is {number} in the tokenizer, {theirs} in the weights; use the tokenizer that "
        f"belongs to these weights"
      )


def place(params: Params, placed: Any, dtype: str = "float32") -> Params:
  """Loaded parameters on the devices, each in its sharding and straight from its file.

  Args:
    params: nested dict of Leafs.
    placed: their shardings.
    dtype: of the result.
  """
  return jax.tree.map(functools.partial(leaves.place, dtype=np.dtype(dtype)), params, placed)


def _imported_architecture(config: ExperimentConfig, weights: ModelConfig) -> ModelConfig:
  """The weights' architecture with the experiment's dropout; what the config says must agree.

  Under a length head trained alone it is the weights' own: nothing is dropped there.
  """
  if not config.length.alone:
    rates = {name: getattr(config.model, name) for name in ("dropout", "attention_dropout")}
    weights = dataclasses.replace(weights, **rates)
  ours, theirs, default = flatten(config.model), flatten(weights), flatten(ModelConfig())
  apart = ("vocab_size", "length_classes")  # the one may grow, the other has its own section
  said = {
    name: value
    for name, value in ours.items()
    if name not in apart and (config.model.is_complete or value != default[name])
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
  if freezes(config):
    free += ("init_from",)  # the frozen weights are known by their SHA-256
  # Files are known by what they hold (see sources.changes), so that they may move.
  moved = re.compile(r"data\.train\.(parts\[\d+\]\.)?(path|target_path|data_dir|demonstrations)")
  is_free = lambda name: (
    any(name == field or name.startswith(field + ".") for field in free) or moved.fullmatch(name)
  )
  return {name: value for name, value in flatten(config).items() if not is_free(name)}
