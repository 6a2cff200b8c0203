"""Records become prompts: the paper's bytes from real rows, and what must hold of every task."""

import gzip
import json
import os
import re
import string
from collections.abc import Callable
from pathlib import Path

import pytest

from diffjax.data import tasks
from diffjax.data.tasks import TASKS, render

DATA = Path(os.environ.get("DIFFJAX_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def real_rows(name: str) -> list[dict]:
  file = DATA / name
  if not file.is_file():
    pytest.skip(f"no {file}")
  with gzip.open(file, "rt") as lines:
    return [json.loads(line) for line in lines]


def read_choice(text: str, **more: str) -> dict:
  """A question with its options, and the letter behind "A:" where there is one."""
  body, _, letter = text.rpartition(" A:")
  starts: list[int] = []
  for mark in string.ascii_uppercase:
    place = body.find(f" ({mark}) ", starts[-1] + 5 if starts else 0)
    if place < 0:
      break
    starts.append(place)
  ends = [*starts[1:], len(body)]
  options = [body[place + 5 : end] for place, end in zip(starts, ends, strict=True)]
  return {"question": body[: starts[0]], "options": options, "answer": letter.strip(), **more}


def check(name: str, rows: list[dict], parse: Callable[[dict], list[dict]]) -> None:
  for row in rows:
    *shown, record = parse(row)
    example = render(TASKS[name], record, wording=0, demonstrations=shown)
    assert (example.inputs, example.targets) == (row["inputs"], row["targets"])


@pytest.mark.parametrize("shots", [0, 2])
def test_mmlu_is_the_papers(shots):
  rows = real_rows(f"instruct/mmlu.{shots}-shot.full.jsonl.gz")
  opening = re.compile(r"The following are .* \(with answers\) about ([^.]*)\. Q: (.*)", re.DOTALL)

  def parse(row):
    subject, rest = opening.fullmatch(row["inputs"]).groups()
    pieces = rest.split(" | Q: ")
    assert len(pieces) == shots + 1
    pieces[-1] += " " + row["targets"]
    return [read_choice(piece, subject=subject) for piece in pieces]

  rows = [row for row in rows if row["inputs"].count(" | Q: ") == shots]
  assert len(rows) > 1500
  check("mmlu", rows, parse)


@pytest.mark.parametrize("name", ["0-shot.date_understanding", "2-shot.date_understanding",
                                  "0-shot.penguins_in_a_table", "0-shot.snarks"])  # fmt: skip
def test_bbh_is_the_papers(name):
  def parse(row):
    pieces = row["inputs"][1:].split(" | ")
    pieces[-1] += " " + row["targets"]
    return [read_choice(piece) for piece in pieces]

  check("bbh", real_rows(f"instruct/bbh-nlp.{name}.jsonl.gz"), parse)


@pytest.mark.parametrize("name", ["0-shot.english", "1-shot.english", "0-shot.finnish"])
def test_tydiqa_is_the_papers(name):
  shots, language = name.split("-shot.")
  head = f"Please answer each of the question according to the given context in {language}. "

  def parse(row):
    rest = row["inputs"].removeprefix(head)
    places = [m.start() for m in re.finditer(r" \|  context: ", rest)] if shots == "1" else []
    pieces = [rest[: places[0]], rest[places[0] + 3 :]] if places else [rest]
    records = []
    for piece in pieces:
      context, _, question = piece.strip(" ").removeprefix("context: ").partition(" Q: ")
      if piece.startswith("  "):
        context = piece.removeprefix(" context: ").partition(" Q: ")[0]
      question, _, answer = question.partition(" A:")
      answer = answer.removeprefix(" ") or row["targets"]
      records.append({"context": context, "question": question, "answers": {"text": [answer]},
                      "id": f"{language}-1"})  # fmt: skip
    return records

  rows = real_rows(f"instruct/tydiqa.{name}.jsonl.gz")
  plain = [row for row in rows if row["inputs"].count(" Q: ") == 1 + int(shots)
           and row["inputs"].count(" A:") == 1 + int(shots)
           and row["inputs"].count("context: ") == 1 + int(shots)]  # fmt: skip
  assert len(plain) > 0.9 * len(rows)
  check("tydiqa", plain, parse)


@pytest.mark.parametrize("shots", [0, 3])
def test_mgsm_is_the_papers(shots):
  def parse(row):
    parts = row["inputs"].removeprefix(" Question: ").split(" Question: ")
    records = []
    for part in parts[:-1]:
      question, answer = part.split(" Step-by-Step Answer: ")
      records.append({"question": f"Question: {question}", "answer": f"Step-by-Step Answer: "
                      f"{answer}", "answer_number": 1})  # fmt: skip
    question = parts[-1].removesuffix(" Step-by-Step Answer: ")
    assert len(records) == shots
    number = row["targets"].replace("# ", "")
    return [*records, {"question": question[1:], "answer": None, "answer_number": number}]

  check("mgsm_en", real_rows(f"instruct/mgsm.{shots}-shot.en.jsonl.gz"), parse)


def test_iwslt14_is_the_papers():
  head = "Translate the sentences into English.  German: "

  def parse(row):
    text = row["inputs"].removeprefix(head).removesuffix(" English: ")
    return [{"de": text, "en": row["targets"]}]

  check("iwslt14", real_rows("iwslt14/valid.deen.jsonl.gz"), parse)
  shown = render(TASKS["iwslt14"], {"de": "nein", "en": "no"}, wording=0,
                 demonstrations=[{"de": "ja", "en": "yes"}])  # fmt: skip
  assert shown.inputs == (
    "Translate the sentences into English. German: ja English: yes  German: nein English: "
  )


def test_grade_school_maths_without_calculator_marks():
  for row in real_rows("gsm8k/train.jsonl.gz"):
    target = render(TASKS["maths"], row, wording=0).targets
    number = row["answer"].rpartition("#### ")[2]
    assert target.endswith(f" The answer is {number}.")
    assert "<<" not in target
  row = {"question": "q", "answer": "a 9 * 2 = $<<9*2=18>>18 a day\nb.\n#### 1,018"}
  example = render(TASKS["maths"], row, wording=0)
  assert example.targets == "a 9 * 2 = $18 a day. b. The answer is 1,018."


RECORDS = {
  "instruct": {"inputs": "do {this}", "targets": "done"},
  "text": {"text": "done"},
  "wiki40b": {"text": "_START_ARTICLE_\ndone_NEWLINE_"},
  "translation": {"fi": "tehty", "en": "done"},
  "summarisation": {"article": "long {text}", "highlights": "done"},
  "maths": {"question": "how {many}?", "answer": "so\n#### 1"},
  "extractive_qa": {"context": "it is done", "question": "what is it?", "answers": ["done"]},
  "choice": {"question": "which {one}?", "choices": ["done", "x"], "answer": 0, "context": "c"},
  "mmlu": {"question": "q", "choices": ["done", "x"], "answer": "A", "subject": "a_b"},
  "bbh": {"question": "q", "options": ["x", "done"], "answer": "done"},
  "tydiqa": {"context": "c", "question": "q", "answer": "done", "language": "english"},
  "mgsm_zh": {"question": "问题\uff1aq", "answer": "逐步解答\uff1adone"},
  "iwslt14": {"inputs": "fertig", "targets": "done"},
}


@pytest.mark.parametrize("name", RECORDS)
def test_every_wording_asks_without_the_answer_and_demonstrations_answer(name):
  task, record = TASKS[name], RECORDS[name]
  prompts = set()
  for wording in range(len(task.wordings)):
    plain = render(task, record, wording=wording)
    twice = render(task, record, wording=wording, demonstrations=[record, record])
    assert plain.targets == twice.targets
    prompts.add(plain.inputs)
    opening = task.wordings[wording].opening.format(**task.read(record).blanks)
    assert twice.inputs.startswith(opening)
    assert plain.inputs.startswith(opening)
    if name not in ("text", "wiki40b"):
      answered = plain.inputs[len(opening) :].strip() + " " + plain.targets
      assert re.sub(" +", " ", twice.inputs).count(re.sub(" +", " ", answered)) == 2
      assert twice.inputs.endswith(plain.inputs[len(opening) :])
    assert "{" not in plain.inputs.replace("{this}", "").replace("{text}", "").replace(
      "{many}", ""
    ).replace("{one}", "")
  assert len(prompts) == len(task.wordings)


def test_shuffled_options_keep_the_right_one_right():
  record = {"question": "q", "options": ["red", "blue", "green"], "answer": 2}
  for order in ([2, 0, 1], [1, 2, 0], [0, 1, 2]):
    example = render(TASKS["choice"], record, wording=0, option_order=order)
    assert f"({example.targets}) green" in example.inputs
    assert {"red", "blue", "green"} <= set(re.findall(r"\w+", example.inputs))
  assert example == render(TASKS["choice"], record, wording=0)


def test_languages_are_told_by_fields_or_by_the_task():
  pair = {"translation": {"de": "ja", "en": "yes"}}
  there = render(TASKS["translation_de_en"], pair, wording=3)
  back = render(TASKS["translation_en_de"], pair, wording=3)
  assert (there.inputs, there.targets) == ("German: ja English:", "yes")
  assert (back.inputs, back.targets) == ("English: yes German:", "ja")
  named = {"inputs": "da", "targets": "ja", "source_language": "ro", "target_language": "Orin"}
  assert render(TASKS["translation"], named, wording=3).inputs == "Romanian: da Orin:"
  assert not tasks.are_alike(TASKS["translation"], named, pair)


def test_an_id_is_no_indonesian_beside_two_languages():
  pair = {"id": "17", "de": "ja", "en": "yes"}
  assert render(TASKS["translation"], pair, wording=3).inputs == "German: ja English:"
  number = {"id": 17, "de": "ja", "en": "yes"}
  assert render(TASKS["translation"], number, wording=3).inputs == "German: ja English:"
  there = {"id": "ya", "en": "yes"}
  assert render(TASKS["translation"], there, wording=3).inputs == "Indonesian: ya English:"


def test_an_answer_is_a_label_where_there_are_labels():
  def answer(**fields):
    return render(TASKS["choice"], {"question": "q", **fields}, wording=0).targets

  listed = {"text": ["2", "1", "x"], "label": ["1", "2", "3"]}
  assert answer(choices=listed, answerKey="1") == "A"
  assert answer(choices={"text": ["a", "b"], "label": None}, answer="b") == "B"
  assert answer(options=["A", "B", "AB"], answer="B") == "B"
  assert answer(options=["B", "A", "C"], answer=0) == "A"


def test_questions_are_told_apart_by_what_is_asked():
  def question(name, **fields):
    return tasks.question_of(TASKS[name], fields)

  choice = lambda **more: question("choice", **{
    "question": "q", "options": ["a", "b"], "answer": 0, **more
  })  # fmt: skip
  assert choice() == choice(id="7", answer=1) == choice(options=["b", "a"])
  assert choice() != choice(options=["a", "c"])
  assert choice() != choice(question="p")
  pair = lambda de, en: question("translation", de=de, en=en)
  assert pair("ja", "yes") == pair("ja", "aye") != pair("doch", "yes")
  text = lambda targets: question("instruct", inputs="", targets=targets)
  assert text("a") != text("b")


BAD = [
  ("choice", {"question": "q", "options": ["B", "A"], "answer": "A"}, "answer = 'A' is the letter"),
  (
    "choice",
    {"question": "q", "choices": {"text": ["a", "b"], "label": 3}, "answer": 0},
    "label of choices must be a list",
  ),
  (
    "choice",
    {"question": "q", "choices": {"text": ["a", "b"], "label": ["1"]}, "answer": 0},
    "label of choices must be a list",
  ),
  ("text", {"text": b"\xff"}, "text must be text, not bytes that are not UTF-8"),
  ("choice", {"question": "q", "options": ["a", "b"], "answer": 2}, "answer = 2 is no option"),
  ("choice", {"question": "q", "options": ["a", "b"], "answer": True}, "answer = True is no"),
  ("choice", {"question": "q", "options": "ab", "answer": 0}, "options must be a list"),
  ("choice", {"question": "q", "options": ["a", 1], "answer": 0}, "an entry of options must be"),
  ("maths", {"question": "q", "answer": "18"}, "answer has no last line"),
  ("translation", {"de": "x", "title": "y"}, "no two fields named by language codes"),
  ("translation_de_en", {"de": "x"}, "no en, only de"),
  ("extractive_qa", {"context": "c", "question": "q", "answers": []}, "answers must be a list"),
  ("mgsm_en", {"question": "q", "answer": None}, "no answer or answer_number"),
  ("mmlu", {"question": "q", "options": ["a", "b"], "answer": 0}, "no subject, only question"),
  ("instruct", {"inputs": "\ud800", "targets": "x"}, "inputs has a lone surrogate"),
  ("text", {"text": " "}, "targets is empty"),
]


@pytest.mark.parametrize(("name", "record", "reason"), BAD, ids=[reason for *_, reason in BAD])
def test_bad_records_say_what_is_wrong(name, record, reason):
  with pytest.raises(tasks.BadRecord, match=f"^{re.escape(reason)}"):
    render(TASKS[name], record, wording=0)


def test_names_are_checked():
  with pytest.raises(tasks.UserError, match="did you mean 'maths'"):
    tasks.find("math")
  with pytest.raises(tasks.UserError, match="it has 0 to 3"):
    tasks.check_wording("maths", 4)
