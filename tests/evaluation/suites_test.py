"""Suites: which files, which groups, how many, and what a missing one is told as."""

import gzip
import itertools
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from diffjax.config import SourceConfig
from diffjax.evaluation import metrics, suites
from diffjax.types import UserError

REAL = Path(os.environ.get("DIFFJAX_DATA", Path(__file__).parents[3] / "shared/data"))


def write(path, records):
  path.parent.mkdir(parents=True, exist_ok=True)
  text = "".join(json.dumps(record) + "\n" for record in records)
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def asks(*answers, prompt="Q"):
  return [{"inputs": f"{prompt} {n} A:", "targets": answer} for n, answer in enumerate(answers)]


def test_groups_come_from_file_names_and_numbers_go_on_over_files(tmp_path):
  write(tmp_path / "instruct/bbh-nlp.2-shot.snarks.jsonl.gz", asks("A", "B"))
  write(tmp_path / "instruct/bbh-nlp.2-shot.date.long.jsonl", asks("C"))
  write(tmp_path / "instruct/bbh-nlp.0-shot.snarks.jsonl", asks("D"))
  found = suites.load("bbh", tmp_path, shots=2)
  assert [(q.number, q.group, q.reference) for q in found.asked] == [
    (0, "date.long", "C"), (1, "snarks", "A"), (2, "snarks", "B"),
  ]  # fmt: skip
  assert found.total == 3
  assert suites.load("bbh", tmp_path).asked[0].reference == "D"
  before = found.fingerprint
  write(tmp_path / "instruct/bbh-nlp.2-shot.date.long.jsonl", asks("D"))
  assert suites.load("bbh", tmp_path, shots=2).fingerprint != before


def test_subjects_stand_in_a_list_with_one_for_each_question(tmp_path):
  write(tmp_path / "instruct/mmlu.0-shot.full.jsonl", asks("A", "B", "C"))
  index = tmp_path / "instruct/mmlu.0-shot.index2subject.json"
  index.write_text(json.dumps(["law", "law", "art"]))
  assert [q.group for q in suites.load("mmlu", tmp_path).asked] == ["law", "law", "art"]
  assert [q.group for q in suites.load("mmlu", tmp_path, limit=2).asked] == ["law", "law"]
  index.write_text(json.dumps(["law"]))
  with pytest.raises(UserError, match="must be a list of 3 subjects"):
    suites.load("mmlu", tmp_path)


def test_a_limit_is_spread_evenly():
  assert suites.evenly(10, 0) == suites.evenly(10, 10) == suites.evenly(10, 99) == list(range(10))
  chosen = suites.evenly(1531, 57)
  assert len(set(chosen)) == 57
  assert {b - a for a, b in itertools.pairwise(chosen)} <= {26, 27}


def test_demonstrations_are_of_the_training_file(tmp_path):
  record = lambda n: {"question": f"Test {n}?", "answer": f"It is {n}.\n#### {n}"}
  train = [{"question": f"Train {n}?", "answer": f"So {n}.\n#### {n}"} for n in range(4)]
  write(tmp_path / "gsm8k/test.jsonl", map(record, range(6)))
  write(tmp_path / "gsm8k/train.jsonl.gz", train)
  asked = suites.load("gsm8k", tmp_path, shots=2).asked
  for question in asked:
    assert question.prompt.count("Train") == 2
    assert question.prompt.count("Test") == 1
    assert metrics.last_number(question.reference) == question.number
  assert "Train" not in suites.load("gsm8k", tmp_path).asked[0].prompt


def test_a_source_is_grouped_by_its_examples_tasks(tmp_path):
  records = [{"inputs": "a", "targets": "b", "task": "x"}, {"inputs": "c", "targets": "d"}]
  write(tmp_path / "mixed.jsonl", records)
  section = SourceConfig(kind="jsonl", path=str(tmp_path / "mixed.jsonl"), name="rest")
  assert [q.group for q in suites.of_source(section).asked] == ["x", "rest"]


