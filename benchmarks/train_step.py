"""Tokens per second of the whole training step: 6 layers x 256, V = 8 000, 32 rows x 128 tokens.

  python benchmarks/train_step.py [--rows 32 --length 128 --layers 6 --width 256 --vocabulary 8000]
  python benchmarks/train_step.py --preset xlmr-large --dtype bfloat16 --rows 64 --against-torch

Prints a table and one JSON line. A coupled row passes through the network twice and is counted
once; half of each row is canvas. FLOPs are the model's own (diffjax/arithmetic.py); MFU is told
against the chip's published peak where diffjax/chips.py knows it, and against the matrix products
that the same device did in the same run. `--preset` takes published shapes, 512 positions.

`--against-torch` adds the same step in PyTorch (see train_step_torch.py): each side runs in a
process of its own, ours, torch, ours, torch, and medians are compared. Before, both compute the
loss of one batch from the same weights and noise.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import arithmetic, chips
from diffjax.config import ComputeConfig, Contract, ModelConfig, OptimizerConfig
from diffjax.conversion.exporting import write_huggingface
from diffjax.diffusion import objectives, schedules
from diffjax.models import architectures, transformer
from diffjax.training import optimizer, state, step
from diffjax.types import Batch

SIDES = ("ours", "torch", "agreement")
KNOWN_IDS = 250_002  # that XLM-R's tokenizer makes; the mask is the last one
MATMUL = {"cpu": (768, 10), "accelerator": (8192, 30)}  # (size, products in a chain)
WARMUP = 3  # steps before the clock starts; the first one compiles


def model_of(options: argparse.Namespace) -> ModelConfig:
  """The architecture asked for."""
  if options.preset:
    return dataclasses.replace(architectures.preset(options.preset), dropout=options.dropout)
  return ModelConfig(
    vocab_size=options.vocabulary, width=options.width, layers=options.layers,
    heads=max(1, options.width // 64), ffn_width=4 * options.width, dropout=options.dropout,
  )  # fmt: skip


def contract_of(model: ModelConfig) -> Contract:
  """XLM-R's ids."""
  mask = min(model.vocab_size, KNOWN_IDS) - 1
  return Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=mask)


