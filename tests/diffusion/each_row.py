"""A strategy for tests: every row runs one of its own, so that all are one compiled program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=("strategies", "kinds"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class EachRowItsOwn:
  """Runs on every row the strategy of its kind, so that all of them are one compiled program."""

  strategies: tuple
  kinds: jax.Array  # int32[B]

  @property
  def settles(self):
    return jnp.asarray([strategy.settles for strategy in self.strategies])[self.kinds]

  @property
  def needs(self):
    return frozenset().union(*(strategy.needs for strategy in self.strategies))

  @property
  def step_bucket(self):
    return max(strategy.step_bucket for strategy in self.strategies)

  @property
  def num_steps(self):
    return self._limits().max()

  def _limits(self):
    return jnp.stack([jnp.asarray(strategy.num_steps) for strategy in self.strategies])

  def _choose(self, choices):
    index = lambda x: self.kinds.reshape((1, -1) + (1,) * (x.ndim - 2))
    pick = lambda *xs: jnp.take_along_axis(jnp.stack(xs), index(jnp.stack(xs)), axis=0)[0]
    return jax.tree.map(pick, *choices)

  def init(self, canvas, keys):
    states = [strategy.init(canvas, keys) for strategy in self.strategies]
    memories = tuple(state.memory for state in states)
    return self._choose([state._replace(memory=()) for state in states])._replace(memory=memories)

  def waits(self, state, **arguments):
    each = zip(self.strategies, state.memory, strict=True)
    return self._choose([s.waits(state._replace(memory=m), **arguments) for s, m in each])

  def reads(self, state, **arguments):
    each = zip(self.strategies, state.memory, strict=True)
    read = [s.reads(state._replace(memory=m), **arguments) for s, m in each]
    return None if any(r is None for r in read) else self._choose(read)

  def step(self, state, prediction, *, number, **arguments):
    each = zip(self.strategies, state.memory, strict=True)
    states = [
      s.step(state._replace(memory=m), prediction, number=number, **arguments) for s, m in each
    ]
    chosen = self._choose([state._replace(memory=()) for state in states])
    over = number + 1 >= self._limits()[self.kinds]  # where the loop ends for a strategy alone
    return chosen._replace(memory=tuple(state.memory for state in states), done=chosen.done | over)
