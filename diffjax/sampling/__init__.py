"""Text in, text out: the Sampler, its settings and what it returns."""

from diffjax.sampling.results import MASK_MARK, Generation, Score, Step
from diffjax.sampling.sampler import Sampler
from diffjax.sampling.settings import PRESETS, Settings, settings_of

__all__ = [
  "MASK_MARK",
  "PRESETS",
  "Generation",
  "Sampler",
  "Score",
  "Settings",
  "Step",
  "settings_of",
]
