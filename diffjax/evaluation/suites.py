"""Where the questions of an evaluation come from: known suites, a file, a run's own split.

The suites are those of 2308.12219, in the files that came with it (prompts as they stand there,
demonstrations included), and others whose prompts data/tasks.py writes. Their numbers of decoding
steps are the paper's too (its scripts), and so is the canvas: as long as the reference, which in
MGSM has 60 places for the steps before the number.
"""

import dataclasses
import difflib
import glob
import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from diffjax.config import SourceConfig
from diffjax.data import sources
from diffjax.types import UserError


class Question(NamedTuple):
  """One prompt and what it should be answered with."""

  number: int  # in all of its task's
  prompt: str
  reference: str
  group: str  # a subject, a language, a task of a mixture; "" where there are none


class Questions(NamedTuple):
  """What a task asks."""

  asked: list[Question]
  total: int  # in the files, of which `asked` may be a part
  fingerprint: str  # SHA-256; another one: other questions
  expected: Mapping[str, int]  # group -> questions in the paper's file; "" for all together
  files: tuple[str, ...] = ()  # where they stand
  sizes: Mapping[str, int] = {}  # group -> questions in its own file, where it has one


@dataclasses.dataclass(frozen=True)
class Suite:
  """Files under a data directory, and how they are decoded and scored unless told otherwise."""

  files: str  # a pattern; {shots} and {group} are parts of the name
  metrics: tuple[str, ...]  # the main one first
  num_steps: int
  task: str = ""  # of data/tasks.py, which writes the prompts; empty: they stand in the files
  targets: str = ""  # the file of the answers, where they are paired line by line
  demonstrations: str = ""  # a file of the training split, for a task's few shots
  subjects: str = ""  # a JSON list of the group of every line
  expected: Mapping[str, int] = dataclasses.field(default_factory=dict)  # see Questions
  average: Literal["micro", "macro"] = "micro"  # what is told first: over examples, or over groups


_TRANSLATION = ("bleu", "chrf", "bleu_lowercase")

SUITES: dict[str, Suite] = {
  "mmlu": Suite(
    "instruct/mmlu.{shots}-shot.full.jsonl",
    ("exact_match", "letter"),
    1,
    subjects="instruct/mmlu.0-shot.index2subject.json",
    expected={"": 1531},
  ),
  "bbh": Suite(
    "instruct/bbh-nlp.{shots}-shot.{group}.jsonl",
    ("exact_match", "letter"),
    1,
    average="macro",
    expected={
      "": 14052, "hyperbaton": 10000, "formal_fallacies": 2840, "snarks": 36,
      "penguins_in_a_table": 29,
    },
  ),
  "tydiqa": Suite(
    "instruct/tydiqa.{shots}-shot.{group}.jsonl",
    ("f1", "squad_exact", "exact_match", "rouge_l"),
    10,
    expected={
      "arabic": 921, "bengali": 113, "finnish": 782, "indonesian": 565, "korean": 276,
      "russian": 812, "swahili": 499, "telugu": 669,
    },
  ),
  "mgsm": Suite(
    "instruct/mgsm.{shots}-shot.{group}.jsonl", ("number",), 50,
    expected={"en": 250, "de": 250, "zh": 250},
  ),
  "iwslt14": Suite(
    "iwslt14/test.deen.{shots}-shot.jsonl", _TRANSLATION, 50, expected={"": 6750}
  ),
  "iwslt14_validation": Suite("iwslt14/valid.deen.jsonl", _TRANSLATION, 50),
  "wmt14": Suite(
    "wmt14/test.en", ("bleu_intl", *_TRANSLATION), 50,
    task="translation_en_de", targets="wmt14/test.de", expected={"": 3003},
  ),
  "gigaword": Suite(
    "gigaword/test.jsonl", ("rouge_l", "rouge_1", "rouge_2", "rouge_l_paper"), 50,
    task="summarisation",
  ),
  "gsm8k": Suite(
    "gsm8k/test.jsonl", ("number",), 50,
    task="maths", demonstrations="gsm8k/train.jsonl", expected={"": 1319},
  ),
  "multi30k": Suite(
    "multi30k/test_2016_flickr.de", _TRANSLATION, 10,
    task="translation_de_en", targets="multi30k/test_2016_flickr.en",
  ),
}  # fmt: skip


def find(name: str) -> Suite:
  """The suite of a name. Raises UserError that names the nearest for one that does not exist."""
  if name not in SUITES:
    near = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.0)[0]
    raise UserError(f"task {name!r} is none of {', '.join(SUITES)}; did you mean {near!r}?")
  return SUITES[name]


