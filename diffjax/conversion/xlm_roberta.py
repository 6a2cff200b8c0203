"""XLM-R: base and large (`xlm-roberta`, post-norm), XL and XXL (`xlm-roberta-xl`, pre-norm).

The rate of `attention_probs_dropout_prob` is not taken over: `attention_dropout` stays 0, because
no fused attention kernel can drop probabilities.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

from diffjax.config import Contract, ModelConfig
from diffjax.conversion.family import (
  LAYER,
  Family,
  Row,
  View,
  into_heads,
  joined_heads,
  out_of_heads,
  real_rows,
  same,
  transposed,
)
from diffjax.conversion.readers import WeightsError
from diffjax.types import UserError

_BLOCK = f"roberta.encoder.layer.{LAYER}"

# What our Transformer cannot do otherwise. A field that is absent has this value.
_FIXED = {
  "hidden_act": "gelu",
  "type_vocab_size": 1,
  "position_embedding_type": "absolute",
  "is_decoder": False,
  "tie_word_embeddings": True,
}
_LARGEST_SIZE = 2**20  # of any axis: rules out nonsense before anything is traced or allocated
_MOST_LAYERS = 2**10


def _linear(source: str, target: str, kernel: View = transposed, bias: View = same) -> list[Row]:
  return [
    Row(f"{source}.weight", f"{target}/kernel", kernel),
    Row(f"{source}.bias", f"{target}/bias", bias),
  ]


def _norm(source: str, target: str) -> list[Row]:
  return [
    Row(f"{source}.weight", f"{target}/scale", same),
    Row(f"{source}.bias", f"{target}/bias", same),
  ]


def _heads(name: str) -> list[Row]:
  source, target = f"{_BLOCK}.attention.self.{name}", f"layers/attention/{name}"
  return _linear(source, target, into_heads, joined_heads)


_COMMON = (
  Row("roberta.embeddings.word_embeddings.weight", "embedding/tokens", real_rows),
  Row("roberta.embeddings.position_embeddings.weight", "embedding/positions", same),
  Row("roberta.embeddings.token_type_embeddings.weight", "embedding/types", same),
  *_heads("query"),
  *_heads("key"),
  *_heads("value"),
  *_linear(f"{_BLOCK}.attention.output.dense", "layers/attention/output", out_of_heads),
  *_linear(f"{_BLOCK}.intermediate.dense", "layers/ffn/up"),
  *_linear(f"{_BLOCK}.output.dense", "layers/ffn/down"),
  *_linear("lm_head.dense", "head/dense"),
  *_norm("lm_head.layer_norm", "head/norm"),
  Row("lm_head.bias", "head/bias", real_rows),
)
_POST_NORMS = (
  *_norm("roberta.embeddings.LayerNorm", "embedding/norm"),
  *_norm(f"{_BLOCK}.attention.output.LayerNorm", "layers/attention_norm"),
  *_norm(f"{_BLOCK}.output.LayerNorm", "layers/ffn_norm"),
)
_PRE_NORMS = (
  *_norm(f"{_BLOCK}.attention.self_attn_layer_norm", "layers/attention_norm"),
  *_norm(f"{_BLOCK}.LayerNorm", "layers/ffn_norm"),
  *_norm("roberta.encoder.LayerNorm", "final_norm"),
)


def _read_config(values: Mapping[str, Any], *, norm: Literal["post", "pre"]) -> ModelConfig:
  """The architecture of a config.json. Raises WeightsError naming the field at fault."""
  for name, value in _FIXED.items():
    if values.get(name, value) != value:
      raise WeightsError(f"config.json: {name} = {values[name]!r} is not supported, only {value!r}")
  offset = _number(values, "pad_token_id", least=0, default=1) + 1
  rows = _number(values, "max_position_embeddings")
  if rows < offset + 2:
    raise WeightsError(
      f"config.json: max_position_embeddings = {rows} leaves no positions after pad_token_id"
    )
  return ModelConfig(
    vocab_size=_number(values, "vocab_size"),
    width=_number(values, "hidden_size"),
    layers=_number(values, "num_hidden_layers", most=_MOST_LAYERS),
    heads=_number(values, "num_attention_heads"),
    ffn_width=_number(values, "intermediate_size"),
    max_positions=rows - offset,
    position_offset=offset,
    norm=norm,
    norm_epsilon=_fraction(values, "layer_norm_eps"),
    dropout=_fraction(values, "hidden_dropout_prob"),
  )


def _number(
  values: Mapping[str, Any],
  name: str,
  *,
  least: int = 1,
  most: int = _LARGEST_SIZE,
  default: int | None = None,
) -> int:
  value = values.get(name, default)
  if type(value) is not int or not least <= value <= most:
    raise WeightsError(
      f"config.json: {name} = {value!r} must be a whole number from {least} to {most}"
    )
  return value


def _fraction(values: Mapping[str, Any], name: str) -> float:
  value = values.get(name)
  if type(value) not in (int, float) or not 0 <= value < 1:
    raise WeightsError(f"config.json: {name} = {value!r} must be a number in [0, 1)")
  return float(value)


def _write_config(
  config: ModelConfig, contract: Contract, *, family: str, architecture: str
) -> dict[str, Any]:
  """The values of a config.json that transformers accepts; the inverse of `_read_config`."""
  if contract.pad_id + 1 != config.position_offset:
    raise UserError(
      f"position_offset = {config.position_offset} cannot be exported with pad_id = "
      f"{contract.pad_id}: {family} counts positions from pad_id + 1"
    )
  return {
    "architectures": [architecture],
    "model_type": family,
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.layers,
    "num_attention_heads": config.heads,
    "intermediate_size": config.ffn_width,
    "max_position_embeddings": config.max_positions + config.position_offset,
    "layer_norm_eps": config.norm_epsilon,
    "hidden_dropout_prob": config.dropout,
    "attention_probs_dropout_prob": config.attention_dropout,
    **_FIXED,
  }


def _family(
  model_type: str, architecture: str, norm: Literal["post", "pre"], rows: tuple[Row, ...]
) -> Family:
  return Family(
    model_type=model_type,
    rows=_COMMON + rows,
    tied={
      "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
      "lm_head.decoder.bias": "lm_head.bias",
    },
    # Numbers 0, 1, 2, ... of old transformers; the first token's summary for classifiers.
    ignored=("roberta.embeddings.position_ids", "roberta.pooler.dense.*"),
    read_config=functools.partial(_read_config, norm=norm),
    write_config=functools.partial(_write_config, family=model_type, architecture=architecture),
  )


XLM_ROBERTA = _family("xlm-roberta", "XLMRobertaForMaskedLM", "post", _POST_NORMS)
XLM_ROBERTA_XL = _family("xlm-roberta-xl", "XLMRobertaXLForMaskedLM", "pre", _PRE_NORMS)
