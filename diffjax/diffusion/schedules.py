"""Noise schedules: alpha(t), the chance that a canvas position is still clean at time t in [0, 1].

alpha falls from exactly 1 at t = 0 to exactly 0 at t = 1. Every function takes JAX arrays (traced
or not) and answers in kind, or plain numbers and NumPy arrays and answers in NumPy, so that tables
can be made in float64 while tracing.
"""

import dataclasses
import difflib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.types import UserError

NAMES = ("linear", "cosine", "polynomial")


@dataclasses.dataclass(frozen=True)
class Schedule:
  """One schedule as data (hashable, so it may be a static argument); built by `make`.

  linear:      alpha = 1 - t                       (2308.12219, section 3)
  cosine:      alpha = 1 - cos(pi/2 (1 - t))       (2406.04329)
  polynomial:  alpha = 1 - t^power                 (2406.04329)
  """

  name: str
  power: float

  def alpha(self, t: Any) -> Any:
    """The share of clean positions at times t, of any shape."""
    if self.name == "cosine":
      # sin(pi/2 t) is cos(pi/2 (1 - t)), but exactly 0 at t = 0 and accurate next to it.
      return 1 - _module(t).sin(np.pi / 2 * t)
    return 1 - t**self.power if self.name == "polynomial" else 1 - t

  def derivative(self, t: Any) -> Any:
    """d alpha / dt at times t, never positive; at t = 0 infinite where power < 1."""
    module = _module(t)
    if self.name == "cosine":
      return -np.pi / 2 * module.sin(np.pi / 2 * (1 - t))
    if self.name == "polynomial":
      return -self.power * t ** (self.power - 1)
    return -module.ones_like(t)

  def time_of(self, rate: Any) -> Any:
    """The time t at which the share of noised positions, 1 - alpha(t), is `rate` in [0, 1]."""
    if self.name == "cosine":
      return _module(rate).arcsin(rate) * (2 / np.pi)
    return rate ** (1 / self.power) if self.name == "polynomial" else rate


def make(name: str, *, power: float = 1.0) -> Schedule:
  """The schedule of that name; `power` belongs to 'polynomial' alone.

  Raises:
    UserError: for a name that is no schedule, or a power that the schedule cannot have.
  """
  if name not in NAMES:
    near = difflib.get_close_matches(name, NAMES, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"schedule {name!r} is none of {', '.join(map(repr, NAMES))}{guess}")
  if not power > 0:
    raise UserError(f"schedule {name!r} has power {power!r}; it must be above 0")
  if name != "polynomial" and power != 1:
    raise UserError(f"schedule {name!r} has power {power!r}; only 'polynomial' takes a power")
  return Schedule(name, float(power))


def reveal_prob(schedule: Schedule, s: Any, t: Any) -> Any:
  """The chance that a position noised at time t is clean at the earlier time s <= t.

  (alpha_s - alpha_t) / (1 - alpha_t), the reverse transition of the absorbing process
  (2406.04329); 0 where nothing is noised at t. Shapes of s and t broadcast.
  """
  alpha_s, alpha_t = schedule.alpha(s), schedule.alpha(t)
  module = _module(alpha_t)
  rate = 1 - alpha_t
  return module.where(rate > 0, (alpha_s - alpha_t) / module.where(rate > 0, rate, 1), 0)


def _module(x: Any) -> types.ModuleType:
  return jnp if isinstance(x, jax.Array) else np
