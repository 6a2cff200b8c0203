"""Runs evaluations: what is not answered yet is, and DIRECTORY/report.json says how well.

The report is kept result by result: one of the same task, shots, settings and length replaces its
predecessor, all others stay. A report of another model is set aside under another name.
"""

import hashlib
import importlib.metadata
import json
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffjax import model as models
from diffjax.config import SourceConfig, load_config
from diffjax.data import generator
from diffjax.evaluation.answering import Row, Way
from diffjax.evaluation.likelihood import TextBound
from diffjax.evaluation.metrics import METRICS
from diffjax.evaluation.predictions import Predictions
from diffjax.evaluation.suites import Questions
from diffjax.types import UserError

FILE = "report.json"
PREDICTIONS = "predictions"  # the folder of the answers
_GROUP = 4  # batches that are answered between two writes
_KEY = ("task", "shots", "settings", "length", "canvas")
_SAMPLED = 4096  # entries of a parameter that tell it from others


class Job(NamedTuple):
  """One task to be evaluated."""

  task: str
  shots: int
  questions: Questions
  metrics: tuple[str, ...]  # the main one first; ("likelihood",) alone of Scoring


def run(
  job: Job,
  way: Way,
  *,
  directory: Path,
  model_fingerprint: str,
  share: tuple[int, int] = (0, 1),
  progress: str = "",
) -> dict[str, Any] | None:
  """Answers what is not answered yet in DIRECTORY/predictions, and scores it all.

  Args:
    job: what is asked.
    way: how it is answered.
    directory: of the report, which this does not write; see `save`.
    model_fingerprint: of `fingerprint`.
    share: (k, n): this process answers the k-th of every n questions.
    progress: what a progress bar with ETA is labelled; empty shows none.

  Returns:
    The result as the report has it; None where it is not a share's to say.

  Raises:
    UserError: no question fits the model, one cannot be answered, or references cannot be compared.
  """
  questions = job.questions
  if job.metrics[0] in METRICS and questions.asked:  # rather told now than after hours
    references = [question.reference for question in questions.asked]
    METRICS[job.metrics[0]].value(references, references)
  laid_out = [way.lay_out(question) for question in questions.asked]
  rows = [row for row in laid_out if row is not None]
  if not rows:
    raise UserError(
      f"task {job.task!r}: none of its {len(laid_out)} examples fits {way.max_length} positions, "
      f"so nothing is answered; give --too-long=keep_ends, or other data"
    )
  identity = [model_fingerprint, questions.fingerprint, way.identity]
  digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
  name = f"{job.task}.{job.shots}-shot.{digest}.jsonl"
  predictions = Predictions(directory / PREDICTIONS / name, share=share)
  _answer(rows, way, predictions, job.metrics, share=share, progress=progress)
  if share[1] > 1:
    return None
  for row in rows:  # an earlier command may have compared by other metrics
    line = predictions.lines[row.question.number]
    line["scores"] = _each(line["prediction"], row, job.metrics)
  predictions.finish()
  lines = [predictions.lines[row.question.number] for row in rows]
  calls = [line["network_calls"] for line in lines if line["network_calls"] is not None]
  return {
    "task": job.task,
    "shots": job.shots,
    "metric": job.metrics[0],
    "settings": way.settings,
    "length": way.length,
    "canvas": way.identity.get("canvas"),
    "num_steps": way.settings["num_steps"],
    "seed": way.seed,
    "too_long": way.too_long,
    "examples": len(lines),
    "examples_in_files": questions.total,
    "examples_in_paper": dict(questions.expected),
    "truncated": sum(row.is_cut for row in rows),
    "left_out": len(laid_out) - len(rows),
    "network_calls": sum(calls) / len(calls) if calls else None,
    "seconds": math.fsum(line["seconds"] for line in lines),
    **_scores(lines, job.metrics),
    "predictions": f"{PREDICTIONS}/{name}",
  }


