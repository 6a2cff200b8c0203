"""What a directory holds, told without loading its weights."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from diffjax import model as models
from diffjax.config import (
  Contract,
  ModelConfig,
  contract_from_dict,
  flatten,
  lora_config_from_dict,
  model_config_from_dict,
)
from diffjax.conversion import adapting
from diffjax.models import lora, transformer
from diffjax.tokenizers import Tokenizer

_CHUNK = 1 << 24  # bytes hashed at a time


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One leaf: its name, shape and dtype."""

  name: str
  shape: tuple[int, ...]
  dtype: str  # as stored; of what a run keeps frozen, as it was in training
  count: int  # numbers in it that belong to the model: rows of padding are left out


@dataclasses.dataclass(frozen=True)
class Description:
  """A model, a run or a directory of foreign weights."""

  kind: str  # run, checkpoint, model (of ours) or weights (foreign)
  family: str  # the foreign model_type; empty of a model trained here from scratch
  config: ModelConfig
  contract: Contract
  parameters: list[Parameter]
  tokenizer: str  # its kind and size, or why there is none
  hashes: dict[str, str]  # what -> SHA-256
  run: dict[str, Any]  # of a run or a checkpoint: its step, and its adapters if it has any

  @property
  def architecture(self) -> dict[str, Any]:
    """The fields of the config that differ from XLM-R's form, and the sizes."""
    default = flatten(ModelConfig())
    return {name: value for name, value in flatten(self.config).items() if value != default[name]}


def describe(path: str | Path) -> Description:
  """Reads headers, configs and hashes. Raises UserError where `diffjax.load` would."""
  directory = models.resolve(path)
  kind = models.kind_of(directory)
  if kind in ("run", "checkpoint"):
    return _describe_run(kind, models.checkpoint_of(directory))
  model = models.load(directory, on_host=True)
  hashes = {file.name: _sha256(file) for file in sorted(directory.glob("*.safetensors*"))}
  return Description(
    kind=kind,
    family=model.family,
    config=model.config,
    contract=model.contract,
    parameters=_parameters(model.params, model.config),
    tokenizer=_tokenizer(model.tokenizer),
    hashes=hashes | ({"tokenizer": model.tokenizer.sha256} if model.tokenizer else {}),
    run={},
  )


def _describe_run(kind: str, found: models.Checkpoint) -> Description:
  meta = found.meta
  config, adapters = model_config_from_dict(meta["model"]), lora_config_from_dict(meta["lora"])
  shapes = transformer.shapes(config, adapters)
  run: dict[str, Any] = {"step": found.step, "steps": meta["config"]["training"]["steps"]}
  weights = f"{models.CHECKPOINTS}/{found.step}"
  hashes = {weights: adapting.weights_sha256(found.directory)}
  if adapters.rank:
    run |= {f"lora.{name}": value for name, value in dataclasses.asdict(adapters).items()}
  if meta["frozen"]:
    frozen, trained = lora.split(shapes, length_head=config.length_classes > 0)
    kept = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, adapters.frozen_dtype)
    shapes = lora.join(jax.tree.map(kept, frozen), trained)
    run["frozen"] = meta["frozen"]["resolved"]
    hashes[meta["frozen"]["path"]] = meta["frozen"]["sha256"]
  tokenizer = models.tokenizer_of_run(found.workdir, meta)
  return Description(
    kind=kind,
    family=meta["family"],
    config=config,
    contract=contract_from_dict(meta["contract"]),
    parameters=_parameters(shapes, config),
    tokenizer=_tokenizer(tokenizer),
    hashes=hashes | {"tokenizer": tokenizer.sha256},
    run=run,
  )


def _tokenizer(tokenizer: Tokenizer | None) -> str:
  if tokenizer is None:
    return "none beside the weights"
  return f"{type(tokenizer).__name__}, {tokenizer.vocab_size} ids"


def _parameters(params: Any, config: ModelConfig) -> list[Parameter]:
  padding = config.table_rows - config.vocab_size
  return [
    Parameter(name, tuple(leaf.shape), str(leaf.dtype), _real_count(name, leaf, padding))
    for name, leaf in flatten_dict(params, sep="/").items()
  ]


def _real_count(name: str, leaf: Any, padding: int) -> int:
  per_row = leaf.size // leaf.shape[0]
  over_vocabulary = name in ("embedding/tokens", "head/table", "head/bias")
  return leaf.size - per_row * padding * over_vocabulary


def _sha256(file: Path) -> str:
  digest = hashlib.sha256()
  with file.open("rb") as stream:
    while chunk := stream.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()
