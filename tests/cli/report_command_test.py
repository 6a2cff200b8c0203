"""`diffjax report` prints the scores, says what is missing, and writes the study."""

import json
import sys

import pytest

from diffjax.cli import main

RESULT = {
  "task": "sums", "shots": 2, "metric": "bleu", "num_steps": 4, "length": "gold",
  "scores": {"bleu": {"value": 12.5, "error": 0.5}},
}  # fmt: skip


def call(monkeypatch, *words):
  monkeypatch.setattr(sys, "argv", ["diffjax", "report", *map(str, words)])
  main.main()


def write(directory, parameters):
  directory.mkdir()
  model = {"path": "somewhere", "parameters": parameters, "process": "absorbing"}
  report = {"model": model, "results": [RESULT]}
  (directory / "report.json").write_text(json.dumps(report))
  return directory


def test_report_over_two_evaluations(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  call(monkeypatch, write(tmp_path / "one", 10), write(tmp_path / "two", 2000))
  printed = capsys.readouterr().out
  for text in ("one", "two", "2k", "sums, 2-shot", "12.5 ± 0.5", "missing: Adapted against"):
    assert text in printed
  record = json.loads((tmp_path / "report" / "study.json").read_text())
  assert record["command"].startswith("diffjax report")
  assert [figure["title"] for figure in record["figures"]] == ["sums by size"]


def test_a_mistake_is_one_line_and_its_code(tmp_path, monkeypatch, capsys):
  (tmp_path / "file").write_text("")
  directory = write(tmp_path / "one", 10)
  out = ("--out", tmp_path / "file")
  for words in ((tmp_path / "nothing",), (directory, *out), (directory, directory)):
    with pytest.raises(SystemExit) as stop:
      call(monkeypatch, *words)
    assert stop.value.code == 64
    assert capsys.readouterr().err.count("\n") == 1
