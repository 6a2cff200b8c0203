"""Where every array of a training step lies on the mesh, read from the program itself.

The specs told are those that the traced step holds, so that they cannot differ from what runs.
"""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval
from jax.sharding import Mesh, NamedSharding

from diffjax import sharding
from diffjax.training.programs import Program
from diffjax.types import Batch


def describe(program: Program, batch: Batch) -> str:
  """How the state, a batch and what is computed of it lie on the mesh, one array a line.

  Activations are those that the traced training step places, with their gradients: at a sharding
  constraint, or where they go into (<-) and come out of (->) a function that every device runs on
  its own shards, of which the largest array on the way is told, too.

  Args:
    program: as `build` makes it.
    batch: ShapeDtypeStructs.
  """
  jaxpr = jax.make_jaxpr(program.train_step)(program.state, program.frozen, batch).jaxpr
  # Without what no result needs: XLA drops it, too.
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), True)
  replicated = sharding.replicated_over_fsdp(program.state)
  mesh = program.rows.mesh
  return "\n".join([
    f"mesh: {' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}",
    "",
    "state",
    *sharding.describe(program.state),
    f"bytes on one device: {sharding.local_bytes(program.state):,}",
    f"large and replicated over fsdp: {', '.join(replicated) or 'nothing'}",
    "",
    "batch",
    *(
      f"{name}  {sharding.describe_array(leaf, program.rows)}"
      for name, leaf in batch._asdict().items()
    ),
    "",
    "activations",
    *dict.fromkeys(_placements(jaxpr, mesh)),
  ]) + "\n"  # fmt: skip


def _placements(jaxpr: Jaxpr, mesh: Mesh, *, is_backward: bool = False) -> Iterator[str]:
  """A line for every activation that a traced function places."""
  lies = lambda array, spec: sharding.describe_array(array, NamedSharding(mesh, spec))
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    stack = str(equation.source_info.name_stack)
    where = re.sub(r"transpose\(|jvp\(|rematted_computation|Transformer\.|\)", "", stack).strip("/")
    backward = is_backward or "transpose" in stack
    label = ("backward " if backward else "") + (where or "gradient")
    if name == "sharding_constraint":
      yield f"{label}  {lies(equation.outvars[0].aval, params['sharding'].spec)}"
    elif name == "shard_map":
      label = label if where else params["jaxpr"].debug_info.func_name
      for end, variables, specs in (
        ("<-", equation.invars, params["in_specs"]),
        ("->", equation.outvars, params["out_specs"]),
      ):
        # What is kept for the backward pass comes in an order that is JAX's own.
        yield from sorted(
          f"{label} {end}  {lies(variable.aval, spec)}"
          for variable, spec in zip(variables, specs, strict=True)
          if _is_floating(variable.aval)
        )
      size = lambda array: array.size * array.dtype.itemsize
      if largest := max(filter(_is_floating, _made(params["jaxpr"])), key=size, default=None):
        yield f"{label} largest  {largest.dtype}{list(largest.shape)}  {size(largest):,}"
    else:
      for part in _parts(equation):
        yield from _placements(part, mesh, is_backward=backward)


def _made(jaxpr: Jaxpr) -> Iterator[Any]:
  """Shape and dtype of every array that a traced function makes."""
  for equation in jaxpr.eqns:
    yield from (variable.aval for variable in equation.outvars)
    for part in _parts(equation):
      yield from _made(part)


def _parts(equation: JaxprEqn) -> Iterator[Jaxpr]:
  """The traced functions that an equation calls."""
  is_jaxpr = lambda x: isinstance(x, Jaxpr | ClosedJaxpr)
  for part in filter(is_jaxpr, jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)):
    yield getattr(part, "jaxpr", part)


def _is_floating(array: Any) -> bool:
  return jnp.issubdtype(getattr(array, "dtype", int), jnp.floating)
