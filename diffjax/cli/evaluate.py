"""`diffjax evaluate`: decodes a run's held-out examples and prints the scores."""

import argparse
import dataclasses
import json
from pathlib import Path

from diffjax.cli import decoding


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument(
    "--model",
    required=True,
    type=Path,
    help="a run, or a checkpoint of it; its config names the data",
  )
  parser.add_argument("--split", choices=("validation", "test"), default="test")
  parser.add_argument(
    "--num-steps", default="", help="decoding steps, one table for each, such as 10,50 (default 10)"
  )
  parser.add_argument(
    "--length",
    choices=("gold", "predicted"),
    default="gold",
    help="of the canvas: the gold target's, or what the model predicts",
  )
  parser.add_argument("--limit", type=int, default=0, help="the first so many examples; 0 is all")
  parser.add_argument("--batch-size", type=int, default=64)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--output", type=Path, help="write hypotheses and scores as JSON")
  decoding.add_options(parser, without=("num_steps",))


def run(arguments: argparse.Namespace) -> None:
  """Prints one table a number of steps; examples too long for the model are counted, not scored."""
  from diffjax.cli import tables
  from diffjax.config import load_config
  from diffjax.data import plan, sources
  from diffjax.evaluation import tasks
  from diffjax.model import CONFIG_FILE, checkpoint_of, kind_of, load, resolve
  from diffjax.sampling import Sampler, checks, settings_of
  from diffjax.types import UserError

  given = decoding.given(arguments)
  given.pop("num_steps", None)
  chosen = [
    given | ({"num_steps": number} if number else {}) for number in _numbers(arguments.num_steps)
  ]
  for changes in chosen:
    settings_of(arguments.preset, **changes)
  if arguments.length == "gold" and given.get("length_beam", 1) > 1:
    raise UserError(
      f"--length-beam {given['length_beam']} tries predicted lengths; give --length=predicted too"
    )
  checks.check_batch(arguments.batch_size)
  checks.check_seed(arguments.seed)
  if arguments.limit < 0:
    raise UserError(f"--limit {arguments.limit} must be >= 0 (0 is all)")
  if arguments.output and not arguments.output.parent.is_dir():
    raise UserError(f"--output {arguments.output}: the folder does not exist; make it first")
  if arguments.output and arguments.output.is_dir():
    raise UserError(f"--output {arguments.output} is a folder; name a file in it")
  directory = resolve(arguments.model)
  if kind_of(directory) not in ("run", "checkpoint"):
    raise UserError(f"{arguments.model} is no run of `diffjax train`, whose config names the data")
  model = load(directory)
  tables.warn_of_openness(model)
  config = load_config(checkpoint_of(directory).workdir / CONFIG_FILE)
  source_config = getattr(config.data, arguments.split)
  if source_config.kind == "none":
    raise UserError(f"the config of {arguments.model} names no data.{arguments.split}")
  source = sources.open_source(source_config)
  lengths = plan.length_index(
    source, model.tokenizer, model.contract, max_length=config.data.max_length,
    too_long=config.data.too_long, cache_dir=None,
  )  # fmt: skip
  kept = [number for number, length in enumerate(lengths) if length >= 0]
  examples = [source[number] for number in kept[: arguments.limit or None]]
  print(
    f"{len(examples)} of {len(source)} examples, {len(source) - len(kept)} too long, "
    f"{arguments.length} length"
  )
  if not examples:
    raise UserError(
      f"data.{arguments.split} of {arguments.model} has no example that fits; nothing is decoded"
    )
  sampler = Sampler(model)
  results = []
  for changes in chosen:
    settings = sampler.settings(arguments.preset, **changes)
    report = tasks.evaluate(
      sampler, examples, gold_length=arguments.length == "gold", preset=arguments.preset,
      batch_size=arguments.batch_size, seed=arguments.seed, max_length=config.data.max_length,
      too_long=config.data.too_long, progress="decoding", **changes,
    )  # fmt: skip
    title = f"{settings.num_steps} steps, {settings.strategy}"
    tables.show_scores(f"{title}, {report.network_calls:.1f} network calls", {"": report})
    results.append(
      {
        "settings": dataclasses.asdict(settings),
        "scores": report.scores,
        "network_calls": report.network_calls,
        "hypotheses": report.hypotheses,
      }
    )
  print(f"BLEU: {report.bleu_signature}")
  if arguments.output:
    arguments.output.write_text(json.dumps(results, ensure_ascii=False, indent=1))
    print(f"wrote {arguments.output}")


def _numbers(text: str) -> list[int | None]:
  from diffjax.types import UserError

  if not text:
    return [None]  # the preset's
  try:
    numbers = [int(part) for part in text.split(",")]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) < 1:
    raise UserError(f"--num-steps {text!r} must be whole numbers >= 1, such as 10,50")
  return numbers
