"""How a task's record becomes a prompt and its target: wordings as data, demonstrations, options.

Long, because wordings are data. A prompt is `opening`, then demonstrations and the record itself
between joiners. Wording 0 of a task is that of 2308.12219 where it has the task, byte for byte as
in its evaluation files (double spaces and the space before an answer included). How answers are
scored is diffjax/evaluation/; `Task.metric` is the name it has there.
"""

import dataclasses
import difflib
import functools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from diffjax.types import Example, UserError


class BadRecord(UserError):
  """What is wrong with a record, without its place."""


class Wording(NamedTuple):
  """One way to ask. The blanks are the `blanks` of a Reading; a demonstration's also {target}."""

  opening: str  # once, with the space that follows it
  query: str
  demonstration: str = ""  # empty: the query, a space and the target
  joiner: str = " "

  def show(self, blanks: Mapping[str, str], target: str) -> str:
    """A demonstration's text."""
    pattern = self.demonstration or f"{self.query.rstrip(' ')} {{target}}"
    return pattern.format(**blanks, target=target)


class Reading(NamedTuple):
  """What a task takes from a record."""

  blanks: Mapping[str, str]
  target: str = ""  # of multiple choice it is the letter of `options[answer]`
  options: tuple[str, ...] = ()
  answer: int = -1
  is_bare: bool = False  # the target is a number alone, behind which fillers stand for its steps


@dataclasses.dataclass(frozen=True)
class Task:
  """How records are rendered."""

  wordings: tuple[Wording, ...]
  read: Callable[[Mapping[str, Any]], Reading]
  metric: str  # of evaluation, by default
  alike: tuple[str, ...] = ()  # blanks that demonstrations share with what they stand before
  fillers: tuple[int, int] = (0, 0)  # before a bare target: without and with demonstrations


def find(name: str) -> Task:
  """The task of a name. Raises UserError that names the nearest for one that does not exist."""
  if name not in TASKS:
    near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)[0]
    plain = [known for known in TASKS if not known.startswith("translation_")]
    raise UserError(
      f"task {name!r} is none; did you mean {near!r}? tasks: {', '.join(plain)} and, for instance, "
      f"translation_de_en"
    )
  return TASKS[name]


def check_wording(name: str, wording: int) -> None:
  """Raises UserError where the task has no wording of that number; -1 is always one."""
  count = len(find(name).wordings)
  if wording >= count:
    raise UserError(
      f"wording = {wording} of task {name!r}: it has 0 to {count - 1}, and -1 for one by draw"
    )


def render(
  task: Task,
  record: Mapping[str, Any],
  *,
  wording: int,
  demonstrations: Sequence[Mapping[str, Any]] = (),
  option_order: Sequence[int] | None = None,
) -> Example:
  """One record as an example; `Example.task` is the record's own field `task`, if it has one.

  Args:
    task: of `TASKS`.
    record: its fields; which ones a task reads is said in docs/data.md.
    wording: number of the task's wordings.
    demonstrations: records that are shown with their answers before this one.
    option_order: the options' old numbers in their new order; None: as they are. The answer's
      letter follows. Demonstrations keep theirs.

  Raises:
    BadRecord: a field is missing or of the wrong type, or the target is empty.
  """
  own = record.get("task", "")
  _check_text("task", own)
  shown = [_lettered(task.read(other)) for other in demonstrations]
  reading = _lettered(task.read(record), option_order)
  ask = task.wordings[wording]
  target = reading.target
  if reading.is_bare:
    target = "# " * task.fillers[bool(demonstrations)] + target
  if not target.strip():
    raise BadRecord("targets is empty")
  asked = ask.query.format(**reading.blanks)
  inputs = ask.joiner.join([*(ask.show(r.blanks, r.target) for r in shown), asked])
  return Example(ask.opening.format(**reading.blanks) + inputs, target, own)


def count_options(task: Task, record: Mapping[str, Any]) -> int:
  """Answer options of a record; 0 where it has none. Raises BadRecord."""
  return len(task.read(record).options)


def own_texts(task: Task, record: Mapping[str, Any]) -> tuple[str, ...]:
  """What a record itself puts into an example, prompt and target. Raises BadRecord."""
  reading = task.read(record)
  return (*reading.blanks.values(), *reading.options, reading.target)


def question_of(task: Task, record: Mapping[str, Any]) -> object:
  """Equal for two records that ask the same, whatever their ids and answers. Raises BadRecord.

  Options may come in any order. A record that asks nothing is known by its target.
  """
  reading = task.read(record)
  asked = tuple(reading.blanks.values()), tuple(sorted(reading.options))
  return asked if any(map(str.strip, reading.blanks.values())) else (*asked, reading.target)


