"""Hugging Face directories: the same logits as transformers, or an error that names the fault."""

import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest

from diffjax.config import Contract, ModelConfig
from diffjax.conversion import importing
from diffjax.conversion.importing import read_huggingface
from diffjax.conversion.readers import WeightsError
from diffjax.models import transformer

TABLE = "roberta.embeddings.word_embeddings.weight"
NAME = "roberta.encoder.layer.1.attention.self.query.weight"


def test_logits_equal_those_of_transformers(source, compute_logits):
  logits = compute_logits(source.write(), source.tokens)
  real = source.tokens != 1
  assert 0 < real.sum() < real.size
  np.testing.assert_allclose(logits[real][:, :97], source.logits[real], atol=1e-4, rtol=0)


def test_config_contract_and_shapes(source):
  config, contract, params = read_huggingface(source.write())
  norm = "pre" if source.config["model_type"].endswith("xl") else "post"
  assert config == ModelConfig(
    vocab_size=97, width=32, layers=3, heads=4, ffn_width=48, max_positions=24, position_offset=2,
    norm=norm, norm_epsilon=1e-5, dropout=0.1, attention_dropout=0.0,
  )  # fmt: skip
  assert contract == Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=96)
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), transformer.shapes(config))
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == shapes
  assert not params["embedding"]["tokens"][97:].any()
  assert not params["head"]["bias"][97:].any()


def test_shards_hold_the_same_model(source):
  whole = read_huggingface(source.write())
  source.write_shards()
  jax.tree.map(np.testing.assert_array_equal, whole[2], read_huggingface(source.directory)[2])


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32_exactly(post_source, kind):
  half = {name: tensor.astype(kind) for name, tensor in post_source.tensors.items()}
  read = read_huggingface(post_source.write(half))[2]
  exact = {name: tensor.astype(np.float32) for name, tensor in half.items()}
  jax.tree.map(np.testing.assert_array_equal, read, read_huggingface(post_source.write(exact))[2])


def test_tied_copies_and_parts_of_other_models_may_be_there(post_source):
  tensors = post_source.tensors
  more = {
    "lm_head.decoder.weight": tensors[TABLE],
    "lm_head.decoder.bias": tensors["lm_head.bias"],
    "roberta.embeddings.position_ids": np.arange(26)[None],
    "roberta.pooler.dense.weight": np.zeros((32, 32), np.float32),
    "roberta.pooler.dense.bias": np.zeros(32, np.float32),
  }
  plain = read_huggingface(post_source.write())
  jax.tree.map(
    np.testing.assert_array_equal, plain[2], read_huggingface(post_source.write(tensors | more))[2]
  )


@pytest.mark.parametrize("copy", ["lm_head.decoder.weight", "lm_head.decoder.bias"])
def test_an_untied_head_is_refused(post_source, copy):
  tied = post_source.tensors["lm_head.bias" if copy.endswith("bias") else TABLE].copy()
  tied[50] += 1
  post_source.write(post_source.tensors | {copy: tied})
  with pytest.raises(WeightsError, match=f"{copy} differs from"):
    read_huggingface(post_source.directory)


def without(tensors, name):
  return {other: tensor for other, tensor in tensors.items() if other != name}


