"""How many floating-point operations a network's work is, by its shapes alone.

Model FLOPs: what the mathematics asks for, at 2 a multiply-add, matrix products only. What is
computed twice to save memory is not counted twice, so that time lost to it shows in the MFU.
"""

from diffjax.config import LoraConfig, ModelConfig

_FORWARD, _BACKWARD = 2, 4  # FLOPs a weight and token: the product, and its two gradients
_NO_ADAPTERS = LoraConfig()


def layer_matrices(config: ModelConfig) -> dict[str, tuple[int, int]]:
  """The matrices of one block by their names in LoraConfig.targets: (inputs, outputs) each."""
  width, inner = config.width, config.ffn_width
  queries, keys = config.heads * config.head_width, config.key_heads * config.head_width
  matrices = {
    "query": (width, queries),
    "key": (width, keys),
    "value": (width, keys),
    "output": (queries, width),
    "up": (width, inner),
    "down": (inner, width),
  }
  return matrices | ({"gate": (width, inner)} if config.gated else {})


def trunk_weights(config: ModelConfig) -> int:
  """Weights of all blocks that every token is multiplied with (the 'N' of 6 N D)."""
  return config.layers * sum(a * b for a, b in layer_matrices(config).values())


def head_weights(config: ModelConfig) -> int:
  """Weights that every scored position is multiplied with: the table and the masked head's dense.

  Only the table's real rows count.
  """
  dense = config.width**2 if config.head == "masked" else 0
  return dense + config.vocab_size * config.width


def step_flops(
  config: ModelConfig,
  *,
  tokens: float,
  pairs: float,
  scored: float,
  lora: LoraConfig = _NO_ADAPTERS,
  backward: bool = True,
) -> float:
  """Model FLOPs of one training step, or of one forward pass.

    6 N tokens + 12 layers heads K pairs + 6 (D^2 + V D) scored

  Args:
    config: the architecture.
    tokens: positions that the network reads, a coupled row's twins counted both; padding is work
      too where it is to count as such.
    pairs: (query, key) pairs that attention sees in a layer, the same positions counted: L^2 for a
      row of one segment under full attention; of local layers no fewer are counted.
    scored: positions whose prediction is scored, and so meets the vocabulary.
    lora: adapters beside weights that are frozen, whose own gradient is not computed.
    backward: False for the forward pass alone, as in validation and where only a length head is
      trained.
  """
  trained = _FORWARD + (_BACKWARD if backward else 0)
  frozen = _FORWARD + (_BACKWARD / 2 if backward else 0)
  base = frozen if lora.rank else trained
  adapters = (
    config.layers
    * lora.rank
    * sum(a + b for name, (a, b) in layer_matrices(config).items() if name in lora.targets)
  )
  dense = base * trunk_weights(config) + trained * adapters
  attention = 2 * trained * config.layers * config.heads * config.head_width
  return tokens * dense + pairs * attention + scored * base * head_weights(config)
