"""The length head in training: what it reads, what it is to say, and which one begins."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffjax import model as models
from diffjax.config import ExperimentConfig
from diffjax.models import lora
from diffjax.types import Array, Batch, Params, UserError

_NEAR = 5  # most probable lengths among which the right one is looked for


class LengthSums(NamedTuple):
  """Sums over examples, divided at the very end."""

  loss: Array  # float32[]  cross entropy of the length in nats
  correct: Array  # float32[]  examples whose most probable length is the right one
  near: Array  # float32[]  examples whose length is among the 5 most probable
  examples: Array  # float32[]
  tokens: Array  # float32[]  positions read: <s> and prompts


def answers_prompt(batch: Batch) -> Array:
  """bool[B]: the rows that count: an example with a prompt, which was not dropped in training."""
  return batch.canvas.any(axis=1) & ((prompt_segments(batch) > 0).sum(axis=1) > 1)


def prompt_segments(batch: Batch) -> Array:
  """int32[B, L]: `<s> prompt` alone, as the head reads it; the answer and its </s> are padding."""
  return jnp.where(batch.canvas, 0, batch.segments)


def target_classes(batch: Batch, *, eos_id: int, classes: int) -> Array:
  """int32[B]: L - 1 of an answer of L tokens, its </s> not counted (2308.12219's own code).

  Longer answers than there are classes have the last one. Rows of padding have some class.
  """
  length = (batch.canvas & (batch.tokens != eos_id)).sum(axis=1)
  return jnp.clip(length, 1, classes) - 1


def loss_sums(
  params: Params,
  frozen: Params,
  batch: Batch,
  *,
  read: Callable[..., Array],
  eos_id: int,
) -> tuple[Array, LengthSums]:
  """The cross entropy of the answers' lengths, summed over examples.

  Args:
    params: the trained leaves, the head's among them.
    frozen: the other leaves; {} where all are trained.
    batch: clean rows, one example each.
    read: (params, segments, tokens) -> float32[B, classes], without dropout.
    eos_id: what answers end with, and are filled up with; it is not counted.
  """
  segments = prompt_segments(batch)
  log_p = jax.nn.log_softmax(read(lora.join(frozen, params), segments, batch.tokens))
  target = target_classes(batch, eos_id=eos_id, classes=log_p.shape[1])[:, None]
  right = jnp.take_along_axis(log_p, target, axis=1)  # [B, 1]
  better = (log_p > right).sum(axis=1)
  real = answers_prompt(batch)
  count = lambda rows: (rows & real).sum().astype(jnp.float32)
  loss = -jnp.where(real, right[:, 0], 0).sum()
  return loss, LengthSums(
    loss=loss,
    correct=count(better == 0),
    near=count(better < _NEAR),
    examples=count(real),
    tokens=(segments > 0).sum().astype(jnp.float32),
  )


class Beginning(NamedTuple):
  """A model with its length head, whose parameters may be yet to draw, and what to tell of it."""

  model: models.Model
  notes: list[str]


def with_head(config: ExperimentConfig, model: models.Model) -> Beginning:
  """The model with the head that `config.length` trains; as it is where it trains none.

  A head that came with the weights goes on, unless `length.classes` asks for another size.

  Args:
    config: `length` and `data.max_length` are used.
    model: its params may be None; those of its own head are under "length_head".

  Raises:
    UserError: attention is annealed meanwhile, so that the head would read another trunk every
      step.
  """
  if not config.length.weight:
    return Beginning(model, [])
  if config.adaptation.anneal_steps:
    raise UserError(
      f"config.length.weight = {config.length.weight}: attention anneals meanwhile "
      f"(adaptation.anneal_steps = {config.adaptation.anneal_steps}); train the head afterwards, "
      f"on the finished run"
    )
  own = model.config.length_classes
  classes = config.length.classes or own or config.data.max_length
  if own == classes:
    return Beginning(model, [f"the length head of the weights, {own} lengths, is trained further"])
  notes = [f"the length head of the weights has {own} lengths; a new one begins"] if own else []
  params = model.params
  if params is not None:
    params = {name: part for name, part in params.items() if name != "length_head"}
  architecture = dataclasses.replace(model.config, length_classes=classes)
  return Beginning(dataclasses.replace(model, config=architecture, params=params), notes)
