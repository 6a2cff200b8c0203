"""What knowing the length is worth: gold, predicted with beams and samples, or up to its end.

  python benchmarks/lengths.py --model=runs/quickstart_length --task=translation

Any run will do: a length head is asked where the run has one, a predicted end is waited for where
the model predicts it, in blocks where its attention is in blocks. Rows of the table are what the
run can do. The command's head in configs/length_head.py trains such a run.
"""

import argparse
import json

from rich.console import Console
from rich.table import Table
from strategies import read_examples

import diffjax
from diffjax.evaluation import tasks
from diffjax.sampling import settings_of


def cases(model: diffjax.Model) -> dict[str, dict]:
  """What is compared: a label, and the arguments of tasks.evaluate."""
  found = {"gold length": {}}
  if model.config.length_classes:
    for beam in (1, 5, 10):
      found[f"predicted, beam {beam}"] = {"gold_length": False, "length_beam": beam}
    for select in ("bleu", "rouge"):
      found[f"predicted, beam 5, 4 samples at 0.5, best by {select}"] = {
        "gold_length": False, "length_beam": 5, "num_samples": 4, "temperature": 0.5,
        "select": select,
      }  # fmt: skip
  elif model.contract.end == "predicted":
    found["up to its end"] = {"gold_length": False}
  return found


def main() -> None:
  """Prints a table, and the same as JSON."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", required=True, help="a run, whose config names the test data")
  parser.add_argument("--task", default="", help="only examples of this task")
  parser.add_argument("--limit", type=int, default=100)
  parser.add_argument("--num-steps", type=int, default=10)
  parser.add_argument("--strategy", default="reparam-uncond-deterministic-cosine")
  options = parser.parse_args()
  try:
    compare(options)
  except diffjax.UserError as error:
    parser.error(str(error))


def compare(options: argparse.Namespace) -> None:
  """Raises UserError for a mistake in the options, before anything is decoded."""
  settings_of(strategy=options.strategy, num_steps=options.num_steps)
  sampler = diffjax.Sampler.load(options.model)
  examples = read_examples(
    options.model, model=sampler.model, task=options.task, limit=options.limit
  )
  table = Table(title=f"{len(examples)} examples, {options.strategy}, {options.num_steps} steps")
  for name in ("length", "exact match %", "BLEU", "ROUGE-L", "network calls"):
    table.add_column(name, justify="left" if name == "length" else "right")
  results = []
  for label, arguments in cases(sampler.model).items():
    report = tasks.evaluate(
      sampler, examples, strategy=options.strategy, num_steps=options.num_steps, progress=label,
      **arguments,
    )  # fmt: skip
    scores = [f"{report.mean[name]:.1f}" for name in ("exact_match", "bleu", "rouge_l")]
    table.add_row(label, *scores, f"{report.network_calls:.1f}")
    results.append({"length": label, "network_calls": report.network_calls} | report.mean)
  Console(width=110).print(table)
  print(json.dumps(results))


if __name__ == "__main__":
  main()
