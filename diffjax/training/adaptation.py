"""Causal weights become a diffusion model: mask, shift, attention that opens (2410.17891).

Or any weights the autoregressive control: no mask, a shift, attention that stays causal.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax import model as models
from diffjax.config import AdaptationConfig, Contract, ExperimentConfig
from diffjax.conversion import adapting, leaves
from diffjax.diffusion import objectives
from diffjax.models import transformer
from diffjax.types import Array, UserError


class Annealing(NamedTuple):
  """Attention opens from causal to full: r(step) = start + (1 - start) min(1, step / steps).

  A query sees what causal attention shows it and every later key with probability r, by one draw
  [L, L] a step for all rows, heads, layers and microbatches.
  """

  steps: int  # >= 1
  start: float = 0.0  # what was open already in the weights that training began with

  def openness(self, step: int) -> float:
    """r, which is exactly 1 from `steps` on."""
    return 1.0 if step >= self.steps else self.start + (1 - self.start) * step / self.steps

  def opened(self, step: Array, length: int, *, seed: int) -> Array:
    """bool[L, L] of a training step, which may be traced; no draw is made once all is open."""
    key = objectives.purpose_key(seed, objectives.OPENING, step)
    openness = self.start + (1 - self.start) * step.astype(jnp.float32) / self.steps
    return jax.lax.cond(
      step >= self.steps,
      lambda: jnp.ones((length, length), bool),
      lambda: transformer.open_attention(key, length, openness),
    )

  def contract(self, contract: Contract, step: int) -> Contract:
    """What a model saved after `step` steps says of its attention."""
    openness = self.openness(step)
    if openness == 1:
      return dataclasses.replace(contract, attention="full", openness=0.0)
    return dataclasses.replace(contract, attention="causal", openness=openness)


class Adapted(NamedTuple):
  """The model to train, how its attention opens (None: it does not), and what to tell of it."""

  model: models.Model
  annealing: Annealing | None
  notes: list[str]


def adapt(config: ExperimentConfig, source: models.Model) -> Adapted:
  """Turns loaded weights into the diffusion model that training begins with.

  Weights that already denoise stay as they are, but for attention that is still causal, which
  goes on opening unless `config.diffusion` asks for causal attention, and a length head, which is
  left out where no loss trains it. What else it asks of attention is for `trained_contract`, as is
  all that the process next_token asks: its weights are taken as they are.

  Args:
    config: `adaptation`, `length` and `seed` are used.
    source: weights with their tokenizer.

  Raises:
    UserError: `adaptation` asks for what these weights have no need of, or the mask is illegal.
  """
  section, contract, notes = config.adaptation, source.contract, []
  tokenizer = source.tokenizer
  model = source
  if config.diffusion.process == "next_token":
    return _as_they_are(config, source)
  causal = contract.attention == "causal"
  if not contract.denoises and not causal:
    raise UserError(f"{config.init_from} has neither a mask nor causal attention; it cannot learn")
  if not causal:
    _refuse(section, "anneal_steps", f"{config.init_from} is no causal model; leave it out")
  if contract.denoises:
    for name in ("mask_id", "mask_noise"):
      reason = f"{config.init_from} has a mask, id {contract.mask_id}; leave it out"
      _refuse(section, name, reason)
    params = adapting.base_params(
      source.params, contract, config=source.config, contract=contract, adaptation=section,
      seed=config.seed,
    )  # fmt: skip
    model = dataclasses.replace(source, params=params)
  else:
    if section.mask_id >= 0:
      _refuse(section, "mask_noise", "an id that is used as mask keeps its row; leave it out")
    architecture, contract, params = adapting.add_mask(
      source.config, contract, source.params, adaptation=section, seed=config.seed,
      tokenizer_ids=tokenizer.vocab_size, tokenizer_mask=tokenizer.special_ids.get("mask_id", -1),
    )  # fmt: skip
    model = dataclasses.replace(source, config=architecture, contract=contract, params=params)
    row = "as it is" if section.mask_id >= 0 else "a new row"
    notes.append(f"{config.init_from} gets the mask id {contract.mask_id}, {row}")
  if model.config.length_classes and config.length.weight:
    head = jax.tree.map(leaves.as_leaf, source.params["length_head"])
    model = dataclasses.replace(model, params={**model.params, "length_head": head})
  elif model.config.length_classes:
    architecture = dataclasses.replace(model.config, length_classes=0)
    model = dataclasses.replace(model, config=architecture)
    notes.append("the length head of the weights is left out: no loss trains it")
  if not causal:
    return Adapted(model, None, notes)

  annealing = Annealing(section.anneal_steps, contract.openness) if section.anneal_steps else None
  if annealing is None:
    asked = config.diffusion.attention
    contract = dataclasses.replace(contract, attention="causal" if asked == "causal" else "full")
    notes.append(f"attention is {'full' if asked == 'own' else asked} from the first step")
  else:
    notes.append(f"attention opens from {annealing.start:.2f} to 1 in {annealing.steps} steps")
  shift = contract.output_shift if source.contract.denoises else 1
  contract = dataclasses.replace(contract, openness=0.0, output_shift=shift)
  return Adapted(dataclasses.replace(model, contract=contract), annealing, notes)


def _as_they_are(config: ExperimentConfig, source: models.Model) -> Adapted:
  params = {name: part for name, part in source.params.items() if name != "length_head"}
  model = dataclasses.replace(
    source,
    config=dataclasses.replace(source.config, length_classes=0),
    params=jax.tree.map(leaves.as_leaf, params),
  )
  notes = []
  if source.contract.attention != "causal":
    notes.append(f"{config.init_from} sees later tokens; from now on it looks back alone")
  return Adapted(model, None, notes)


def trained_contract(config: ExperimentConfig, contract: Contract) -> Contract:
  """What the model that a run trains says of attention, mask, shift and where its answers end.

  Applied to what training begins with, and to what it goes on with, which it leaves as it is.
  While attention is annealed, it stays causal here (see `Annealing.contract`).

  Args:
    config: `diffusion` says who sees whom, `data` how answers are filled up with </s>; weights
      that predict their end go on doing so, with one </s> where `data.end_padding` is 0.
    contract: of the tokenizer, or of weights after `adapt`.

  Raises:
    UserError: answers are not filled up to whole blocks, or not even an empty one fits a row.
  """
  section, padding = config.diffusion, config.data.end_padding
  if padding >= config.data.max_length:
    raise UserError(
      f"config.data.end_padding = {padding}: no row of config.data.max_length = "
      f"{config.data.max_length} holds <s> and so many; lower it or raise max_length"
    )
  changes: dict[str, Any] = {"chat": config.data.chat or contract.chat}
  changes |= {"end_padding": padding, "end": "predicted" if padding else contract.end}
  if section.process == "next_token":  # whose every answer ends with a </s> that it predicts
    changes |= {"mask_id": -1, "output_shift": 1, "end": "predicted"}
  if section.attention != "own" and not config.adaptation.anneal_steps:
    changes |= {"attention": section.attention, "block_size": section.block_size, "openness": 0.0}
  size = changes.get("block_size", contract.block_size)
  if size and (not padding or padding % size):
    raise UserError(
      f"config.data.end_padding = {padding}: {config.init_from} answers in blocks of {size}; set a "
      f"multiple of it, or another config.diffusion.attention"
    )
  return dataclasses.replace(contract, **changes)


def _refuse(section: AdaptationConfig, name: str, reason: str) -> None:
  default = getattr(AdaptationConfig(), name)
  if getattr(section, name) != default:
    raise UserError(f"config.adaptation.{name} = {getattr(section, name)!r}: {reason}")
