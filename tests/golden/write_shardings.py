"""Writes how every array of three presets lies on a mesh: python tests/golden/write_shardings.py.

tests/golden/shardings_*.txt are compared with this by tests/sharding_test.py. The devices of the
meshes need not be there.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax import model as models
from diffjax import sharding
from diffjax.config import Contract, config_from_dict
from diffjax.models.architectures import PRESETS
from diffjax.training import placements, programs
from diffjax.types import Batch

FOLDER = Path(__file__).parent
LENGTH, CHUNK = 512, 256
# data x fsdp x tensor x sequence, rows of a batch, optimizer.
RUNS = {
  "xlmr-base": ((1, 8, 1, 1), 64, {"first_moment_dtype": "bfloat16"}),
  "xlmr-xl": ((2, 8, 2, 2), 256, {}),
  "xlmr-xxl": ((1, 64, 1, 1), 256, {"name": "adafactor"}),
}


def table(preset: str) -> str:
  """The text of a preset's file."""
  sizes, rows, optimizer = RUNS[preset]
  model = PRESETS[preset]
  config = config_from_dict({
    "model": dataclasses.asdict(model),
    "compute": {"dtype": "bfloat16", "attention": "xla", "vocabulary_chunk": CHUNK},
    "data": {
      "tokenizer": "none", "train": {"kind": "text", "path": "none"}, "max_length": LENGTH,
      "batch_size": rows,
    },
    "optimizer": optimizer,
  })  # fmt: skip
  contract = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=model.vocab_size - 1)
  grid = np.full(sizes, jax.devices()[0])  # nothing runs on it
  mesh = Mesh(grid, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))
  program = programs.build(config, models.Model(model, contract, None, None), None, mesh)
  struct = lambda kind: jax.ShapeDtypeStruct((rows, LENGTH), kind)
  index = jax.ShapeDtypeStruct((rows,), "int32")
  batch = Batch(struct("int32"), struct("int32"), struct("bool"), index)
  placed = sharding.shards(mesh)
  lies = lambda shape, kind, spec: sharding.describe_array(
    jax.ShapeDtypeStruct(shape, kind), NamedSharding(mesh, spec)
  )
  # Of the rows and their twins.
  inner = P(placed.rows, placed.sequence, placed.heads)
  return "\n".join([
    f"{preset}, {optimizer.get('name', 'adamw')}, bfloat16 activations",
    placements.describe(program, batch),
    "what the weights' shards imply",
    f"inner  {lies((2 * rows, LENGTH, model.ffn_width), 'bfloat16', inner)}",
    "",
  ])  # fmt: skip


def path(preset: str) -> Path:
  """Of a preset's file."""
  return FOLDER / f"shardings_{preset}.txt"


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  for preset in RUNS:
    path(preset).write_text(table(preset))
    print(path(preset))
