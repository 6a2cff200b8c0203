"""The most rows that fit."""

import math
from collections.abc import Callable

from jax.sharding import Mesh

from diffjax import sharding
from diffjax.planning import estimates, experiment
from diffjax.planning.experiment import Subject

_COMPILES = 3  # at the most


def largest_rows(
  planned: Subject,
  mesh: Mesh,
  *,
  needed: float,
  available: float,
  ask: Callable[[int], float] | None,
) -> tuple[int, str]:
  """Rows of the largest batch that fits, and how that is known; 0 rows: none found.

  Along straight lines through what is known: with the formula's slope at first, then the
  compiler's own. Halfway, where a refusal does not say what it needs.

  Args:
    planned: the experiment, whose microbatches stay as many.
    mesh: the mesh.
    needed: bytes of HBM of its own rows.
    available: bytes of HBM.
    ask: what the compiler says so many rows need (<= 0: too much); None: there is no compiler.
  """
  unit = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
  unit *= planned.config.training.microbatches

  def estimated(rows: int) -> float:
    other = experiment.with_rows(planned, rows)
    program, inputs = estimates.abstract(other, mesh)
    temporaries = estimates.temporary_bytes(other, program, mesh)
    return estimates.state_bytes(program, inputs).total + temporaries.total

  here, bytes_here, found = planned.rows, needed, needed
  slope = (estimated(here + unit) - estimated(here)) / unit
  fits = lambda size: 0 < size <= available
  fitting, refused, asked = (here, math.inf, 0) if fits(needed) else (0, here, 0)
  while True:
    rows = (available - bytes_here) / slope + here if found > 0 else (fitting + refused) / 2
    rows = max(unit, min(int(rows) // unit * unit, refused - unit))
    if ask is None:
      return (rows if estimated(rows) <= available else 0), "by formula"
    if rows <= fitting or asked == _COMPILES or fitting + unit >= refused:
      return fitting, f"compiled {1 + asked} times"
    asked += 1
    found = ask(rows)
    if rows != here and found > 0:
      slope = max(slope / 4, (found - bytes_here) / (rows - here)) if bytes_here > 0 else slope
      here, bytes_here = rows, found
    if fits(found):
      fitting = rows
    else:
      refused = rows
