"""Tables that commands print."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from diffjax.evaluation.tasks import Report

_COLUMNS = (("exact_match", "exact match %"), ("bleu", "BLEU"), ("rouge_l", "ROUGE-L"))


def show_scores(title: str, reports: Mapping[str, Report]) -> None:
  """One row a task and a report; report names (before, after, ...) label the columns.

  Args:
    title: above the table.
    reports: label -> report, all over the same tasks.
  """
  table = Table(title=title, title_justify="left")
  table.add_column("task")
  table.add_column("examples", justify="right")
  for _, shown in _COLUMNS:
    for label in reports:
      table.add_column(f"{shown} {label}".strip(), justify="right")
  first = next(iter(reports.values()))
  for task, scores in first.scores.items():
    cells = [
      f"{report.scores[task][name]:.1f}" for name, _ in _COLUMNS for report in reports.values()
    ]
    table.add_row(task, str(scores["examples"]), *cells)
  Console().print(table)
