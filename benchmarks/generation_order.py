"""Whether a run's answers are fixed in a topological order of what depends on what in them.

  python benchmarks/generation_order.py --model=runs/quickstart --task=arithmetic
  python benchmarks/generation_order.py --model=runs/path_star --graph=backwards.json --num-steps=4

Decodes held-out examples of the run at the gold length (or up to the end that the model predicts),
and compares the steps that fixed their numbers with the graph of their arithmetic, or with a graph
of your own: see docs/generation_order.md. Prints a table, some answers with their steps, and JSON;
draws the same answers.
"""

import argparse
import itertools
import json
import math

from rich.console import Console
from rich.table import Table
from strategies import read_examples

import diffjax
from diffjax.evaluation import order, order_pictures
from diffjax.sampling import settings_of

STRATEGIES = ("reparam-uncond-deterministic-cosine", "confidence", "left_to_right")
SHOWN = 4
COLUMNS = ("answers", "with a graph", "topological", "strictly", "by chance", "edges kept",
           "left to right", "revised")  # fmt: skip


def main() -> None:
  """Prints a table, and the same as JSON; draws the first strategy's answers."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="runs/quickstart", help="a run with test data")
  parser.add_argument("--task", default="", help="only examples of this task")
  parser.add_argument("--limit", type=int, default=100)
  parser.add_argument("--num-steps", type=int, default=50, help="as the paper's reasoning tasks")
  parser.add_argument("--strategies", default=",".join(STRATEGIES))
  parser.add_argument("--graph", default="", help="JSON; empty: the arithmetic of each answer")
  parser.add_argument("--output", default="", help="a .png of some answers; empty: none")
  options = parser.parse_args()
  try:
    compare(options)
  except diffjax.UserError as error:
    parser.error(str(error))


def compare(options: argparse.Namespace) -> None:
  """Raises UserError for a mistake in the options, before anything is decoded."""
  graph_of = order.read_graph(options.graph) if options.graph else order.dependencies
  names = options.strategies.split(",")
  for name in names:
    settings_of(strategy=name, num_steps=options.num_steps)
  sampler = diffjax.Sampler.load(options.model)
  examples = read_examples(
    options.model, model=sampler.model, task=options.task, limit=options.limit
  )
  table = Table(title=f"{len(examples)} examples, {options.num_steps} steps; %")
  for name in ("strategy", "of the answers", *COLUMNS):
    table.add_column(name, justify="left" if name in ("strategy", "of the answers") else "right")
  results, pictured = [], None
  for name in names:
    answers = generate(sampler, examples, strategy=name, num_steps=options.num_steps)
    orders = [order.order_of(answer) for answer in answers]
    right = [a.text.strip() == e.targets.strip() for a, e in zip(answers, examples, strict=True)]
    groups = {"all": orders, "right": list(itertools.compress(orders, right))}
    groups["wrong"] = list(itertools.compress(orders, [not one for one in right]))
    for group, some in groups.items():
      if some:
        summary = order.summarise(some, graph_of)
        table.add_row(name, group, *cells(summary))
        results.append({"strategy": name, "of": group} | summary._asdict())
    pictured = pictured or choose(orders, examples, graph_of)
  Console(width=130).print(table)
  for one, title in pictured:
    print(f"{title}\n{order_pictures.as_table(one)}\n")
  if options.output:
    shown, titles = zip(*pictured, strict=True)
    order_pictures.picture(options.output, shown, titles=titles, graph_of=graph_of)
    print(f"wrote {options.output}")
  print(json.dumps(results))


def generate(
  sampler: diffjax.Sampler, examples: list[diffjax.types.Example], *, strategy: str, num_steps: int
) -> list[diffjax.sampling.Generation]:
  """Answers with their traces."""
  model = sampler.model
  given = model.contract.end == "given"
  lengths = [len(model.tokenizer.encode(example.targets)) for example in examples]
  return sampler.generate(
    [example.inputs for example in examples], lengths=lengths if given else None,
    strategy=strategy, num_steps=num_steps, return_trace=True, progress=strategy,
  )  # fmt: skip


def cells(summary: order.Summary) -> list[str]:
  """A row of the table; the share of topological orders with its standard error."""
  share = summary.follows / 100
  error = 100 * math.sqrt(share * (1 - share) / max(1, summary.judged))
  return [
    str(summary.outputs), str(summary.judged), f"{summary.follows:.1f} ± {error:.1f}",
    f"{summary.follows_strictly:.1f}", f"{summary.by_chance:.1f}", f"{summary.edges:.1f}",
    f"{summary.left_to_right:+.2f}", f"{summary.revised:.1f}",
  ]  # fmt: skip


def choose(
  orders: list[order.Order], examples: list[diffjax.types.Example], graph_of
) -> list[tuple[order.Order, str]]:
  """The longest answers that follow their graph and the longest that do not, with titles."""
  found = []
  for follows in (True, False):
    some = [
      (one, f"{example.inputs}   [{'topological' if follows else 'not topological'}]")
      for one, example in zip(orders, examples, strict=True)
      if (graph := graph_of(one.text)).edges and order.judge(one, graph).follows == follows
    ]
    found += sorted(some, key=lambda pair: -len(pair[0].tokens))[: SHOWN // 2]
  return found


if __name__ == "__main__":
  main()
