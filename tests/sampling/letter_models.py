"""A tiny model over letters, with weights so large that everything in a row matters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.config import Contract, ModelConfig
from diffjax.model import Model
from diffjax.models import transformer

CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=40, known_ids=38)
CONFIG = ModelConfig(
  vocab_size=41, width=32, layers=2, heads=4, ffn_width=64, max_positions=48, dropout=0.0
)


class LetterTokenizer:
  """Ids 4.. are letters; a text is its letters."""

  vocab_size = 38  # two fewer than the model's rows before the mask
  letters = " abcdefghijklmnopqrstuvwxyzABCDEFG"

  def encode(self, text):
    return [4 + self.letters.index(letter) for letter in text]

  def decode(self, ids):
    return "".join(self.piece(id_) for id_ in ids)

  def piece(self, id_):
    return "?" if id_ < 4 else self.letters[id_ - 4]


def make_model(*, seed=0, tokenizer=LetterTokenizer(), config=CONFIG, **contract):  # noqa: B008
  """Weights far larger than fresh ones: answers depend on the prompt and on each other."""
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    center = 1.0 if "scale" in str(path[-1]) else 0.0
    return jnp.asarray(random.normal(center, 0.12, leaf.shape).astype(np.float32))

  params = jax.tree_util.tree_map_with_path(draw, transformer.shapes(config))
  # The rows that are no tokens would win everywhere if they could.
  params["head"]["bias"] = params["head"]["bias"].at[LetterTokenizer.vocab_size :].add(9)
  return Model(config, dataclasses.replace(CONTRACT, **contract), params, tokenizer)


def random_prompts(count, seed=0):
  """All different: equal ones would get different noise."""
  random = np.random.default_rng(seed)
  draw = lambda: "".join(random.choice(list(LetterTokenizer.letters[1:]), random.integers(1, 10)))
  return [f"{draw()}{LetterTokenizer.letters[1 + n]}" for n in range(count)]
