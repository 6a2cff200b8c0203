"""`diffjax report`: several evaluated runs as one study, with the paper's figures."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from diffjax.evaluation.study import Study


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument(
    "runs",
    nargs="+",
    type=Path,
    metavar="RUN",
    help="a run with its evaluation/, or a directory that `diffjax evaluate --out` wrote",
  )
  parser.add_argument(
    "--out", type=Path, default=Path("report"), help="directory of page, JSON and pictures"
  )


def run(arguments: argparse.Namespace) -> None:
  """Reads the runs' directories alone: nothing is loaded, decoded or trained."""
  from diffjax.evaluation import runs, study, study_page
  from diffjax.types import UserError

  if arguments.out.exists() and not arguments.out.is_dir():
    raise UserError(f"--out {arguments.out} is a file; give a directory")
  made = study.make(runs.read_runs(arguments.runs))
  command = shlex.join(["diffjax", *sys.argv[1:]])
  page = study_page.write(made, arguments.out, command=command)
  _print(made)
  for line in made.missing:
    print(f"missing: {line}")
  print(f"wrote {page}, {study_page.FILE} and {len(made.figures)} figures beside it")


def _print(made: "Study") -> None:
  from rich.console import Console
  from rich.table import Table

  from diffjax.evaluation import pages, runs

  if not made.points:
    return
  table = Table()
  for name in ("run", "size", "evaluation"):
    table.add_column(name)
  table.add_column("score", justify="right")
  for point in made.points:
    score = f"{runs.metric_name(point.metric)} {pages.value(point.value, point.error)}"
    table.add_row(point.run.name, point.run.size, point.evaluation, score)
  Console().print(table)
