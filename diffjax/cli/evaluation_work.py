"""What `diffjax evaluate` is to do: its options as tasks, and as ways to answer them."""

import argparse
import dataclasses
import difflib
import itertools
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffjax import model as models
from diffjax.cli import decoding
from diffjax.config import SourceConfig, load_config
from diffjax.data import tasks as renderers
from diffjax.data.features import TooLong
from diffjax.evaluation import suites
from diffjax.evaluation.answering import LIKELIHOOD, Choosing, Scoring, Way, Writing, length_of
from diffjax.evaluation.metrics import METRICS
from diffjax.evaluation.runner import Job
from diffjax.evaluation.tasks import METRICS as USUAL_METRICS
from diffjax.sampling import Sampler, checks, settings_of
from diffjax.types import UserError

_SHORT = {"exact": "exact_match", "rouge": "rouge_l"}  # names of metrics
_DATA_VARIABLE, _DATA_DIR = "DIFFJAX_DATA", "data"
_REPORT = "evaluation"  # the folder in a run


class _Asked(NamedTuple):
  """A source that is no suite, and how it is scored and laid out."""

  task: str
  section: SourceConfig
  metrics: tuple[str, ...]
  max_length: int = 0  # 0: as the model has positions
  too_long: TooLong = "keep_end"


def check(arguments: argparse.Namespace) -> None:
  """Mistakes that show before a model is read. Raises UserError."""
  given = decoding.given(arguments)
  for steps in _numbers("--num-steps", arguments.num_steps, least=1) or [None]:
    settings_of(arguments.preset, **_with_steps(given, steps))
  _numbers("--shots", arguments.shots, least=0)
  canvas = length_of(arguments.length)
  if canvas != "predicted" and given.get("length_beam", 1) > 1:
    raise UserError(
      f"--length-beam {given['length_beam']} tries predicted lengths; give --length=predicted too"
    )
  checks.check_batch(arguments.batch_size)
  checks.check_seed(arguments.seed)
  checks.check_count("--samples", arguments.samples)
  if arguments.limit < 0:
    raise UserError(f"--limit {arguments.limit} must be >= 0 (0 is all)")
  if arguments.tasks and arguments.data:
    raise UserError("--tasks and --data: give one of them, and the other in a second command")
  for name in ("task", "demonstrations"):
    if getattr(arguments, name) and not arguments.data:
      raise UserError(f"--{name} belongs to --data FILE; give that too")
  if arguments.tasks and not _names(arguments):
    raise UserError(
      f"--tasks {arguments.tasks!r} names none; give some of {', '.join(suites.SUITES)}"
    )
  for name in _names(arguments):
    suites.find(name)
  _metrics(arguments, ())
  if arguments.choose == LIKELIHOOD and arguments.metric == LIKELIHOOD:
    raise UserError("--choose=likelihood picks options, --metric=likelihood does not; give one")


def share_of(text: str) -> tuple[int, int]:
  """K/N as numbers; of no text, what falls to this process. Raises UserError."""
  if not text:
    return jax.process_index(), jax.process_count()
  index, slash, count = text.partition("/")
  if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
    raise UserError(f"--share {text!r} must be K/N with K from 0 to N - 1, such as 0/4")
  return int(index), int(count)


def directory_of(arguments: argparse.Namespace) -> Path:
  """Where the report goes. Raises UserError."""
  if arguments.out is None:
    if not _is_run(arguments):
      raise UserError(f"{arguments.model} is no run that keeps its report: name a folder by --out")
    return models.checkpoint_of(models.resolve(arguments.model)).workdir / _REPORT
  if arguments.out.exists() and not arguments.out.is_dir():
    raise UserError(f"--out {arguments.out} is a file; name a folder")
  return arguments.out


def plan(arguments: argparse.Namespace, sampler: Sampler) -> list[tuple[Job, Way]]:
  """Every task with every number of shots and of steps. Raises UserError."""
  shots = _numbers("--shots", arguments.shots, least=0)
  work = []
  if arguments.tasks:
    data_dir = arguments.data_dir or Path(os.environ.get(_DATA_VARIABLE, _DATA_DIR))
    for name, count in itertools.product(_names(arguments), shots or [0]):
      suite = suites.find(name)
      asked = suites.load(name, data_dir, shots=count, limit=arguments.limit)
      job = Job(name, count, asked, _metrics(arguments, suite.metrics), suite.average)
      work += [(job, way) for way in _ways(arguments, sampler, num_steps=suite.num_steps)]
    return work
  source = _file(arguments) if arguments.data else _split(arguments)
  for count in shots or [source.section.shots]:
    asked = suites.of_source(_with_shots(source.section, count), limit=arguments.limit)
    job = Job(source.task, count, asked, source.metrics)
    work += [(job, way) for way in _ways(arguments, sampler, source=source)]
  return work


def _names(arguments: argparse.Namespace) -> list[str]:
  return list(dict.fromkeys(filter(None, arguments.tasks.split(","))))


def _is_run(arguments: argparse.Namespace) -> bool:
  return models.kind_of(models.resolve(arguments.model)) in ("run", "checkpoint")


