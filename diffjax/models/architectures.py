"""Presets by public name: XLM-R base, large, XL and XXL (2308.12219, Table 2)."""

import difflib

from diffjax.config import ModelConfig
from diffjax.types import UserError

PRESETS: dict[str, ModelConfig] = {
  "xlmr-base": ModelConfig(vocab_size=250002, width=768, layers=12, heads=12, ffn_width=3072),
  "xlmr-large": ModelConfig(vocab_size=250002, width=1024, layers=24, heads=16, ffn_width=4096),
  "xlmr-xl": ModelConfig(
    vocab_size=250880, width=2560, layers=36, heads=32, ffn_width=10240, norm="pre"
  ),
  "xlmr-xxl": ModelConfig(
    vocab_size=250880, width=4096, layers=48, heads=32, ffn_width=16384, norm="pre"
  ),
}


def preset(name: str) -> ModelConfig:
  """The architecture of a published model. Raises UserError for an unknown name."""
  if name not in PRESETS:
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
    raise UserError(f"no preset {name!r}; did you mean {near!r}? presets: {', '.join(PRESETS)}")
  return PRESETS[name]
