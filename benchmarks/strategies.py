"""Quality and network calls of every strategy, by number of steps, on a run's held-out examples.

  python benchmarks/strategies.py --model=runs/quickstart --task=translation
  python benchmarks/strategies.py --model=runs/multi30k_small --limit=200

Gold lengths; argmax where a strategy does not draw by itself. `calls` is the mean of the network
calls that a row needs: fewer than the steps where nothing had changed since the last one, and the
data's own number under threshold and factor, whatever the steps.
"""

import argparse
import itertools
import json

from rich.console import Console
from rich.table import Table

import diffjax
from diffjax.cli import decoding
from diffjax.config import load_config
from diffjax.data import plan, sources
from diffjax.evaluation import tasks
from diffjax.model import CONFIG_FILE, checkpoint_of, resolve
from diffjax.sampling import settings_of

STRATEGIES = (
  "reparam-uncond-deterministic-cosine",
  "reparam-cond-deterministic-cosine",
  "ancestral-linear",
  "ancestral-cosine",
  "mask_predict",
  "left_to_right",
  "confidence",
  "confidence-block4",
  "entropy",
  "margin",
  "threshold0.9",
  "factor1.0",
  "remask-cap0.02-linear",
  "remask-rescale0.1-linear",
  "remask-confidence-linear",
  "remask-loop0.02-linear",
  "dndm-linear",
  "dndm_topk-linear",
)


def read_examples(
  run: str, *, model: diffjax.Model, task: str, limit: int
) -> list[diffjax.types.Example]:
  """The first `limit` test examples of a run's config that fit, all or of one task."""
  config = load_config(checkpoint_of(resolve(run)).workdir / CONFIG_FILE)
  source = sources.open_source(config.data.test)
  lengths = plan.length_index(
    source, model.tokenizer, model.contract, max_length=config.data.max_length,
    too_long=config.data.too_long, cache_dir=None,
  )  # fmt: skip
  kept = [source[int(number)] for number in lengths.kept]
  found = [example for example in kept if not task or example.task == task][:limit]
  if not found:
    tasks_there = ", ".join(sorted({example.task for example in kept if example.task}))
    raise diffjax.UserError(
      f"no example of task {task!r} among {len(kept)}; tasks: {tasks_there or 'none'}"
    )
  return found


def main() -> None:
  """Prints a table, and the same as JSON."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", required=True, help="a run, whose config names the test data")
  parser.add_argument("--task", default="", help="only examples of this task")
  parser.add_argument("--limit", type=int, default=100)
  parser.add_argument("--num-steps", default="4,10,25,50")
  parser.add_argument("--strategies", default=",".join(STRATEGIES))
  parser.add_argument("--metric", choices=tasks.METRICS, default="bleu")
  options = parser.parse_args()
  try:
    compare(options)
  except diffjax.UserError as error:
    parser.error(str(error))


def compare(options: argparse.Namespace) -> None:
  """Raises UserError for a mistake in the options, before anything is decoded."""
  steps = [decoding.convert("--num-steps", text, int) for text in options.num_steps.split(",")]
  names = options.strategies.split(",")
  for name, number in itertools.product(names, steps):
    settings_of(strategy=name, num_steps=number)
  sampler = diffjax.Sampler.load(options.model)
  examples = read_examples(
    options.model, model=sampler.model, task=options.task, limit=options.limit
  )
  table = Table(title=f"{len(examples)} examples: {options.metric}, and calls")
  table.add_column("strategy")
  for number in steps:
    table.add_column(f"{number} steps", justify="right")
  results = []
  for strategy in names:
    cells = []
    for number in steps:
      report = tasks.evaluate(
        sampler, examples, strategy=strategy, num_steps=number, progress=f"{strategy} {number}"
      )
      score = report.mean[options.metric]
      cells.append(f"{score:.1f}  {report.network_calls:4.1f}")
      results.append(
        {"strategy": strategy, "num_steps": number, "network_calls": report.network_calls}
        | report.mean
      )
    table.add_row(strategy, *cells)
  Console(width=110).print(table)
  print(json.dumps(results))


if __name__ == "__main__":
  main()