def _with_shots(section: SourceConfig, shots: int) -> SourceConfig:
  """The source with so many demonstrations. Raises UserError where nothing renders them."""
  if shots and not section.task:
    raise UserError(
      f"--shots {shots}: these prompts stand as they are; name what renders records (--task of "
      f"--data, task of a config's source)"
    )
  shown = section.demonstrations if shots else ""
  return dataclasses.replace(section, shots=shots, demonstrations=shown)


def _file(arguments: argparse.Namespace) -> _Asked:
  """--data. Raises UserError."""
  path = Path(arguments.data)
  plain = Path(path.name.removesuffix(".gz"))
  kind = {".jsonl": "jsonl", ".parquet": "parquet"}.get(plain.suffix, "text")
  default: tuple[str, ...] = (LIKELIHOOD,) if kind == "text" else ()
  if arguments.task:
    default = (renderers.find(arguments.task).metric.replace("loss", LIKELIHOOD),)
  metrics = _metrics(arguments, default)
  if not metrics:
    raise UserError(f"--data {path}: say with --metric how its answers are scored")
  if kind == "text" and metrics[0] != LIKELIHOOD:
    raise UserError(f"--data {path} is plain text, which answers nothing: use --metric=likelihood")
  shots = int(bool(arguments.demonstrations))
  section = SourceConfig(
    kind=kind, path=str(path), task=arguments.task, wording=0 if arguments.task else -1,
    demonstrations=arguments.demonstrations, shots=shots,
  )  # fmt: skip
  section.check("--data")
  return _Asked(plain.name, section, metrics)


def _split(arguments: argparse.Namespace) -> _Asked:
  """A run's own examples, scored as its config says. Raises UserError."""
  if not _is_run(arguments):
    raise UserError(
      f"{arguments.model} is no run of `diffjax train`, whose config names the data; give --tasks "
      f"or --data"
    )
  workdir = models.checkpoint_of(models.resolve(arguments.model)).workdir
  config = load_config(workdir / models.CONFIG_FILE)
  section = getattr(config.data, arguments.split)
  if section.kind == "none":
    raise UserError(f"the config of {arguments.model} names no data.{arguments.split}")
  main = config.evaluation.metric
  if section.kind in ("text", "generator_text"):
    main = LIKELIHOOD
  elif main not in METRICS:
    main = renderers.find(section.task).metric if section.task else "exact_match"
  usual = () if main not in METRICS else tuple(name for name in USUAL_METRICS if name != main)
  metrics = _metrics(arguments, (main.replace("loss", LIKELIHOOD), *usual))
  return _Asked(arguments.split, section, metrics, config.data.max_length, config.data.too_long)


def _metrics(arguments: argparse.Namespace, default: tuple[str, ...]) -> tuple[str, ...]:
  """The metrics, the main one first. Raises UserError for one that does not exist."""
  if not arguments.metric:
    return default
  name = _SHORT.get(arguments.metric, arguments.metric)
  if name == LIKELIHOOD:
    return (name,)
  if name not in METRICS:
    known = [*_SHORT, *METRICS, LIKELIHOOD]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise UserError(f"--metric {name!r} is none of {', '.join(known)}; did you mean {near!r}?")
  return (name, *(other for other in default if other in METRICS and other != name))


def _ways(
  arguments: argparse.Namespace,
  sampler: Sampler,
  *,
  num_steps: int | None = None,
  source: _Asked | None = None,
) -> list[Way]:
  """How questions are answered: one way a number of steps.

  Args:
    arguments: the options.
    sampler: of the model.
    num_steps: the task's own; None: the preset's.
    source: says how rows are laid out, where it is no suite.

  Raises:
    UserError: settings that the model cannot do.
  """
  common: dict[str, Any] = dict(
    sampler=sampler,
    max_length=(source and source.max_length) or sampler.model.config.max_positions,
    too_long=arguments.too_long or (source.too_long if source else "keep_end"),
    batch_size=arguments.batch_size,
    seed=arguments.seed,
  )
  if arguments.metric == LIKELIHOOD or (source and source.metrics == (LIKELIHOOD,)):
    return [Scoring(samples=arguments.samples, **common)]
  if arguments.choose == LIKELIHOOD:
    return [Choosing(samples=arguments.samples, **common)]
  given = decoding.given(arguments)
  own, several = None, _numbers("--num-steps", arguments.num_steps, least=1)
  if not sampler.model.contract.denoises:
    several = []  # it takes a step a token, whatever is asked for
  elif not arguments.preset:
    own = num_steps
  return [
    Writing(
      decoding=sampler.settings(arguments.preset, **_with_steps(given, steps)),
      canvas=length_of(arguments.length),
      **common,
    )
    for steps in several or [own]
  ]


def _with_steps(given: dict[str, Any], steps: int | None) -> dict[str, Any]:
  known = {name: value for name, value in given.items() if name != "num_steps"}
  return known if steps is None else known | {"num_steps": steps}


def _numbers(option: str, text: str, *, least: int) -> list[int]:
  """What an option such as 10,50 says; [] where it says nothing. Raises UserError."""
  if not text:
    return []
  parts = text.split(",")
  if not all(part.isdecimal() and int(part) >= least for part in parts):
    raise UserError(f"{option} {text!r} must be whole numbers >= {least}, such as 10,50")
  return list(dict.fromkeys(map(int, parts)))
