"""Weights for benchmarks/decoding.py: 6 layers x 256, so briefly trained that they are half sure.

  python benchmarks/decoding.py --write-data=runs/decoding_data
  diffjax train --config=configs/decoding_benchmark.py:8000-full --workdir=runs/decoding_8000-full

The argument is V, 8000 or 64000, and the attention, full or prefix. The shipped tokenizer has fewer
ids than V: the table's further rows are never predicted, but computed like the others, here and in
PyTorch.

Hardware: 2 CPU cores, about 5 minutes each. Expected: see the README's table of decoding speed.
"""

from ml_collections import ConfigDict


def get_config(weights: str = "8000-full") -> ConfigDict:
  vocabulary, attention = weights.split("-")
  part = lambda name: dict(kind="jsonl", path=f"runs/decoding_data/{name}.jsonl")
  config = ConfigDict()
  config.model = dict(
    vocab_size=int(vocabulary), width=256, layers=6, heads=4, ffn_width=1024, dropout=0.0,
    max_positions=128,
  )  # fmt: skip
  config.data = dict(
    tokenizer="tiny_mlm",
    train=part("train"),
    validation=part("validation"),
    test=part("test"),
    max_length=96,
    batch_size=16,
  )
  config.diffusion = dict(attention=attention, coupled=False)
  config.optimizer = dict(learning_rate=1e-3, warmup_steps=40, decay="cosine")
  config.training = dict(steps=200, log_every=20, checkpoint_every=100)
  config.evaluation = dict(examples=32, num_steps=10)
  return config
