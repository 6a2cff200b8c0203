"""Adapts the shipped tiny masked LM into a diffusion LM on four built-in instruction tasks.

  diffjax quickstart
  diffjax train --config=configs/quickstart_instruct.py --workdir=runs/instruct
  diffjax train --config=configs/quickstart_instruct.py --workdir=runs/scratch --config.init_from=

Hardware: 2 CPU cores, under 4 minutes of training. Expected: see the README's results table.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.init_from = "tiny_mlm"
  config.model = dict(width=128, layers=5, heads=4, ffn_width=512, dropout=0.0)
  config.data = dict(
    tokenizer="tiny_mlm",
    train=dict(kind="generator", split="train", limit=60_000),
    validation=dict(kind="generator", split="validation", limit=64),
    test=dict(kind="generator", split="test", limit=400),
    max_length=64,
    buckets=(32, 48, 64),
    batch_size=32,
  )
  # One corruption a row: on a budget of minutes, a second row teaches more than a second look.
  config.diffusion = dict(coupled=False)
  config.optimizer = dict(learning_rate=1.5e-3, warmup_steps=80, decay="cosine")
  config.training = dict(steps=1300, log_every=25, checkpoint_every=325)
  config.evaluation = dict(examples=64, num_steps=10)
  return config
