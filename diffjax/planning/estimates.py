"""Memory and work of a training step by formula, from shapes and shardings alone.

State is exact. Activations, what waits in between and what moves are estimates: they say what a
mesh and a rematerialisation policy cost, where no compiler can be asked. All numbers are of one
device.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from diffjax import arithmetic, sharding
from diffjax.models import attention
from diffjax.planning.costs import Collective
from diffjax.planning.experiment import Subject, batch
from diffjax.training import programs
from diffjax.types import Batch

WIDE = 4  # bytes of a parameter, a moment, a gradient, a logit
_AHEAD = 8  # batches that are prepared ahead, see data/pipeline.py
PROCESS_BYTES = 5e8  # of a process: the interpreter, its libraries, the tokenizer

# What is exchanged: kind, along which axes, bytes that a chip has of the larger side, how often,
# and where.
Exchange = tuple[str, tuple[str, ...], float, float, str]


class State(NamedTuple):
  """Bytes of what lies in HBM between steps; exact."""

  parameters: float
  optimizer: float
  average: float
  frozen: float
  batch: float

  @property
  def total(self) -> float:
    """All of it."""
    return float(sum(self))


class Temporaries(NamedTuple):
  """Bytes of what a step needs beside the state; estimates."""

  gradients: float  # and their sums over microbatches; exact
  activations: float  # kept from the forward pass for the backward pass
  layer: float  # one layer's own, and its gathered weights
  vocabulary: float  # logits of a visit, the table's gradient, features

  @property
  def total(self) -> float:
    """All of it."""
    return float(sum(self))


class Work(NamedTuple):
  """Of a step; estimates."""

  flops: float
  hbm_bytes: float
  collectives: tuple[Collective, ...]


class Host(NamedTuple):
  """Bytes of a host's memory."""

  checkpoint: float  # a copy of its devices' state while it is being written
  data: float  # readers, and batches prepared ahead
  offloaded: float  # inputs of layers that wait there


def tree_bytes(tree: Any) -> float:
  """Bytes on one device of shapes that carry their shardings."""
  leaves = jax.tree.leaves(tree)
  return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))


def state_bytes(program: programs.Program, inputs: Batch) -> State:
  """What a run keeps in HBM."""
  state = program.state
  trees = (state.params, state.opt_state, state.ema_params, program.frozen, inputs)
  return State(*map(tree_bytes, trees))


def checkpoint_bytes(program: programs.Program) -> float:
  """Bytes of one checkpoint, of all devices together."""
  return float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.state)))


class _Sizes(NamedTuple):
  """What the formulas share; of one device, and of one microbatch where they are positions."""

  tokens: float
  scored: float  # of all devices that visit them together
  item: int  # bytes of an activation
  stack: float  # weights of all layers, whole along fsdp and split along tensor
  visit: float  # positions of a visit
  visits: float
  parts: int  # of the vocabulary
  data: int
  fsdp: int
  tensor: int
  sequence: int


def _sizes(subject: Subject, mesh: Mesh) -> _Sizes:
  config, model = subject.config, subject.model.config
  data, fsdp, tensor, sequence = (mesh.shape[axis] for axis in mesh.axis_names)
  microbatches = config.training.microbatches
  tokens = subject.tokens / microbatches / (data * fsdp * sequence)
  scored = subject.scored / microbatches / (data * sequence)
  parts = fsdp * tensor
  visit = min(visit_size(subject, parts), tokens * fsdp)
  item = 2 if config.compute.dtype == "bfloat16" else 4
  return _Sizes(
    tokens, scored, item, arithmetic.trunk_weights(model) / tensor, visit,
    math.ceil(scored / visit), parts, data, fsdp, tensor, sequence,
  )  # fmt: skip


def visit_size(subject: Subject, parts: int) -> float:
  """Positions that devices visit the vocabulary with at a time, as diffusion/vocabulary.py says."""
  chunk, model = subject.config.compute.vocabulary_chunk, subject.model.config
  rows = model.table_rows / parts
  return chunk if parts == 1 else chunk * parts * rows / max(rows, model.width)


