"""Strategies run on random words, without a network."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.diffusion.strategies import State, parse
from diffjax.diffusion.vocabulary import Prediction

STEPS, ROWS, SLOTS = 16, 24, 16


class Run(NamedTuple):
  """A run of 16 steps, whatever the strategy's own number: arrays [16, B, ...] on the host."""

  states: State  # after each step
  waits: np.ndarray
  active: np.ndarray  # neither done before the step nor waiting
  idle_changes: np.ndarray  # whether the step of a waiting row would have changed it
  stuck: np.ndarray  # whether an active row did not change though it read not all that is masked
  words: Prediction
  canvas: np.ndarray  # bool[B, C]
  uniforms: np.ndarray  # what the keys of each step give
  gumbels: np.ndarray
  first_uniforms: np.ndarray  # [B, C]  what the keys of `init` give


def random_words(seed):
  """Few distinct tokens and, in half of the rows, few distinct scores: ties abound."""
  random = np.random.default_rng(seed)
  shape = STEPS, ROWS, SLOTS
  tokens = random.integers(3, 6, shape).astype(np.int32)
  scores, entropy = -random.exponential(2, (2, *shape)).astype(np.float32)
  margin = random.random(shape).astype(np.float32)
  scores[:, 1::3] /= 20  # many are sure
  for values in (scores, entropy, margin):
    values[:, ::2] = np.round(values[:, ::2], 1)
  lengths = random.integers(0, SLOTS + 1, ROWS)
  lengths[:4] = 0, 1, SLOTS, SLOTS - 1
  canvas = np.arange(SLOTS) < lengths[:, None]
  canvas[-4:] = random.random((4, SLOTS)) < 0.7  # slots that are not real may be anywhere
  return Prediction(tokens, scores, -entropy, margin), canvas


@jax.jit
def run_steps(strategy, words, canvas, keys, first_keys):
  where = lambda rows, new, old: jnp.where(rows.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

  def body(state, step):
    number, prediction, noise = step
    arguments = {"canvas": canvas, "number": number, "keys": noise}
    reads = strategy.reads(state, **arguments)
    if reads is not None:
      hide = lambda x: jnp.where(reads, x, -7 if x.dtype == jnp.int32 else jnp.nan)
      prediction = jax.tree.map(hide, prediction)
    waits = strategy.waits(state, **arguments)
    stepped = strategy.step(state, prediction, **arguments)
    differ = [(a != b).reshape(ROWS, -1).any(-1) for a, b in zip(
      jax.tree.leaves(stepped), jax.tree.leaves(state), strict=True
    )]  # fmt: skip
    active = ~state.done & ~waits
    fewer = False if reads is None else (reads != state.masked).any(-1)
    stuck = active & fewer & ~(stepped.masked != state.masked).any(-1)
    idle_change = ~state.done & waits & functools.reduce(jnp.logical_or, differ)
    state = jax.tree.map(lambda new, old: where(active, new, old), stepped, state)
    return state, (state, waits, active, idle_change, stuck)

  start = strategy.init(canvas, first_keys)
  return jax.lax.scan(body, start, (jnp.arange(STEPS), words, keys))[1]


@jax.jit
def noise_of(keys):
  over = lambda draw: jax.vmap(lambda key: draw(key))(keys)
  return over(jax.random.uniform), over(jax.random.gumbel)


@functools.cache
def run(name, num_steps):
  words, canvas = random_words(num_steps)
  keys = jax.random.split(jax.random.key(num_steps), (STEPS + 1, ROWS, SLOTS))
  strategy = parse(name, num_steps=num_steps, canvas_size=SLOTS)
  outcome = jax.device_get(run_steps(strategy, words, canvas, keys[1:], keys[0]))
  uniforms, gumbels = (np.asarray(x).reshape(keys.shape) for x in noise_of(keys.reshape(-1)))
  return Run(*outcome, words, canvas, uniforms[1:], gumbels[1:], uniforms[0])


@pytest.fixture(scope="session")
def run_on_words():
  """run(name, num_steps) -> Run, made once."""
  return run
