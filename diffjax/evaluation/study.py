"""Several evaluated runs side by side: the paper's scaling figures (2308.12219, sections 4.2-4.4).

Everything is read from the runs' directories; what a figure lacks is named and not guessed.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from diffjax.evaluation import plots, report
from diffjax.evaluation.runs import Point, Run, asked_of, how_of, metric_name, points_of

# What may differ between two runs that are compared for their start or their process.
_FREE = ("init_from", "seed", "evaluation.", "training.log_every", "training.checkpoint_every",
         "training.keep_checkpoints", "training.eval_every", "compute.", "mesh.", "model.",
         "data.workers", "training.microbatches")  # fmt: skip
_LONGEST = 60  # characters of a field's value in a note
_FREE_OF_PROCESS = (*_FREE, "diffusion.", "data.end_padding")


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A figure and what to know of it."""

  plot: plots.Plot
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Study:
  """Runs, the figures that they allow, and what they lack."""

  runs: tuple[Run, ...]
  points: tuple[Point, ...]
  figures: tuple[Drawn, ...]
  missing: tuple[str, ...]


# ---- Comparing -----------------------------------------------------------------------------------


def make(runs: Sequence[Run]) -> Study:
  """Everything that can be drawn from these runs."""
  points = tuple(points_of(runs))
  figures: list[Drawn] = []
  missing = [line for run in runs for line in run.missing] + _asked_apart(points)
  parts = (
    _by_size(points), _by_start(points), _by_mixture(points), _by_process(points),
    _losses(runs), _by_steps(runs),
  )  # fmt: skip
  for drawn, lacking in parts:
    figures += drawn
    missing += lacking
  return Study(tuple(runs), points, tuple(figures), tuple(dict.fromkeys(missing)))


def _asked_apart(points: Sequence[Point]) -> list[str]:
  """A line for each task whose questions were not the same for all."""
  different: dict[str, dict[str, None]] = {}
  for point in points:
    if point.questions:
      what = f"{point.result['task']}, {point.shots}"
      different.setdefault(what, {})[point.questions] = None
  return [
    f"{what} is not one evaluation: {', '.join(names)}. Each is compared by itself."
    for what, names in different.items()
  ]


def _by_size(points: Sequence[Point]) -> tuple[list[Drawn], list[str]]:
  known = [point for point in points if point.run.parameters]
  lack = "Score by size: no task was evaluated in the same way at two sizes."
  return _lines(known, _SIZE, lack)


def _by_mixture(points: Sequence[Point]) -> tuple[list[Drawn], list[str]]:
  known = [point for point in points if point.run.mixture is not None]
  lack = (
    "Zero-shot against few-shot by number of instruction tasks: no task was evaluated in the same "
    "way after mixtures of different widths."
  )
  drawn, lacking = _lines(known, _TASKS, lack)
  shots = sorted({point.shots for point in known})
  if drawn and len(shots) == 1:
    lacking.append(f"Zero-shot against few-shot: only {shots[0]} was evaluated.")
  return drawn, lacking


def _by_start(points: Sequence[Point]) -> tuple[list[Drawn], list[str]]:
  tuned = [point for point in points if point.run.start != "untuned"]
  return _pairs(
    tuned,
    name="start",
    title="Adapted against from scratch",
    sides=("adapted", "from scratch"),
    side=lambda run: run.start,
    other=lambda run: run.process,
    free=_FREE,
  )


def _by_process(points: Sequence[Point]) -> tuple[list[Drawn], list[str]]:
  return _pairs(
    points,
    name="process",
    title="Diffusion against autoregressive",
    sides=("diffusion", "autoregressive"),
    side=lambda run: run.process,
    other=lambda run: run.start,
    free=_FREE_OF_PROCESS,
  )


