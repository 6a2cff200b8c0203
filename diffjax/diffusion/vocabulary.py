"""Streams hidden states through the vocabulary projection; [P, V] logits never exist.

The vocabulary is the cost of a multilingual model: XLM-R's table has three times the parameters
of the whole base trunk. Both the loss and the sampler go through here. The loss visits only the
positions that count, `chunk` of them at a time, and forms its own gradient during the visit:
three matmuls a chunk (logits, features' gradient, table's gradient), nothing recomputed, nothing
stacked.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from diffjax.types import GENERATOR, Array, Head, UserError


class Shards(NamedTuple):
  """The mesh axes that split positions, and the one that splits the vocabulary."""

  mesh: Mesh
  positions: tuple[str, ...]
  vocabulary: str


class _Visit(NamedTuple):
  """What one pass over the scored positions returns."""

  loss: Array  # float32[]
  nll: Array  # float32[P]  -log p(target), 0 where not scored
  features: Array | None  # gradients of the loss, [P, D], [V, D], [V]
  table: Array | None
  bias: Array | None


def cross_entropy(
  features: Array,
  head: Head,
  targets: Array,
  nll_weight: Array,
  smooth_weight: Array | None = None,
  *,
  chunk: int,
  shards: Shards | None = None,
) -> tuple[Array, Array]:
  """sum_p nll_weight_p (-log p(target_p)) + smooth_weight_p mean_v (-log p_p(v)).

  Probabilities and the mean are over the allowed rows of the head. Differentiable with respect to
  features, head.table and head.bias, to first order; the weights and targets are data.

  Args:
    features: [P, D], after the head's transform.
    head: its table, bias and allowed rows are used.
    targets: int32[P], allowed rows.
    nll_weight: float32[P]; 0 where the position does not count.
    smooth_weight: float32[P] for label smoothing, or None.
    chunk: positions whose logits exist at one time.
    shards: how P and V are split over a mesh, or None on one device. Every shard of positions
      streams its own; collectives inside the loop run over the vocabulary axis alone.

  Returns:
    The summed loss float32[], and -log p(target) float32[P], 0 where both weights are 0; the
    latter carries no gradient.
  """
  return _cross_entropy(
    features, head.table, head.bias, head.allowed, targets, nll_weight, smooth_weight, chunk, shards
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _cross_entropy(
  features: Array,
  table: Array,
  bias: Array,
  allowed: Array,
  targets: Array,
  nll_weight: Array,
  smooth_weight: Array | None,
  chunk: int,
  shards: Shards | None,
) -> tuple[Array, Array]:
  arguments = features, table, bias, allowed, targets, nll_weight, smooth_weight
  visit = _visit_shards(*arguments, chunk=chunk, shards=shards, with_gradient=False)
  return visit.loss, visit.nll


def _forward(features, table, bias, allowed, targets, nll_weight, smooth_weight, chunk, shards):
  arguments = features, table, bias, allowed, targets, nll_weight, smooth_weight
  visit = _visit_shards(*arguments, chunk=chunk, shards=shards, with_gradient=True)
  return (visit.loss, visit.nll), (visit.features, visit.table, visit.bias)


def _backward(chunk, shards, gradients, cotangents):
  del chunk, shards
  scale = cotangents[0]
  features, table, bias = (g * scale.astype(g.dtype) for g in gradients)
  return features, table, bias, None, None, None, None


_cross_entropy.defvjp(_forward, _backward)


def _visit_shards(*arguments: Array | None, chunk: int, shards: Shards | None, with_gradient: bool):
  """`_visit` on one device, or on every shard of a mesh with the sums completed."""
  if shards is None:
    return _visit(*arguments, chunk=chunk, vocabulary=None, with_gradient=with_gradient)
  positions, rows = P(shards.positions), P(shards.vocabulary)

  def visit(*local: Array | None) -> _Visit:
    part = _visit(*local, chunk=chunk, vocabulary=shards.vocabulary, with_gradient=with_gradient)
    total = lambda x: None if x is None else jax.lax.psum(x, shards.positions)
    return part._replace(loss=total(part.loss), table=total(part.table), bias=total(part.bias))

  gradients = (positions, rows, rows) if with_gradient else (None, None, None)
  return jax.shard_map(
    visit,
    mesh=shards.mesh,
    in_specs=(positions, rows, rows, rows, positions, positions, positions),
    out_specs=_Visit(P(), positions, *gradients),
    check_vma=False,
  )(*arguments)


def _visit(
  features: Array,
  table: Array,
  bias: Array,
  allowed: Array,
  targets: Array,
  nll_weight: Array,
  smooth_weight: Array | None,
  *,
  chunk: int,
  vocabulary: str | None,
  with_gradient: bool,
) -> _Visit:
  """One shard's pass: scored positions first, then as many chunks as hold any."""
  over_rows = (lambda x: jax.lax.psum(x, vocabulary)) if vocabulary else (lambda x: x)
  length, dtype = features.shape[0], features.dtype
  chunk = min(chunk, length)
  matmul = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  weights = table.astype(dtype)  # [V, D]
  first_row = jax.lax.axis_index(vocabulary) * table.shape[0] if vocabulary else 0
  allowed_count = over_rows(allowed.sum().astype(jnp.float32))

  scored = nll_weight != 0
  if smooth_weight is not None:
    scored |= smooth_weight != 0
  order = jnp.argsort(~scored, stable=True).astype(jnp.int32)
  order = jnp.pad(order, (0, -length % chunk), constant_values=length)  # length: out of range
  chunks = -(-scored.sum() // chunk)

  def body(carry: tuple[Array, _Visit]) -> tuple[Array, _Visit]:
    number, total = carry
    rows = jax.lax.dynamic_slice(order, (number * chunk,), (chunk,))
    take = lambda x: x.at[rows].get(mode="fill", fill_value=0)
    f, target, weight = take(features), take(targets) - first_row, take(nll_weight)
    logits = jnp.where(allowed, matmul(f, weights.T) + bias, -jnp.inf)  # [chunk, V]
    top = logits.max(-1)
    if vocabulary:
      top = jax.lax.pmax(top, vocabulary)
    exponentials = jnp.exp(logits - top[:, None])
    normalizer = over_rows(exponentials.sum(-1))
    # Relative to the top logit throughout: log-probabilities near 0 keep their digits.
    log_normalizer = jnp.log(normalizer)
    mine = (target >= 0) & (target < table.shape[0])
    column = jnp.where(mine, target, 0)
    target_logit = jnp.take_along_axis(logits, column[:, None], axis=-1)[:, 0]
    nll = log_normalizer - over_rows(jnp.where(mine, target_logit - top, 0))
    nll = jnp.where(take(scored), nll, 0)  # the last chunk may reach past the scored ones
    loss = weight @ nll
    if smooth_weight is not None:
      smooth = take(smooth_weight)
      mean_logit = over_rows(jnp.where(allowed, logits - top[:, None], 0).sum(-1)) / allowed_count
      loss += smooth @ (log_normalizer - mean_logit)
    total = total._replace(loss=total.loss + loss, nll=total.nll.at[rows].set(nll, mode="drop"))
    if not with_gradient:
      return number + 1, total

    mass = weight if smooth_weight is None else weight + smooth
    d_logits = exponentials * (mass / normalizer)[:, None]
    if smooth_weight is not None:
      d_logits -= jnp.where(allowed, (smooth / allowed_count)[:, None], 0)
    d_logits = d_logits.at[jnp.arange(chunk), column].add(jnp.where(mine, -weight, 0))
    narrow = d_logits.astype(dtype)
    d_features = over_rows(matmul(narrow, weights)).astype(dtype)
    return number + 1, total._replace(
      features=total.features.at[rows].set(d_features, mode="drop"),
      table=total.table + matmul(narrow.T, f),
      bias=total.bias + d_logits.sum(0),
    )

  gradients = (None, None, None)
  if with_gradient:
    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)
    gradients = (jnp.zeros_like(features), zeros(table), zeros(bias))
  start = _Visit(jnp.float32(0), jnp.zeros(length, jnp.float32), *gradients)
  _, visit = jax.lax.while_loop(
    lambda carry: carry[0] < chunks, body, (jnp.zeros_like(chunks), start)
  )
  return visit


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("temperature", "top_p", "top_k"),
  meta_fields=("sampled", "truncated"),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
  """How tokens are drawn from the logits; the numbers are traced (see `draw`)."""

  temperature: np.ndarray | Array  # float32[]  above 0
  top_p: np.ndarray | Array  # float32[]  in (0, 1]
  top_k: np.ndarray | Array  # int32[]  0: all
  sampled: bool  # False: the argmax, whatever the numbers
  truncated: bool  # whether top_p or top_k leaves anything out