def batch_of(options: argparse.Namespace, mask_id: int) -> Batch:
  """Rows of random ids, the second half of each its canvas."""
  random = np.random.default_rng(0)
  shape = options.rows, options.length
  return Batch(
    tokens=random.integers(4, mask_id, size=shape).astype(np.int32),
    segments=np.ones(shape, np.int32),
    canvas=np.broadcast_to(np.arange(options.length) >= options.length // 2, shape),
    index=np.arange(options.rows, dtype=np.int32),
  )


def objective_of(*, coupled: bool) -> objectives.Objective:
  """The paper's (2308.12219): T = 50, linear weights."""
  return objectives.Objective(
    schedule=schedules.make("linear", power=1.0), num_timesteps=50, weight="linear",
    normalizer="canvas", times="stratified", mask_ratio=0.0, coupled=coupled, label_smoothing=0.0,
    seed=0,
  )  # fmt: skip


def loss_of(options: argparse.Namespace, model: ModelConfig, *, coupled: bool, train: bool):
  """(params, frozen, batch, step, rows, opened) -> (loss, Sums)."""
  contract = contract_of(model)
  compute = ComputeConfig(dtype=options.dtype, remat=options.remat, attention=options.attention)
  bind = functools.partial(transformer.bind, config=model, contract=contract, compute=compute)
  return functools.partial(
    step.loss_sums, bind=bind, objective=objective_of(coupled=coupled), mask_id=contract.mask_id,
    chunk=options.chunk, shards=None, train=train,
  )  # fmt: skip


def measure(options: argparse.Namespace, *, coupled: bool) -> dict[str, float]:
  """Seconds of a step and what follows from them, after steps that compile and warm up."""
  model = model_of(options)
  update = optimizer.make(OptimizerConfig(), steps=100)
  train_step = jax.jit(
    functools.partial(
      step.train_step,
      loss=loss_of(options, model, coupled=coupled, train=True),
      optimizer=update,
      learning_rate=optimizer.learning_rate(OptimizerConfig(), steps=100),
      microbatches=1,
      ema_decay=0.0,
    ),
    donate_argnums=0,
  )

  @jax.jit
  def begin(key: jax.Array) -> state.TrainState:
    return state.create(transformer.init(key, model), update, ema=False)

  current = begin(jax.random.key(0))
  batch = batch_of(options, contract_of(model).mask_id)
  losses, scored = [], 0.0
  for number in range(WARMUP + options.steps):
    if number == WARMUP:
      jax.block_until_ready(current)
      start = time.perf_counter()
    current, updates = train_step(current, {}, batch)
    losses.append(updates.sums.loss / updates.sums.weight)
    scored += updates.sums.scored.sum()
  jax.block_until_ready(current)
  seconds = (time.perf_counter() - start) / options.steps
  check_losses(losses)
  stats = jax.devices()[0].memory_stats() or {}
  return results(
    options, model, seconds, twins=1 + coupled, scored=float(scored) / len(losses),
    bytes_used=stats.get("peak_bytes_in_use", 0),
  )  # fmt: skip


def check_losses(losses: list) -> None:
  """Stops where a loss is not finite, or the last ones are not below the first."""
  values = np.array([float(loss) for loss in losses])
  if not np.isfinite(values).all() or values[-3:].mean() > 1.5 * values[0]:
    sys.exit(f"train_step.py: this does not learn: losses {values.round(3).tolist()}")


def results(
  options: argparse.Namespace,
  model: ModelConfig,
  seconds: float,
  *,
  twins: int,
  scored: float,
  bytes_used: int,
) -> dict[str, float]:
  """What is told of a step that took so many seconds."""
  flops = arithmetic.step_flops(
    model,
    tokens=twins * options.rows * options.length,
    pairs=twins * options.rows * options.length**2,
    scored=scored,
  )
  return {
    "ms_per_step": 1e3 * seconds,
    "tokens_per_second": options.rows * options.length / seconds,
    "flops_per_second": flops / seconds,
    "peak_gigabytes": bytes_used / 1e9,
  }


def matmul_ceiling(dtype: str) -> float:
  """FLOP/s of a chain of large square matrix products, the best of three."""
  size, count = MATMUL["cpu" if jax.default_backend() == "cpu" else "accelerator"]
  x = jnp.ones((size, size), dtype)
  w = jnp.full((size, size), 1 / size, dtype)

  @jax.jit
  def chain(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=count)[0]

  times = []
  for _ in range(4):  # the first one compiles
    start = time.perf_counter()
    jax.block_until_ready(chain(x, w))
    times.append(time.perf_counter() - start)
  return 2 * size**3 * count / min(times[1:])


def agreement(options: argparse.Namespace) -> float:
  """|ours - torch's| / ours of one batch's loss: a small model of the same family, no dropout."""
  import train_step_torch

  small = argparse.Namespace(**{**vars(options), "rows": 4, "length": 32, "dtype": "float32"})
  model = dataclasses.replace(
    model_of(options), vocab_size=500, width=64, layers=2, heads=2, ffn_width=128, dropout=0.0
  )
  contract, objective = contract_of(model), objective_of(coupled=False)
  params = jax.jit(functools.partial(transformer.init, config=model))(jax.random.key(1))
  batch = batch_of(small, contract.mask_id)
  whole = functools.partial(loss_of(small, model, coupled=False, train=False), rows=small.rows)
  _, sums = jax.jit(whole)(params, {}, batch, 7)
  noise = functools.partial(
    objectives.noised, objective=objective, rows=small.rows, mask_id=contract.mask_id
  )
  noised = jax.jit(noise)(batch, 7)
  with tempfile.TemporaryDirectory() as folder:
    write_huggingface(Path(folder) / "model", model, contract, params)
    theirs = train_step_torch.loss_of_weights(
      Path(folder) / "model",
      np.asarray(noised.xt),
      batch.tokens,
      np.asarray(noised.weights.nll) / float(noised.weights.total),
      mask_id=contract.mask_id,
    )
  ours = float(sums.loss / sums.weight)
  return abs(ours - theirs) / ours


def run_side(options: argparse.Namespace) -> dict[str, float]:
  """One side, in a process that has the device to itself."""
  if options.side == "agreement":
    return {"difference": agreement(options)}
  if options.side == "torch":
    import train_step_torch

    found = train_step_torch.measure(options, model_of(options), matmul=MATMUL)
    check_losses(found.losses)
    more = {"scored": found.scored, "bytes_used": found.bytes_used}
    row = results(options, model_of(options), found.seconds, twins=1, **more)
    return row | {"ceiling": found.ceiling}
  return (
    measure(options, coupled=False)
    | {"ceiling": matmul_ceiling(options.dtype)}
    | peak(options.dtype)
  )


def start_side(side: str, **environment: str) -> dict[str, float]:
  """The same command for one side; what it says."""
  command = [sys.executable, __file__, *sys.argv[1:], f"--side={side}"]
  environment = {"XLA_CLIENT_MEM_FRACTION": "0.92", **os.environ, **environment}
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
  if done.returncode:
    sys.exit(f"train_step.py: the side {side} failed, see above")
  return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace) -> dict[str, dict[str, float]]:
  """Medians over repetitions of both sides, which take turns."""
  runs: dict[str, list[dict[str, float]]] = {"ours": [], "torch": []}
  for _ in range(options.repeats):
    for side, done in runs.items():
      done.append(start_side(side))
      print(f"  {side}: {done[-1]['ms_per_step']:.1f} ms/step", flush=True)
  return {
    side: {name: statistics.median(run[name] for run in done) for name in done[0]}
    for side, done in runs.items()
  }


