"""diffjax: diffusion language models in JAX. The public names below load on first use."""

import importlib
from typing import Any

_PUBLIC = {
  "Model": "diffjax.model",
  "Sampler": "diffjax.sampling",
  "UserError": "diffjax.types",
  "convert": "diffjax.model",
  "evaluate": "diffjax.evaluation.tasks",
  "load": "diffjax.model",
  "load_config": "diffjax.config",
  "train": "diffjax.training.loop",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f"diffjax has no {name!r}; it has {', '.join(_PUBLIC)}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
  return __all__