def _answer(
  rows: Sequence[Row],
  way: Way,
  predictions: Predictions,
  metrics: Sequence[str],
  *,
  share: tuple[int, int],
  progress: str,
) -> None:
  index, count = share
  own = rows[index::count]
  # Rows of one length need one program, and no padding.
  open_rows = sorted(
    (row for row in own if row.question.number not in predictions.lines),
    key=lambda row: (row.size, row.question.number),
  )
  columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
  with Progress(
    *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not progress
  ) as bar:
    shown = bar.add_task(progress, total=len(own), completed=len(own) - len(open_rows))
    size = _GROUP * way.batch_size
    for start in range(0, len(open_rows), size):
      group = sorted(open_rows[start : start + size], key=lambda row: row.question.number)
      began = time.perf_counter()
      answers = way.answer(group)
      seconds = (time.perf_counter() - began) / len(group)
      predictions.append(
        {
          "number": row.question.number,
          "prompt": row.question.prompt,
          "prediction": answer.text,
          "reference": row.question.reference,
          "group": row.question.group,
          "scores": _each(answer.text, row, metrics),
          "log_probability": answer.log_probability,
          "network_calls": answer.network_calls,
          "seconds": seconds,
          **answer.details,
        }
        for row, answer in zip(group, answers, strict=True)
      )
      bar.advance(shown, len(group))


def _each(text: str, row: Row, metrics: Sequence[str]) -> dict[str, float | None]:
  """What the metrics say of one answer; None of a metric of the corpus."""
  reference = row.question.reference
  return {name: METRICS[name].each(text, reference) for name in metrics if name in METRICS}