def visits(subject: Subject, mesh: Mesh) -> float:
  """How often a microbatch is expected to visit the vocabulary."""
  return float(_sizes(subject, mesh).visits)


def temporary_bytes(subject: Subject, program: programs.Program, mesh: Mesh) -> Temporaries:
  """What a step needs beside the state.

  Kept of every layer: its input, D (remat full; offload: nothing); and what its matrices return,
  but for attention's own products (save_matmuls); or about all of it (none). One layer's own
  intermediates exist twice, as values and as gradients.
  """
  config, model, s = subject.config, subject.model.config, _sizes(subject, mesh)
  width, inner = model.width, model.ffn_width * (2 if model.gated else 1)
  mixed = model.heads * model.head_width
  projected = mixed + 2 * model.key_heads * model.head_width
  products = 2 * width + (projected + inner) / s.tensor
  probabilities = 0.0
  if not is_fused(subject, mesh, training=True):
    probabilities = model.heads / s.tensor * subject.length * (1 + WIDE / s.item)
  dropped = 3 * width / s.item * (model.dropout > 0)
  everything = products + 4 * width + (mixed + model.ffn_width) / s.tensor + probabilities + dropped
  kept = {"offload": 0.0, "full": width, "save_matmuls": width + products, "none": everything}
  of_layer = 2 * everything if config.compute.remat != "none" else everything
  weights = s.stack / model.layers * s.item
  gathered = 2 * weights * (s.fsdp > 1) + weights
  table = model.table_rows * model.width / s.parts
  logits = s.visit * model.table_rows / s.parts * (2 * WIDE + s.item)
  features = 3 * s.tokens * width * s.item
  gradients = tree_bytes(program.state.params)
  return Temporaries(
    gradients=gradients * (1 if config.training.microbatches == 1 else 2),
    activations=kept[config.compute.remat] * s.tokens * s.item * model.layers,
    layer=of_layer * s.tokens * s.item + gathered,
    vocabulary=logits + table * (s.item + WIDE) + features + 2 * s.visit * width * WIDE,
  )


def is_fused(subject: Subject, mesh: Mesh, *, training: bool) -> bool:
  """Whether attention never holds all probabilities of a row."""
  kernel = attention.chosen(
    subject.model.config,
    subject.config.compute,
    length=subject.length,
    shards=sharding.shards(mesh),
    training=training,
    opened=training and subject.annealing is not None,
  )
  return kernel not in ("xla", "written out")


def work(
  subject: Subject,
  program: programs.Program,
  mesh: Mesh,
  *,
  together: int | None = None,
) -> Work:
  """What a step computes and moves, on devices of which `together` share a host or a slice.

  HBM: state read and written once; gathered weights and the table's gradient at every use;
  about 12 values of the width of every token and layer in a pass. Collectives: as the shardings
  ask for them, in the compute dtype.
  """
  config, model, s = subject.config, subject.model.config, _sizes(subject, mesh)
  parts, devices = config.training.microbatches, math.prod(mesh.shape.values())
  trunk = dict(tokens=subject.tokens, pairs=subject.pairs)
  flops = arithmetic.step_flops(model, **trunk, scored=subject.scored, lora=config.lora)
  again = {"full": trunk, "offload": trunk, "save_matmuls": dict(tokens=0.0, pairs=subject.pairs)}
  if config.compute.remat in again:
    flops += arithmetic.step_flops(model, **again[config.compute.remat], scored=0.0, backward=False)
  passes = 4 if config.compute.remat in ("full", "offload") else 3
  values = 12 * model.width + 3 * model.ffn_width / s.tensor
  table = model.table_rows * model.width / s.parts
  trained = tree_bytes(program.state.params)
  state = tree_bytes(program.state)
  hbm = (
    2 * state
    + trained * (1 + 2 * parts)
    + parts * passes * 2 * s.stack * s.item
    + parts * passes * s.tokens * model.layers * values * s.item
    + parts * s.visits * (table * (2 * s.item + 2 * WIDE))
    + parts * s.visits * s.visit * model.table_rows / s.parts * (3 * WIDE + 2 * s.item)
  )
  exchanged = collectives(_exchanges(subject, s, trained), mesh, times=parts, together=together)
  return Work(flops / devices, hbm, exchanged)


