"""Decodes held-out examples and scores them, task by task."""

import dataclasses
from collections.abc import Sequence

from diffjax.evaluation import metrics
from diffjax.sampling import Sampler
from diffjax.types import Example, Params

METRICS = ("exact_match", "bleu", "rouge_l")


@dataclasses.dataclass(frozen=True)
class Report:
  """Scores of one decoding: all in percent, over examples decoded at the gold length."""

  scores: dict[str, dict[str, float]]  # task -> metric -> value, and "examples"
  hypotheses: list[str]  # in the order of the examples
  bleu_signature: str

  @property
  def mean(self) -> dict[str, float]:
    """Each metric's mean over the tasks, every task weighing the same."""
    tasks = list(self.scores.values())
    return {name: sum(task[name] for task in tasks) / len(tasks) for name in METRICS}


def evaluate(
  sampler: Sampler,
  examples: Sequence[Example],
  *,
  num_steps: int = 10,
  strategy: str = "reparam-uncond-deterministic-cosine",
  temperature: float = 0.0,
  batch_size: int = 32,
  seed: int = 0,
  params: Params | None = None,
) -> Report:
  """Decodes every example on a canvas of its gold target's length and compares the texts.

  Args:
    sampler: its model has a tokenizer.
    examples: prompts and gold targets, grouped by their task.
    num_steps, strategy, temperature, batch_size, seed, params: see Sampler.generate_ids.

  Raises:
    UserError: a prompt does not fit the model, or an illegal setting (see Sampler.generate).
  """
  encode = sampler.model.tokenizer.encode
  generations = sampler.generate_ids(
    [encode(example.inputs) for example in examples],
    lengths=[len(encode(example.targets)) for example in examples],
    num_steps=num_steps,
    strategy=strategy,
    temperature=temperature,
    batch_size=batch_size,
    seed=seed,
    params=params,
  )
  hypotheses = [generation.text for generation in generations]
  by_task: dict[str, list[int]] = {}
  for number, example in enumerate(examples):
    by_task.setdefault(example.task or "all", []).append(number)
  scores, signature = {}, ""
  for task, numbers in by_task.items():
    said = [hypotheses[n] for n in numbers]
    meant = [examples[n].targets for n in numbers]
    bleu, signature = metrics.bleu(said, meant)
    scores[task] = {
      "examples": len(numbers),
      "exact_match": metrics.exact_match(said, meant),
      "bleu": bleu,
      "rouge_l": metrics.rouge_l(said, meant),
    }
  return Report(scores, hypotheses, signature)
