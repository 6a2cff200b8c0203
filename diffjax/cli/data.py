"""`diffjax data`: what the sources of a config hold, and what training makes of them."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffjax.config import Contract, ExperimentConfig, load_config
from diffjax.types import UserError

if TYPE_CHECKING:
  from diffjax.data.plan import LengthIndex, Plan
  from diffjax.data.sources import Source
  from diffjax.data.summary import Interval, PartSummary
  from diffjax.tokenizers import Tokenizer

_BAR = 40  # characters of the histogram's longest bar
_SHOWN = 400  # tokens of a part of an example that are shown
_CANVAS = "black on green"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument(
    "--config", required=True, help="FILE.py, FILE.py:ARGUMENT or a run's config.json"
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="SECTION.FIELD=VALUE",
    help="override a field; also spelled --config.SECTION.FIELD=VALUE",
  )
  parser.add_argument(
    "--examples", type=int, default=3, help="of each source that are shown as the model reads them"
  )
  parser.add_argument(
    "--workdir",
    type=Path,
    help="keep the lengths that are measured in its cache, where `diffjax train` looks for them",
  )


def run(arguments: argparse.Namespace) -> None:
  """Prints a table, a histogram and some examples of each source."""
  config = load_config(arguments.config, arguments.set)
  if arguments.examples < 0:
    raise UserError(f"--examples {arguments.examples} must be >= 0")
  import jax

  jax.config.update("jax_platforms", "cpu")  # weights are looked at, no accelerator is needed
  from diffjax.data import plan, sources, summary
  from diffjax.training.start import CACHE

  tokenizer, contract = _reader(config)
  console, failure = Console(), None
  for name in ("train", "validation", "test"):
    section = getattr(config.data, name)
    if section.kind == "none":
      continue
    source = sources.open_source(section)
    index = plan.length_index(
      source, tokenizer, contract, max_length=config.data.max_length,
      too_long=config.data.too_long, on_bad_record=config.data.on_bad_record,
      cache_dir=arguments.workdir and arguments.workdir / CACHE, workers=config.data.workers,
    )  # fmt: skip
    chosen = None
    if name == "train":
      try:
        chosen = plan.Plan(index, config.data, config.seed)
      except UserError as error:  # told after what shows why
        failure = error
    parts = summary.summarise(index, chosen, steps=config.training.steps)
    console.print(_table(f"data.{name}", parts))
    console.print(_bars(summary.histogram(index, max_length=config.data.max_length)))
    if chosen:
      console.print(_batches(chosen, config), soft_wrap=True, highlight=False)
    numbers = _first(index, chosen, arguments.examples)
    _show_examples(console, source, numbers, tokenizer, contract, config)
  if failure:
    raise failure
  words = [f"--config={arguments.config}", f"--workdir={arguments.workdir or 'DIR'}"]
  words += [f"--config.{override.removeprefix('config.')}" for override in arguments.set]
  print(f"next: diffjax train {shlex.join(words)}")


def _reader(config: ExperimentConfig) -> tuple["Tokenizer", Contract]:
  """The tokenizer and the contract that training has. Raises UserError."""
  from diffjax import model as models
  from diffjax import tokenizers
  from diffjax.config import contract_from_dict
  from diffjax.training.adaptation import trained_contract

  tokenizer = contract = None
  if config.init_from:
    directory = models.resolve(config.init_from)
    if models.kind_of(directory) in ("run", "checkpoint"):
      found = models.checkpoint_of(directory)
      contract = contract_from_dict(found.meta["contract"])
      tokenizer = models.tokenizer_of_run(found.workdir, found.meta)
    else:
      weights = models.load(directory, on_host=True)
      contract, tokenizer = weights.contract, weights.tokenizer
  if config.data.tokenizer:
    tokenizer = tokenizers.load(models.resolve(config.data.tokenizer))
  if tokenizer is None:
    missing = tokenizers.missing(models.resolve(config.init_from))
    raise UserError(f"{missing}; or set config.data.tokenizer")
  if contract is None:
    contract = tokenizer.contract
  return tokenizer, contract if config.length.alone else trained_contract(config, contract)


def _table(title: str, parts: Sequence["PartSummary"]) -> Table:
  """One row a part; what befalls none of them (drops, cuts, ...) has no column."""
  troubles = {"too long": "dropped", "cut": "truncated", "excluded": "excluded", "bad": "bad"}
  troubles = {
    shown: name for shown, name in troubles.items() if any(getattr(part, name) for part in parts)
  }
  table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
  table.add_column("part", overflow="fold", min_width=10)
  shares = ["share", "by tokens", "epochs"] if parts[0].share else []
  for name in ["examples", "tokens", "canvas", *troubles, *shares]:
    table.add_column(name, justify="right", no_wrap=True)
  count = lambda rows, name: sum(getattr(part, name) for part in rows)

  def row(name: str, rows: Sequence["PartSummary"]) -> list[str]:
    tokens = count(rows, "tokens")
    canvas = f"{count(rows, 'canvas') / max(tokens, 1):.1%}"
    return [
      name, f"{count(rows, 'examples'):,}", f"{tokens:,}", canvas,
      *(f"{count(rows, name):,}" for name in troubles.values()),
    ]  # fmt: skip

  for part in parts:
    share = part.share
    told = [f"{share.examples:.1%}", f"{share.tokens:.1%}", f"{share.epochs:.2f}"] if share else []
    table.add_row(*row(part.name, [part]), *told)
  if len(parts) > 1:
    table.add_row(*row("all", parts), style="bold")
  return table


def _bars(intervals: Sequence["Interval"]) -> Text:
  """The histogram of lengths, a line an interval."""
  text = Text("tokens of an example, before any is cut\n")
  most = max((interval.examples for interval in intervals), default=1)
  for low, high, examples in intervals:
    bar = "█" * -(-_BAR * examples // most)
    text.append(f"{low:>6} - {high:<6} {bar:<{_BAR}} {examples:,}\n")
  return text


def _batches(chosen: "Plan", config: ExperimentConfig) -> str:
  epochs = config.training.steps / chosen.batches_per_epoch
  return (
    f"{chosen.counts.describe()}\n{chosen.batches_per_epoch:,} batches an epoch; "
    f"{config.training.steps:,} steps are {epochs:.2f} epochs\n"
  )


def _first(index: "LengthIndex", chosen: "Plan | None", count: int) -> list[int]:
  """The examples that training reads first, or those that validation does."""
  numbers = index.first(count)
  if chosen and count:
    batches = []
    while sum(map(len, batches)) < count and len(batches) < chosen.batches_per_epoch:
      batches.append(chosen.batch(len(batches)).examples)
    numbers = [number for batch in batches for number in batch][:count]
  return [int(number) for number in numbers]


def _show_examples(
  console: Console,
  source: "Source",
  numbers: Sequence[int],
  tokenizer: "Tokenizer",
  contract: Contract,
  config: ExperimentConfig,
) -> None:
  """Prints rows as the model reads them: what is given, then the canvas in colour."""
  from diffjax.data import features

  for number in numbers:
    example = source[number]
    row = features.encode(
      example, tokenizer, contract, max_length=config.data.max_length, too_long=config.data.too_long
    )
    given, canvas = row.tokens[: row.canvas_start], row.tokens[row.canvas_start :]
    task = f", {example.task}" if example.task else ""
    console.print(Text(f"example {number}{task}, {len(row.tokens)} tokens", style="bold"))
    for label, ids, style in (("given ", given, ""), ("canvas", canvas, _CANVAS)):
      shown = "".join(tokenizer.piece(int(id_)) for id_ in ids[:_SHOWN])
      more = f" … {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
      console.print(Text(f"{label} ").append(shown, style).append(more), soft_wrap=True)
    console.print()
