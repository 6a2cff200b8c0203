"""`diffjax evaluate`: answers tasks or a run's held-out examples, scores and reports them."""

import argparse
import functools
import shlex
import sys
import time
from pathlib import Path

from diffjax.cli import decoding

_PATIENCE = 600.0  # seconds that a process waits for slower ones, and as long again as it took


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument(
    "--model",
    required=True,
    type=Path,
    help="a run, a checkpoint of it, or a model; without --tasks and --data, a run's own split",
  )
  parser.add_argument(
    "--tasks", default="", help="suites with commas, such as mmlu,gsm8k (docs/evaluation.md)"
  )
  parser.add_argument(
    "--data-dir",
    type=Path,
    help="where their files lie; default: $DIFFJAX_DATA, else data",
  )
  parser.add_argument(
    "--data", help="any .jsonl, .parquet or text file to evaluate; needs --metric"
  )
  parser.add_argument(
    "--task", default="", help="what renders the records of --data (docs/data.md)"
  )
  parser.add_argument("--demonstrations", default="", help="the file that shots of --data are from")
  parser.add_argument(
    "--split", choices=("validation", "test"), default="test", help="of a run's own data"
  )
  parser.add_argument(
    "--metric",
    default="",
    help="the main one: exact, letter, bleu, chrf, rouge, f1, number, likelihood, ... "
    "(docs/evaluation.md); default: the task's",
  )
  parser.add_argument("--shots", default="", help="demonstrations, such as 0,2; default 0")
  parser.add_argument(
    "--num-steps",
    default="",
    help="decoding steps, one result for each, such as 10,50; default: the task's, else 10",
  )
  parser.add_argument(
    "--length",
    default="gold",
    help="of the canvas: gold (the reference's), predicted (by the model), or so many tokens",
  )
  parser.add_argument(
    "--choose",
    choices=("generate", "likelihood"),
    default="generate",
    help="multiple choice: write the letter, or compare how likely the options are",
  )
  parser.add_argument(
    "--samples", type=int, default=128, help="network passes for each likelihood; default 128"
  )
  parser.add_argument(
    "--too-long",
    choices=("keep_end", "keep_start", "keep_ends", "drop"),
    help="what is kept of a prompt longer than the model; default: a run's own for its split, "
    "else keep_end, as in the paper",
  )
  parser.add_argument(
    "--limit", type=int, default=0, help="so many examples, evenly from all; 0 is all"
  )
  parser.add_argument("--batch-size", type=int, default=64)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--share",
    default="",
    help="K/N: this process answers every N-th example, from the K-th on; when all have, the same "
    "command with 0/1 writes the report; not needed for processes that are started together",
  )
  parser.add_argument(
    "--out", type=Path, help="of the report, seen by all processes; default: RUN/evaluation"
  )
  decoding.add_options(parser, without=("num_steps",))


def run(arguments: argparse.Namespace) -> None:
  """Answers what is not answered yet, prints the scores, and writes report.json and index.html.

  Several processes each answer their share, and the first one reports.
  """
  from diffjax import hosts
  from diffjax.cli import evaluation_work

  evaluation_work.check(arguments)
  hosts.start()
  with hosts.Peers():
    _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> None:
  from diffjax import hosts
  from diffjax import model as models
  from diffjax.cli import evaluation_work, tables
  from diffjax.evaluation import answering, record, report, runner
  from diffjax.sampling import Sampler

  share = evaluation_work.share_of(arguments.share)
  together = hosts.several() and not arguments.share
  speaks = hosts.is_first() or not together
  out = evaluation_work.directory_of(arguments)
  if together:
    hosts.check_shared(out)  # the first process reports what the others leave there
  model = models.load(models.resolve(arguments.model), **decoding.placement(arguments, local=True))
  tables.warn_of_openness(model)
  work = evaluation_work.plan(arguments, Sampler(model))
  card = record.describe(model, arguments.model)
  for job, way in work[1:]:  # rather told now than after the hours that the first takes
    runner.lay_out(job, way)
  for number, (job, way) in enumerate(work, 1):
    if speaks:
      print(tables.announcement(job))
    answer = functools.partial(
      runner.run, job, way, directory=out, model_fingerprint=card["fingerprint"]
    )
    label = "scoring" if isinstance(way, answering.Scoring) else "answering"
    began = time.monotonic()
    result = answer(share=share, progress=label if speaks else "")
    if together:
      hosts.barrier(f"task {number} is answered", _PATIENCE + 2 * (time.monotonic() - began))
      result = answer() if hosts.is_first() else None  # there is nothing left to answer
    if result is not None:
      record.save(out, result, model=card, command=shlex.join(["diffjax", *sys.argv[1:]]))
      tables.show_result(result)
  if arguments.share and share[1] > 1:
    print(f"share {share[0]} of {share[1]} is done; after all of them, run it with --share=0/1")
  elif speaks:
    print(f"wrote {out / record.FILE} and {report.write_page(out)}")
