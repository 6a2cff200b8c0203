"""Our parameters into a directory that transformers loads."""

from pathlib import Path

import jax
import numpy as np

from diffjax.config import Contract, ModelConfig
from diffjax.conversion.family import foreign_views
from diffjax.conversion.writers import StoredDtype, new_directory, write_json, write_weights
from diffjax.conversion.xlm_roberta import XLM_ROBERTA, XLM_ROBERTA_XL
from diffjax.tokenizers import SentencePieceTokenizer
from diffjax.types import Params

_FAMILY_OF_NORM = {"post": XLM_ROBERTA, "pre": XLM_ROBERTA_XL}


def write_huggingface(
  directory: str | Path,
  config: ModelConfig,
  contract: Contract,
  params: Params,
  *,
  dtype: StoredDtype = "float32",
  tokenizer: SentencePieceTokenizer | None = None,
) -> None:
  """Writes config.json, model.safetensors and the tokenizer, or nothing.

  The rows of padding are left out. `read_huggingface` gives the same back: in float32 bit by bit.

  Args:
    directory: new or empty.
    config: complete, with the vocab_size of the real rows.
    contract: its mask id is kept as `mask_token_id`, which transformers carries along.
    params: nested dict of arrays, of NumPy or on devices.
    dtype: of the stored tensors.
    tokenizer: saved beside them.

  Raises:
    UserError: the directory is not empty or not writable, or the family cannot express the model.
  """
  family = _FAMILY_OF_NORM[config.norm]
  values = family.write_config(config, contract) | {
    "bos_token_id": contract.bos_id,
    "pad_token_id": contract.pad_id,
    "eos_token_id": contract.eos_id,
    "mask_token_id": contract.mask_id,
    "torch_dtype": dtype,
  }
  views = foreign_views(family, config, jax.tree.map(np.asarray, params))
  with new_directory(Path(directory)) as partial:
    write_json(partial / "config.json", values)
    write_weights(partial, views, dtype=dtype)
    if tokenizer is not None:
      tokenizer.save(partial)
