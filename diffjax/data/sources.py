"""Where examples come from: files, the built-in generators and mixtures, all random access.

A source numbers its examples. A record that is no example stops the run with `file:line: reason`.
"""

import abc
import bisect
import hashlib
import inspect
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffjax.config import SourceConfig
from diffjax.data import generator, languages, path_star, tasks, world
from diffjax.data.records import Lines, Record, Records, open_records
from diffjax.types import Example, UserError


class Part(NamedTuple):
  """One source of a mixture: its name, its examples, and what says its share."""

  name: str
  start: int  # its examples are those from start on
  stop: int  # and before stop
  weight: float  # its share, relative to the other parts'; 0: from epochs and cap
  epochs: float
  cap: int  # no more examples than so many count for its share; 0: all


class Source(abc.ABC):
  """A numbered collection of examples; can be pickled, and read from several threads.

  `identity` names everything that an example depends on, an entry a cause; `fingerprint` is its
  SHA-256. `parts` are the sources of a mixture, whose examples follow one another; a plain source
  is one part. `temperature` is of their mixing.
  """

  identity: dict[str, str]
  parts: tuple[Part, ...]
  temperature: float = 1.0

  @property
  def fingerprint(self) -> str:
    """Changes when any example may have."""
    return _hash(self.identity)

  def __len__(self) -> int:
    return self.parts[-1].stop

  def __getitem__(self, number: int) -> Example:
    if not 0 <= number < len(self):
      raise IndexError(f"example {number} of {len(self)}")
    return self._read(number)

  @abc.abstractmethod
  def _read(self, number: int) -> Example: ...

  @abc.abstractmethod
  def keeps(self, example: Example, number: int) -> bool:
    """Whether example `number` is used: False where it has text in a language that is excluded.

    Of a record its own texts count, not its demonstrations', which have none. The parts of a
    mixture exclude for themselves.
    """


def open_source(config: SourceConfig) -> Source:
  """The source that a config section describes.

  Reading an example raises UserError with `file:line: reason` when its record is malformed.

  Raises:
    UserError: a file is missing, empty or damaged, paired files differ in length, or a task or
      one of its wordings does not exist.
  """
  kinds: dict[str, type[Source]] = {"mixture": _Mixture, "path_star": _PathStar}
  kinds |= {"generator": _Generated, "generator_text": _Generated}
  return kinds.get(config.kind, _Rendered)(config)


def read_texts(paths: Sequence[Path]) -> Iterator[str]:
  """Every line of text files, and every text field of .jsonl files, whatever its name but `task`.

  Both may be .gz.

  Raises:
    UserError: a file is missing, empty or damaged, or a line of a .jsonl file is no object.
  """
  for path in paths:
    if ".jsonl" in path.suffixes:
      records = open_records(SourceConfig(kind="jsonl", path=str(path)))
      for record in map(records.__getitem__, range(len(records))):
        yield from (
          text for name, text in record.items() if isinstance(text, str) and name != "task"
        )
    else:
      yield from Lines(path)


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  """What differs between two sources' identities, a short phrase each; empty where nothing does."""
  told = []
  for name in dict.fromkeys((*then, *now)):
    old, new = then.get(name), now.get(name)
    if old == new:
      continue
    if old is None or new is None:
      told.append(f"{name} is {'new' if old is None else 'gone'}")
    elif _SHA256.fullmatch(old) and _SHA256.fullmatch(new):
      told.append(f"{name} changed")
    else:
      told.append(f"{name} {old!r} is now {new!r}")
  return told


_SHA256 = re.compile("[0-9a-f]{64}")


def _hash(value: object) -> str:
  return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


def _hash_code(*objects: Any) -> str:
  """Of whole modules, and functions: a helper may decide an example as well as what calls it."""
  return _hash([inspect.getsource(each) for each in objects])


