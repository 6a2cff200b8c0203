"""Compiling is counted as JAX does it, on the versions that are installed."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.training.compiles import Compiles


def test_each_new_shape_is_one_program_and_an_old_one_none():
  inner = jax.jit(lambda x: jnp.sin(x) @ x)
  function = jax.jit(lambda x: inner(x) + inner(x + 1))  # traced inside another tracing
  with Compiles() as compiles:
    began, counts = time.monotonic(), []
    for size in (3, 3, 4, 3, 4):
      jax.block_until_ready(function(np.ones((size, size), np.float32)))
      counts.append(compiles.count)
    took = time.monotonic() - began
  assert counts[0] > 0
  assert counts[1] == counts[0]
  assert counts[2] == 2 * counts[0]
  assert counts[4] == counts[3] == counts[2]
  assert 0 < compiles.seconds <= took
  jax.block_until_ready(function(np.ones((5, 5), np.float32)))
  assert compiles.count == counts[4]  # it has left


def test_time_inside_other_time_counts_once():
  compiles = Compiles()
  trace, build = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/backend_compile_duration",
  )
  began = time.monotonic()
  time.sleep(0.02)
  compiles._lasted(trace, 0.01)  # inside the next one
  compiles._lasted(trace, time.monotonic() - began)
  time.sleep(0.01)
  compiles._lasted(build, 0.005)
  compiles._lasted("/jax/anything/else", 100.0)
  assert 0.025 <= compiles.seconds <= time.monotonic() - began
  assert compiles.count == 1
