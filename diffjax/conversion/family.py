"""What the table of a model family is: which foreign tensor is which of our parameters.

A row pairs a foreign name with one of our paths and a view. A view shows our array as the foreign
side lays it out, without a copy, so that the same row serves both ways: importing assigns into
the view, exporting reads from it, and the shape of the view is the foreign shape.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from diffjax.config import Contract, ModelConfig
from diffjax.types import Params

LAYER = "{layer}"  # in a foreign name; ours stack the layers on the leading axis

View = Callable[[np.ndarray, ModelConfig], np.ndarray]


class Row(NamedTuple):
  """One line of a family's table."""

  source: str  # the foreign name; with LAYER in it, one tensor a layer
  target: str  # our path, joined by slashes
  view: View


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """How the models of one foreign `model_type` are laid out."""

  model_type: str
  rows: tuple[Row, ...]
  tied: Mapping[str, str]  # foreign copies: may be absent, must equal the named tensor if there
  ignored: tuple[str, ...]  # patterns of foreign tensors without a part in the masked LM
  read_config: Callable[[Mapping[str, Any]], ModelConfig]  # from the values of config.json
  write_config: Callable[[ModelConfig, Contract], dict[str, Any]]


def foreign_views(family: Family, config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
  """Foreign tensor name -> a view of our parameter, or of one layer of it.

  Args:
    family: whose table to read.
    config: the architecture that `params` belong to.
    params: nested dict of NumPy arrays. Writing to a view writes to them if they are contiguous.
  """
  leaves = flatten_dict(params, sep="/")
  views = {}
  for row in family.rows:
    leaf = leaves[row.target]
    if LAYER in row.source:
      for layer in range(config.layers):
        views[row.source.replace(LAYER, str(layer))] = row.view(leaf[layer], config)
    else:
      views[row.source] = row.view(leaf, config)
  return views


def same(array: np.ndarray, config: ModelConfig) -> np.ndarray:
  """As it is."""
  return array


def transposed(kernel: np.ndarray, config: ModelConfig) -> np.ndarray:
  """[in, out] shown as torch's [out, in]."""
  return kernel.T


def into_heads(kernel: np.ndarray, config: ModelConfig) -> np.ndarray:
  """[D, H, K] shown as [H K, D]."""
  return kernel.reshape(config.width, -1).T


def out_of_heads(kernel: np.ndarray, config: ModelConfig) -> np.ndarray:
  """[H, K, D] shown as [D, H K]."""
  return kernel.reshape(-1, config.width).T


def joined_heads(bias: np.ndarray, config: ModelConfig) -> np.ndarray:
  """[H, K] shown as [H K]."""
  return bias.reshape(-1)


def real_rows(table: np.ndarray, config: ModelConfig) -> np.ndarray:
  """[Vp, ...] shown as [vocab_size, ...], without the rows of padding."""
  return table[: config.vocab_size]
