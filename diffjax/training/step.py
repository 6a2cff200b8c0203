"""One training step and one validation step, as pure functions of (state, frozen, batch)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffjax.diffusion import objectives, vocabulary
from diffjax.models import lora, transformer
from diffjax.training.length import LengthSums, answers_prompt
from diffjax.training.state import TrainState
from diffjax.types import Array, Batch, Params, Shards

NOISE_BINS = 10  # of the share of masked positions, for the loss per noise level


class Sums(NamedTuple):
  """Sums over rows; they add up across microbatches and steps, and are divided at the very end."""

  loss: Array  # float32[]  the objective, and what it is divided by
  weight: Array  # float32[]
  nll: Array  # float32[NOISE_BINS]  -log p(x0) of scored positions by noise level, unweighted
  scored: Array  # float32[NOISE_BINS]
  tokens: Array  # float32[]  real positions of the rows read (a coupled row counts once)


class Updates(NamedTuple):
  """What one step reports."""

  sums: Sums | None  # None where the length head alone is trained
  length: LengthSums | None  # None where none is
  gradient_norm: Array  # float32[]  before clipping
  learning_rate: Array  # float32[]


def loss_sums(
  params: Params,
  frozen: Params,
  batch: Batch,
  step: Array,
  *,
  bind: Callable,
  objective: objectives.Objective,
  rows: int,
  mask_id: int,
  chunk: int,
  shards: Shards | None,
  train: bool,
  opened: Array | None = None,
) -> tuple[Array, Sums]:
  """The objective of a batch, summed and not yet divided.

  Args:
    params: the trained leaves of the network.
    frozen: its other leaves; {} where all are trained.
    batch: clean rows; any subset of the global batch, since noise is keyed by `batch.index`.
    step: int32[], keys the noise.
    bind: (params, segments, canvas=the whole answers, dropout=keys [B] or None, opened=opened) ->
      Denoiser.
    objective: the forward process and the weights.
    rows: in the global batch.
    mask_id: of the absorbing state.
    chunk: see vocabulary.cross_entropy.
    shards: see vocabulary.cross_entropy.
    train: whether hidden states are dropped.
    opened: bool[L, L], what is seen of later positions while attention is annealed; else None.
  """
  noised = objectives.noised(batch, step, objective=objective, rows=rows, mask_id=mask_id)
  keys = None
  if train:
    key = objectives.purpose_key(objective.seed, objectives.DROPOUT, step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, noised.batch.index)
  denoiser = bind(
    lora.join(frozen, params), noised.batch.segments,
    canvas=noised.answer, dropout=keys, opened=opened,
  )  # fmt: skip
  head = denoiser.head
  features = head.transform(head.params, denoiser.trunk(noised.xt, noised.t))  # [B, L, D]
  weights = noised.weights
  loss, nll = vocabulary.cross_entropy(
    features,
    head,
    noised.batch.tokens,
    weights.nll,
    weights.smooth if objective.label_smoothing else None,
    chunk=chunk,
    shards=shards,
  )
  masked_share = 1 - objective.schedule.alpha(noised.t)
  bins = jnp.clip((masked_share * NOISE_BINS).astype(jnp.int32), 0, NOISE_BINS - 1)
  per_bin = lambda values: jnp.zeros(NOISE_BINS).at[bins].add(values)
  return loss, Sums(
    loss=loss,
    weight=weights.total,
    nll=per_bin(jnp.where(noised.scored, nll, 0)),
    scored=per_bin(noised.scored.astype(jnp.float32)),
    tokens=(batch.segments > 0).sum().astype(jnp.float32),
  )


def train_step(
  state: TrainState,
  frozen: Params,
  batch: Batch,
  *,
  loss: Callable[..., tuple[Array, Sums]] | None,
  length: Callable[..., tuple[Array, LengthSums]] | None = None,
  length_weight: float = 0.0,
  optimizer: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  microbatches: int,
  ema_decay: float,
  opening: Callable[[Array, int], Array] | None = None,
  placed: Params | None = None,
) -> tuple[TrainState, Updates]:
  """One update by the gradient of loss / weight + length_weight length / examples.

  Args:
    state: donated by the caller.
    frozen: leaves that are not trained: no gradient, no optimizer state, no average.
    batch: the global batch [B, L].
    loss: `loss_sums` with everything but (params, frozen, batch, step, rows, opened) bound; None
      where the length head alone is trained.
    length: `length.loss_sums` with everything but (params, frozen, batch) bound; None for none.
    length_weight: of the mean cross entropy of the lengths.
    optimizer, learning_rate: as training/optimizer.py makes them.
    microbatches: parts whose gradients are summed; the division by the weight comes once, after.
    ema_decay: of the moving average, where the state has one.
    opening: (step, L) -> `opened`, where attention is annealed; one draw for all microbatches.
    placed: the shardings of the parameters, which gradients and their sums are given too: what a
      device holds of them does not grow with the mesh. None on one device.
  """
  gradients = sums = length_sums = None
  if loss:
    rows, row_length = batch.tokens.shape
    opened = opening(state.step, row_length) if opening else None
    whole = functools.partial(loss, rows=rows, opened=opened)
    gradients, sums = _summed_gradients(
      lambda params, part: whole(params, frozen, part, state.step),
      state.params,
      batch,
      microbatches=microbatches,
      placed=placed,
    )
    scale = jnp.where(sums.weight > 0, 1 / jnp.maximum(sums.weight, 1e-30), 0)
    gradients = jax.tree.map(lambda g: g * scale, gradients)
  if length:
    # What it is divided by is known before, so that one sum of gradients does for both losses.
    share = length_weight / jnp.maximum(answers_prompt(batch).sum(), 1)

    def shared(params: Params, part: Batch) -> tuple[Array, LengthSums]:
      total, counts = length(params, frozen, part)
      return total * share, counts

    gradients, length_sums = _summed_gradients(
      shared, state.params, batch, microbatches=microbatches, placed=placed, start=gradients
    )
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  average = state.ema_params
  if average is not None:
    average = optax.incremental_update(params, average, 1 - ema_decay)
  state = TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema_params=average)
  norm = optax.tree.norm(gradients)
  return state, Updates(sums, length_sums, norm, learning_rate(state.step - 1))


def _summed_gradients(
  loss: Callable[[Params, Batch], tuple[Array, Any]],
  params: Params,
  batch: Batch,
  *,
  microbatches: int,
  placed: Params | None,
  start: Params | None = None,
) -> tuple[Params, Any]:
  """(gradients, sums) of `loss`, added up over microbatches; the gradients onto `start`."""
  place = lambda x: x if placed is None else jax.lax.with_sharding_constraint(x, placed)

  def gradient(params: Params, part: Batch) -> tuple[Params, Any]:
    gradients, sums = jax.grad(loss, has_aux=True)(params, part)
    return place(gradients), sums

  add = lambda total, part: jax.tree.map(jnp.add, total, part)
  if microbatches == 1:
    gradients, sums = gradient(params, batch)
    return gradients if start is None else add(start, gradients), sums
  # Strided rows, so that every microbatch has its share of every shard and no row moves.
  divide = lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
  parts = jax.tree.map(divide, batch)
  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(gradient, params, first)
  gradients, sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  gradients = place(gradients) if start is None else start
  accumulate = lambda total, part: (add(total, gradient(params, part)), None)
  return jax.lax.scan(accumulate, (gradients, sums), parts)[0]


def validation_step(
  params: Params,
  frozen: Params,
  batch: Batch,
  number: Array,
  openness: Array | None,
  *,
  loss: Callable[..., tuple[Array, Sums]] | None,
  length: Callable[..., tuple[Array, LengthSums]] | None = None,
) -> tuple[Sums | None, LengthSums | None]:
  """Sums of validation batch `number`, whose noise depends on that number alone.

  Args:
    params, frozen, batch: as in `train_step`; the moving average may stand for the parameters.
    number: int32[].
    openness: float32[], share of the later positions seen while attention is annealed; else None.
    loss, length: as in `train_step`.
  """
  sums = length_sums = None
  if loss:
    rows, row_length = batch.tokens.shape
    opened = None if openness is None else transformer.evaluation_opening(row_length, openness)
    sums = loss(params, frozen, batch, number, rows=rows, opened=opened)[1]
  if length:
    length_sums = length(params, frozen, batch)[1]
  return sums, length_sums
