"""A study on disk: a page, every figure as PNG, and all numbers as JSON."""

import importlib.metadata
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffjax.evaluation import pages, plots, report
from diffjax.evaluation.runs import Run, metric_name
from diffjax.evaluation.study import Drawn, Study
from diffjax.types import UserError

FILE = "study.json"
FIGURES = "figures"  # the folder of the pictures


def write(study: Study, directory: Path, *, command: str) -> Path:
  """Writes DIRECTORY/index.html, study.json and figures/*.png, and returns the page's path.

  Pictures of an earlier study in the same directory are removed.

  Raises:
    UserError: the directory has a study.json that is none.
  """
  _forget(directory)
  (directory / FIGURES).mkdir(parents=True, exist_ok=True)
  files = list(_file_names(study.figures))
  for drawn, file in zip(study.figures, files, strict=True):
    plots.save_png(drawn.plot, directory / file)
  record = _record(study, files, command)
  (directory / FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
  (directory / report.PAGE).write_text(_page(study, record), encoding="utf-8")
  return directory / report.PAGE


def _forget(directory: Path) -> None:
  """Removes the pictures that the study.json of a directory names."""
  file = directory / FILE
  if not file.is_file():
    return
  try:
    names = [figure["file"] for figure in json.loads(file.read_text())["figures"]]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{file} is not from `diffjax report`; give another --out") from error
  for name in names:
    (directory / FIGURES / Path(name).name).unlink(missing_ok=True)


def _file_names(figures: tuple[Drawn, ...]) -> Iterator[str]:
  """A path of its own for each, though names may have become equal in shortening."""
  taken: set[str] = set()
  for drawn in figures:
    stem, number = drawn.plot.name, 1
    while stem.lower() in taken:
      number += 1
      stem = f"{drawn.plot.name}-{number}"
    taken.add(stem.lower())
    yield f"{FIGURES}/{stem}.png"


def _record(study: Study, files: list[str], command: str) -> dict[str, Any]:
  return {
    "command": command,
    "versions": {name: _version(name) for name in ("diffjax", "jax", "matplotlib")}
    | {"python": platform.python_version()},
    "runs": [
      {
        "name": run.name,
        "directory": str(run.directory),
        "process": run.process,
        "start": run.start,
        "parameters": run.parameters,
        "layers": run.shape[0],
        "width": run.shape[1],
        "mixture": run.mixture,
        "steps": run.steps,
        "validation": run.validation,
        "command": run.command,
      }
      for run in study.runs
    ],
    "scores": [
      {
        "run": point.run.name,
        "task": point.task,
        "shots": point.shots,
        "metric": point.metric,
        "way": point.way,
        "length": point.length,
        "questions_sha256": point.result.get("questions_sha256"),
        "num_steps": point.result["num_steps"],
        "examples": point.result.get("examples"),
        "value": point.value,
        "error": point.error,
      }
      for point in study.points
    ],
    "figures": [
      {
        "file": file,
        "title": drawn.plot.title,
        "x": drawn.plot.x_label,
        "y": drawn.plot.y_label,
        "rows": drawn.plot.rows,
        "series": [
          {"label": s.label, "x": s.x, "y": s.y, "error": s.error} for s in drawn.plot.series
        ],
        "notes": drawn.notes,
      }
      for drawn, file in zip(study.figures, files, strict=True)
    ],
    "missing": study.missing,
  }


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"


def _page(study: Study, record: dict[str, Any]) -> str:
  drawn = [pages.figure(figure.plot, *figure.notes) for figure in study.figures]
  versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
  commands = [
    (run.name, pages.Markup(f"<pre>{pages.escaped(run.command or 'not evaluated')}</pre>"))
    for run in study.runs
  ]
  return pages.document(
    f"Study of {len(study.runs)} run{'s' if len(study.runs) != 1 else ''}",
    ", ".join(run.name for run in study.runs),
    pages.section("Runs", _runs(study.runs)),
    pages.section("Scores", _scores(study)),
    pages.section("Figures", pages.figures(drawn) if drawn else ""),
    pages.section("What is missing", pages.items(study.missing)),
    pages.section(
      "How this was made",
      pages.facts([("command", record["command"]), ("versions", versions), *commands]),
    ),
  )


def _runs(runs: tuple[Run, ...]) -> pages.Markup:
  rows = [
    (
      run.name, run.process, run.start, run.size,
      f"{run.shape[0]} x {run.shape[1]}" if run.shape[1] else "", run.tasks,
      run.steps, pages.value(run.validation.get("nll")) if run.validation else "",
    )
    for run in runs
  ]  # fmt: skip
  head = (
    "run", "process", "start", "parameters", "layers x width", "trained on", "steps",
    "validation nll",
  )  # fmt: skip
  return pages.table(head, rows)


def _scores(study: Study) -> str:
  """A row for each way of evaluating and a column for each run, or the other way round."""
  if not study.points:
    return ""
  cells: dict[str, dict[str, str]] = {}
  for point in study.points:
    way = f"{point.evaluation}, {metric_name(point.metric)}"
    cells.setdefault(way, {})[point.run.name] = pages.value(point.value, point.error)
  names, ways = [run.name for run in study.runs if run.results], list(cells)
  if len(names) <= len(ways):
    rows = [(way, *(cells[way].get(name, "") for name in names)) for way in ways]
    made = pages.table(("", *names), rows)
  else:
    rows = [(name, *(cells[way].get(name, "") for way in ways)) for name in names]
    made = pages.table(("run", *ways), rows)
  return made + pages.paragraph(
    f"{report.ERRORS}. Of several results, that of the most examples, then steps.", quiet=True
  )
