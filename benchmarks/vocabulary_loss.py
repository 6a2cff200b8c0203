"""The streamed loss against the naive one: milliseconds and temporary memory, forward and backward.

  python benchmarks/vocabulary_loss.py [--positions 2048 --width 256 --vocabulary 64000]

Both compute the exact gradient with respect to features, table and bias. Prints a table and one
JSON line; memory is XLA's own figure for the compiled program.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.diffusion import vocabulary
from diffjax.types import Head


def streamed(features, table, bias, allowed, targets, weight, *, chunk):
  """The project's loss."""
  head = Head(None, None, table, bias, allowed)
  return vocabulary.cross_entropy(features, head, targets, weight, chunk=chunk)[0]


def naive(features, table, bias, allowed, targets, weight):
  """All logits at once, as most code has it."""
  log_p = jax.nn.log_softmax(jnp.where(allowed, features @ table.T + bias, -jnp.inf))
  return -(weight * jnp.take_along_axis(log_p, targets[:, None], 1)[:, 0]).sum()


def measure(loss, arguments, repeats: int) -> dict[str, float]:
  """Best of `repeats` after one run that warms up."""
  step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*arguments).compile()
  jax.block_until_ready(step(*arguments))
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(step(*arguments))
    seconds.append(time.perf_counter() - start)
  return {"ms": 1e3 * min(seconds), "MiB": step.memory_analysis().temp_size_in_bytes / 2**20}


def main() -> None:
  """One row for each share of scored positions."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name, value in {"positions": 2048, "width": 256, "vocabulary": 64_000, "chunk": 256,
                      "repeats": 3}.items():  # fmt: skip
    parser.add_argument(f"--{name}", type=int, default=value)
  options = parser.parse_args()
  positions, width, rows = options.positions, options.width, options.vocabulary
  random = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
  features, table, bias = normal(positions, width), 0.02 * normal(rows, width), normal(rows)
  allowed = jnp.arange(rows) < rows - 1
  targets = jnp.asarray(random.integers(rows - 1, size=positions), jnp.int32)
  results = []
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, V = {rows}, P = {positions}")
  print(f"{'scored':>7} {'naive ms':>9} {'streamed ms':>12} {'ratio':>6} {'naive MiB':>10} "
        f"{'streamed MiB':>13} {'ratio':>6}")  # fmt: skip
  for share in (0.15, 0.3, 0.5, 1.0):
    weight = jnp.asarray(random.random(positions) < share, jnp.float32)
    arguments = features, table, bias, allowed, targets, weight
    slow = measure(naive, arguments, options.repeats)
    fast = measure(lambda *args: streamed(*args, chunk=options.chunk), arguments, options.repeats)
    time_ratio, memory_ratio = slow["ms"] / fast["ms"], slow["MiB"] / fast["MiB"]
    print(f"{share:>7.0%} {slow['ms']:>9.0f} {fast['ms']:>12.0f} {time_ratio:>5.1f}x "
          f"{slow['MiB']:>10.0f} {fast['MiB']:>13.0f} {memory_ratio:>5.1f}x")  # fmt: skip
    results.append({"scored": share, "naive": slow, "streamed": fast})
  print(json.dumps({**vars(options), "results": results}))


if __name__ == "__main__":
  main()
