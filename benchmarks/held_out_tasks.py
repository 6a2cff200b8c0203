"""What a mixture of instructions teaches about tasks that are not in it: zero-shot, by its width.

  python benchmarks/held_out_tasks.py --workdir=runs/held_out --picture=docs/held_out.png
  python benchmarks/held_out_tasks.py --workdir=runs/toy --widths=2 --limit=9 \\
    --set=training.steps=90

Trains configs/instruct_held_out.py at every width (a finished run is not trained again), decodes
the held-out families' test examples with the masked LM as it was and with each run, at the gold
length, and prints scores with their standard errors over the examples, as a table and as JSON:
exact match; the F1 of the words said (half right counts half; the same for one-word answers); and
the share of answers of the right kind, a name for a name, Orin for Orin, be they true or not.
An example with no demonstration is zero-shot, one with one is one-shot; equal prompts count once.
Several seeds of a width are several runs; their scores are listed one by one.
"""

import argparse
import collections
import json
import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import diffjax
from diffjax.config import load_config
from diffjax.data import sources, world
from diffjax.evaluation import tasks
from diffjax.types import Example

CONFIG = Path(__file__).parents[1] / "configs" / "instruct_held_out.py"
CEILING = 12  # the width that contains the held-out families
SHOTS = ("zero-shot", "one-shot")
KINDS = {
  "name": world.NAMES,
  "town": world.TOWNS,
  "day": world.DAYS,
  "place": world.PLACES,
  "orin": (
    *world.NOUNS.values(), *world.ADJECTIVES.values(), *world.VERBS.values(),
    *world.PLACES.values(), *world.TIMES.values(), "mi", "na", "ko", "di",
  ),
}  # fmt: skip


def group_of(example: Example) -> tuple[str, str]:
  """Family, and whether its prompt shows a demonstration."""
  return example.task, SHOTS[" ; " in example.inputs]


def word_f1(said: str, meant: str) -> float:
  """Harmonic mean of the share of said words that were meant and of meant words that were said."""
  first, second = collections.Counter(said.split()), collections.Counter(meant.split())
  return 2 * (first & second).total() / (first.total() + second.total())


def exact_match(said: str, meant: str) -> float:
  """1 where the words are the same."""
  return float(said.split() == meant.split())


def right_kind(said: str, meant: str) -> float:
  """1 where both have words of the same lists; numbers, being of both languages, do not count."""

  def kind(word: str) -> str:
    known = [kind for kind, words in KINDS.items() if word in words]
    return known[0] if known else "english" if word.isalpha() else "sign"

  first, second = ({kind(w) for w in text.split() if not w.isdigit()} for text in (said, meant))
  return float(first == second)


MEASURES = {"exact_match": exact_match, "word_f1": word_f1, "right_kind": right_kind}


def score(model: diffjax.Model, examples: list[Example], options: argparse.Namespace) -> list[dict]:
  """Percent and standard error of every measure, for each family with and without a shot."""
  report = tasks.evaluate(
    diffjax.Sampler(model), examples, num_steps=options.num_steps,
    strategy="reparam-uncond-deterministic-cosine", batch_size=64, progress="decoding",
  )  # fmt: skip
  groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
  for example, said in zip(examples, report.hypotheses, strict=True):
    groups.setdefault(group_of(example), []).append((said, example.targets))
  scores = []
  for (family, shots), pairs in sorted(groups.items()):
    row = {"family": family, "shots": shots, "examples": len(pairs), "said": pairs[:3]}
    for measure, of_pair in MEASURES.items():
      values = [of_pair(*pair) for pair in pairs]
      mean = sum(values) / len(values)
      variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
      row[measure] = 100 * mean
      row[f"{measure}_error"] = 100 * math.sqrt(variance / len(values))
    scores.append(row)
  return scores


def study(options: argparse.Namespace) -> list[dict]:
  """One dictionary for each model, family and kind of prompt; width 0 is the untuned model."""
  configs = {
    (width, seed): load_config(f"{CONFIG}:{width}", [*options.set, f"seed={seed}"])
    for seed in options.seeds
    for width in options.widths
  }
  first = next(iter(configs.values()))
  source = sources.open_source(first.data.test)
  count = min(len(source), options.limit or len(source))
  examples = list(dict.fromkeys(source[number] for number in range(count)))
  results = [
    {"width": 0, "seed": 0, **row}
    for row in score(diffjax.load(first.init_from), examples, options)
  ]
  for (width, seed), config in configs.items():
    run = options.workdir / (f"{width}" if seed == 0 else f"{width}-seed{seed}")
    diffjax.train(config, run)
    rows = score(diffjax.load(run), examples, options)
    results += [{"width": width, "seed": seed, **row} for row in rows]
  return results


