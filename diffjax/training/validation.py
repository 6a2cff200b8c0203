"""Held-out data during training: the loss, and the decoded text when the metric asks for it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from diffjax import model as models
from diffjax import sharding, tokenizers
from diffjax.config import DataConfig, EvaluationConfig, ExperimentConfig, LoraConfig
from diffjax.data import pipeline, plan, sources
from diffjax.diffusion import strategies
from diffjax.evaluation import tasks
from diffjax.models import lora, transformer
from diffjax.sampling import Sampler
from diffjax.training import metrics, step
from diffjax.training.length import LengthSums
from diffjax.types import Array, Batch, Denoiser, Example, Params, Shards


@dataclasses.dataclass(frozen=True)
class _InTraining(models.Model):
  """A model whose adapters are not merged, and whose attention is as open as it is by now."""

  lora: LoraConfig = LoraConfig()

  def denoiser(
    self, segments: Array, *, params: tuple[Params, Params, Array | None], **layout: Any
  ) -> Denoiser:
    """As of any model; `params` are (frozen, trained, openness), so that no change recompiles."""
    frozen, trained, openness = params
    opened = (
      None if openness is None else transformer.evaluation_opening(segments.shape[1], openness)
    )
    return transformer.bind(
      lora.join(frozen, trained),
      segments,
      config=self.config,
      contract=self.contract,
      compute=self.compute,
      lora=self.lora,
      opened=opened,
      **layout,
    )

  def length_logits(
    self,
    tokens: Array,
    segments: Array,
    *,
    params: tuple[Params, Params, Array | None],
    shards: Shards | None = None,
  ) -> Array:
    """As of any model; `params` as in `denoiser`. No head is trained while attention anneals."""
    return transformer.length_logits(
      lora.join(params[0], params[1]),
      segments,
      tokens,
      config=self.config,
      contract=self.contract,
      compute=self.compute,
      lora=self.lora,
      shards=shards,
    )


class _Watched:
  """A tokenizer that tells of every answer it decodes, which a sampler does batch by batch."""

  def __init__(self, tokenizer: tokenizers.Tokenizer, tell: Callable[[], None]):
    """Both are kept."""
    self._tokenizer, self._tell = tokenizer, tell

  def __getattr__(self, name: str) -> Any:
    return getattr(self._tokenizer, name)

  def decode(self, ids: Sequence[int]) -> str:
    """As the tokenizer does."""
    self._tell()
    return self._tokenizer.decode(ids)


@dataclasses.dataclass(frozen=True)
class Validation:
  """Batches for the loss, examples to decode, and the sampler that decodes them."""

  data: DataConfig
  config: EvaluationConfig
  length_weight: float
  batches: list[Batch]
  examples: list[Example]
  sampler: Sampler
  between: Callable[[], None]

  @classmethod
  def open(
    cls,
    config: ExperimentConfig,
    model: models.Model,
    index: Callable[[sources.Source], plan.LengthIndex],
    mesh: jax.sharding.Mesh,
    between: Callable[[], None] = lambda: None,
  ) -> "Validation | None":
    """Reads the validation source; None where the config names none.

    Args:
      config: the experiment.
      model: its parameters are not used; every run brings its own.
      index: source -> its length index.
      mesh: the rows of a batch must divide over it.
      between: called between batches and after every decoded answer, in all processes alike; what
        it raises ends a validation.

    Raises:
      UserError: a record cannot be read, or the rows do not divide over the mesh.
    """
    if config.data.validation.kind == "none":
      return None
    section = config.evaluation
    strategies.parse(
      section.strategy, num_steps=section.num_steps, canvas_size=1
    )  # rather now than after the first thousand steps
    sharding.check_rows(section.batch_size, mesh, "config.evaluation.batch_size")
    source = sources.open_source(config.data.validation)
    lengths = index(source)
    batches = pipeline.evaluation_batches(
      source,
      model.tokenizer,
      model.contract,
      lengths,
      data=config.data,
      batch_size=section.batch_size,
      limit=section.examples,
      blocks=sharding.row_blocks(mesh),
    )
    examples = []
    if section.decodes:
      examples = [source[int(number)] for number in lengths.first(section.examples)]
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(models.Model)}
    fields["tokenizer"] = _Watched(model.tokenizer, between)
    sampler = Sampler(_InTraining(**fields, lora=config.lora))
    weight = config.length.weight
    return cls(config.data, section, weight, list(batches), examples, sampler, between)

  @property
  def _settings(self) -> dict[str, Any]:
    """How to decode; a model without noise does so from left to right, as the sampler knows."""
    if not self.sampler.model.contract.denoises:
      return {}
    return {"num_steps": self.config.num_steps, "strategy": self.config.strategy}

  def run(
    self,
    params: Params,
    frozen: Params,
    openness: float | None,
    validation_step: Callable[..., tuple[step.Sums | None, LengthSums | None]],
    rows: jax.sharding.Sharding,
  ) -> dict[str, float]:
    """The mean loss over the batches, and the mean scores of the decoded examples.

    Args:
      params: the trained leaves, on the mesh.
      frozen: the others, {} where all are trained.
      openness: of attention that is being annealed; else None.
      validation_step: jitted `step.validation_step`; its noise depends on the batch's number alone.
      rows: the sharding of a batch, of which every process holds its share.
    """
    total = None
    openness = None if openness is None else np.float32(openness)
    for number, batch in enumerate(self.batches):
      self.between()
      placed = sharding.place_rows(batch, rows)
      sums = jax.device_get(validation_step(params, frozen, placed, np.int32(number), openness))
      total = sums if total is None else jax.tree.map(np.add, total, sums)
    scores = metrics.values(*total, length_weight=self.length_weight)
    if self.examples:
      report = tasks.evaluate(
        self.sampler,
        self.examples,
        **self._settings,
        temperature=self.config.temperature,
        batch_size=self.config.batch_size,
        params=(frozen, params, openness),
        max_length=self.data.max_length,
        too_long=self.data.too_long,
      )
      scores |= report.mean
    return scores
