"""Compiled programs are kept from one start of a run to the next, where that pays."""

import os
from pathlib import Path

import jax

from diffjax.training.start import CACHE

FOLDER = "compiled"
_SLOW = 1.0  # seconds of compiling, from which a program is kept


def keep_programs(workdir: Path) -> Path | None:
  """Turns JAX's persistent compile cache on, before anything is compiled.

  It lies in WORKDIR/cache/compiled, or where JAX_COMPILATION_CACHE_DIR says. Not on a CPU, whose
  programs fit only the machine that made them: there the variable alone turns it on.

  Returns:
    The folder that this call chose; None where it left all as it was.
  """
  if os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.default_backend() == "cpu":
    return None
  folder = workdir.absolute() / CACHE / FOLDER
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _SLOW)
  return folder