def columns(results: list[dict]) -> list[tuple[str, str]]:
  """(family, measure), without the F1 of a family whose answers are one word."""
  found = []
  for family in sorted({row["family"] for row in results}):
    rows = [row for row in results if row["family"] == family]
    one_word = all(abs(row["exact_match"] - row["word_f1"]) < 1e-9 for row in rows)
    found += [(family, name) for name in MEASURES if not (one_word and name == "word_f1")]
  return found


def show(results: list[dict]) -> None:
  """Prints a table for each kind of prompt: a row a model, a column a family and measure."""
  for shots in SHOTS:
    rows = [row for row in results if row["shots"] == shots]
    if not rows:
      continue
    table = Table(title=f"held-out families, {shots}: percent (standard error over the examples)")
    table.add_column("families\ntrained on")
    for family, measure in columns(rows):
      count = next(row["examples"] for row in rows if row["family"] == family)
      heading = f"{family}\n{count} examples\n{measure.replace('_', ' ')}"
      table.add_column(heading, justify="right")
    for width, seed in dict.fromkeys((row["width"], row["seed"]) for row in rows):
      mine = {row["family"]: row for row in rows if (row["width"], row["seed"]) == (width, seed)}
      label = {0: "none", CEILING: f"{CEILING}: these too"}.get(width, str(width))
      cells = [
        f"{mine[family][measure]:.1f} ({mine[family][f'{measure}_error']:.1f})"
        for family, measure in columns(rows)
      ]
      table.add_row(label + (f", seed {seed}" if seed else ""), *cells)
    Console(width=110).print(table)


def draw(results: list[dict], picture: Path) -> None:
  """A panel a family and measure: score by width, every run a point, the mean of seeds a line."""
  families = sorted({row["family"] for row in results})
  figure = Figure(figsize=(4 * len(MEASURES), 3.2 * len(families)), layout="constrained")
  axes = figure.subplots(len(families), len(MEASURES), squeeze=False)
  for family, panels in zip(families, axes, strict=True):
    for measure, panel in zip(MEASURES, panels, strict=True):
      if (family, measure) in columns(results):
        rows = [row for row in results if row["family"] == family]
        _draw_panel(panel, rows, measure)
        panel.set_title(f"{family}, held out: {measure.replace('_', ' ')}, %")
        panel.set_xlabel("families trained on (0: the masked LM)")
      else:
        panel.set_axis_off()
  axes[0][0].legend(fontsize="small")
  figure.savefig(picture, dpi=110)


def _draw_panel(panel: Axes, results: list[dict], measure: str) -> None:
  for shots, colour in zip(SHOTS, ("tab:blue", "tab:orange"), strict=True):
    by_width: dict[int, list[float]] = {}
    for row in results:
      if row["shots"] == shots:
        by_width.setdefault(row["width"], []).append(row[measure])
        if row["width"] != CEILING:
          error = row[f"{measure}_error"]
          panel.errorbar(row["width"], row[measure], error, fmt="o", color=colour, capsize=3)
    means = {width: sum(values) / len(values) for width, values in sorted(by_width.items())}
    ceiling = means.pop(CEILING, None)
    panel.plot(means.keys(), means.values(), color=colour, label=shots)
    if ceiling is not None:
      panel.axhline(ceiling, color=colour, linestyle=":", label=f"{shots}, trained on it")
  panel.set_ylim(bottom=-1)


def numbers(text: str) -> list[int]:
  """Whole numbers with commas between."""
  return [int(part) for part in text.split(",")]


def main() -> None:
  """Prints a table, and the same as JSON, and draws the figure."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=Path, default=Path("runs/held_out"), help="of the runs")
  parser.add_argument("--widths", type=numbers, default=[2, 4, 8, CEILING])
  parser.add_argument("--seeds", type=numbers, default=[0])
  parser.add_argument("--limit", type=int, default=0, help="of the test examples; 0: all")
  parser.add_argument("--num-steps", type=int, default=10)
  parser.add_argument("--picture", type=Path, help="where the figure goes")
  parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
  options = parser.parse_args()
  try:
    results = study(options)
  except diffjax.UserError as error:
    parser.error(str(error))
  show(results)
  print(json.dumps(results))
  if options.picture:
    draw(results, options.picture)


if __name__ == "__main__":
  main()
