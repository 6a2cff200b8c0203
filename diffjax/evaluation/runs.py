"""A run as its directory tells it: what it is, what it was trained on, how it scored."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffjax.config import flatten, load_config, model_config_from_dict
from diffjax.evaluation import plots
from diffjax.model import CHECKPOINTS, CONFIG_FILE, checkpoint_of
from diffjax.models import transformer
from diffjax.types import UserError

REPORT_FILE = "report.json"  # of an evaluation
METRICS_FILE = "metrics.jsonl"  # of a run
MACRO = "macro_"  # before the name of a metric: its mean over groups, each weighing the same

_OWN = ("validation", "test")  # the names of a run's own examples, as tasks
_EVALUATION = "evaluation"  # where a run's own evaluation lies
_PROCESS = {"absorbing": "diffusion", "next_token": "autoregressive"}
_SHOWN = {
  "bleu": "BLEU", "bleu_intl": "BLEU, international tokens", "bleu_lowercase": "BLEU, lowercased",
  "chrf": "chrF", "rouge_1": "ROUGE-1",
  "rouge_2": "ROUGE-2", "rouge_l": "ROUGE-L", "rouge_l_paper": "ROUGE-L as in the paper",
  "f1": "F1",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
  """What a directory tells of a run; None and "" where it does not."""

  name: str  # the shortest that tells it from the other runs
  directory: Path
  process: str  # diffusion or autoregressive
  start: str  # adapted, from scratch; untuned of a model that no run of ours has tuned
  parameters: int | None
  shape: tuple[int | None, int | None]  # layers, width
  mixture: tuple[str, ...] | None  # the families or parts that it was trained on
  steps: int | None  # of training, at what was evaluated
  config: Mapping[str, Any]  # flat: field -> value
  validation: Mapping[str, Any]  # a validation line of its metrics
  results: tuple[Mapping[str, Any], ...]  # of its report.json
  command: str  # that made the report
  missing: tuple[str, ...]  # what is not there, a line each

  @property
  def size(self) -> str:
    """Its parameters for people, or its shape where they are not known."""
    if self.parameters:
      return plots.human(self.parameters)
    layers, width = self.shape
    return f"{layers} x {width}" if width else "unknown size"

  @property
  def tasks(self) -> str:
    """What it was trained on, for people."""
    if self.mixture is None:
      return "unknown data"
    return self.mixture[0] if len(self.mixture) == 1 else f"{len(self.mixture)} tasks"


class Point(NamedTuple):
  """One score of one run."""

  run: Run
  task: str
  shots: str
  metric: str
  way: str
  length: str
  questions: str  # tells them apart where the runs were asked different ones; else empty
  value: float
  error: float | None
  result: Mapping[str, Any]

  @property
  def how(self) -> tuple[str, str, str]:
    """What all points of one figure share: metric, way and length."""
    return self.metric, self.way, self.length

  @property
  def evaluation(self) -> str:
    """What was evaluated, and how, for people."""
    parts = (self.task, self.shots, how_of(self.way, self.length), self.questions)
    return ", ".join(filter(None, parts))


def read_runs(directories: Sequence[Path]) -> tuple[Run, ...]:
  """Reads runs, or evaluations of models that are no runs (directories with a report.json).

  Raises:
    UserError: a directory is neither, is given twice, or one of its files is broken.
  """
  resolved = [directory.resolve() for directory in directories]
  for number, directory in enumerate(resolved):
    if directory in resolved[:number]:
      raise UserError(f"{directories[number]} is given twice; name each run once")
  return tuple(map(_read_run, directories, _names(resolved)))


def _names(directories: Sequence[Path]) -> list[str]:
  """The last parts of each path, as many as tell it from the others."""
  depth = 1
  most = max((len(d.parts) for d in directories), default=1)
  shorten = lambda d: "/".join(d.parts[-depth:]).lstrip("/")
  while depth < most and len({shorten(d) for d in directories}) < len(directories):
    depth += 1
  return [shorten(directory) for directory in directories]


def _read_run(directory: Path, name: str) -> Run:
  evaluation = directory if (directory / REPORT_FILE).is_file() else directory / _EVALUATION
  is_evaluated = (evaluation / REPORT_FILE).is_file()
  is_run = (directory / CONFIG_FILE).is_file() and (
    (directory / CHECKPOINTS).is_dir() or (directory / METRICS_FILE).is_file()
  )
  if not is_run and not is_evaluated:
    raise UserError(
      f"{directory} is no run (no {CONFIG_FILE} beside {CHECKPOINTS}/) and no evaluation (no "
      f"{REPORT_FILE}); give directories that `diffjax train` or `diffjax evaluate` wrote"
    )
  missing, found = [], {"model": {}, "results": []}
  if is_evaluated:
    found = read_report(evaluation)
  else:
    missing.append(f"{name} has no scores: run `diffjax evaluate --model={directory}` first")
  model = found["model"]
  config = flatten(load_config(directory / CONFIG_FILE)) if is_run else {}
  lines = validations(directory)
  steps = model.get("training_steps")
  at = [line for line in lines if line.get("step") == steps] or lines
  if is_run and not at:
    missing.append(f"{name} has no validation in {METRICS_FILE}: no loss is drawn")
  if not model and is_run:
    model = _described(directory, missing, name)
  process = model.get("process") or config.get("diffusion.process", "")
  start = "adapted" if model.get("init_from") or config.get("init_from") else "from scratch"
  mixture = model.get("mixture")
  return Run(
    name=name,
    directory=directory,
    process=_PROCESS.get(process, process),
    start=start if is_run or steps is not None else "untuned",
    parameters=model.get("parameters"),
    shape=(model.get("layers"), model.get("width")),
    mixture=None if mixture is None else tuple(map(str, mixture)),
    steps=at[-1]["step"] if steps is None and at else steps,
    config=config,
    validation=at[-1] if at else {},
    results=tuple(found["results"]),
    command=str(found.get("command", "")),
    missing=tuple(missing),
  )


def _described(directory: Path, missing: list[str], name: str) -> dict[str, Any]:
  """Size and shape of a run that was not evaluated, from its checkpoint."""
  try:
    if not (directory / CHECKPOINTS).is_dir():
      raise UserError(f"{directory} has no {CHECKPOINTS}/")
    config = model_config_from_dict(checkpoint_of(directory).meta["model"])
  except UserError as error:
    missing.append(f"{name} has no size: {error}")
    return {}
  count = sum(leaf.size for leaf in jax.tree.leaves(transformer.shapes(config)))
  return {"parameters": count, "layers": config.layers, "width": config.width}


def read_report(directory: Path) -> dict[str, Any]:
  """DIRECTORY/report.json.

  Raises:
    UserError: there is none, or it is something else.
  """
  file = directory / REPORT_FILE
  if not file.is_file():
    raise UserError(
      f"{directory} has no {REPORT_FILE}; write one with `diffjax evaluate --model=RUN "
      f"--out={directory}`"
    )
  try:
    report = json.loads(file.read_text(encoding="utf-8"))
    report["model"]["path"]
    for result in report["results"]:
      result["task"], result["metric"], result["scores"].items(), result["num_steps"]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{file} is no report of `diffjax evaluate` ({type(error).__name__}: {error}); evaluate again"
    ) from error
  return report


def metric_name(metric: str) -> str:
  """As people write it."""
  if metric.startswith(MACRO):
    return f"{metric_name(metric.removeprefix(MACRO))}, mean over groups"
  return _SHOWN.get(metric, metric.replace("_", " "))


def main_score(result: Mapping[str, Any]) -> tuple[str, float | None, float | None]:
  """Name, value and standard error of a result's main metric.

  Where its suite averages over groups, the name begins with MACRO.
  """
  name = result["metric"]
  if name not in result["scores"] and result["scores"]:
    name = next(iter(result["scores"]))  # 'likelihood' is told in several units
  if result.get("average") == "macro":
    means, errors = (result.get(part) or {} for part in ("macro", "macro_errors"))
    return f"{MACRO}{name}", means.get(name), errors.get(name)
  score = result["scores"].get(name, {})
  return name, score.get("value"), score.get("error")


def shots_of(result: Mapping[str, Any]) -> str:
  """As in 2-shot."""
  return f"{result.get('shots', 0)}-shot"


def way_of(result: Mapping[str, Any]) -> str:
  """How it was answered: by writing, choosing or scoring. Older reports tell it by the strategy."""
  if way := result.get("way"):
    return way
  if result.get("settings", {}).get("strategy") != "likelihood":
    return "writing"
  return "scoring" if result["metric"] == "likelihood" else "choosing"


def length_of(result: Mapping[str, Any]) -> str:
  """That of the canvas: gold, predicted or as in 32-token; options, where these are compared."""
  if way_of(result) == "choosing":
    return "options"
  canvas = result.get("canvas")
  return f"{canvas}-token" if isinstance(canvas, int) else str(result.get("length", "unknown"))


def how_of(way: str, length: str) -> str:
  """A way and a length for people."""
  likelihood = {"choosing": "likelihood of the options", "scoring": "likelihood"}
  return likelihood.get(way, f"{length} length")


def points_of(runs: Sequence[Run]) -> Iterator[Point]:
  """What runs scored: a point for each run and evaluation, and for each group of its own examples.

  The same evaluation are equal task, shots, metric, way, length and questions. Of several results
  of one the one of the most examples is taken, then the one of the most steps, then the last.
  Reports that do not say which questions were asked count as asked those of the others, unless
  these differ among themselves.
  """
  asked: dict[tuple[str, str], set[str]] = {}
  for result in (result for run in runs for result in run.results):
    known = asked.setdefault((result["task"], shots_of(result)), set())
    known |= {result["questions_sha256"]} if result.get("questions_sha256") else set()
  extent = lambda result: (result.get("examples") or 0, result["num_steps"])
  for run in runs:
    chosen: dict[tuple[str, ...], Point] = {}
    for result in run.results:
      metric, value, error = main_score(result)
      if value is None:
        continue
      what = (result["task"], shots_of(result))
      questions = f"questions {asked_of(result)}" if len(asked[what]) > 1 else ""
      key = (*what, metric, way_of(result), length_of(result), questions)
      held = chosen.get(key)
      if held is None or extent(result) >= extent(held.result):
        chosen[key] = Point(run, *key, value, error, result)
    for point in chosen.values():
      yield point
      groups = point.result.get("groups") or {}
      if point.task in _OWN and len(groups) > 1:
        for name, group in groups.items():
          metric = point.metric.removeprefix(MACRO)
          value, error = ((group.get(of) or {}).get(metric) for of in ("scores", "errors"))
          if value is not None:
            yield point._replace(
              task=f"{point.task}/{name}", metric=metric, value=value, error=error
            )


def asked_of(result: Mapping[str, Any]) -> str:
  """The first of the fingerprint of its questions."""
  return (result.get("questions_sha256") or "not told")[:8]


def validations(run: Path) -> list[dict[str, Any]]:
  """The validation lines of RUN/metrics.jsonl in order; none where there is no such file."""
  return [line for line in json_lines(run / METRICS_FILE) if line.get("split") == "validation"]


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
  """The records of a file of JSON lines; none without it. A line torn by a crash is left out."""
  if not file.is_file():
    return
  with file.open(encoding="utf-8", errors="replace") as stream:
    for text in stream:
      try:
        line = json.loads(text)
      except ValueError:
        continue
      if isinstance(line, dict):
        yield line