def draw(*, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0) -> Draw:
  """The argmax at temperature 0; else samples of softmax(logits / temperature).

  Args:
    temperature: >= 0.
    top_p: of the probability at this temperature, the smallest set of tokens that has as much; 1
      leaves nothing out.
    top_k: the so many likeliest tokens; 0 leaves nothing out.

  Raises:
    UserError: an illegal value.
  """
  if not 0 <= temperature < float("inf"):
    raise UserError(f"temperature = {temperature} must be a number >= 0 (0 is argmax)")
  if not 0 < top_p <= 1:
    raise UserError(f"top_p = {top_p} must be in (0, 1] (1 leaves nothing out)")
  if not 0 <= top_k < 2**31:
    raise UserError(f"top_k = {top_k} must be a whole number >= 0 (0 leaves nothing out)")
  return Draw(
    temperature=np.float32(temperature or 1),
    top_p=np.float32(top_p),
    top_k=np.int32(top_k),
    sampled=temperature > 0,
    truncated=temperature > 0 and (top_p < 1 or top_k > 0),
  )


class Prediction(NamedTuple):
  """What the network says about each position [...]; None where it was not asked for."""

  tokens: Array  # int32    allowed rows
  scores: Array  # float32  untempered log-probability of that token over the allowed rows
  entropy: Array | None = None  # float32  nats
  margin: Array | None = None  # float32  probability of the best token less that of the second


