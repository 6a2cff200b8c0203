"""What JAX is told before it starts: how much memory is its, where compiled programs are kept."""

import os
from pathlib import Path

import jax

FOLDER = "compiled"
_GPU_SHARE = "0.92"  # planning/plan.py leaves as much to the system
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
  from diffjax.training.start import CACHE  # all commands import this file, and few of them train

  folder = workdir.absolute() / CACHE / FOLDER
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _SLOW)
  return folder


def ask_for_memory() -> None:
  """Lets JAX use as much of a GPU as plans count on, unless the environment says how much.

  Its own default is three quarters. Before the first device is asked for; TPUs are not concerned.
  """
  if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # its old name; JAX refuses both
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", _GPU_SHARE)
