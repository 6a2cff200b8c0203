"""Strategies by name, as configs, commands and Python callers write them."""

import difflib
import itertools
import re

import numpy as np

from diffjax.diffusion.strategies.reparam import Reparam, masked_counts, rates
from diffjax.diffusion.strategies.strategy import MAX_STEPS, Strategy
from diffjax.types import UserError


def parse(name: str, *, num_steps: int, canvas_size: int) -> Strategy:
  """Builds the strategy that a name such as `reparam-uncond-deterministic-cosine` stands for.

  Args:
    name: `reparam-<cond|uncond>-<deterministic|stochastic<z>>-<linear|cosine>`; z scales the
      Gumbel noise that is added to the scores before they are ranked.
    num_steps: S; its tables are padded to a power of two, so that S does not recompile.
    canvas_size: C, the largest canvas.

  Raises:
    UserError: for an illegal name or number of steps.
  """
  form = r"reparam-(cond|uncond)-(?:deterministic|stochastic(\d+(?:\.\d+)?))-(linear|cosine)"
  match = re.fullmatch(form, name, re.ASCII)
  if match is None:
    kinds = itertools.product(
      ("uncond", "cond"), ("deterministic", "stochastic1.0"), ("cosine", "linear")
    )
    legal = ["-".join(("reparam", *kind)) for kind in kinds]
    near = difflib.get_close_matches(name, legal, n=1, cutoff=0.0)[0]
    raise UserError(
      f"strategy = {name!r} is none of reparam-<cond|uncond>-<deterministic|stochastic<z>>-"
      f"<linear|cosine> (z a number, such as 1.0); did you mean {near!r}?"
    )
  if not 1 <= num_steps <= MAX_STEPS:
    raise UserError(f"num_steps = {num_steps} must be between 1 and {MAX_STEPS}")
  condition, noise, schedule = match.groups()
  padding = max(16, 1 << (num_steps - 1).bit_length()) - num_steps
  return Reparam(
    counts=np.pad(masked_counts(schedule, num_steps, canvas_size), ((0, padding), (0, 0))),
    rates=np.pad(rates(schedule, num_steps), (0, padding)).astype(np.float32),
    noise_scale=np.float32(noise or 0),
    num_steps=np.int32(num_steps),
    conditional=condition == "cond",
    stochastic=noise is not None,
  )
