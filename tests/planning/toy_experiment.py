"""A toy experiment that needs no files."""

from diffjax.config import ExperimentConfig, config_from_dict
from diffjax.planning import experiment
from diffjax.planning.experiment import Subject


def config(**sections: dict) -> ExperimentConfig:
  """Sections add to these."""
  base = dict(
    model=dict(
      vocab_size=512, width=32, layers=3, heads=4, ffn_width=64, max_positions=32, dropout=0.0
    ),
    data=dict(
      tokenizer="none", train=dict(kind="generator", limit=8), max_length=16, batch_size=32
    ),
    compute=dict(dtype="bfloat16", vocabulary_chunk=16),
    mesh=dict(data=1, fsdp=-1),
    training=dict(steps=10),
  )
  return config_from_dict(
    {name: base.get(name, {}) | sections.get(name, {}) for name in {*base, *sections}}
  )


def subject(**sections: dict) -> Subject:
  """The same as what is planned."""
  return experiment.subject(config(**sections))
