"""Answers on disk: what is kept, what is refused."""

import json
import math

import pytest

from diffjax.cli.answer_file import AnswerFile, record
from diffjax.sampling import Generation
from diffjax.types import UserError

PROMPTS = ["eins", "zwei\u2028", "drei\r\nvier"]
SETTINGS = {"num_steps": 3, "lengths": None, "temperature": 0.5}


def answer(text):
  return Generation(text, [5, 6], [-0.5, -math.inf], -0.5, -1.0, 2)


def write(path, prompts=PROMPTS, settings=SETTINGS, limit=None):
  file = AnswerFile(path, prompts, settings)
  first = file.done
  for prompt in prompts[first:limit]:
    file.append([answer(prompt.upper())])
  return first


@pytest.fixture
def whole(tmp_path):
  write(tmp_path / "whole.jsonl")
  return (tmp_path / "whole.jsonl").read_bytes()


def test_lines_are_answers_in_order(whole):
  records = [json.loads(line) for line in whole.decode().split("\n")[:-1]]
  assert [one["prompt"] for one in records] == PROMPTS
  assert [one["text"] for one in records] == ["EINS", "ZWEI\u2028", "DREI\r\nVIER"]
  assert records[0]["scores"] == [-0.5, None]  # JSON has no infinity


@pytest.mark.parametrize("torn", [b"", b'{"prompt": "zw', b"\x00\x00\x00\n", b"{}\n"])
def test_what_is_complete_is_kept_and_what_is_torn_goes(tmp_path, whole, torn):
  path = tmp_path / "answers.jsonl"
  assert write(path, limit=1) == 0
  with path.open("ab") as file:
    file.write(torn)
  assert write(path) == 1
  assert path.read_bytes() == whole
  assert write(path) == 3
  assert path.read_bytes() == whole


def test_a_file_torn_in_its_first_line_starts_over(tmp_path, whole):
  path = tmp_path / "answers.jsonl"
  write(path, limit=1)
  path.write_bytes(path.read_bytes()[:-4])
  assert write(path) == 0
  assert path.read_bytes() == whole


def test_prompts_may_be_added_at_the_end(tmp_path, whole):
  path = tmp_path / "answers.jsonl"
  write(path, PROMPTS[:2])
  assert write(path) == 2
  assert path.read_bytes() == whole


@pytest.mark.parametrize(
  ("prompts", "settings", "message"),
  [
    (PROMPTS, SETTINGS | {"num_steps": 4}, "was made with num_steps = 3, now it is 4"),
    (PROMPTS, SETTINGS | {"lengths": 4}, "was made with lengths = None, now it is 4"),
    (["null", *PROMPTS[1:]], SETTINGS, "answers.jsonl:1 answers another prompt"),
    (PROMPTS[:1], SETTINGS, "has 2 answers, and there are 1 prompts"),
  ],
)
def test_answers_to_something_else_are_refused(tmp_path, prompts, settings, message):
  path = tmp_path / "answers.jsonl"
  write(path, limit=2)
  before = path.read_bytes()
  with pytest.raises(UserError, match=message) as error:
    AnswerFile(path, prompts, settings)
  assert "\n" not in str(error.value)
  assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["mine", "mine\n", '{"prompt": "eins"}\n'])
def test_a_file_of_somebody_else_is_refused(tmp_path, content):
  path = tmp_path / "answers.jsonl"
  path.write_text(content)
  with pytest.raises(UserError, match=r"answers.jsonl.settings.json, which says"):
    write(path)
  assert path.read_text() == content


def test_a_broken_line_in_the_middle_is_refused(tmp_path):
  path = tmp_path / "answers.jsonl"
  write(path)
  lines = path.read_bytes().split(b"\n")
  path.write_bytes(b"\n".join([lines[0], b"{", *lines[2:]]))
  with pytest.raises(UserError, match=r"answers.jsonl:2 is no answer"):
    write(path)


def test_nothing_is_written_before_the_first_answer(tmp_path):
  AnswerFile(tmp_path / "answers.jsonl", PROMPTS, SETTINGS)
  assert not list(tmp_path.iterdir())


def test_candidates_are_in_the_record_and_traces_are_not():
  best = answer("a")
  chosen = Generation("a", [5], [-0.1], -0.1, -0.1, 4, [], [best, answer("b")])
  written = record(chosen)
  assert [candidate["text"] for candidate in written["candidates"]] == ["a", "b"]
  assert "trace" not in written
  assert "candidates" not in record(best)
