"""Losses and gradients of one training run on every kind of mesh, over eight fake CPU devices.

  python benchmarks/mesh_equality.py [--steps 10 --dtype float32 --meshes 8x1x1x1 2x2x2x1 ...]

A mesh is data x fsdp x tensor x sequence. The run is the whole training step of a small network
with dropout, coupled rows and label smoothing. Prints for every mesh how far it is from the run on
one device: the largest relative difference of a step's loss, of a step's gradient norm, of one
parameter's gradients (Adam, whose steps know no scale, averages them), and of all parameters after
the last step; whether a second run on the same mesh was bit-equal, and whether the noise (xt, t and
the scored positions) was bit-equal to one device's; then one JSON line. Exits with status 1 where a
difference exceeds its bound (TOLERANCES) or bits differ.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from diffjax import model as models
from diffjax import sharding
from diffjax.config import Contract, ExperimentConfig, MeshConfig, config_from_dict
from diffjax.diffusion import objectives
from diffjax.training import optimizer, programs, state
from diffjax.types import Array, Batch

MESHES = ("8x1x1x1", "2x4x1x1", "2x2x2x1", "1x8x1x1", "4x1x2x1", "2x2x1x2", "1x1x2x4")
# Relative. Rounding grows over the steps, most in what the loss does not feel.
TOLERANCES = {
  "float32": {"loss": 1e-5, "gradient_norm": 1e-5, "gradients": 1e-4, "parameters": 1e-4},
  "bfloat16": {"loss": 1e-3, "gradient_norm": 1e-2, "gradients": 3e-1, "parameters": 1e-1},
}
ROWS, LENGTH, VOCABULARY = 16, 32, 500
CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=VOCABULARY - 1)


class Run(NamedTuple):
  """What a run left."""

  losses: np.ndarray  # float32[steps]
  gradient_norms: np.ndarray  # float32[steps]
  gradients: dict  # their running average after the last step, by path; {} without one
  parameters: dict  # after the last step, by path


def make_config(*, layers: int = 2, **sections: dict) -> ExperimentConfig:
  """The experiment, with whole sections replaced by those given."""
  model = {"vocab_size": VOCABULARY, "width": 64, "layers": layers, "heads": 4, "ffn_width": 128}
  values = {
    "model": {**model, "max_positions": LENGTH, "dropout": 0.1},
    "compute": {"vocabulary_chunk": 16},
    "data": {
      "tokenizer": "none", "train": {"kind": "text", "path": "none"}, "max_length": LENGTH,
      "batch_size": ROWS,
    },
    "diffusion": {"coupled": True, "label_smoothing": 0.1},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 4},
  }  # fmt: skip
  return config_from_dict({**values, **sections})


def make_mesh(name: str) -> Mesh:
  """Of `data x fsdp x tensor x sequence`, over as many of the devices as that takes."""
  sizes = [int(size) for size in name.split("x")]
  config = MeshConfig(**dict(zip(sharding.AXES, sizes, strict=True)))
  return sharding.make_mesh(config, jax.devices()[: int(np.prod(sizes))])


def make_batch(step: int) -> Batch:
  """Rows of a prompt and an answer of all lengths, drawn by the step's number."""
  random = np.random.default_rng(step)
  ends = random.integers(LENGTH // 4, LENGTH + 1, (ROWS, 1))
  ramp = np.arange(LENGTH)
  return Batch(
    tokens=random.integers(3, VOCABULARY - 1, (ROWS, LENGTH)).astype(np.int32),
    segments=(ramp < ends).astype(np.int32),
    canvas=(ramp >= LENGTH // 8) & (ramp < ends),
    index=np.arange(ROWS, dtype=np.int32),
  )


def make_state(config: ExperimentConfig) -> state.TrainState:
  """The state before the first step, on the host."""
  random = np.random.default_rng(0)

  def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    centre = 1.0 if path[-1].key == "scale" else 0.0
    return random.normal(centre, 0.05, leaf.shape).astype(np.float32)

  mesh = make_mesh("1x1x1x1")
  shapes = programs.build(config, model_of(config), None, mesh).state.params
  update = optimizer.make(config.optimizer, steps=config.training.steps)
  params = jax.tree_util.tree_map_with_path(draw, shapes)
  return jax.device_get(state.create(params, update, ema=config.optimizer.ema_decay > 0))


def model_of(config: ExperimentConfig) -> models.Model:
  """The network without weights."""
  return models.Model(config.model, CONTRACT, None, None)


def train(config: ExperimentConfig, mesh: Mesh, *, steps: int, runs: int = 1) -> list[Run]:
  """The same run as often as said, by one compiled step."""
  program = programs.build(config, model_of(config), None, mesh)
  start = make_state(config)
  results = []
  for _ in range(runs):
    current = jax.device_put(start, programs.layout(program.state))
    losses, norms = [], []
    for step in range(steps):
      batch = sharding.place_rows(make_batch(step), program.rows)
      current, updates = program.train_step(current, {}, batch)
      losses.append(updates.sums.loss / updates.sums.weight)
      norms.append(updates.gradient_norm)
    average = optax.tree.get(current.opt_state, "mu", {})
    values = np.array(losses), np.array(norms), _by_path(average), _by_path(current.params)
    results.append(Run(*jax.device_get(values)))
  return results


def _by_path(tree: dict) -> dict[str, Array]:
  return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def noise(config: ExperimentConfig, mesh: Mesh) -> tuple[Array, Array, Array]:
  """(xt, t, scored) of the first batch of a run on a mesh."""
  noised = functools.partial(
    objectives.noised, objective=programs.make_objective(config, CONTRACT), rows=ROWS,
    mask_id=CONTRACT.mask_id,
  )  # fmt: skip
  rows = sharding.rows(mesh)
  drawn = jax.jit(noised, in_shardings=(rows, None))(make_batch(0), jnp.int32(0))
  return jax.device_get((drawn.xt, drawn.t, drawn.scored))


def are_equal(first: object, second: object) -> bool:
  """Whether two trees hold the same bits."""
  same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), first, second)
  return all(jax.tree.leaves(same))