def are_alike(task: Task, record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
  """Whether `other` may be shown before `record` (of the same subject, language, ...).

  Raises:
    BadRecord: one of them is no record of the task, or `other` has no answer to show.
  """
  shown = task.read(other)
  if not shown.options and not shown.target.strip():
    raise BadRecord("targets is empty")
  if not task.alike:
    return True
  mine = task.read(record).blanks
  return all(mine[name] == shown.blanks[name] for name in task.alike)


def _lettered(reading: Reading, order: Sequence[int] | None = None) -> Reading:
  """Options in a new order as one text "(A) .. (B) .."; the target is the right one's letter."""
  if not reading.options:
    return reading
  order = range(len(reading.options)) if order is None else order
  letters = string.ascii_uppercase
  told = " ".join(
    f"({letter}) {reading.options[n]}" for letter, n in zip(letters, order, strict=False)
  )
  target = letters[list(order).index(reading.answer)]
  return reading._replace(blanks={**reading.blanks, "options": told}, target=target)


# ---- From a record's fields ----------------------------------------------------------------------


def _check_text(name: str, value: object) -> None:
  if not isinstance(value, str):
    kind = "bytes that are not UTF-8" if isinstance(value, bytes) else type(value).__name__
    raise BadRecord(f"{name} must be text, not {kind}")
  try:
    value.encode()
  except UnicodeEncodeError:
    raise BadRecord(f"{name} has a lone surrogate (half of a \\u pair)") from None


def _text(record: Mapping[str, Any], *names: str) -> str:
  """The text of the first of these fields that the record has."""
  for name in names:
    if record.get(name) is not None:
      _check_text(name, record[name])
      return record[name]
  found = [name for name in record if name in names]
  if found:
    raise BadRecord(f"{found[0]} must be text, not NoneType")
  raise BadRecord(f"no {' or '.join(names)}, only {', '.join(record) or 'nothing'}")


def _read_instruct(record: Mapping[str, Any]) -> Reading:
  for name in ("inputs", "targets"):
    if name not in record:
      found = ", ".join(record) or "nothing"
      raise BadRecord(f"no {name}, only {found} (a source's task may read other fields)")
  return Reading({"inputs": _text(record, "inputs")}, _text(record, "targets"))


def _read_text(record: Mapping[str, Any]) -> Reading:
  return Reading({}, _text(record, "text"))


_WIKI40B_MARKS = re.compile(r"\s*(?:_START_(?:ARTICLE|SECTION|PARAGRAPH)_|_NEWLINE_)\s*")


def _read_wiki40b(record: Mapping[str, Any]) -> Reading:
  return Reading({}, _WIKI40B_MARKS.sub("\n", _text(record, "text")).strip())


LANGUAGES = {
  "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "de": "German", "en": "English", "es": "Spanish",
  "et": "Estonian", "fi": "Finnish", "fr": "French", "hi": "Hindi", "id": "Indonesian",
  "it": "Italian", "ja": "Japanese", "ko": "Korean", "lv": "Latvian", "nl": "Dutch",
  "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sw": "Swahili",
  "te": "Telugu", "th": "Thai", "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip


def _read_translation(record: Mapping[str, Any], *, source: str = "", target: str = "") -> Reading:
  """Fields named by language codes, or inputs and targets; without codes the record tells them."""
  fields = record.get("translation", record)
  if not isinstance(fields, Mapping):
    raise BadRecord("translation must be an object with a text for each language")
  codes = [name for name in fields if name in LANGUAGES and isinstance(fields[name], str)]
  if len(codes) == 3 and "id" in codes:  # the record's number, not Indonesian
    codes.remove("id")
  if not source:
    if "inputs" in fields or "source" in fields:
      source = _text(record, "source_language")
      target = _text(record, "target_language")
    elif len(codes) == 2:
      source, target = codes
    else:
      raise BadRecord(
        "no two fields named by language codes, nor source_language and target_language"
      )
  if source in fields:
    texts = _text(fields, source), _text(fields, target)
  else:
    texts = _text(fields, "inputs", "source", source), _text(fields, "targets", "target", target)
  names = {"source_name": LANGUAGES.get(source, source)}
  names["target_name"] = LANGUAGES.get(target, target)
  return Reading({**names, "source": texts[0]}, texts[1])


def _read_summarisation(record: Mapping[str, Any]) -> Reading:
  return Reading(
    {"document": _text(record, "document", "article", "inputs")},
    _text(record, "summary", "highlights", "targets"),
  )


def _read_choice(record: Mapping[str, Any]) -> Reading:
  """Options as a list (or as {"text": [..], "label": [..]}); the answer by number, letter, text."""
  question = _text(record, "question")
  if record.get("context"):
    question = f"{_text(record, 'context')} {question}"
  name = next((n for n in ("options", "choices") if n in record), None)
  if name is None:
    raise BadRecord(f"no options or choices, only {', '.join(record) or 'nothing'}")
  listed, labels = record[name], None
  if isinstance(listed, Mapping):
    listed, labels = listed.get("text"), listed.get("label")
  most = len(string.ascii_uppercase)
  if not isinstance(listed, list | tuple) or not 2 <= len(listed) <= most:
    raise BadRecord(f"{name} must be a list of 2 to {most} texts")
  for option in listed:
    _check_text(f"an entry of {name}", option)
  if labels is not None and (not isinstance(labels, list | tuple) or len(labels) != len(listed)):
    raise BadRecord(f"label of {name} must be a list with one for each text")
  answer = _place_of(record, list(listed), list(labels or ()))
  blanks = {"question": question}
  if "subject" in record:
    blanks["subject"] = _text(record, "subject").replace("_", " ")
  return Reading(blanks, options=tuple(listed), answer=answer)


def _place_of(record: Mapping[str, Any], options: list[str], labels: list[Any]) -> int:
  """The number of the right option; labels of the record's own come before letters and texts."""
  name = next((n for n in ("answer", "answerKey", "label") if n in record), None)
  if name is None:
    raise BadRecord(f"no answer, only {', '.join(record)}")
  answer = record[name]
  letters = list(string.ascii_uppercase[: len(options)])
  if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
    return answer
  if isinstance(answer, str) and answer in labels:
    return labels.index(answer)
  places = [known.index(answer) for known in (letters, options) if answer in known]
  if len(set(places)) == 2:
    raise BadRecord(
      f"{name} = {answer!r} is the letter of one option and the text of another: give its number"
    )
  if places:
    return places[0]
  raise BadRecord(
    f"{name} = {answer!r} is no option: give its number 0 .. {len(options) - 1}, letter or text"
  )


def _read_subject_choice(record: Mapping[str, Any]) -> Reading:
  _text(record, "subject")
  return _read_choice(record)


def _read_extractive(record: Mapping[str, Any]) -> Reading:
  blanks = {"context": _text(record, "context"), "question": _text(record, "question")}
  answers = record.get("answers")
  if isinstance(answers, Mapping):
    answers = answers.get("text")
  if answers is None:
    return Reading(blanks, _text(record, "answer"))
  if not isinstance(answers, list | tuple) or not answers:
    raise BadRecord("answers must be a list with at least one text")
  _check_text("an entry of answers", answers[0])
  return Reading(blanks, answers[0])


def _read_tydiqa(record: Mapping[str, Any]) -> Reading:
  """As extractive QA; the language is a field, or what the id begins with (finnish-...)."""
  reading = _read_extractive(record)
  name = "language" if "language" in record else "id"
  language = _text(record, name).partition("-")[0].lower()
  return reading._replace(blanks={**reading.blanks, "language": language})


_CALCULATOR = re.compile(r"<<[^<>]*>>")


def _read_maths(record: Mapping[str, Any]) -> Reading:
  """GSM8K's form: steps in lines, calculator marks <<48/2=24>> in them, at last "#### 24"."""
  steps, mark, number = _text(record, "answer").partition("####")
  if not mark or not number.strip():
    raise BadRecord("answer has no last line with #### and the number")
  lines = [line.strip() for line in _CALCULATOR.sub("", steps).splitlines()]
  ended = [line if line[-1] in ".!?:" else f"{line}." for line in lines if line]
  target = " ".join([*ended, f"The answer is {number.strip()}."])
  return Reading({"question": _text(record, "question").strip()}, target)


_MGSM_HEADS = re.compile(
  r"^(?:Question|Frage|问题|Step-by-Step Answer|Schritt-für-Schritt-Antwort|逐步解答)[:\uff1a]\s*"
)


def _read_mgsm(record: Mapping[str, Any]) -> Reading:
  """A question with its steps; or, in a test file, with the number alone (`answer_number`)."""
  blanks = {"question": _MGSM_HEADS.sub("", _text(record, "question"))}
  if record.get("answer") is not None:
    return Reading(blanks, _MGSM_HEADS.sub("", _text(record, "answer")))
  number = record.get("answer_number")
  if number is None:
    raise BadRecord(f"no answer or answer_number, only {', '.join(record)}")
  if isinstance(number, float) and number.is_integer():
    number = int(number)
  return Reading(blanks, str(number), is_bare=True)


# ---- Wordings ------------------------------------------------------------------------------------


_TRANSLATION = (
  Wording("", "Translate the {source_name} sentence to {target_name}. {source_name}: {source} "
          "{target_name}:"),
  Wording("Translate from {source_name} into {target_name}. ", "{source} ="),
  Wording("", "How do you say this in {target_name}? {source} Answer:", joiner=" | "),
  Wording("", "{source_name}: {source} {target_name}:"),
  Wording("Write each sentence in {target_name}. ", "Sentence: {source} Translation:"),
)  # fmt: skip
_IWSLT14 = (
  Wording("Translate the sentences into {target_name}. ",
          " {source_name}: {source} {target_name}: ",
          "{source_name}: {source} {target_name}: {target}"),
  *_TRANSLATION,
)  # fmt: skip
_SUMMARISATION = (
  Wording("Summarize each text. ", "Text: {document} Summary:"),
  Wording("", "{document} What is a short headline of this?", joiner=" | "),
  Wording("Write a short summary of the article. ", "Article: {document} Summary:"),
  Wording("", "{document} In short:", joiner=" | "),
)
_CHOICE = (
  Wording("", "Q: {question} {options} A:", joiner=" | "),
  Wording("Choose the right letter. ", "Question: {question} Options: {options} Answer:"),
  Wording("", "{question} Which of these is right? {options} Letter:", joiner=" | "),
  Wording("Answer with one letter. ", "{question} {options} Answer:", joiner=" | "),
)
_MMLU = (
  Wording(
    "The following are multiple choice questions (with answers) about {subject}. ",
    "Q: {question} {options} A:", joiner=" | ",
  ),
  Wording("Choose the right letter. ", "A question of {subject}: {question} {options} Answer:"),
  *_CHOICE,
)  # fmt: skip
_BBH = (
  Wording(" ", "{question} {options} A:", joiner=" | "),
  Wording("Choose the right letter. ", "{question} Options: {options} Answer:", joiner=" | "),
)
_EXTRACTIVE = (
  Wording("Answer each question from its context. ", "Context: {context} Question: {question} "
          "Answer:", joiner=" | "),
  Wording("", "{context} {question} Answer with words of the text:", joiner=" | "),
  Wording("", "Question: {question} Text: {context} Answer:", joiner=" | "),
  Wording("Read the text and answer briefly. ", "{context} Q: {question} A:", joiner=" | "),
)  # fmt: skip
_TYDIQA = (
  Wording("Please answer each of the question according to the given context in {language}. ",
          " context: {context} Q: {question} A:",
          "context: {context} Q: {question} A: {target}", joiner=" | "),
  *_EXTRACTIVE,
)  # fmt: skip
_MATHS = (
  Wording("", "Question: {question} Step-by-Step Answer:"),
  Wording("Solve the problem step by step. ", "Problem: {question} Solution:", joiner=" | "),
  Wording("", "{question} Let's think step by step.", joiner=" | "),
  Wording("Show each step, and end with the answer. ", "Q: {question} A:", joiner=" | "),
)


def _mgsm(question: str, answer: str) -> Task:
  """2308.12219's form: two spaces after the last question's head, none after a demonstration's."""
  shot = f"{question}: {{question}} {answer}: {{target}}"
  wording = Wording(" ", f"{question}:  {{question}} {answer}: ", shot)
  return Task((wording,), _read_mgsm, "number", fillers=(60, 59))


def _translation(source: str, target: str, wordings: tuple[Wording, ...] = _TRANSLATION) -> Task:
  return Task(
    wordings, functools.partial(_read_translation, source=source, target=target), "bleu",
    alike=("source_name", "target_name"),
  )  # fmt: skip


TASKS: dict[str, Task] = {
  "instruct": Task((Wording("", "{inputs}", joiner="\n\n"),), _read_instruct, "rouge_l"),
  "text": Task((Wording("", ""),), _read_text, "loss"),
  "wiki40b": Task((Wording("", ""),), _read_wiki40b, "loss"),
  "translation": _translation("", ""),
  "iwslt14": _translation("de", "en", _IWSLT14),
  "summarisation": Task(_SUMMARISATION, _read_summarisation, "rouge_l"),
  "choice": Task(_CHOICE, _read_choice, "exact_match"),
  "extractive_qa": Task(_EXTRACTIVE, _read_extractive, "f1"),
  "maths": Task(_MATHS, _read_maths, "number"),
  "mmlu": Task(_MMLU, _read_subject_choice, "exact_match", alike=("subject",)),
  "bbh": Task(_BBH, _read_choice, "exact_match"),
  "tydiqa": Task(_TYDIQA, _read_tydiqa, "f1", alike=("language",)),
  "mgsm_en": _mgsm("Question", "Step-by-Step Answer"),
  "mgsm_de": _mgsm("Frage", "Schritt-für-Schritt-Antwort"),
  "mgsm_zh": _mgsm("问题", "逐步解答"),
}
TASKS |= {
  f"translation_{source}_{target}": _translation(source, target)
  for code in LANGUAGES
  if code != "en"
  for source, target in ((code, "en"), ("en", code))
}
