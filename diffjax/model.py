"""A model as people hold it: architecture, contract, parameters, tokenizer; and `load`."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from diffjax import checkpoints
from diffjax.config import (
  ComputeConfig,
  Contract,
  ModelConfig,
  contract_from_dict,
  load_config,
  model_config_from_dict,
)
from diffjax.conversion import exporting, importing, native
from diffjax.models import transformer
from diffjax.tokenizers import FILE_NAME as TOKENIZER_FILE
from diffjax.tokenizers import SentencePieceTokenizer
from diffjax.types import Array, Denoiser, Params, UserError

_SHIPPED = Path(__file__).parent / "assets"  # models that come with the package, by name

# The parts of a run's directory.
CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"


@dataclasses.dataclass(frozen=True)
class Model:
  """Everything needed to score or sample; the tokenizer may be None."""

  config: ModelConfig
  contract: Contract
  params: Params
  tokenizer: SentencePieceTokenizer | None
  compute: ComputeConfig = ComputeConfig()

  def denoiser(
    self,
    segments: Array,
    *,
    params: Params | None = None,
    positions: Array | None = None,
    order: Array | None = None,
    dropout: Array | None = None,
  ) -> Denoiser:
    """The network on rows with these segments int32[B, L]; see models/transformer.py:bind.

    Under `jax.jit`, pass `params` as a traced argument, or they become constants of the program.
    """
    return transformer.bind(
      self.params if params is None else params,
      segments,
      config=self.config,
      contract=self.contract,
      compute=self.compute,
      positions=positions,
      order=order,
      dropout=dropout,
    )

  def logits(self, tokens: Array, segments: Array | None = None) -> Array:
    """float32[B, L, V] for int32[B, L] tokens, nothing suppressed. For small checks."""
    tokens = jnp.asarray(tokens)
    segments = jnp.ones_like(tokens) if segments is None else jnp.asarray(segments)
    return transformer.logits(self.denoiser(segments), tokens)

  def meta(self) -> dict[str, Any]:
    """The plain values that a checkpoint keeps beside the parameters."""
    return {
      "model": dataclasses.asdict(self.config),
      "contract": dataclasses.asdict(self.contract),
      "tokenizer_sha256": self.tokenizer.sha256 if self.tokenizer else None,
    }


def resolve(name: str | Path) -> Path:
  """A path as given, or the directory of a shipped model of that name. Raises UserError."""
  path = Path(name)
  if path.exists():
    return path
  if (_SHIPPED / path).exists() and not path.is_absolute():
    return _SHIPPED / path
  shipped = sorted(entry.name for entry in _SHIPPED.iterdir() if entry.is_dir())
  raise UserError(f"{path} does not exist; give a path, or a shipped model: {', '.join(shipped)}")


def load(path: str | Path, *, compute: ComputeConfig | None = None, on_host: bool = False) -> Model:
  """Loads a model from any directory we understand.

  Args:
    path: a run's workdir (its best checkpoint by the validation metric, else the newest), one
      checkpoint `RUN/checkpoints/STEP`, a converted model, a Hugging Face directory, or the name
      of a shipped model.
    compute: precision of the activations; default float32.
    on_host: leave imported parameters as NumPy arrays, to be placed in a sharding of the caller's;
      a run's are placed on the first device all the same.

  Raises:
    UserError: nothing there, or not readable.
  """
  directory = resolve(path)
  compute = compute or ComputeConfig()
  if (directory / CHECKPOINTS).is_dir():
    return _load_run(directory, None, compute)
  if directory.parent.name == CHECKPOINTS and directory.name.isdigit():
    return _load_run(directory.parent.parent, int(directory.name), compute)
  if not (directory / CONFIG_FILE).is_file():
    raise UserError(
      f"{directory} is no model: it has neither {CHECKPOINTS}/ (a run) nor {CONFIG_FILE}"
    )
  read = native.read_native if native.is_native(directory) else importing.read_huggingface
  config, contract, params = read(directory)
  tokenizer = None
  if (directory / TOKENIZER_FILE).is_file():
    tokenizer = SentencePieceTokenizer.load(directory)
    tokenizer.contract.check(config.vocab_size)
    contract = dataclasses.replace(contract, known_ids=tokenizer.vocab_size)
  params = params if on_host else jax.tree.map(jnp.asarray, params)
  return Model(config, contract, params, tokenizer, compute)


def convert(
  source: str | Path,
  target: str | Path,
  *,
  export: Literal["diffjax", "huggingface"] = "diffjax",
  dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
  """Writes a model from any directory `load` understands into a new directory.

  Raises:
    UserError: as `load`; or the target exists and is not empty.
  """
  model = load(source)
  write = {"diffjax": native.write_native, "huggingface": exporting.write_huggingface}[export]
  write(
    Path(target), model.config, model.contract, model.params, dtype=dtype, tokenizer=model.tokenizer
  )


def _load_run(workdir: Path, step: int | None, compute: ComputeConfig) -> Model:
  metric = load_config(workdir / CONFIG_FILE).evaluation.metric
  with checkpoints.Checkpoints(workdir / CHECKPOINTS, metric=metric, read_only=True) as saved:
    if step is None:
      step = saved.best() or saved.latest()
    if step is None:
      raise UserError(f"{workdir} has no finished checkpoint yet; train it first")
    meta = saved.meta(step)
    config = model_config_from_dict(meta["model"])
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
      functools.partial(_with_sharding, sharding=place), transformer.shapes(config)
    )
    item = "ema_params" if "ema_params" in meta["items"] else "params"
    params = saved.restore(step, {item: target})[item]
  contract = contract_from_dict(meta["contract"])
  return Model(config, contract, params, tokenizer_of_run(workdir, meta), compute)


def tokenizer_of_run(workdir: Path, meta: Mapping[str, Any]) -> SentencePieceTokenizer:
  """The run's tokenizer, checked against a checkpoint's meta. Raises UserError."""
  tokenizer = SentencePieceTokenizer.load(workdir / TOKENIZER)
  if tokenizer.sha256 != meta["tokenizer_sha256"]:
    raise UserError(f"{workdir / TOKENIZER} is not the tokenizer that this run was trained with")
  return tokenizer


def _with_sharding(leaf: Any, *, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