def differences(run: Run, reference: Run) -> dict[str, float]:
  """Relative ones, by the names of TOLERANCES.

  A parameter's gradients are compared by their norm, and as if they had at least a thousandth of
  the whole gradient's: the bias of keys, which no softmax feels, has none but rounding.
  """
  largest = lambda ours, theirs: float(np.max(np.abs(ours - theirs) / np.abs(theirs)))
  norm = lambda tree: float(np.sqrt(sum(np.sum(np.square(x, dtype=float)) for x in tree.values())))
  less = lambda ours, theirs: {path: ours[path] - x for path, x in theirs.items()}
  least = norm(reference.gradients) / 1e3
  return {
    "loss": largest(run.losses, reference.losses),
    "gradient_norm": largest(run.gradient_norms, reference.gradient_norms),
    "gradients": max(
      (
        norm({"": run.gradients[path] - x}) / max(norm({"": x}), least)
        for path, x in reference.gradients.items()
      ),
      default=0.0,
    ),
    "parameters": norm(less(run.parameters, reference.parameters)) / norm(reference.parameters),
  }


def too_far(found: dict[str, float], dtype: str = "float32") -> dict[str, float]:
  """Those of `differences` that exceed their bound."""
  return {name: x for name, x in found.items() if not x <= TOLERANCES[dtype][name]}


def compare(config: ExperimentConfig, meshes: Sequence[str], *, steps: int) -> list[dict]:
  """One row of the table for every mesh."""
  alone = make_mesh("1x1x1x1")
  (reference,), drawn = train(config, alone, steps=steps), noise(config, alone)
  rows = []
  for name in meshes:
    mesh = make_mesh(name)
    first, second = train(config, mesh, steps=steps, runs=2)
    rows.append({
      "mesh": name,
      "loss": float(first.losses[-1]),
      "differences": differences(first, reference),
      "rerun_equal": are_equal(first, second),
      "noise_equal": are_equal(noise(config, mesh), drawn),
    })  # fmt: skip
  return rows


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--dtype", choices=TOLERANCES, default="float32")
  parser.add_argument("--meshes", nargs="+", default=MESHES)
  options = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 8)
  config = make_config(compute={"vocabulary_chunk": 16, "dtype": options.dtype})
  rows = compare(config, options.meshes, steps=options.steps)
  words = {True: "bit-equal", False: "DIFFERS"}
  print(f"jax {jax.__version__}, {options.steps} steps in {options.dtype}; differences of")
  print(f"{'mesh':<9} {'last loss':>10} {'loss':>9} {'grad norm':>9} {'gradient':>9} {'params':>9} "
        f"{'rerun':>10} {'noise':>10}")  # fmt: skip
  for row in rows:
    found = " ".join(f"{x:>9.1e}" for x in row["differences"].values())
    print(
      f"{row['mesh']:<9} {row['loss']:>10.6f} {found} "
      f"{words[row['rerun_equal']]:>10} {words[row['noise_equal']]:>10}"
    )
  print(json.dumps({"steps": options.steps, "dtype": options.dtype, "meshes": rows}))
  kept = all(
    row["rerun_equal"] and row["noise_equal"] and not too_far(row["differences"], options.dtype)
    for row in rows
  )
  raise SystemExit(0 if kept else 1)


if __name__ == "__main__":
  main()
