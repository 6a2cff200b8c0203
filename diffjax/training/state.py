"""What a training run carries from step to step; no key and no data position is among it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from diffjax.types import Array, Params


class TrainState(struct.PyTreeNode):
  """Step, trained leaves, optimizer state, moving average (None where the config keeps none)."""

  step: Array
  params: Params
  opt_state: Any
  ema_params: Params | None


def create(params: Params, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    ema_params=jax.tree.map(jnp.copy, params) if ema else None,
  )


def items(state: TrainState) -> dict[str, Any]:
  """The state as checkpoint items; the step is the checkpoint's own number."""
  trees = {"params": state.params, "opt_state": state.opt_state, "ema_params": state.ema_params}
  return {name: tree for name, tree in trees.items() if tree is not None}
