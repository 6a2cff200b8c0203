"""What several commands print."""

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from diffjax.evaluation.tasks import Report
from diffjax.model import Model

_COLUMNS = (("exact_match", "exact match %"), ("bleu", "BLEU"), ("rouge_l", "ROUGE-L"))


def show_scores(title: str, reports: Mapping[str, Report]) -> None:
  """One row a task; where there are several reports, their scores stand side by side.

  Args:
    title: above the table.
    reports: label (before, after, ...) -> report, all over the same tasks.
  """
  labels = " → ".join(filter(None, reports))
  print(f"{title}\n{labels}".strip())  # a table would wrap it to its own width
  table = Table()
  table.add_column("task")
  table.add_column("examples", justify="right")
  for _, shown in _COLUMNS:
    table.add_column(shown, justify="right")
  first = next(iter(reports.values()))
  for task, scores in first.scores.items():
    cells = [
      " → ".join(_shown(report.scores[task][name]) for report in reports.values())
      for name, _ in _COLUMNS
    ]
    table.add_row(task, str(scores["examples"]), *cells)
  Console().print(table)


def _shown(value: float | None) -> str:
  return "-" if value is None else f"{value:.1f}"


def warn_of_openness(model: Model) -> None:
  """Says on stderr that a checkpoint is from before its attention was all open."""
  if model.contract.openness:
    print(
      f"attention is {model.contract.openness:.2f} open: this checkpoint is from the middle of its "
      f"adaptation",
      file=sys.stderr,
    )
