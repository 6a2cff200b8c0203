"""What several commands print."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from diffjax.evaluation.runner import Job
from diffjax.evaluation.tasks import Report
from diffjax.model import Model

_COLUMNS = (("exact_match", "exact match %"), ("bleu", "BLEU"), ("rouge_l", "ROUGE-L"))
_MOST_GROUPS = 12  # that are shown; the report has them all
_SIGNED = ("bleu", "chrf")  # metrics whose signature is printed; the report has them all


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


def announcement(job: Job) -> str:
  """What is about to be evaluated, one line."""
  asked, expected = job.questions, job.questions.expected
  groups = {question.group for question in asked.asked}
  paper = expected.get("", sum(n for group, n in expected.items() if group in groups))
  parts = [
    f"{job.task}, {job.shots}-shot: {len(asked.asked)} of {asked.total} examples",
    f"{len(groups)} groups" if len(groups) > 1 else "",
    f"the paper's file has {paper}" if paper else "",
  ]
  return ", ".join(filter(None, parts))


def show_result(result: Mapping[str, Any]) -> None:
  """A result's scores with their errors, and a row a group where there are few groups.

  Args:
    result: as in report.json.
  """
  strategy, steps = result["settings"]["strategy"], result["num_steps"]
  calls = result["network_calls"]
  print(
    f"{steps} {'samples' if calls is None else 'steps'}, {strategy}, {result['length']} length"
    + ("" if calls is None else f", {calls:.1f} network calls")
    + f"; {result['examples']} examples, {result['truncated']} truncated, "
    f"{result['left_out']} left out"
  )
  table = Table()
  table.add_column("group")
  table.add_column("examples", justify="right")
  for name in result["scores"]:
    table.add_column(f"{name} *" if name == result["metric"] else name, justify="right")
  groups = result["groups"]
  if 1 < len(groups) <= _MOST_GROUPS:
    for group, scored in groups.items():
      _add_row(table, group, scored["examples"], result, scored["scores"])
  if len(groups) > 1:
    _add_row(table, f"mean of {len(groups)} groups", "", result, result["macro"])
  shown = {
    name: f"{_number(score['value'])}"
    + ("" if score["error"] is None else f" ± {_number(score['error'])}")
    for name, score in result["scores"].items()
  }
  table.add_row("all", str(result["examples"]), *shown.values())
  Console().print(table)
  for name, score in result["scores"].items():
    if name in _SIGNED:
      print(f"{name}: {score['signature']}")


def _add_row(
  table: Table, group: str, examples: object, result: Mapping[str, Any], scores: Mapping[str, float]
) -> None:
  cells = [_number(scores[name]) if name in scores else "-" for name in result["scores"]]
  table.add_row(group, str(examples), *cells)


def _number(value: float) -> str:
  return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


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
