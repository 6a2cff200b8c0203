"""Makes reference/*.npz: tiny random models of transformers, and the logits they compute.

Needs the [parity] extra. Run it from the repository root; the files are part of the repository:

  python tests/conversion/make_reference.py
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

DIRECTORY = Path(__file__).parent / "reference"
MODELS = {
  "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaForMaskedLM),
  "xlm-roberta-xl": (transformers.XLMRobertaXLConfig, transformers.XLMRobertaXLForMaskedLM),
}
LENGTHS = (12, 7, 2)  # of the rows; what follows is padding
VOCAB, PAD, MASK = 97, 1, 96


def make_model(model_type: str) -> torch.nn.Module:
  """A masked LM in which every parameter is random, so that none can be mistaken for another."""
  config_class, model_class = MODELS[model_type]
  config = config_class(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=26,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
  )
  torch.manual_seed(len(model_type))
  model = model_class(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      is_scale = "norm" in name.lower() and name.endswith("weight")
      parameter.normal_(1.0 if is_scale else 0.0, 0.3)
  return model


def make_tokens() -> np.ndarray:
  """int32[B, L] with masks among the tokens and padding behind them."""
  random = np.random.default_rng(0)
  tokens = random.integers(3, VOCAB, (len(LENGTHS), max(LENGTHS)))
  tokens[:, 1] = MASK
  for row, length in enumerate(LENGTHS):
    tokens[row, 0], tokens[row, length - 1], tokens[row, length:] = 0, 2, PAD
  return tokens.astype(np.int32)


def compute_logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
  """float32[B, L, V] from transformers."""
  ids = torch.from_numpy(tokens.astype(np.int64))
  with torch.no_grad():
    return model(input_ids=ids, attention_mask=(ids != PAD).long()).logits.numpy()


def main() -> None:
  """Writes one file a family."""
  DIRECTORY.mkdir(exist_ok=True)
  tokens = make_tokens()
  for model_type in MODELS:
    model = make_model(model_type)
    tied = set(model.all_tied_weights_keys)
    tensors = {
      f"tensor {name}": tensor.numpy()
      for name, tensor in model.state_dict().items()
      if name not in tied
    }
    np.savez_compressed(
      DIRECTORY / f"{model_type}.npz",
      config=json.dumps(model.config.to_dict()),
      tokens=tokens,
      logits=compute_logits(model, tokens),
      **tensors,
    )


if __name__ == "__main__":
  main()
