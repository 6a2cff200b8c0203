"""A table covers every parameter once, with views and never copies."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from diffjax.config import ModelConfig
from diffjax.conversion.family import foreign_views
from diffjax.conversion.importing import FAMILIES
from diffjax.models import transformer

NORMS = {"xlm-roberta": "post", "xlm-roberta-xl": "pre"}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_views_cover_every_real_element_once(model_type):
  config = ModelConfig(
    vocab_size=300, width=8, layers=3, heads=2, ffn_width=12, max_positions=6,
    norm=NORMS[model_type],
  )  # fmt: skip
  shapes = flatten_dict(transformer.shapes(config), sep="/")
  leaves = {path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()}
  params = unflatten_dict(leaves, sep="/")
  for view in foreign_views(FAMILIES[model_type], config, params).values():
    view += 1  # seen in the leaf only if the view is no copy
  for path, leaf in leaves.items():
    rows = config.vocab_size if path in ("embedding/tokens", "head/bias") else len(leaf)
    assert (leaf[:rows] == 1).all(), path
    assert (leaf[rows:] == 0).all(), path


@pytest.mark.parametrize("model_type", FAMILIES)
def test_foreign_names_differ(model_type):
  rows = FAMILIES[model_type].rows
  assert len({row.source for row in rows}) == len({row.target for row in rows}) == len(rows)
