"""Memory and work of decoding by formula, as estimates.py has them of training.

Parameters are exact, all else is an estimate. All numbers are of one device.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffjax import arithmetic, sharding
from diffjax.models import transformer
from diffjax.planning import estimates
from diffjax.planning.estimates import Work
from diffjax.planning.experiment import Subject


class Decoding(NamedTuple):
  """The batch that a sampler is planned for."""

  rows: int
  length: int
  canvas: int
  strategy: str
  num_steps: int
  temperature: float
  dtype: str  # of the parameters


class _Sizes(NamedTuple):
  """What the formulas share; of one device where they are positions."""

  tokens: float
  wanted: float  # of all devices that visit them together
  item: int  # bytes of an activation
  stack: float  # weights of all layers, whole along fsdp and split along tensor
  parts: int  # of the vocabulary
  visit: float  # positions of a visit
  visits: float


def _sizes(subject: Subject, mesh: Mesh, decoding: Decoding) -> _Sizes:
  data, fsdp, tensor, sequence = (mesh.shape[axis] for axis in mesh.axis_names)
  item = 2 if subject.config.compute.dtype == "bfloat16" else 4
  parts = fsdp * tensor
  # Along the axis sequence devices take other rows.
  wanted = decoding.rows * decoding.canvas / (data * sequence)
  visit = min(estimates.visit_size(subject, parts), wanted)
  return _Sizes(
    tokens=decoding.rows * decoding.length / (data * fsdp * sequence),
    wanted=wanted,
    item=item,
    stack=arithmetic.trunk_weights(subject.model.config) / tensor,
    parts=parts,
    visit=visit,
    visits=math.ceil(wanted / visit),
  )


def visits(subject: Subject, mesh: Mesh, decoding: Decoding) -> float:
  """How often a step of decoding visits the vocabulary while no position is final."""
  return float(_sizes(subject, mesh, decoding).visits)


def parameter_shapes(subject: Subject, mesh: Mesh, dtype: str) -> Any:
  """A sampler's parameters, as shapes that carry their shardings. Raises UserError."""
  shapes = transformer.shapes(subject.model.config)
  placed = sharding.shardings(shapes, mesh)
  attach = lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=s)
  return jax.tree.map(attach, shapes, placed)


def model_flops(subject: Subject, decoding: Decoding) -> float:
  """Of all steps and all devices; see arithmetic.step_flops."""
  tokens = float(decoding.rows * decoding.length)
  return decoding.num_steps * arithmetic.step_flops(
    subject.model.config,
    tokens=tokens,
    pairs=tokens * decoding.length,
    scored=float(decoding.rows * decoding.canvas),
    backward=False,
  )


def temporary_bytes(subject: Subject, mesh: Mesh, decoding: Decoding) -> float:
  """What a step needs beside the parameters: a layer's values and weights, a visit's logits."""
  model, s = subject.model.config, _sizes(subject, mesh, decoding)
  tensor = mesh.shape["tensor"]
  mixed = (model.heads + 2 * model.key_heads) * model.head_width
  values = 4 * model.width + (mixed + 2 * model.ffn_width) / tensor
  if not estimates.is_fused(subject, mesh, training=False):
    values += model.heads / tensor * decoding.length * (1 + estimates.WIDE / s.item)
  weights = s.stack / model.layers * s.item
  logits = s.visit * model.table_rows / s.parts * 3 * estimates.WIDE
  return s.tokens * values * s.item + weights * (3 if mesh.shape["fsdp"] > 1 else 1) + logits


def work(subject: Subject, mesh: Mesh, decoding: Decoding, *, together: int | None = None) -> Work:
  """What all steps compute and move, on devices of which `together` share a host or a slice.

  HBM: every weight is read once a step, by a device that gathers it after it was written; the
  table's shard and logits at every visit; values as in a training step's forward pass.
  """
  model, s = subject.model.config, _sizes(subject, mesh, decoding)
  fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
  layers, hidden = s.stack * s.item, s.tokens * model.width * s.item
  values = 12 * model.width + 3 * model.ffn_width / tensor
  rows = model.table_rows / s.parts
  moved = (
    layers * (2 + 1 / fsdp if fsdp > 1 else 1)
    + s.tokens * model.layers * values * s.item
    + s.visits * rows * model.width * s.item
    + s.wanted * rows * 2 * estimates.WIDE
  )
  vocabulary, features = ("fsdp", "tensor"), s.wanted * model.width
  sampled = decoding.temperature > 0
  collectives = estimates.collectives(
    [
      ("all-gather", ("fsdp",), layers, 1, "models/layers.py"),
      ("all-reduce", ("tensor",), hidden, 2 * model.layers, "models/layers.py"),
      ("reduce-scatter", vocabulary, hidden * fsdp, 1, "models/embedding.py"),
      ("reduce-scatter", vocabulary, features * estimates.WIDE, 1, "diffusion/vocabulary.py"),
      ("all-gather", vocabulary, features * s.item, 1, "diffusion/vocabulary.py"),
      ("all-to-all", vocabulary, s.wanted * rows * estimates.WIDE * sampled, 1,
       "diffusion/vocabulary.py"),
    ],
    mesh,
    times=decoding.num_steps,
    together=together,
  )  # fmt: skip
  devices = math.prod(mesh.shape.values())
  flops = model_flops(subject, decoding) / devices
  return Work(flops, decoding.num_steps * moved, collectives)


def host_bytes(shapes: Any, *, devices: int) -> dict[str, float]:
  """Of a host with so many devices: what is on its way to them at the most, and the process."""
  return {
    "parameters on their way": estimates.tree_bytes(shapes) * devices,
    "process": estimates.PROCESS_BYTES,
  }
