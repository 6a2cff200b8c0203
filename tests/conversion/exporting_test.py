"""Exports: bit-equal when read again, and what transformers loads as its own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffjax.config import Contract
from diffjax.conversion.exporting import write_huggingface
from diffjax.conversion.importing import read_huggingface
from diffjax.tokenizers import SentencePieceTokenizer
from diffjax.types import UserError


@pytest.mark.parametrize("convert", [lambda leaf: leaf, jnp.asarray], ids=["numpy", "jax"])
def test_round_trip_is_bit_exact(source, tmp_path, convert):
  config, contract, params = read_huggingface(source.write())
  write_huggingface(tmp_path / "export", config, contract, jax.tree.map(convert, params))
  again = read_huggingface(tmp_path / "export")
  assert again[:2] == (config, contract)
  jax.tree.map(np.testing.assert_array_equal, again[2], params)
  stored = load_file(tmp_path / "export" / "model.safetensors")
  assert stored.keys() == source.tensors.keys()
  for name, tensor in source.tensors.items():
    np.testing.assert_array_equal(stored[name], tensor, err_msg=name)
  values = json.loads((tmp_path / "export" / "config.json").read_text())
  same = set(values) - {"architectures", "attention_probs_dropout_prob", "mask_token_id"}
  assert {name: values[name] for name in same & source.config.keys()} == {
    name: source.config[name] for name in same & source.config.keys()
  }


def test_bfloat16_rounds_once(post_source, tmp_path):
  config, contract, params = read_huggingface(post_source.write())
  write_huggingface(tmp_path / "export", config, contract, params, dtype="bfloat16")
  again = read_huggingface(tmp_path / "export")[2]
  jax.tree.map(
    lambda found, exact: np.testing.assert_array_equal(
      found, np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float32)
    ),
    again,
    params,
  )


def test_the_contract_survives_without_a_tokenizer(post_source, tmp_path):
  config, _, params = read_huggingface(post_source.write())
  contract = Contract(bos_id=5, pad_id=1, eos_id=7, mask_id=9)
  write_huggingface(tmp_path / "export", config, contract, params)
  assert read_huggingface(tmp_path / "export")[1] == contract


def test_the_tokenizer_is_saved_beside_the_weights(post_source, tokenizer, tmp_path):
  write_huggingface(
    tmp_path / "export", *read_huggingface(post_source.write()), tokenizer=tokenizer
  )
  assert SentencePieceTokenizer.load(tmp_path / "export").sha256 == tokenizer.sha256


class FailingTokenizer:
  def save(self, directory):
    raise OSError(28, "No space left on device")


def test_failures_leave_nothing(post_source, tmp_path):
  config, contract, params = read_huggingface(post_source.write())
  target = tmp_path / "export"
  with pytest.raises(UserError, match="export cannot be written: No space left"):
    write_huggingface(target, config, contract, params, tokenizer=FailingTokenizer())
  with pytest.raises(UserError, match=r"position_offset = 2 .* pad_id = 4"):
    write_huggingface(target, config, Contract(bos_id=0, pad_id=4, eos_id=2, mask_id=9), params)
  with pytest.raises(UserError, match="source exists and is not empty"):
    write_huggingface(post_source.directory, config, contract, params)
  assert list(tmp_path.iterdir()) == [post_source.directory]
