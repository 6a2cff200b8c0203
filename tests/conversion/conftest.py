"""Models that transformers made, from reference/*.npz, as Hugging Face directories."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.config import ComputeConfig
from diffjax.conversion.importing import read_huggingface
from diffjax.models import transformer
from diffjax.tokenizers import SentencePieceTokenizer, train_sentencepiece

REFERENCE = Path(__file__).parent / "reference"


@dataclasses.dataclass(frozen=True)
class Source:
  """A Hugging Face directory, and what transformers says about it."""

  directory: Path
  config: dict
  tensors: dict[str, np.ndarray]
  tokens: np.ndarray
  logits: np.ndarray

  def write(self, tensors=None, **config):
    """Writes the directory, with other tensors or other values of config.json if given."""
    self.directory.mkdir(exist_ok=True)
    (self.directory / "config.json").write_text(json.dumps(self.config | config))
    save_file(self.tensors if tensors is None else tensors, self.directory / "model.safetensors")
    return self.directory

  def write_shards(self):
    """Writes the directory with its tensors in two files under an index."""
    file = self.write() / "model.safetensors"
    file.unlink()
    names = sorted(self.tensors)
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    for shard in set(places.values()):
      part = {name: self.tensors[name] for name in names if places[name] == shard}
      save_file(part, self.directory / shard)
    index = self.directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def read_source(model_type: str, directory: Path) -> Source:
  with np.load(REFERENCE / f"{model_type}.npz") as stored:
    tensors = {
      name.removeprefix("tensor "): stored[name]
      for name in stored.files
      if name.startswith("tensor ")
    }
    config = json.loads(str(stored["config"]))
    return Source(directory, config, tensors, stored["tokens"], stored["logits"])


@pytest.fixture(params=["xlm-roberta", "xlm-roberta-xl"])
def source(request, tmp_path):
  """Each family in turn."""
  return read_source(request.param, tmp_path / "source")


@pytest.fixture
def post_source(tmp_path):
  """One family, where both are treated alike."""
  return read_source("xlm-roberta", tmp_path / "source")


def _compute_logits(directory, tokens):
  """Ours, of a Hugging Face directory: float32[B, L, Vp]."""
  config, contract, params = read_huggingface(directory)
  segments = jnp.asarray(tokens != contract.pad_id, jnp.int32)
  denoiser = transformer.bind(
    jax.tree.map(jnp.asarray, params), segments, config=config, contract=contract,
    compute=ComputeConfig(),
  )  # fmt: skip
  return np.asarray(transformer.logits(denoiser, jnp.asarray(tokens)))


@pytest.fixture
def compute_logits():
  """The function above."""
  return _compute_logits


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
  """A tokenizer of 36 ids, whose mask is 35."""
  file = tmp_path_factory.mktemp("tokenizer") / "small.model"
  lines = ["the quick brown fox jumps over the lazy dog and the other dogs over there"] * 20
  train_sentencepiece(lines, vocab_size=36, path=file)
  return SentencePieceTokenizer.load(file)
