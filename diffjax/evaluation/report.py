"""The page of one evaluation: what `diffjax evaluate` wrote, as tables, plots and samples."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffjax.evaluation import pages, plots, runs

PAGE = "index.html"

ERRORS = "± is the standard error over examples, of likelihoods that over masks"

_SAMPLES = 8  # of each result
_LONGEST = 4000  # characters of a text in a sample
_MUCH_UNKNOWN = 1.0  # percent of the tokens


def write_page(directory: Path) -> Path:
  """Writes DIRECTORY/index.html from report.json, the predictions and the run's metrics.

  What a page should have and these files do not is named on it.

  Raises:
    UserError: there is no report.json, or it is something else.
  """
  report = runs.read_report(directory)
  model, results = report["model"], report["results"]
  drawn, missing = _plots(directory, report)
  page = pages.document(
    f"Evaluation of {model['path']}",
    _caption(model),
    pages.section("Scores", _overview(results)),
    pages.section("Plots", pages.figures(drawn) if drawn else "", pages.items(missing)),
    pages.section("Results one by one", *(_result(directory, result) for result in results)),
    pages.section("How this was made", _origin(report)),
  )
  file = directory / PAGE
  file.write_text(page, encoding="utf-8")
  return file


def noise_plot(measured: Mapping[str, Mapping[str, Any]]) -> plots.Plot | None:
  """Loss over the share of the canvas that was masked; None where nothing was measured.

  Args:
    measured: label -> a validation line.
  """
  points = [
    (label, 100 * float(match[1]) + 5, nll, None)  # a line tells of tenths: this is their middle
    for label, line in measured.items()
    for name, nll in line.items()
    if (match := re.fullmatch(r"nll_(0\.\d)", name))
  ]
  if not points:
    return None
  return plots.Plot(
    "noise_levels", "Loss by noise level", "masked share of the canvas, %",
    "nats per masked token", plots.grouped(points),
  )  # fmt: skip


def steps_plots(results: Sequence[tuple[str, Mapping[str, Any]]]) -> list[plots.Plot]:
  """Score by decoding steps, one plot a metric, of what was decoded with several numbers of them.

  Points of one line were asked the same; of lines that differ in that alone, the one of the most
  examples is drawn. The samples of a likelihood are no decoding steps.

  Args:
    results: (label of the model, result); other labels, other lines.
  """
  groups: dict[str, dict[Any, list[tuple[dict[str, str], Mapping[str, Any]]]]] = {}
  for label, result in results:
    if runs.way_of(result) != "writing":
      continue
    facts = {"task": result["task"], "model": label, "shots": runs.shots_of(result)}
    facts["length"] = f"{runs.length_of(result)} length"
    settings = {n: v for n, v in result.get("settings", {}).items() if n != "num_steps"}
    facts |= {n: str(v) if n == "strategy" else f"{n} {v}" for n, v in settings.items()}
    metric, value, _ = runs.main_score(result)
    if value is not None:
      asked = (result.get("questions_sha256"), result.get("examples"))
      of = groups.setdefault(json.dumps([metric, facts]), {})
      of.setdefault(asked, []).append((facts, result))
  by_metric: dict[str, list[tuple[dict[str, str], Mapping[str, Any]]]] = {}
  for key, of in groups.items():
    lines = [line for line in of.values() if len({result["num_steps"] for _, result in line}) > 1]
    if lines:
      most = max(lines, key=lambda line: line[0][1].get("examples") or 0)
      by_metric.setdefault(json.loads(key)[0], []).extend(most)
  return [_steps_plot(metric, members) for metric, members in by_metric.items()]


def _steps_plot(
  metric: str, members: Sequence[tuple[dict[str, str], Mapping[str, Any]]]
) -> plots.Plot:
  labels = plots.told_apart([facts for facts, _ in members])
  points = [
    (label, result["num_steps"], *runs.main_score(result)[1:])
    for label, (_, result) in zip(labels, members, strict=True)
  ]
  shown = runs.metric_name(metric)
  tasks = list(dict.fromkeys(result["task"] for _, result in members))
  title = f"{tasks[0] if len(tasks) == 1 else shown} by decoding steps"
  return plots.Plot(
    f"steps_{metric}", title, "decoding steps", shown, plots.grouped(points), log_x=True
  )


def _plots(
  directory: Path, report: Mapping[str, Any]
) -> tuple[list[pages.Markup], list[pages.Markup]]:
  """The pictures, and a line for each that lacks its numbers."""
  model, drawn, missing = report["model"], [], []
  run, lines = _run_of(directory, model)
  if model.get("process") == "next_token":
    missing.append("Loss by noise level: an autoregressive model has no noise levels.")
  elif plot := noise_plot({"": line} if (line := _line_at(lines, model)) else {}):
    drawn.append(pages.figure(plot, f"Of the validation examples, at step {line['step']}."))
  else:
    missing.append(
      f"Loss by noise level: no validation in {run / runs.METRICS_FILE}."
      if run
      else f"Loss by noise level: no {runs.METRICS_FILE} of {model['path']} was found."
    )
  steps = steps_plots([("", result) for result in report["results"]])
  drawn += map(pages.figure, steps)
  if not steps:
    missing.append(
      "Score by decoding steps: no task was decoded with several numbers of them; evaluate with "
      "--num-steps=5,10,50."
    )
  missing.append("Score by size: `diffjax report RUN RUN ...` draws it over several runs.")
  return drawn, missing


def _run_of(directory: Path, model: Mapping[str, Any]) -> tuple[Path | None, list[dict[str, Any]]]:
  """The run that was evaluated and its validation lines, wherever it lies by now."""
  path = Path(model["path"])
  beside = [directory.resolve().parent] if directory.resolve().name == "evaluation" else []
  for run in (*beside, path, path.parent.parent):  # the last: of RUN/checkpoints/STEP
    if (run / runs.METRICS_FILE).is_file():
      return run, runs.validations(run)
  return None, []


def _line_at(lines: Sequence[dict[str, Any]], model: Mapping[str, Any]) -> dict[str, Any] | None:
  """The validation at the evaluated step, else the last one."""
  at = [line for line in lines if line.get("step") == model.get("training_steps")]
  return (at or lines or [None])[-1]


def _caption(model: Mapping[str, Any]) -> str:
  process = {"absorbing": "diffusion", "next_token": "autoregressive"}
  parts = [process.get(model.get("process"), model.get("process"))]
  if model.get("parameters"):
    parts.append(f"{plots.human(model['parameters'])} parameters")
  if model.get("layers"):
    parts.append(f"{model['layers']} layers of width {model.get('width')}")
  if model.get("training_steps") is not None:
    start = model.get("init_from")
    parts.append(f"{model['training_steps']} steps from {start or 'scratch'}")
  return " · ".join(filter(None, parts))


def _overview(results: Sequence[Mapping[str, Any]]) -> pages.Markup:
  head = (
    "task", "shots", "length", "steps", "examples", "truncated", "left out", "unknown tokens",
    "metric", "score", "others", "network calls", "seconds",
  )  # fmt: skip
  rows = []
  for result in results:
    main, value, error = runs.main_score(result)
    others = "; ".join(
      f"{runs.metric_name(name)} {pages.value(score.get('value'))}"
      for name, score in result["scores"].items()
      if name != main
    )
    rows.append(
      (
        result["task"], result.get("shots"), runs.length_of(result), _counted(result),
        result.get("examples"), result.get("truncated") or "", result.get("left_out") or "",
        _unknown(result), runs.metric_name(main), pages.value(value, error), others,
        _short(result.get("network_calls")), _short(result.get("seconds")),
      )
    )  # fmt: skip
  errors = f"{ERRORS}." if results else "Nothing was evaluated yet."
  much = [r["task"] for r in results if (r.get("unknown_tokens") or 0) > _MUCH_UNKNOWN]
  if much:
    tasks = ", ".join(dict.fromkeys(much))
    errors += f" Unknown tokens hide their text from the model, so scores of {tasks} say little."
  return pages.Markup(pages.table(head, rows) + pages.paragraph(errors, quiet=True))


def _counted(result: Mapping[str, Any]) -> str:
  """Steps of decoding, or the samples that stand for them."""
  number = str(result["num_steps"])
  return number if runs.way_of(result) == "writing" else f"{number} samples"


def _unknown(result: Mapping[str, Any]) -> str:
  share = result.get("unknown_tokens")
  return f"{pages.value(share)} %" if share else ""


def _short(number: float | None) -> str:
  return "" if number is None else f"{number:.1f}"


def _result(directory: Path, result: Mapping[str, Any]) -> pages.Markup:
  main, value, error = runs.main_score(result)
  scores = [
    (
      runs.metric_name(name), pages.value(s.get("value")),
      "" if s.get("error") is None else f"{s['error']:.3g}", s.get("signature", ""),
    )
    for name, s in result["scores"].items()
  ]  # fmt: skip
  if main.startswith(runs.MACRO):
    told = "" if error is None else f"{error:.3g}"
    scores.insert(0, (runs.metric_name(main), pages.value(value), told, ""))
  score = f"{runs.metric_name(main)} {pages.value(value, error)}"
  way, plain = runs.way_of(result), main.removeprefix(runs.MACRO)
  counted = _counted(result) + (" steps" if way == "writing" else "")
  return pages.details(
    f"{result['task']}, {runs.shots_of(result)}, {counted}, "
    f"{runs.how_of(way, runs.length_of(result))}: {score}",
    pages.table(("metric", "value", "standard error", "signature"), scores),
    pages.facts(_facts(result)),
    _groups(result, plain),
    _samples(directory, result, plain),
    of_class="result",
  )


def _facts(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """How it came about, as far as it is told."""
  if settings := result.get("settings"):
    yield "settings", ", ".join(f"{name} = {value}" for name, value in settings.items())
  if "too_long" in result:
    yield "too long prompts", result["too_long"]
  if "seed" in result:
    yield "seed", result["seed"]
  if "examples_in_files" in result:
    in_paper = (result.get("examples_in_paper") or {}).get("")
    counts = f"{result.get('examples')} of {result['examples_in_files']} in the files"
    yield "examples", counts + (f", {in_paper} in the paper's" if in_paper else "")
  if result.get("ties"):
    yield "ties", f"{result['ties']} questions had several best options"
  if result.get("unknown_tokens") is not None:
    yield "unknown tokens", f"{pages.value(result['unknown_tokens'])} % of prompts and references"
  if files := result.get("files"):
    yield "files", files if isinstance(files, str) else ", ".join(map(str, files))
  if "questions_sha256" in result:
    yield "questions", f"SHA-256 {result['questions_sha256']}"
  yield from _made_by(result)
  if "command" in result:
    yield "command", pages.Markup(f"<pre>{pages.escaped(result['command'])}</pre>")


def _groups(result: Mapping[str, Any], main: str) -> str:
  """A row a group, with bars behind percentages of the main metric, and the mean over groups.

  Each value has its standard error, where the report has it.
  """
  groups = result.get("groups") or {}
  if len(groups) < 2:
    return ""
  metrics = list(dict.fromkeys(name for group in groups.values() for name in group["scores"]))
  in_paper = result.get("examples_in_paper") or {}
  rows = [
    (
      name, group.get("examples"), in_paper.get(name),
      *(_scored(group, metric, main) for metric in metrics),
    )
    for name, group in sorted(groups.items())
  ]  # fmt: skip
  mean = {"scores": result.get("macro") or {}, "errors": result.get("macro_errors")}
  rows.append(("mean over groups", "", "", *(_scored(mean, metric, "") for metric in metrics)))
  head = ("group", "examples", "in the paper's files", *map(runs.metric_name, metrics))
  return pages.details(f"{len(groups)} groups", pages.table(head, rows))


def _scored(group: Mapping[str, Any], name: str, main: str) -> str:
  value = group["scores"].get(name)
  if value is None:
    return ""
  shown = pages.value(value, (group.get("errors") or {}).get(name))
  return pages.bar(value, shown) if name == main and 0 <= value <= 100 else shown


def _samples(directory: Path, result: Mapping[str, Any], main: str) -> str:
  """Some predictions, evenly from the file; or that they are not there."""
  name = result.get("predictions") or ""
  lines = list(runs.json_lines(directory / name)) if name else []
  lines = [line for line in lines if "prediction" in line]
  if not lines:
    return pages.paragraph(f"No samples: {name or 'a predictions file'} is missing.", quiet=True)
  count = min(_SAMPLES, len(lines))
  chosen = [lines[number * len(lines) // count] for number in range(count)]
  shown = "".join(_sample(line, main) for line in chosen)
  where = pages.paragraph(f"{count} of the {len(lines)} in {name}, evenly chosen.", quiet=True)
  return pages.details("samples", where, shown)


def _sample(line: Mapping[str, Any], main: str) -> str:
  scores = {main: None} | dict(line.get("scores") or {})
  told = [f"{runs.metric_name(n)} {pages.value(v)}" for n, v in scores.items() if v is not None]
  if line.get("log_probability") is not None:
    told.append(f"log-probability {line['log_probability']:.3f}")
  if line.get("network_calls") is not None:
    told.append(f"network calls {line['network_calls']}")
  parts = (("prompt", "prompt"), ("prediction", "prediction"), ("reference", "reference"))
  blocks = "".join(
    f'<h4>{title}</h4><div class="text">{_cut(line.get(name))}</div>' for name, title in parts
  )
  group = f"{line['group']} · " if line.get("group") else ""
  return (
    f'<div class="sample">{blocks}{pages.paragraph(group + " · ".join(told), quiet=True)}</div>'
  )


def _cut(text: object) -> str:
  text = "" if text is None else str(text)
  if len(text) > _LONGEST:
    text = f"{text[:_LONGEST]} … ({len(text) - _LONGEST} more characters)"
  return pages.escaped(text) if text.strip() else '<span class="quiet">(nothing)</span>'


def _origin(report: Mapping[str, Any]) -> pages.Markup:
  model = report["model"]
  mixture = ", ".join(map(str, model.get("mixture") or ())) or "not told"
  return pages.facts(
    [
      ("command", pages.Markup(f"<pre>{pages.escaped(report.get('command', 'not told'))}</pre>")),
      ("model", model["path"]),
      ("trained on", mixture),
      *_made_by(report),
    ]
  )


def _made_by(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Versions and device, of a report or of one result, as far as they are told."""
  if versions := record.get("versions"):
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
  if "device" in record:
    yield "device", record["device"]