def _exchanges(subject: Subject, s: _Sizes, trained: float) -> list[Exchange]:
  """Of one microbatch."""
  config, model = subject.config, subject.model.config
  layers, hidden = s.stack * s.item, s.tokens * model.width * s.item
  again = 6 if config.compute.remat in ("full", "offload") else 4
  keys = 2 * model.key_heads * model.head_width / s.tensor * s.tokens * s.sequence * s.item
  vocabulary, scored = ("fsdp", "tensor"), s.scored * model.width
  return [
    ("all-gather", ("fsdp",), layers, 2, "models/layers.py"),
    ("reduce-scatter", ("fsdp",), layers, 1, "models/layers.py"),
    ("all-reduce", ("data", "sequence"), trained, 1, "training/step.py"),
    ("all-reduce", ("tensor",), hidden, again * model.layers, "models/layers.py"),
    ("all-gather", ("sequence",), keys, (again - 2) * model.layers, "models/attention.py"),
    ("reduce-scatter", vocabulary, hidden * s.fsdp, 2, "models/embedding.py"),
    ("all-reduce", ("fsdp",), scored * s.item, 1, "diffusion/vocabulary.py"),
    ("reduce-scatter", vocabulary, scored * WIDE, 1, "diffusion/vocabulary.py"),
    ("all-gather", vocabulary, scored * s.item, 1, "diffusion/vocabulary.py"),
  ]


def collectives(
  exchanges: list[Exchange], mesh: Mesh, *, times: int, together: int | None = None
) -> tuple[Collective, ...]:
  """Those of exchanges that are made so many times a step, the largest first.

  Args:
    exchanges: what is exchanged along which axes.
    mesh: whose axes of size 1 have nothing to exchange.
    times: a step.
    together: devices that share a host or a slice; None: all do.
  """
  found: list[Collective] = []
  for kind, axes, size, count, source in exchanges:
    group = math.prod(mesh.shape[axis] for axis in axes)
    if group == 1 or not size:
      continue
    entering = (2 if kind == "all-reduce" else 1) * size * (group - 1) / group
    reached = _reached(mesh, axes, together or mesh.size)
    found.append(Collective(kind, group, reached, times * count, times * count * entering, source))
  return tuple(sorted(found, key=lambda c: -c.bytes))


def _reached(mesh: Mesh, axes: tuple[str, ...], together: int) -> int:
  """Over how many hosts or slices a group reaches, so many neighbouring devices being together."""
  members, stride = np.zeros(1, np.int64), 1
  for axis in reversed(mesh.axis_names):
    if axis in axes:
      members = np.add.outer(stride * np.arange(mesh.shape[axis]), members).ravel()
    stride *= mesh.shape[axis]
  return len(np.unique(members // together))


def host_bytes(
  subject: Subject,
  program: programs.Program,
  mesh: Mesh,
  *,
  devices: int,
  hosts: int,
) -> Host:
  """What a host with so many devices needs beside the programs themselves."""
  s, data = _sizes(subject, mesh), subject.config.data
  rows = subject.rows / hosts
  batches = _AHEAD * rows * subject.length * np.dtype(np.int32).itemsize * 3
  waiting = 0.0
  if subject.config.compute.remat == "offload":
    waiting = s.tokens * subject.model.config.width * s.item * subject.model.config.layers
  return Host(
    checkpoint=tree_bytes(program.state) * devices,
    data=batches + (1 + data.workers) * PROCESS_BYTES,
    offloaded=waiting * devices,
  )


def abstract(subject: Subject, mesh: Mesh) -> tuple[programs.Program, Batch]:
  """The training program of a subject and its batch, as shapes. Raises UserError."""
  program = programs.build(subject.config, subject.model, subject.annealing, mesh)
  return program, batch(subject, program.rows)