def _name_of(config: SourceConfig) -> str:
  """A part's name: its own, else its builder's, its file's without endings, or its kind."""
  if config.name or not config.path:
    return config.name or config.kind
  return config.path if config.kind == "tfds" else Path(config.path).name.partition(".")[0]


class _Plain(Source):
  """A source that is no mixture: `template`, `limit` and `exclude_language` apply to all kinds."""

  def __init__(self, config: SourceConfig, *, count: int, content: Mapping[str, str]):
    """Takes the section, the number of examples before its limit, and what they depend on."""
    self._config = config
    count = min(count, config.limit or count)
    part = Part(_name_of(config), 0, count, config.weight, config.epochs, config.cap)
    self.parts = (part,)
    settings = ("kind", "name", "task", "template", "limit", "exclude_language")
    self.identity = {name: str(getattr(config, name)) for name in settings} | dict(content)
    if config.exclude_language:
      self.identity["what is told as German"] = _hash_code(languages)

  def _read(self, number: int) -> Example:
    example = self._make(number)
    return example._replace(
      inputs=self._config.template.replace("{inputs}", example.inputs),
      task=example.task or self._config.task or self._config.name,
    )

  @abc.abstractmethod
  def _make(self, number: int) -> Example: ...

  def keeps(self, example: Example, number: int) -> bool:
    del number
    return not self._config.exclude_language or _has_no_german(example.inputs, example.targets)


def _has_no_german(*texts: str) -> bool:
  return not languages.is_german("\n".join(texts))


class _Rendered(_Plain):
  """Records of files, each rendered by the task, behind as many demonstrations as are asked for."""

  def __init__(self, config: SourceConfig):
    name = config.task or "instruct"
    self._task = tasks.find(name)
    tasks.check_wording(name, config.wording)
    self._records = open_records(config)
    content = dict(self._records.identity)
    content["wordings and code"] = _hash_code(
      tasks, _Plain._read, _Rendered._make, _Rendered._render, _Rendered._draw_demonstrations
    )
    self._own_shots = not config.demonstrations
    self._demonstrations = self._records
    if config.task:
      content |= {n: str(getattr(config, n)) for n in ("wording", "shots", "shuffle_options")}
    if config.shots and config.demonstrations:
      self._demonstrations = _open_demonstrations(config)
      shown = self._demonstrations.identity
      content |= {f"demonstrations' {name}": value for name, value in shown.items()}
    super().__init__(config, count=len(self._records), content=content)

  def _make(self, number: int) -> Example:
    record, config = self._records[number], self._config
    try:
      draw = random.Random(_hash([number, record])) if config.task else None
      return self._render(record, number, draw)
    except tasks.BadRecord as error:
      raise self._records.error(number, str(error)) from None

  def _render(self, record: Record, number: int, draw: random.Random | None) -> Example:
    """A record's example; what is open about it is drawn, by its number and content."""
    config, task = self._config, self._task
    order = None
    wording = config.wording
    if draw:
      drawn = draw.randrange(len(task.wordings))
      wording = drawn if wording < 0 else wording
      if config.shuffle_options:
        count = tasks.count_options(task, record)
        order = draw.sample(range(count), count)
    shown: Sequence[Record] = ()
    if config.shots and self._is_kept(record):  # else the example is not used
      shown = self._draw_demonstrations(record, number, draw)
    return tasks.render(
      task, record, wording=max(wording, 0), demonstrations=shown, option_order=order
    )

  def _is_kept(self, record: Record) -> bool:
    return not self._config.exclude_language or _has_no_german(*tasks.own_texts(self._task, record))

  def keeps(self, example: Example, number: int) -> bool:
    del example
    return self._is_kept(self._records[number])

  def _draw_demonstrations(self, record: Record, number: int, draw: random.Random) -> list[Record]:
    """As many records as there are shots: alike in what the task says, none that is excluded.

    None asks what `record` or another of them does, whatever their ids and answers. A malformed one
    among the source's own is passed over here: as an example it is told of.
    """
    pool, shots = self._demonstrations, self._config.shots
    count = len(pool) if not self._own_shots else min(len(pool), self._config.limit or len(pool))
    tried = {number} if self._own_shots else set()
    seen, shown = [tasks.question_of(self._task, record)], []
    while len(shown) < shots and len(tried) < count:
      place = draw.randrange(count)
      if place in tried:
        continue
      tried.add(place)
      try:
        other = pool[place]
        if not tasks.are_alike(self._task, record, other):
          continue
        question = tasks.question_of(self._task, other)
        if question not in seen and self._is_kept(other):
          seen.append(question)
          shown.append(other)
      except tasks.BadRecord as error:
        if not self._own_shots:
          raise pool.error(place, str(error)) from None
      except UserError:
        if not self._own_shots:
          raise
    if len(shown) < shots:
      raise tasks.BadRecord(
        f"only {len(shown)} of {shots} demonstrations are to be had among {count} records"
      )
    return shown


