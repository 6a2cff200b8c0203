"""Decodes held-out examples and scores them, task by task."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from diffjax.data import features
from diffjax.evaluation import metrics
from diffjax.model import Model
from diffjax.sampling import Sampler
from diffjax.types import Example, Params, UserError

METRICS = ("exact_match", "bleu", "chrf", "rouge_1", "rouge_2", "rouge_l", "f1", "number")


@dataclasses.dataclass(frozen=True)
class Report:
  """Scores of one decoding, all in percent."""

  scores: dict[str, dict[str, float | None]]  # task -> metric -> value (None: unsuited), "examples"
  hypotheses: list[str]  # in the order of the examples
  bleu_signature: str
  network_calls: float  # a row's mean, over all candidates of an example

  @property
  def mean(self) -> dict[str, float]:
    """Each metric's mean over the tasks that have it, every task weighing the same."""
    columns = {name: [task.get(name) for task in self.scores.values()] for name in METRICS}
    known = {name: [x for x in column if x is not None] for name, column in columns.items()}
    return {name: sum(column) / len(column) for name, column in known.items() if column}


def evaluate(
  sampler: Sampler,
  examples: Sequence[Example],
  *,
  gold_length: bool = True,
  preset: str = "",
  batch_size: int = 32,
  seed: int = 0,
  params: Params | None = None,
  max_length: int | None = None,
  too_long: features.TooLong = "drop",
  progress: str = "",
  **changes: Any,
) -> Report:
  """Decodes every example and compares the texts.

  Args:
    sampler: its model has a tokenizer.
    examples: prompts and gold targets, grouped by their task.
    gold_length: whether the canvas has the size of the gold target; else the model decides
      (see Sampler.generate, lengths None).
    preset, batch_size, seed, params, progress, **changes: see Sampler.generate_ids.
    max_length: of a row, default the model's longest; a longer prompt is cut as in training.
    too_long: see features.encode; with "drop", an example that does not fit is an error.

  Raises:
    UserError: there are no examples, a prompt does not fit the model, or an illegal setting (see
      Sampler.generate).
  """
  if not examples:
    raise UserError("no examples to evaluate; give some")
  rows = [_row(sampler.model, example, max_length, too_long) for example in examples]
  given = int(sampler.model.contract.end == "given")  # </s> stands after the canvas, not in it
  generations = sampler.generate_ids(
    [row.tokens[1 : row.canvas_start].tolist() for row in rows],
    lengths=[len(row.tokens) - row.canvas_start - given for row in rows] if gold_length else None,
    preset=preset,
    batch_size=batch_size,
    seed=seed,
    params=params,
    progress=progress,
    **changes,
  )
  hypotheses = [generation.text for generation in generations]
  by_task: dict[str, list[int]] = {}
  for number, example in enumerate(examples):
    by_task.setdefault(example.task or "all", []).append(number)
  scores = {}
  for task, numbers in by_task.items():
    said = [hypotheses[n] for n in numbers]
    meant = [examples[n].targets for n in numbers]
    scores[task] = {"examples": len(numbers)} | scores_of(said, meant, METRICS)
  calls = sum(generation.network_calls for generation in generations) / len(generations)
  return Report(scores, hypotheses, metrics.METRICS["bleu"].signature, calls)


def scores_of(
  texts: Sequence[str], references: Sequence[str], names: Sequence[str]
) -> dict[str, float | None]:
  """Metric -> value; None where these references do not suit the metric. Raises UserError."""
  chosen = {name: metrics.METRICS[name] for name in names}
  return {
    name: metric.value(texts, references) if metric.suits(references) else None
    for name, metric in chosen.items()
  }


def _row(
  model: Model, example: Example, max_length: int | None, too_long: features.TooLong
) -> features.Row:
  longest = max_length or model.config.max_positions
  row = features.encode(
    example, model.tokenizer, model.contract, max_length=longest, too_long=too_long
  )
  if row is None:
    raise UserError(
      f"example {example.inputs[:40]!r}... does not fit {longest} positions with its target; leave "
      f"it out, or choose too_long='keep_start' or 'keep_end'"
    )
  return row
