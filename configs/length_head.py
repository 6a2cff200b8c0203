"""A length head over a finished run: how many tokens answer a prompt (2308.12219, section 3).

  diffjax train --config=configs/length_head.py:quickstart --workdir=runs/quickstart_length
  diffjax train --config=configs/length_head.py:multi30k --workdir=runs/multi30k_length

quickstart goes over `diffjax quickstart` (runs/quickstart), multi30k over multi30k_de_en.py:small
(runs/multi30k_small); --config.init_from=RUN for another. The run under the head stays as it is,
and must stay where it is: the new run holds the head alone, and loads as one model with both.

Hardware: 2 CPU cores; quickstart 3 minutes beside other work, multi30k not run yet. Expected: the
README's table of lengths.
"""

from ml_collections import ConfigDict


def get_config(name: str = "quickstart") -> ConfigDict:
  config = ConfigDict()
  config.length = dict(weight=1.0, alone=True)
  config.optimizer = dict(learning_rate=1e-3, warmup_steps=50, decay="cosine")
  return {"quickstart": _quickstart, "multi30k": _multi30k}[name](config)


def _quickstart(config: ConfigDict) -> ConfigDict:
  config.init_from = "runs/quickstart"
  config.data = dict(
    train=dict(kind="generator", split="train", limit=60_000),
    validation=dict(kind="generator", split="validation", limit=400),
    test=dict(kind="generator", split="test", limit=400),
    max_length=64,
    buckets=(32, 48, 64),
    batch_size=64,
  )
  config.training = dict(steps=800, log_every=50, eval_every=200, checkpoint_every=200)
  config.evaluation = dict(metric="length_accuracy", examples=400, batch_size=80)
  return config


def _multi30k(config: ConfigDict) -> ConfigDict:
  pairs = lambda name: dict(
    kind="pairs", path=f"data/multi30k/{name}.de.gz", target_path=f"data/multi30k/{name}.en.gz"
  )
  config.init_from = "runs/multi30k_small"
  config.data = dict(
    train=pairs("train"),
    validation=pairs("val"),
    test=pairs("test_2016_flickr"),
    max_length=128,
    buckets=(32, 48, 64, 128),
    batch_size=128,
  )
  config.training = dict(steps=2000, log_every=50, eval_every=250, checkpoint_every=250)
  config.evaluation = dict(metric="length_loss", examples=1000, batch_size=128)
  return config