def load(name: str, data_dir: Path, *, shots: int = 0, limit: int = 0) -> Questions:
  """The questions of a suite.

  Args:
    name: of `SUITES`.
    data_dir: where its files lie, plain or .gz.
    shots: demonstrations before every question.
    limit: so many questions, evenly from all of them; 0: all.

  Raises:
    UserError: no such suite or files, a suite without demonstrations for so many shots, a bad line.
  """
  suite = find(name)
  if shots and "{shots}" not in suite.files and not suite.demonstrations:
    raise UserError(f"task {name!r} with {shots} shots: it shows no demonstrations; use --shots=0")
  files = _files(suite.files, data_dir, shots)
  if not files:
    wanted = suite.files.replace("{shots}", str(shots)).replace("{group}", "*")
    other = f"{name}_validation"
    raise UserError(
      f"task {name!r} with {shots} shots: {data_dir} has no {wanted}, plain or .gz; put or link "
      f"the files there, or name another --data-dir"
      + (f", or --tasks={other}" if other in SUITES else "")
    )
  sections = [_section(path, suite, data_dir, shots) for path in files.values()]
  found = _questions(sections, list(files), expected=suite.expected, limit=limit)
  if not suite.subjects:
    return found
  subjects = _subjects(data_dir / suite.subjects, found.total)
  return found._replace(asked=[q._replace(group=subjects[q.number]) for q in found.asked])


def of_source(section: SourceConfig, *, limit: int = 0) -> Questions:
  """The questions of one source, grouped by its examples' tasks. Raises UserError."""
  return _questions([section], [None], expected={}, limit=limit)


def describe(section: SourceConfig) -> tuple[str, ...]:
  """The files of a source and of its parts; of what has none, its name or kind."""
  if section.kind == "mixture":
    return tuple(name for part in section.parts for name in describe(part))
  if not section.path:
    return (section.name or section.kind,)
  return tuple(filter(None, (section.path, section.target_path)))


def evenly(total: int, limit: int) -> list[int]:
  """`limit` numbers below `total`, evenly spaced; all of them where it is 0 or more than there are.

  Of a file in groups a part shows them all, as its first lines would not.
  """
  if not limit or limit >= total:
    return list(range(total))
  return [place * total // limit for place in range(limit)]


def _questions(
  sections: Sequence[SourceConfig],
  groups: Sequence[str | None],
  *,
  expected: Mapping[str, int],
  limit: int,
) -> Questions:
  """Questions of sources, numbered one source after the other; no group: the example's task."""
  opened = [sources.open_source(section) for section in sections]
  places = [
    (source, group, number)
    for source, group in zip(opened, groups, strict=True)
    for number in range(len(source))
  ]
  asked = []
  for place in evenly(len(places), limit):
    source, group, number = places[place]
    example = source[number]
    if not source.keeps(example, number):
      continue
    group = example.task if group is None else group
    asked.append(Question(place, example.inputs, example.targets, group))
  content = json.dumps([source.fingerprint for source in opened])
  fingerprint = hashlib.sha256(content.encode()).hexdigest()
  files = tuple(file for section in sections for file in describe(section))
  sizes = {group: len(one) for one, group in zip(opened, groups, strict=True) if group}
  return Questions(asked, len(places), fingerprint, expected, files, sizes)


def _files(pattern: str, data_dir: Path, shots: int) -> dict[str, str]:
  """Group -> its file. Raises UserError where a file lies there twice."""
  filled = pattern.replace("{shots}", str(shots))
  listed = f"{glob.escape(str(data_dir))}/{filled.replace('{group}', '*')}"
  named = re.compile(re.escape(filled).replace(r"\{group\}", "(?P<group>.+)"))
  found: dict[str, str] = {}
  for path in sorted(glob.glob(listed) + glob.glob(f"{listed}.gz")):
    match = named.match(Path(path).relative_to(data_dir).as_posix())
    group = match["group"] if named.groups else ""
    if group in found:
      raise UserError(f"{found[group]} and {path} are the same questions; remove one of them")
    found[group] = path
  return found


def _section(path: str, suite: Suite, data_dir: Path, shots: int) -> SourceConfig:
  if not suite.task:
    return SourceConfig(kind="jsonl", path=path)  # its shots stand in the file
  rendered = dict(path=path, task=suite.task, wording=0, shots=shots)
  if suite.targets:
    target = _plain_or_packed(data_dir / suite.targets)
    return SourceConfig(kind="pairs", target_path=str(target), **rendered)
  if shots:
    rendered["demonstrations"] = str(_plain_or_packed(data_dir / suite.demonstrations))
  return SourceConfig(kind="jsonl", **rendered)


def _plain_or_packed(path: Path) -> Path:
  """The file, or itself with .gz. Raises UserError."""
  for candidate in (path, path.with_name(f"{path.name}.gz")):
    if candidate.is_file():
      return candidate
  raise UserError(f"{path}[.gz] does not exist; put or link it there")


def _subjects(path: Path, count: int) -> list[str]:
  """The subject of every line. Raises UserError where there is none for each."""
  file = _plain_or_packed(path)
  content = file.read_bytes()
  try:
    subjects = json.loads(gzip.decompress(content) if file.suffix == ".gz" else content)
  except (OSError, EOFError, ValueError) as error:
    raise UserError(f"{file} is no JSON ({error}); copy it again") from None
  if not isinstance(subjects, list) or len(subjects) != count:
    raise UserError(f"{file} must be a list of {count} subjects, one for each question")
  return subjects