@pytest.mark.parametrize(
  ("change", "row"),
  [
    (lambda all_: without(all_, NAME), rf"{NAME} +float \[32, 32\] +missing"),
    (lambda all_: all_ | {"x": np.ones(3, np.float32)}, r"x +no such tensor +F32 \[3\]"),
    (lambda all_: all_ | {NAME: all_[NAME][:, :31].copy()}, rf"{NAME} .* +F32 \[32, 31\]"),
    (lambda all_: all_ | {NAME: np.ones((32, 32), np.int32)}, rf"{NAME} .* +I32 \[32, 32\]"),
    (lambda all_: {name.removeprefix("roberta."): all_[name] for name in all_}, "and .* more"),
  ],
  ids=["missing", "extra", "shape", "dtype", "renamed"],
)
def test_tensors_that_do_not_fit_are_named(post_source, change, row):
  post_source.write(change(post_source.tensors))
  with pytest.raises(WeightsError, match=row):
    read_huggingface(post_source.directory)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"model_type": "bert"}, "model_type = 'bert' is none of xlm-roberta, xlm-roberta-xl"),
    ({"model_type": ["xlm-roberta"]}, "model_type = "),
    ({"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new' is not supported, only 'gelu'"),
    ({"type_vocab_size": 2}, "type_vocab_size = 2"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"is_decoder": True}, "is_decoder"),
    ({"hidden_size": "32"}, "hidden_size = '32' must be a whole number"),
    ({"hidden_size": 2**40}, "hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"num_attention_heads": 5}, "heads = 5: must divide width 32"),
    ({"max_position_embeddings": 3}, "max_position_embeddings = 3"),
    ({"layer_norm_eps": None}, "layer_norm_eps = None"),
    ({"layer_norm_eps": 0}, "norm_epsilon"),
    ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob = nan"),
    ({"eos_token_id": "2"}, "eos_id = '2'"),
    ({"bos_token_id": 97}, "bos_id = 97 is outside the vocabulary of 97 rows"),
    ({"mask_token_id": 2}, "eos_id and mask_id are both 2"),
  ],
)
def test_configs_that_cannot_be_are_refused_by_name(post_source, values, message):
  with pytest.raises(WeightsError) as caught:
    read_huggingface(post_source.write(**values))
  assert message in str(caught.value)
  assert str(post_source.directory) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_tokenizer_larger_than_the_embedding_is_refused(post_source, tokenizer):
  tokenizer.save(post_source.write(vocab_size=20))
  with pytest.raises(WeightsError, match="tokenizer has 36 ids, the embedding 20 rows"):
    read_huggingface(post_source.directory)


@pytest.mark.parametrize("rows", [90, 98])
def test_a_vocabulary_of_another_size_than_the_embedding_is_refused(post_source, rows):
  with pytest.raises(WeightsError, match=rf"{TABLE} +float \[{rows}, 32\] +F32 \[97, 32\]"):
    read_huggingface(post_source.write(vocab_size=rows))


def test_sizes_are_checked_before_anything_is_allocated(post_source):
  largest = 2**20
  post_source.write(hidden_size=largest, intermediate_size=largest, vocab_size=largest)
  with pytest.raises(WeightsError, match="do not fit"):  # the model would be 30 TiB
    read_huggingface(post_source.directory)


def test_mask_id(post_source, tokenizer, monkeypatch):
  read_mask = lambda: read_huggingface(post_source.directory)[1].mask_id
  post_source.write()
  assert read_mask() == 96  # the last row
  monkeypatch.setattr(importing, "_XL_ROWS", 97)
  monkeypatch.setattr(importing, "_XL_MASK_ID", 90)
  assert read_mask() == 90  # rows of XL that no tokenizer has
  added = {"3": {"content": "<unk>"}, "95": {"content": "<mask>"}}
  tokenizer_config = post_source.directory / "tokenizer_config.json"
  tokenizer_config.write_text(json.dumps({"added_tokens_decoder": added}))
  assert read_mask() == 95
  tokenizer.save(post_source.directory)
  assert read_mask() == 35
  post_source.write(mask_token_id=94)
  assert read_mask() == 94


def test_peak_memory_is_the_result_and_one_tensor(post_source):
  rows = 100_000
  tensors = post_source.tensors
  table = np.ones((rows, 32), np.float32)
  post_source.write(
    tensors | {TABLE: table, "lm_head.bias": np.ones(rows, np.float32)}, vocab_size=rows
  )
  tracemalloc.start()
  try:
    read_huggingface(post_source.directory)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 2.8 * table.nbytes
