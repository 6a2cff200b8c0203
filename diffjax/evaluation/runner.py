"""Runs evaluations: what is not answered yet is, and the result says how well."""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffjax.evaluation import record
from diffjax.evaluation.answering import Row, Tokens, Way
from diffjax.evaluation.likelihood import TextBound
from diffjax.evaluation.metrics import METRICS
from diffjax.evaluation.predictions import Predictions
from diffjax.evaluation.suites import Questions
from diffjax.types import UserError

PREDICTIONS = "predictions"  # the folder of the answers
_GROUP = 4  # batches that are answered between two writes


class Job(NamedTuple):
  """One task to be evaluated."""

  task: str
  shots: int
  questions: Questions
  metrics: tuple[str, ...]  # the main one first; ("likelihood",) alone of Scoring
  average: str = "micro"  # told first: over examples, or macro: over groups


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
    directory: of the report, which this does not write; see record.save.
    model_fingerprint: of record.fingerprint.
    share: (k, n): this process answers the k-th of every n questions.
    progress: what a progress bar with ETA is labelled; empty shows none.

  Returns:
    The result as the report has it; None where it is not a share's to say. A question that did
    not fit the model counts as answered by nothing; of likelihoods it is left out.

  Raises:
    UserError: no question fits the model, one cannot be answered, or references cannot be
      compared; all of this before any is answered.
  """
  questions, laid_out = job.questions, lay_out(job, way)
  rows = [row for row in laid_out if row is not None]
  version = record.versions()["diffjax"]
  identity = [model_fingerprint, questions.fingerprint, way.identity, version]
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
  left_out = [q for q, row in zip(questions.asked, laid_out, strict=True) if row is None]
  scored = list(lines)
  if job.metrics[0] in METRICS:
    scored += [{"prediction": "", "reference": q.reference, "group": q.group} for q in left_out]
  return {
    "task": job.task,
    "shots": job.shots,
    "metric": job.metrics[0],
    "average": job.average,
    "way": way.name,
    "settings": way.settings,
    "length": way.length,
    "canvas": way.identity.get("canvas"),
    "num_steps": way.settings["num_steps"],
    "seed": way.seed,
    "max_length": way.max_length,
    "too_long": way.too_long,
    "examples": len(scored),
    "examples_in_files": questions.total,
    "examples_in_paper": dict(questions.expected),
    "files": list(questions.files),
    "questions_sha256": questions.fingerprint,
    "truncated": sum(row.is_cut for row in rows),
    "left_out": len(left_out),
    "ties": sum(line.get("tied", False) for line in lines),
    "unknown_tokens": _unknown(part for row in rows for part in (row.prompt, row.reference)),
    "unknown_in_references": _unknown(row.reference for row in rows),
    "network_calls": sum(calls) / len(calls) if calls else None,
    "seconds": math.fsum(line["seconds"] for line in lines),
    **_scores(scored, job.metrics),
    "predictions": f"{PREDICTIONS}/{name}",
  }


def lay_out(job: Job, way: Way) -> list[Row | None]:
  """The row of every question, None where it does not fit.

  Raises:
    UserError: as `run`, of all that shows before anything is answered.
  """
  asked = job.questions.asked
  if job.metrics[0] in METRICS and asked:
    references = [question.reference for question in asked]
    METRICS[job.metrics[0]].value(references, references)
  rows = [way.lay_out(question) for question in asked]
  if not any(rows):
    raise UserError(
      f"task {job.task!r}: none of its {len(rows)} examples fits {way.max_length} positions, "
      f"so nothing is answered; give --too-long=keep_ends, or other data"
    )
  return rows


def _unknown(texts: Iterable[Tokens]) -> float:
  """Percent of their tokens."""
  unknown, tokens = map(sum, zip(*texts, strict=True))
  return 100 * unknown / max(1, tokens)


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
  # Rows of one length need one program, and no padding; the longest first, so that the time that
  # is left is rather said too long.
  open_rows = sorted(
    (row for row in own if row.question.number not in predictions.lines),
    key=lambda row: (-row.size, row.question.number),
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
          "num_steps": way.settings["num_steps"],
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
  """Scores of all lines, of each group, and the mean over groups; each with its standard errors."""
  measure = _bounds if metrics[0] not in METRICS else _compare
  by_group: dict[str, list[Mapping[str, Any]]] = {}
  for line in lines:
    by_group.setdefault(line["group"], []).append(line)
  measured = {group: measure(some, metrics) for group, some in sorted(by_group.items())}
  groups = {
    group: {
      "examples": len(by_group[group]),
      "scores": {name: score["value"] for name, score in scores.items()},
      "errors": {name: score["error"] for name, score in scores.items()},
    }
    for group, scores in measured.items()
  }
  scores = measure(lines, metrics)
  columns = {
    name: [of_group[name] for of_group in measured.values() if name in of_group] for name in scores
  }
  columns = {name: column for name, column in columns.items() if column}
  mean = lambda column: sum(score["value"] for score in column) / len(column)
  return {
    "scores": scores,
    "groups": groups,
    "macro": {name: mean(column) for name, column in columns.items()},
    "macro_errors": {name: _error_of_mean(column) for name, column in columns.items()},
  }


def _error_of_mean(scores: Sequence[Mapping[str, Any]]) -> float | None:
  """Of the mean over groups; None where one of them has no error."""
  errors = [score["error"] for score in scores]
  return None if None in errors else math.hypot(*errors) / len(errors)


def _compare(
  lines: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """The metrics that these references suit; the main one in any case."""
  texts = [line["prediction"] for line in lines]
  references = [line["reference"] for line in lines]
  return {
    name: METRICS[name].score(texts, references)._asdict()
    for name in metrics
    if name == metrics[0] or METRICS[name].suits(references)
  }


def _bounds(
  lines: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Likelihood in its units; its errors are of the estimate, how far other masks move it.

  With unknown tokens there are none of bytes and characters.
  """
  del metrics
  texts = [line["reference"] for line in lines]
  bound = TextBound(
    nats=-math.fsum(line["log_probability"] for line in lines),
    error=math.hypot(*(line["error"] for line in lines)),
    tokens=sum(line["tokens"] for line in lines),
    bytes=sum(len(text.encode()) for text in texts),
    characters=sum(map(len, texts)),
    unknown=sum(line["unknown"] for line in lines),
  )
  signature = (
    f"upper bound|tokens:{bound.tokens}|unknown:{bound.unknown}|bytes:{bound.bytes}|"
    f"error:of the masks"
  )
  values = {
    "bits_per_byte": (bound.bits_per_byte, bound.bits_per_byte_error),
    "bits_per_character": (bound.bits_per_character, bound.bits_per_character_error),
    "nats_per_token": (bound.per_token, bound.per_token_error),
    "perplexity": (bound.perplexity, bound.perplexity_error),
  }
  return {
    name: {"value": value, "error": error, "signature": signature}
    for name, (value, error) in values.items()
    if not math.isnan(value)
  }
