"""What several commands print."""

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from diffjax.evaluation.runner import Job
from diffjax.evaluation.suites import Questions
from diffjax.evaluation.tasks import Report
from diffjax.model import Model

_COLUMNS = (("exact_match", "exact match %"), ("bleu", "BLEU"), ("rouge_l", "ROUGE-L"))
_MOST_GROUPS, _MOST_METRICS = 12, 4  # that are shown; the report has them all
_MANY_UNKNOWN = 1  # percent
_SIGNED = (
  "bleu",
  "bleu_intl",
  "chrf",
)  # metrics whose signature is printed; the report has them all


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
  asked = job.questions
  groups = {question.group for question in asked.asked}
  parts = [
    f"{job.task}, {job.shots}-shot: {len(asked.asked)} of {asked.total} examples",
    f"{len(groups)} groups" if len(groups) > 1 else "",
    *_against_paper(asked),
  ]
  return ", ".join(filter(None, parts))


def _against_paper(asked: Questions) -> list[str]:
  """Group by group, or all together where the groups have no files of their own."""
  sizes = asked.sizes or {"": asked.total}
  pairs = {
    group: (n, asked.expected[group]) for group, n in sizes.items() if group in asked.expected
  }
  told = [f"{len(pairs)} as large as in the paper" if asked.sizes else "as many as in the paper"]
  differing = [
    f"{group or 'in all'} {n}, in the paper {paper}"
    for group, (n, paper) in pairs.items()
    if n != paper
  ]
  return (differing or told) if pairs else []


def show_result(result: Mapping[str, Any]) -> None:
  """A result's first scores with their errors, and a row a group where there are few groups.

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
    + (" and counted as wrong" if result["left_out"] and result["way"] != "scoring" else "")
    + (f", {result['ties']} ties (no answer)" if result["ties"] else "")
  )
  unknown = result["unknown_tokens"], result["unknown_in_references"]
  if max(unknown) > _MANY_UNKNOWN:
    print(
      f"warning: the tokenizer does not know {unknown[0]:.1f} % of the tokens, {unknown[1]:.1f} % "
      f"of those of references: such scores say little",
      file=sys.stderr,
    )
  names = list(result["scores"])[:_MOST_METRICS]
  table = Table()
  table.add_column("group")
  table.add_column("examples", justify="right")
  for name in names:
    table.add_column(f"{name} *" if name == result["metric"] else name, justify="right")
  groups = result["groups"]
  if 1 < len(groups) <= _MOST_GROUPS:
    for group, scored in groups.items():
      table.add_row(group, str(scored["examples"]), *_cells(scored["scores"], names))
  of_groups, of_all = (" *", "") if result["average"] == "macro" else ("", " *")
  if len(groups) > 1:
    mean = _cells(result["macro"], names, result["macro_errors"])
    table.add_row(f"mean of {len(groups)} groups{of_groups}", "", *mean)
  values, errors = (
    {name: score[part] for name, score in result["scores"].items()} for part in ("value", "error")
  )
  of_all = of_all if len(groups) > 1 else ""
  table.add_row(f"all{of_all}", str(result["examples"]), *_cells(values, names, errors))
  Console().print(table)
  for name in (name for name in names if name in _SIGNED):
    print(f"{name}: {result['scores'][name]['signature']}")


def _cells(
  scores: Mapping[str, float],
  names: Sequence[str],
  errors: Mapping[str, float | None] = MappingProxyType({}),
) -> list[str]:
  told = lambda name: "" if errors.get(name) is None else f" ± {_number(errors[name])}"
  return [f"{_number(scores[name])}{told(name)}" if name in scores else "-" for name in names]


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
