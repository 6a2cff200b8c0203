"""Our own format on disk: config.json, model.safetensors under our names, the tokenizer.

config.json has `format`, `version`, `model` (ModelConfig), `contract` (Contract) and
`tokenizer_sha256` (or null). Tensors are named by their path, joined by slashes.
"""

import dataclasses
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffjax import tokenizers
from diffjax.config import Contract, ModelConfig, contract_from_dict, model_config_from_dict
from diffjax.conversion.readers import Weights, WeightsError, read_json
from diffjax.conversion.writers import StoredDtype, new_directory, write_json, write_weights
from diffjax.models import transformer
from diffjax.types import Params

_CONFIG_FILE = "config.json"
_FORMAT, _VERSION = "diffjax-model", 1


def is_native(directory: str | Path) -> bool:
  """Whether the directory's config.json is of our own format. Raises WeightsError without one."""
  return read_json(Path(directory) / _CONFIG_FILE).get("format") == _FORMAT


def write_native(
  directory: str | Path,
  config: ModelConfig,
  contract: Contract,
  params: Params,
  *,
  tokenizer: tokenizers.SentencePieceTokenizer | None = None,
  dtype: StoredDtype = "float32",
) -> None:
  """Writes a model, or nothing.

  Args:
    directory: new or empty.
    config: complete.
    contract: saved with it.
    params: nested dict of arrays, of NumPy or on devices.
    tokenizer: saved beside the weights; its SHA-256 goes into config.json.
    dtype: of the stored tensors.

  Raises:
    UserError: the directory is not empty, or cannot be written.
  """
  values = {
    "format": _FORMAT,
    "version": _VERSION,
    "model": dataclasses.asdict(config),
    "contract": dataclasses.asdict(contract),
    "tokenizer_sha256": tokenizer.sha256 if tokenizer else None,
  }
  tensors = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
  with new_directory(Path(directory)) as partial:
    write_json(partial / _CONFIG_FILE, values)
    write_weights(partial, tensors, dtype=dtype)
    if tokenizer is not None:
      tokenizer.save(partial)


def read_native(directory: str | Path) -> tuple[ModelConfig, Contract, Params]:
  """A model in our own format, as NumPy float32 arrays. A missing tokenizer is no error.

  Raises:
    WeightsError: a file is missing or unreadable, or the tensors or the tokenizer are others than
      config.json says.
    UserError: a value in config.json that no model can have.
  """
  directory = Path(directory)
  values = read_json(directory / _CONFIG_FILE)
  if values.get("format") != _FORMAT or values.get("version") != _VERSION:
    found = f"format {values.get('format')!r}, version {values.get('version')!r}"
    raise WeightsError(
      f"{directory / _CONFIG_FILE}: {found} is not {_FORMAT!r}, version {_VERSION}; "
      f"convert the source again"
    )
  config = model_config_from_dict(values.get("model"))
  if not config.is_complete:
    raise WeightsError(f"{directory / _CONFIG_FILE}: the sizes of the model are missing")
  contract = contract_from_dict(values.get("contract"))
  contract.check(config.vocab_size)
  _check_tokenizer(directory, values.get("tokenizer_sha256"))
  weights = Weights(directory)
  shapes = flatten_dict(transformer.shapes(config), sep="/")
  weights.check({path: leaf.shape for path, leaf in shapes.items()})
  leaves = {path: weights.read(path).astype(np.float32, copy=False) for path in shapes}
  return config, contract, unflatten_dict(leaves, sep="/")


def _check_tokenizer(directory: Path, sha256: str | None) -> None:
  if sha256 is None or not (directory / tokenizers.FILE_NAME).is_file():
    return
  if tokenizers.SentencePieceTokenizer.load(directory).sha256 != sha256:
    raise WeightsError(
      f"{directory}: its tokenizer is not the one that the model was saved with; convert again"
    )