def peak(dtype: str) -> dict[str, float]:
  """The device's published FLOP/s, which are of bfloat16; 0 in float32, or where it is unknown."""
  chip = chips.of_device(jax.devices()[0])
  return {"peak": chip.device_flops if chip and dtype == "bfloat16" else 0.0}


def report(rows: dict[str, dict[str, float]]) -> None:
  """A line for each row, with its share of the peak and of the measured products."""
  print(f"{'':<10} {'ms/step':>9} {'tokens/s':>10} {'TFLOP/s':>9} {'MFU':>7} {'of products':>12} "
        f"{'GB':>6}")  # fmt: skip
  for name, row in rows.items():
    of_peak = f"{100 * row['flops_per_second'] / row['peak']:.1f} %" if row.get("peak") else "-"
    of_products = f"{100 * row['flops_per_second'] / row['ceiling']:.1f} %"
    used = f"{row['peak_gigabytes']:.1f}" if row["peak_gigabytes"] else "-"
    print(
      f"{name:<10} {row['ms_per_step']:>9.0f} {row['tokens_per_second']:>10,.0f} "
      f"{row['flops_per_second'] / 1e12:>9.3f} {of_peak:>7} {of_products:>12} {used:>6}"
    )


def main() -> None:
  """Measures with and without the coupled twin, or against PyTorch."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  defaults = {"rows": 32, "length": 0, "layers": 6, "width": 256, "vocabulary": 8000, "chunk": 0}
  for name, value in (defaults | {"steps": 10, "repeats": 3}).items():
    parser.add_argument(f"--{name}", type=int, default=value)
  parser.add_argument("--dropout", type=float, default=0.1)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--preset", default="", help="such as xlmr-base, xlmr-large, xlmr-xl")
  parser.add_argument("--remat", default="none")
  parser.add_argument("--attention", default="auto")
  parser.add_argument("--against-torch", action="store_true")
  parser.add_argument(
    "--torch-checkpointing", action="store_true", help="PyTorch recomputes every layer, too"
  )
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  options = parser.parse_args()
  options.length = options.length or (512 if options.preset else 128)
  options.chunk = options.chunk or (2048 if options.preset else 256)
  if options.side:
    print(json.dumps(run_side(options)))
    return
  extra = {}
  if options.against_torch:
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
      print("train_step.py: nothing compared: pip install torch transformers")
      return
    extra = start_side("agreement", JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="")
    print(f"same weights, same noise: the losses differ by {extra['difference']:.1e} (relative)")
    if not extra["difference"] < 1e-4:
      sys.exit("train_step.py: the two sides do not compute the same; nothing is compared")
    rows = compare(options)
    rows["torch"]["peak"] = rows["ours"]["peak"]
    extra["ratio"] = rows["ours"]["tokens_per_second"] / rows["torch"]["tokens_per_second"]
    print("each of the same steps: noise, network, loss, gradient, clipping, AdamW")
  else:
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {options.dtype}")
    same = {"ceiling": matmul_ceiling(options.dtype)} | peak(options.dtype)
    kinds = {"single": False, "coupled": True}
    rows = {name: measure(options, coupled=coupled) | same for name, coupled in kinds.items()}
  report(rows)
  if "ratio" in extra:
    print(f"ours / torch: {extra['ratio']:.2f}")
  print(json.dumps({**vars(options), **extra, **rows}))


if __name__ == "__main__":
  main()
