"""The functions of launch/common.sh: the trainer's exit codes, a rule that stops crash loops."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from diffjax import exits

LAUNCH = Path(__file__).parents[2] / "launch"
STALE = 5


def shell(code: str, *words) -> subprocess.CompletedProcess:
  """Runs some lines of shell after common.sh, with words as $1, $2, ..."""
  argv = ["bash", "-c", f'. "{LAUNCH}/common.sh"; {code}', "test", *map(str, words)]
  return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_the_codes_are_the_trainers():
  said = shell('echo "${RESTARTABLE[@]}"; echo "${TELLING[@]}"').stdout.splitlines()
  restartable, telling = ({int(code) for code in line.split()} for line in said)
  assert restartable == set(exits.RESTARTABLE)
  assert telling | {0} == {int(code) for code in exits.Exit}
  for name, code in re.findall(r"EXIT_(\w+)=(\d+)", (LAUNCH / "common.sh").read_text()):
    assert exits.Exit[name] == int(code)


def test_what_xpk_is_told_is_the_same_list():
  """XPK restarts on 42 and 127 to 255 by itself."""
  (given,) = re.findall(r"--restart-on-exit-codes=([\d,]+)", (LAUNCH / "README.md").read_text())
  missing = {int(code) for code in exits.RESTARTABLE} - set(range(127, 256))
  assert {int(code) for code in given.split(",")} == missing


# (code, committed now, committed when each restart so far began) -> restart or not
RULE = [
  *[(code, 0, [], True) for code in sorted(exits.RESTARTABLE)],
  *[(code, 900, [100], False) for code in (0, 1, 2, 64, 65, 66, 70, 73, 74, 76, 130)],
  (137, 0, [0] * (STALE - 1), True),
  (137, 0, [0] * STALE, False),
  (137, 7, [0, 7, 7, 7, 7], True),  # the first of the five did commit
  (137, 7, [0, 7, 7, 7, 7, 7], False),
  (75, 900, [100, 200, 300, 400, 500, 600, 700, 800], True),
  (137, 1, [0] * 9, True),
]


def test_the_restart_rule():
  code = "while read -ra words; do may_restart ${words[@]} 2>/dev/null && echo yes || echo no; done"
  argv = ["bash", "-c", f'. "{LAUNCH}/common.sh"; {code}']
  rows = "\n".join(" ".join(map(str, [code, now, *starts])) for code, now, starts, _ in RULE)
  said = subprocess.run(argv, input=rows + "\n", capture_output=True, text=True).stdout.split()
  for row, answer in zip(RULE, said, strict=True):
    assert (answer == "yes") == row[-1], row


def test_it_says_why_it_stops():
  assert "committed nothing beyond step 7" in shell("may_restart 137 7 7 7 7 7 7").stderr
  assert "a restart does not help" in shell("may_restart 66 7").stderr


@pytest.mark.parametrize("never_commits", [True, False])
def test_a_loop_ends_by_itself(never_commits):
  """Without progress after five restarts; with it, when the run is done."""
  ended = shell(
    """export LAUNCH_PAUSE=0
    attempt() { echo "attempt $1"; code=137; [[ $1 -lt 9 ]] || code=0; last=$1; }
    committed() { step=$((last * $1)); }
    moving() { step=$((last + 1)); }
    standing() { step=3; }
    supervise attempt "$1" """,
    "standing" if never_commits else "moving",
  )
  attempts = len(re.findall("attempt", ended.stdout))
  assert (attempts, ended.returncode) == ((1 + STALE, 137) if never_commits else (10, 0))


def test_the_most_telling_code():
  for codes, told in [
    ((0, 0), 0), ((0, 75), 75), ((143, 64), 64), ((137, 134, 1), 1), ((137, 134), 134),
    ((75, 134), 75), ((124, 134), 124), ((70, 66, 137), 66), ((), 0), ((143, 0), 143),
  ]:  # fmt: skip
    assert shell('most_telling "$@"', *codes).stdout == str(told), codes


def test_words_survive_two_shells():
  words = ["a b", "$(touch x);", "'\"\\", "", "*", "é\n-", "--x=a&b|c>d"]
  ended = shell('bash -c "$(quoted bash -c "$(quoted printf "%s\\0" "$@")")"', *words)
  assert ended.stdout.split("\0")[:-1] == words


def test_the_committed_step_is_the_newest_finished_checkpoint(tmp_path):
  assert shell('committed_step "$1"', tmp_path / "none").stdout == "0"
  (tmp_path / "status.json").write_text(json.dumps({"step": 60, "last_checkpoint": 50, "exit": 1}))
  assert shell('committed_step "$1"', tmp_path).stdout == "50"
  for name in ("7", "0100", "120.orbax-checkpoint-tmp"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  assert shell('committed_step "$1"', tmp_path).stdout == "100"
  (tmp_path / "status.json").write_text(json.dumps({"step": 60, "last_checkpoint": None}))
  assert shell('committed_step "$1"', tmp_path).stdout == "100"


def test_the_workdir_is_taken_from_the_command():
  assert shell('workdir_of "$@"', "a", "--workdir=/x y/").stdout == "/x y"
  assert shell('workdir_of "$@"', "--workdir", "/x", "b").stdout == "/x"
  ended = shell('workdir_of "$@"', "--workdir=gs://bucket/run")
  assert ended.returncode == 64
  assert "mount the bucket" in ended.stderr


def test_retry_gives_up_and_leaves_mistakes_alone():
  code = "export LAUNCH_PAUSE=0; bad() { echo x; return $1; }; "
  assert shell(code + "retry 3 bad 9").stdout == "x\n" * 3
  ended = shell(code + "retry 3 bad 64")
  assert (ended.stdout, ended.returncode) == ("x\n", 64)


def test_a_process_gets_the_signal_and_its_code_is_kept(tmp_path):
  """launch/task.sh, as it runs on every worker."""
  task = ["bash", LAUNCH / "task.sh", f"--exit={tmp_path / 'exit'}", f"--log={tmp_path / 'log'}"]
  loop = "trap 'echo saved; exit 75' TERM; echo up >up; for ((;;)); do sleep 0.05; done"
  child = subprocess.Popen([*task, "--", "bash", "-c", loop], cwd=tmp_path)
  while not (tmp_path / "up").exists():
    assert child.poll() is None
  child.terminate()
  assert child.wait(30) == 75
  assert (tmp_path / "exit").read_text() == "75\n"
  assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ saved\n", (tmp_path / "log").read_text())


def test_a_signal_to_the_group_is_one_signal_and_helpers_do_not_outlive_it(tmp_path):
  """Slurm signals the group, task.sh included; a reader process holds the log open."""
  task = ["bash", LAUNCH / "task.sh", f"--exit={tmp_path / 'exit'}", f"--log={tmp_path / 'log'}"]
  code = """
    trap 'n=$((n + 1))' TERM; n=0; (trap '' TERM; exec sleep 100) & echo $! >helper
    until ((n)); do sleep 0.05; done; sleep 0.3; exit $((74 + n))"""
  child = subprocess.Popen([*task, "--", "bash", "-c", code], cwd=tmp_path, start_new_session=True)
  helper = tmp_path / "helper"
  while not (helper.exists() and helper.read_text()):
    assert child.poll() is None
  os.killpg(child.pid, signal.SIGTERM)
  assert child.wait(30) == 75
  assert (tmp_path / "exit").read_text() == "75\n"
  there = Path("/proc", helper.read_text().strip(), "cmdline")
  for _ in range(200):  # a killed one is empty, then gone
    if not (there.exists() and there.read_bytes()):
      return
    time.sleep(0.05)
  raise AssertionError("the helper lives")


def test_a_run_that_others_restart_stops_itself(tmp_path):
  """Kubernetes starts it again and again; nothing is committed, then something is, then nothing."""
  workdir, starts = tmp_path / "run", tmp_path / "run.launch" / "uid"
  workdir.mkdir()

  def start(attempt: int) -> int:
    argv = ["bash", LAUNCH / "task.sh", f"--starts={starts}", f"--attempt={attempt}", "--"]
    return subprocess.run([*argv, "bash", "-c", "exit 137", f"--workdir={workdir}"]).returncode

  assert [start(attempt) for attempt in range(5)] == [137] * 5
  (workdir / "checkpoints" / "10").mkdir(parents=True)
  assert [start(attempt) for attempt in range(5, 11)] == [137] * 5 + [70]
  assert start(10) == 70  # another process of the same attempt decides the same