def _pairs(
  points: Sequence[Point],
  *,
  name: str,
  title: str,
  sides: tuple[str, str],
  side: Callable[[Run], str],
  other: Callable[[Run], str],
  free: Sequence[str],
) -> tuple[list[Drawn], list[str]]:
  """A row for each evaluation that both sides have at equal shape; what else differs is noted."""
  groups: dict[tuple[Any, ...], list[Point]] = {}
  for point in points:
    if point.run.shape[1]:
      what = (point.task, point.shots, point.questions)
      of = (point.run.shape, other(point.run), point.run.mixture)
      groups.setdefault((point.how, *what, *of), []).append(point)
  by_how: dict[tuple[str, str, str], list[list[Point]]] = {}
  for (how, *_), members in groups.items():
    if {side(point.run) for point in members} >= set(sides):
      by_how.setdefault(how, []).append(members)
  drawn = []
  for (metric, *how), rows in by_how.items():
    rows.sort(key=lambda row: (row[0].task, row[0].shots, row[0].run.parameters or 0))
    labels = plots.told_apart([_row_facts(row[0]) | {"other": other(row[0].run)} for row in rows])
    places = [
      (side(point.run), point.value, float(number), point.error)
      for number, row in enumerate(rows)
      for point in row
      if side(point.run) in sides
    ]
    places.sort(key=lambda place: sides.index(place[0]))
    tasks = {row[0].task for row in rows}
    subject = f", {tasks.pop()}" if len(tasks) == 1 else ""
    plot = plots.Plot(
      _file_name(name, metric, *how), f"{title}{subject}", metric_name(metric), "",
      plots.grouped(places), rows=tuple(labels),
    )  # fmt: skip
    drawn.append(Drawn(plot, (_told(*how), *_differences(rows, free))))
  lack = f"{title}: no task was evaluated in the same way for both at equal shape and data."
  return drawn, [] if drawn else [lack]


def _row_facts(point: Point) -> dict[str, str]:
  run = point.run
  return {
    "task": point.task, "shots": point.shots, "questions": point.questions, "size": run.size,
    "mixture": run.tasks,
  }  # fmt: skip


def _told(way: str, length: str) -> str:
  told = how_of(way, length)
  return f"Canvas of {told}." if way == "writing" else f"By {told}."


def _differences(rows: Sequence[Sequence[Point]], free: Sequence[str]) -> tuple[str, ...]:
  """What is not equal within a row although it should be, a line each."""
  notes = dict.fromkeys(_decoding_notes([point for row in rows for point in row]))
  for row in rows:
    first = row[0].run
    for other in (point.run for point in row[1:]):
      for field in sorted({*first.config, *other.config} if first.config and other.config else ()):
        one, two = first.config.get(field), other.config.get(field)
        if one != two and not field.startswith(tuple(free)):
          told = f"{_cut(one)} of {first.name}, {_cut(two)} of {other.name}"
          notes[f"Not equal: {field} is {told}."] = None
      if first.steps != other.steps:
        notes[
          f"Not equal: {first.name} was trained {first.steps} steps, {other.name} {other.steps}."
        ] = None
  return tuple(notes)


def _cut(value: object) -> str:
  text = repr(value)
  return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


# ---- Lines ---------------------------------------------------------------------------------------


class _Axis(NamedTuple):
  """What a line goes over, and what tells lines apart."""

  name: str
  label: str
  title: str
  place: Callable[[Run], int]
  facts: Callable[[Point], dict[str, str]]
  free: tuple[str, ...]  # fields that may differ within a line
  log_x: bool


_SIZE = _Axis(
  name="size",
  label="parameters",
  title="{task} by size",
  place=lambda run: run.parameters,
  facts=lambda point: _facts(point) | {"mixture": point.run.tasks},
  free=_FREE,
  log_x=True,
)
_TASKS = _Axis(
  name="tasks",
  label="instruction tasks",
  title="{task} by number of instruction tasks",
  place=lambda run: len(run.mixture),
  facts=lambda point: _facts(point) | {"size": point.run.size},
  free=(*_FREE, "data.train."),
  log_x=False,
)


def _lines(points: Sequence[Point], axis: _Axis, lack: str) -> tuple[list[Drawn], list[str]]:
  """A panel for each task and way of measuring it that is there at two places of the axis.

  Points that were asked other questions than all others are left out: nothing compares to them.
  """
  panels: dict[tuple[Any, ...], dict[str, list[Point]]] = {}
  for point in points:
    panel = panels.setdefault((point.task, *point.how), {})
    panel.setdefault(point.questions, []).append(point)
  drawn = []
  for panel in panels.values():
    comparable = [
      members for members in panel.values() if len({axis.place(point.run) for point in members}) > 1
    ]
    if comparable:
      drawn.append(_panel(list(itertools.chain(*comparable)), axis))
  return drawn, [] if drawn else [lack]