def predict(
  head: Head,
  hidden: Array,
  *,
  chunk: int,
  draw: Draw,
  keys: Array | None = None,
  needs: frozenset[str] = frozenset(),
  wanted: Array | None = None,
) -> Prediction:
  """A token for every position, and its log-probability.

  Args:
    head: the masked-LM head.
    hidden: [P, D], before the head's transform.
    chunk: positions whose logits exist at one time.
    draw: the argmax, or how to sample.
    keys: a key of type GENERATOR for every position [P], where `draw` samples.
    needs: which of entropy and margin to return too.
    wanted: bool[P], positions whose prediction is used; others may hold anything. None: all.
  """
  wrap = functools.partial(jax.random.wrap_key_data, impl=GENERATOR)
  length = hidden.shape[0]
  chunk = min(chunk, length)
  pad = -length % chunk
  split = lambda x: jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)).reshape(
    -1, chunk, *x.shape[1:]
  )

  def one(piece: tuple[Array, Array | None]) -> tuple[Array, Array]:
    h, key_data = piece
    features = head.transform(head.params, h)
    logits = jnp.matmul(
      features, head.table.astype(features.dtype).T, preferred_element_type=jnp.float32
    )
    logits = jnp.where(head.allowed, logits + head.bias, -jnp.inf)  # [chunk, V]
    noised = logits
    if key_data is not None:
      # mode 'high': an ordinary float32 Gumbel variable loses the right tail, that is, it makes
      # rare tokens rarer than they are.
      noise = lambda key: jax.random.gumbel(key, logits.shape[1:], mode="high")
      noised = logits / draw.temperature + jax.vmap(noise)(wrap(key_data))
    tokens = jnp.argmax(noised, axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)  # [chunk, 1]
    top = logits.max(-1, keepdims=True)  # subtracted first: scores near 0 keep their digits
    return tokens, (chosen - top)[:, 0] - jnp.log(jnp.exp(logits - top).sum(-1))

  key_data = None if keys is None else split(jax.random.key_data(keys))
  tokens, scores = jax.lax.map(one, (split(hidden), key_data))
  return Prediction(tokens.reshape(-1)[:length], scores.reshape(-1)[:length])