def _scores(lines: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
  """Scores of all lines, of each group, and the mean over groups."""
  measure = _bounds if metrics[0] not in METRICS else _compare
  by_group: dict[str, list[Mapping[str, Any]]] = {}
  for line in lines:
    by_group.setdefault(line["group"], []).append(line)
  groups = {
    group: {
      "examples": len(some),
      "scores": {name: s["value"] for name, s in measure(some, metrics, errors=False).items()},
    }
    for group, some in sorted(by_group.items())
  }
  scores = measure(lines, metrics, errors=True)
  columns = {
    name: [group["scores"][name] for group in groups.values() if name in group["scores"]]
    for name in scores
  }
  macro = {name: sum(column) / len(column) for name, column in columns.items() if column}
  return {"scores": scores, "groups": groups, "macro": macro}


def _compare(
  lines: Sequence[Mapping[str, Any]], metrics: Sequence[str], *, errors: bool
) -> dict[str, dict[str, Any]]:
  """The metrics that these references suit; the main one in any case."""
  texts = [line["prediction"] for line in lines]
  references = [line["reference"] for line in lines]
  found = {}
  for name in metrics:
    metric = METRICS[name]
    if name == metrics[0] or metric.suits(references):
      if errors:
        found[name] = metric.score(texts, references)._asdict()
      else:
        found[name] = {"value": metric.value(texts, references)}
  return found


def _bounds(
  lines: Sequence[Mapping[str, Any]], metrics: Sequence[str], *, errors: bool
) -> dict[str, dict[str, Any]]:
  """Likelihood in its units; its errors are of the estimate, how far other masks move it."""
  del metrics, errors
  texts = [line["reference"] for line in lines]
  bound = TextBound(
    nats=-math.fsum(line["log_probability"] for line in lines),
    error=math.hypot(*(line["error"] for line in lines)),
    tokens=sum(line["tokens"] for line in lines),
    bytes=sum(len(text.encode()) for text in texts),
    characters=sum(map(len, texts)),
  )
  signature = f"upper bound|tokens:{bound.tokens}|bytes:{bound.bytes}|error:of the masks"
  values = {
    "bits_per_byte": (bound.bits_per_byte, bound.bits_per_byte_error),
    "bits_per_character": (bound.bits_per_character, bound.bits_per_character_error),
    "nats_per_token": (bound.per_token, bound.per_token_error),
    "perplexity": (bound.perplexity, bound.perplexity_error),
  }
  return {
    name: {"value": value, "error": error, "signature": signature}
    for name, (value, error) in values.items()
  }


def fingerprint(model: models.Model) -> str:
  """SHA-256 of a model's shape, contract, tokenizer, and of some entries of every parameter."""
  some = jax.jit(lambda params: [x.reshape(-1)[:: -(-x.size // _SAMPLED)] for x in params])
  digest = hashlib.sha256(json.dumps(model.meta(), sort_keys=True, default=str).encode())
  for entries in jax.device_get(some(jax.tree.leaves(dict(model.params)))):
    digest.update(np.ascontiguousarray(entries, np.float32).tobytes())
  return digest.hexdigest()


def describe(model: models.Model, path: Path) -> dict[str, Any]:
  """The model as a report has it.

  Args:
    model: loaded from there.
    path: a run, a checkpoint of one, or any directory with a model.

  Raises:
    UserError: the run's files cannot be read.
  """
  directory = models.resolve(path)
  config, step = None, None
  if models.kind_of(directory) in ("run", "checkpoint"):
    found = models.checkpoint_of(directory)
    config, step = load_config(found.workdir / models.CONFIG_FILE), found.step
  return {
    "path": str(path),
    "parameters": sum(int(x.size) for x in jax.tree.leaves(dict(model.params))),
    "width": model.config.width,
    "layers": model.config.layers,
    "process": "absorbing" if model.contract.denoises else "next_token",
    "init_from": config.init_from if config else "",
    "training_steps": step,
    "mixture": _mixture(config.data.train) if config else [],
    "fingerprint": fingerprint(model),
  }


def _mixture(section: SourceConfig) -> list[str]:
  """What a source is made of: its parts, a generator's families, or itself."""
  if section.kind == "mixture":
    return [name for part in section.parts for name in _mixture(part)]
  if section.kind == "generator":
    return list(section.families or generator.TASKS)
  return [section.name or Path(section.path).name.partition(".")[0] or section.kind]


def save(
  directory: Path, result: Mapping[str, Any], *, model: Mapping[str, Any], command: str
) -> None:
  """Puts a result into DIRECTORY/report.json, in place of the one of the same task and settings.

  Args:
    directory: made if it is not there.
    result: of `run`.
    model: of `describe`.
    command: the line that made the result.
  """
  directory.mkdir(parents=True, exist_ok=True)
  file = directory / FILE
  results = _earlier(file, model)
  key = lambda one: json.dumps([one.get(name) for name in _KEY], sort_keys=True)
  replaced = [one for one in results if key(one) == key(result)]
  for one in replaced:
    if one["predictions"] != result["predictions"]:
      (directory / one["predictions"]).unlink(missing_ok=True)
  report = {
    "command": command,
    "versions": _versions(),
    "device": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
    "model": dict(model),
    "results": [*(one for one in results if one not in replaced), {**result, "command": command}],
  }
  temporary = file.with_suffix(".tmp")
  text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False)
  temporary.write_text(text, encoding="utf-8")
  temporary.replace(file)


def _earlier(file: Path, model: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The results of a report of this model; a report of another one is set aside."""
  if not file.is_file():
    return []
  try:
    report = json.loads(file.read_text(encoding="utf-8"))
    made_by = report["model"]["fingerprint"]
    if made_by == model["fingerprint"]:
      return report["results"]
  except (ValueError, KeyError, TypeError):
    made_by = "unreadable"
  aside = file.with_name(f"report.{made_by[:8]}.json")
  file.replace(aside)
  print(f"{file} was of another model: it is {aside.name} now", file=sys.stderr)
  return []


def _versions() -> dict[str, str]:
  versions = {"python": platform.python_version()}
  for name in ("diffjax", "jax", "sacrebleu", "rouge-score"):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = "not installed"  # run from a checkout
  return versions