def _panel(members: Sequence[Point], axis: _Axis) -> Drawn:
  labels = plots.told_apart([axis.facts(point) for point in members])
  by_label: dict[str, list[Run]] = {}
  places = []
  for label, point in zip(labels, members, strict=True):
    by_label.setdefault(label, []).append(point.run)
    places.append((label, float(axis.place(point.run)), point.value, point.error))
  first = members[0]
  plot = plots.Plot(
    _file_name(axis.name, first.task, *first.how),
    axis.title.format(task=first.task),
    axis.label,
    metric_name(first.metric),
    plots.grouped(places),
    log_x=axis.log_x,
  )
  notes = [*_decoding_notes(members), *_training_notes(by_label.values(), axis.free)]
  return Drawn(plot, (_told(first.way, first.length), *dict.fromkeys(notes)))


def _decoding_notes(points: Sequence[Point]) -> list[str]:
  """What differs in how the points of one figure were decoded, task by task."""
  notes = []
  for task in dict.fromkeys(point.task for point in points):
    of_task = [point for point in points if point.task == task]
    notes += _unequal(f"{task}: examples", [p.result.get("examples") for p in of_task])
    for shots in dict.fromkeys(point.shots for point in of_task):
      asked = [asked_of(point.result) for point in of_task if point.shots == shots]
      notes += _unequal(f"{task}, {shots}: questions", asked)
    for process in dict.fromkeys(point.run.process for point in of_task):
      results = [point.result for point in of_task if point.run.process == process]
      strategies = [result.get("settings", {}).get("strategy") for result in results]
      notes += _unequal(f"{task}, {process}: decoding steps", [r["num_steps"] for r in results])
      notes += _unequal(f"{task}, {process}: strategy", strategies)
  return notes


def _unequal(what: str, values: Sequence[object]) -> list[str]:
  different = list(dict.fromkeys(map(str, values)))
  return [f"Not equal: {what} {', '.join(different)}."] if len(different) > 1 else []


def _training_notes(lines: Iterable[Sequence[Run]], free: Sequence[str]) -> list[str]:
  """The fields of the config that differ within a line although only the x axis should."""
  fields: dict[str, None] = {}
  for runs in lines:
    known = [run.config for run in runs if run.config]
    for field in sorted(set().union(*known)):
      differs = any(config.get(field) != known[0].get(field) for config in known)
      if differs and not field.startswith(tuple(free)):
        fields[field] = None
  return [f"Not equal within a line: {', '.join(fields)}."] if fields else []


def _facts(point: Point) -> dict[str, str]:
  run = point.run
  return {
    "process": run.process, "start": run.start, "shots": point.shots, "questions": point.questions
  }  # fmt: skip


def _file_name(*parts: str) -> str:
  return re.sub(r"[^\w.-]+", "-", "_".join(parts))[:100]


# ---- Of every run --------------------------------------------------------------------------------


def _losses(runs: Sequence[Run]) -> tuple[list[Drawn], list[str]]:
  diffusion = [run for run in runs if run.process == "diffusion" and run.validation]
  plot = report.noise_plot({run.name: run.validation for run in diffusion})
  if plot is None:
    return [], ["Loss by noise level: no validation of a diffusion run."]
  sources = [
    {n: v for n, v in run.config.items() if n.startswith("data.validation.")} for run in diffusion
  ]
  notes = [] if all(source == sources[0] for source in sources) else ["Of different examples."]
  return [Drawn(plot, tuple(notes))], []


def _by_steps(runs: Sequence[Run]) -> tuple[list[Drawn], list[str]]:
  made = report.steps_plots([(run.name, result) for run in runs for result in run.results])
  lack = "Score by decoding steps: no task was decoded with several numbers of them."
  return [Drawn(plot) for plot in made], [] if made else [lack]