def _open_demonstrations(config: SourceConfig) -> Records:
  """The records of `demonstrations`: a JSONL file, else of the source's kind; of TFDS a split."""
  shown = config.demonstrations
  if ".jsonl" in shown:
    return open_records(SourceConfig(kind="jsonl", path=shown))
  if config.kind == "pairs":
    raise UserError(
      f"demonstrations = {shown!r}: paired text is shown from a .jsonl file; give one"
    )
  if config.kind == "tfds":
    fields = {"path": config.path, "data_dir": config.data_dir, "split": shown}
  else:
    fields = {"path": shown}
  return open_records(SourceConfig(kind=config.kind, **fields))


class _Generated(_Plain):
  """Examples of the built-in world: its tasks, or its plain text."""

  def __init__(self, config: SourceConfig):
    content = {"the generator's code": _hash_code(generator, world), "split": config.split}
    content["families"] = ", ".join(config.families)
    super().__init__(config, count=config.limit, content=content)
    if config.kind == "generator":
      self._make(0)  # an unknown family is told of now

  def _make(self, number: int) -> Example:
    split = self._config.split
    if self._config.kind == "generator_text":
      return Example("", generator.passage(number, split=split))
    return generator.task_example(number, split=split, families=self._config.families)


class _PathStar(_Plain):
  """Path-star graphs."""

  def __init__(self, config: SourceConfig):
    content = {"the generator's code": _hash_code(path_star, world)}
    content |= {name: str(getattr(config, name)) for name in ("split", "arms", "arm_length")}
    super().__init__(config, count=config.limit, content=content)

  def _make(self, number: int) -> Example:
    config = self._config
    return path_star.example(
      number, split=config.split, arms=config.arms, arm_length=config.arm_length
    )


class _Mixture(Source):
  """The examples of several sources, one source after the other."""

  def __init__(self, config: SourceConfig):
    self._sources = [open_source(part) for part in config.parts]
    self.temperature = config.temperature
    parts, self.identity, start, names = [], {}, 0, set()
    for source in self._sources:
      (part,) = source.parts
      name, again = part.name, 2
      while name in names:
        name, again = f"{part.name} {again}", again + 1
      names.add(name)
      stop = start + len(source)
      parts.append(part._replace(name=name, start=start, stop=stop))
      self.identity |= {f"{name}: {cause}": value for cause, value in source.identity.items()}
      start = stop
    self.parts = tuple(parts)
    self.identity["the order of the parts"] = ", ".join(part.name for part in parts)
    self._starts = [part.start for part in parts]

  def _find(self, number: int) -> tuple[Source, int]:
    part = bisect.bisect_right(self._starts, number) - 1
    return self._sources[part], number - self._starts[part]

  def _read(self, number: int) -> Example:
    source, place = self._find(number)
    return source[place]

  def keeps(self, example: Example, number: int) -> bool:
    source, place = self._find(number)
    return source.keeps(example, place)