@pytest.mark.parametrize(
  ("name", "shots", "message"),
  [
    ("mmul", 0, "did you mean 'mmlu'"),
    ("tydiqa", 1, r"has no instruct/tydiqa.1-shot.\*.jsonl, plain or .gz; put or link"),
    ("iwslt14", 2, "has no iwslt14/test.deen.2-shot.jsonl, plain"),
    ("gsm8k", 3, "train.jsonl"),
    ("multi30k", 1, "shows no demonstrations"),
    ("iwslt14_validation", 2, "shows no demonstrations"),
    ("iwslt14", 0, "or --tasks=iwslt14_validation$"),
  ],
)
def test_what_is_missing_is_one_line(tmp_path, name, shots, message):
  write(tmp_path / "gsm8k/test.jsonl", [{"question": "a", "answer": "#### 1"}])
  with pytest.raises(UserError, match=message) as error:
    suites.load(name, tmp_path, shots=shots)
  assert "\n" not in str(error.value)


def test_the_validation_file_has_a_name_of_its_own(tmp_path):
  write(tmp_path / "iwslt14/valid.deen.jsonl", asks("a", "b"))
  found = suites.load("iwslt14_validation", tmp_path)
  assert ([q.reference for q in found.asked], found.expected) == (["a", "b"], {})
  assert found.files == (str(tmp_path / "iwslt14/valid.deen.jsonl"),)
  with pytest.raises(UserError, match="has no iwslt14/test"):
    suites.load("iwslt14", tmp_path)


def test_pairs_and_summaries_are_rendered(tmp_path):
  folder = tmp_path / "a [b]"  # no pattern
  (folder / "wmt14").mkdir(parents=True)
  for code, text in {"en": "A cat.", "de": "Eine Katze."}.items():
    (folder / f"wmt14/test.{code}").write_text(f"{text}\n")
  write(folder / "gigaword/test.jsonl", [{"document": "A long story.", "summary": "story"}])
  (pair,) = suites.load("wmt14", folder).asked
  assert (pair.prompt, pair.reference) == (
    "Translate the English sentence to German. English: A cat. German:", "Eine Katze.",
  )  # fmt: skip
  (summary,) = suites.load("gigaword", folder).asked
  assert (summary.prompt, summary.reference) == (
    "Summarize each text. Text: A long story. Summary:", "story",
  )  # fmt: skip


def test_every_suite_is_scored_by_metrics_that_exist():
  for suite in suites.SUITES.values():
    assert set(suite.metrics) <= set(metrics.METRICS)


def test_sizes_are_of_groups_with_files_of_their_own(tmp_path):
  write(tmp_path / "instruct/bbh-nlp.0-shot.snarks.jsonl", asks("A", "B"))
  write(tmp_path / "instruct/bbh-nlp.0-shot.date.jsonl", asks("A"))
  found = suites.load("bbh", tmp_path, limit=1)
  assert (found.sizes, len(found.asked)) == ({"snarks": 2, "date": 1}, 1)
  assert suites.SUITES["bbh"].average == "macro"


def test_the_same_questions_twice_are_refused(tmp_path):
  for ending in ("", ".gz"):
    write(tmp_path / f"instruct/bbh-nlp.0-shot.snarks.jsonl{ending}", asks("A"))
  with pytest.raises(UserError, match="are the same questions"):
    suites.load("bbh", tmp_path)


@pytest.mark.skipif(not (REAL / "instruct").is_dir(), reason="needs the real files")
@pytest.mark.parametrize(
  ("name", "shots", "count", "groups"),
  [
    ("mmlu", 0, 1531, 57), ("mmlu", 2, 1531, 57), ("bbh", 0, 138, 3), ("tydiqa", 0, 1222, 2),
    ("tydiqa", 1, 440, 1), ("mgsm", 0, 250, 1), ("mgsm", 3, 250, 1),
  ],
)  # fmt: skip
def test_real_files_have_the_papers_questions(name, shots, count, groups):
  found = suites.load(name, REAL, shots=shots)
  counts = Counter(question.group for question in found.asked)
  assert (len(found.asked), found.total, len(counts)) == (count, count, groups)
  for group in counts.keys() & found.expected.keys():
    assert counts[group] == found.expected[group]
  for question in found.asked:
    if name == "mmlu":
      assert f"about {question.group}. Q:" in question.prompt
    if name == "mgsm":  # fillers hold the place of the steps
      assert question.reference.split()[:-1] == ["#"] * (59 if shots else 60)
  main = metrics.METRICS[suites.SUITES[name].metrics[0]]
  references = [question.reference for question in found.asked[:200]]
  assert main.value(references, references) == pytest.approx(100)
