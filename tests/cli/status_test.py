"""What `diffjax status` says of made-up runs."""

import argparse
import json

import pytest

from diffjax.cli import status
from diffjax.training import goodput
from diffjax.types import UserError

NOW = 1_800_000_000.0


def history(*, exit=None, reason="", end=NOW - 10):
  first = {"life": 0, "start": end - 200, "seconds": 90.0, "step": 20, "spent": {"step": 90.0}}
  spent = {"compile": 10.0, "step": 80.0, "save": 10.0}
  last = {"life": 1, "start": end - 100, "seconds": 100.0, "step": 30, "spent": spent}
  if exit is not None:
    last |= {"exit": exit, "reason": reason}
  return goodput.lives([first, {**last, "step": 20, "seconds": 0.0, "spent": {}}, last])


def state(**more):
  return {
    "step": 30, "steps": 120, "time": NOW - 10, "step_seconds": 0.5, "eta_seconds": 600.0,
    "last_checkpoint": 20, "restarts": 1, "exit": None, "reason": "", **more,
  }  # fmt: skip


def lines(tmp_path, values, lives):
  return status.describe(tmp_path, values, lives, checkpoint=(20, NOW - 75), now=NOW)


def test_a_live_run(tmp_path):
  said = "\n".join(lines(tmp_path, state(), history()))
  assert "running, last line 10 s ago" in said
  assert "30 of 120 (25 %)" in said
  assert "500 ms a step, 10 m 00 s to go" in said
  assert "20, 1 m 15 s old" in said
  assert "without a word" in said  # the life before
  assert "goodput 85.0 % of 3 m 20 s" in said
  assert "diffjax train" not in said


@pytest.mark.parametrize(
  ("code", "reason", "words"),
  [
    (75, "SIGTERM", "to go on: diffjax train"),
    (76, "the loss is nan", "when that is mended: diffjax train"),
  ],
)
def test_a_run_that_stopped_says_why_and_how_it_goes_on(tmp_path, code, reason, words):
  ended = history(exit=code, reason=reason)
  said = "\n".join(lines(tmp_path, state(exit=code, reason=reason), ended))
  assert f"{reason} (exit {code})" in said
  assert words in said
  assert f"--config={tmp_path}/config.json --workdir={tmp_path}" in said


def test_a_run_that_is_done_needs_nothing(tmp_path):
  ended = history(exit=0, reason="done")
  said = "\n".join(lines(tmp_path, state(exit=0, reason="done", step=120), ended))
  assert "done (exit 0)" in said
  assert "diffjax train" not in said


def test_a_run_that_was_killed(tmp_path):
  gone = history(end=NOW - 3600)
  said = "\n".join(lines(tmp_path, state(time=NOW - 3610), gone))
  assert "not heard of for 1 h 00 m" in said
  assert "to go on: diffjax train" in said
  assert "to go," not in said  # no end in sight


def test_the_command_reads_the_folder(tmp_path, capsys):
  (tmp_path / goodput.STATUS).write_text(json.dumps(state(step=None, step_seconds=None)))
  status.run(argparse.Namespace(run=tmp_path))
  said = capsys.readouterr().out
  assert str(tmp_path) in said
  assert "none yet" in said


@pytest.mark.parametrize("text", [None, "", "{"])
def test_a_folder_without_a_run_is_a_users_mistake(tmp_path, text):
  if text is not None:
    (tmp_path / goodput.STATUS).write_text(text)
  with pytest.raises(UserError, match="no status"):
    status.run(argparse.Namespace(run=tmp_path))


def test_a_run_that_measures_its_data_has_no_status_yet(tmp_path):
  status_of = lambda: status.run(argparse.Namespace(run=tmp_path))
  with pytest.raises(UserError, match="give the workdir of a run"):
    status_of()
  (tmp_path / "cache").mkdir()
  with pytest.raises(UserError, match="the data is being measured"):
    status_of()
