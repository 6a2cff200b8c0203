"""Hugging Face directories into our parameters, by the table of their family."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffjax import tokenizers
from diffjax.config import Contract, ModelConfig
from diffjax.conversion.family import Family, foreign_views
from diffjax.conversion.readers import Weights, WeightsError, read_json
from diffjax.conversion.xlm_roberta import XLM_ROBERTA, XLM_ROBERTA_XL
from diffjax.models import transformer
from diffjax.types import Params, UserError

FAMILIES = {family.model_type: family for family in (XLM_ROBERTA, XLM_ROBERTA_XL)}

# The released XL and XXL have so many rows, of which the tokenizer knows the first 250 002.
_XL_ROWS, _XL_MASK_ID = 250880, 250001


def read_huggingface(directory: str | Path) -> tuple[ModelConfig, Contract, Params]:
  """A model that transformers saved, as NumPy float32 arrays under our names.

  Every tensor must be used, be a copy of a used one, or be known to have no part in the masked
  LM; every parameter is filled. Peak memory is the result and one tensor.

  Args:
    directory: config.json with model.safetensors, or with shards and their index.

  Raises:
    WeightsError: a file is missing or unreadable, the family is unknown, a value of config.json is
      not supported, or tensors do not fit it.
  """
  directory = Path(directory)
  values = read_json(directory / "config.json")
  model_type = values.get("model_type")
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise WeightsError(
      f"{directory / 'config.json'}: model_type = {model_type!r} is none of {', '.join(FAMILIES)}"
    )
  family = FAMILIES[model_type]
  try:
    config = family.read_config(values)
    contract = _read_contract(directory, values, config.vocab_size)
  except UserError as error:
    raise WeightsError(f"{directory}: {error}") from error
  return config, contract, _fill(family, config, Weights(directory))


def _fill(family: Family, config: ModelConfig, weights: Weights) -> Params:
  shapes = flatten_dict(transformer.shapes(config), sep="/")
  # One zero behind every element: shapes without memory, to check before allocating.
  blanks = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in shapes.items()}
  expected = foreign_views(family, config, unflatten_dict(blanks, sep="/"))
  expected = {name: view.shape for name, view in expected.items()}
  tied = {copy: name for copy, name in family.tied.items() if copy in weights}
  expected |= {copy: expected[name] for copy, name in tied.items()}
  weights.check(expected, ignored=family.ignored)

  leaves = {path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()}
  params = unflatten_dict(leaves, sep="/")
  views = foreign_views(family, config, params)
  for name, view in views.items():
    view[...] = weights.read(name)
  for copy, name in tied.items():
    if not np.array_equal(views[name], weights.read(copy), equal_nan=True):
      raise WeightsError(
        f"{copy} differs from {name}; models with an untied head are not supported"
      )
  return params


def _read_contract(directory: Path, values: Mapping[str, Any], vocab_size: int) -> Contract:
  """The ids of config.json, by default those that all of XLM-R has, and the mask id."""
  ids = {
    "bos_id": values.get("bos_token_id", 0),
    "pad_id": values.get("pad_token_id", 1),
    "eos_id": values.get("eos_token_id", 2),
    "mask_id": values.get("mask_token_id", None),
  }
  if ids["mask_id"] is None:
    ids["mask_id"] = _find_mask_id(directory, vocab_size)
  for name, value in ids.items():
    if type(value) is not int:
      raise WeightsError(f"config.json: {name} = {value!r} must be a whole number")
  contract = Contract(**ids)
  contract.check(vocab_size)
  return contract


def _find_mask_id(directory: Path, vocab_size: int) -> Any:
  """Of the tokenizer beside the weights; without one, the last row that a tokenizer knows.

  transformers keeps no mask id in config.json. Ours is there, as `mask_token_id`.
  """
  if (directory / tokenizers.FILE_NAME).is_file():
    tokenizer = tokenizers.SentencePieceTokenizer.load(directory)
    if tokenizer.vocab_size > vocab_size:
      raise WeightsError(
        f"the tokenizer has {tokenizer.vocab_size} ids, the embedding {vocab_size} rows; "
        f"use the tokenizer that belongs to these weights"
      )
    return tokenizer.contract.mask_id
  if (directory / "tokenizer_config.json").is_file():
    added = read_json(directory / "tokenizer_config.json").get("added_tokens_decoder")
    for text, token in added.items() if isinstance(added, dict) else ():
      if isinstance(token, dict) and token.get("content") == "<mask>" and text.isdecimal():
        return int(text)
  return _XL_MASK_ID if vocab_size == _XL_ROWS else vocab_size - 1
