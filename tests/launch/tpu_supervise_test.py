"""launch/tpu/supervise.sh against a fake cloud: what is restarted, given back, left alone."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from tpu_vm_test import PATIENT, V4, actions, until

LAUNCH = Path(__file__).parents[2] / "launch"


class TestSupervise:
  WORDS = (*V4, "--devices=2", "--grace=5")

  def command(self, room, code: str) -> list[str]:
    """A run of a shell, whose workdir is this room's."""
    return ["--", "bash", "-c", code, "_", f"--workdir={room.workdir}"]

  @pytest.mark.slow
  def test_a_code_that_no_restart_helps_ends_it(self, room):
    said = room.tpu("supervise", *self.WORDS, *self.command(room, "exit 66"), code=66)
    assert "a restart does not help" in said
    assert actions(room).count("ssh start") == 1

  @pytest.mark.slow
  def test_neither_a_copy_nor_ssh_that_fails_for_a_while_is_the_end(self, room):
    """The copy fails at first; ssh is away while it runs: nothing deleted, nothing restarted."""
    room.tpu("queue", *V4)
    room.scenario(ssh_fails={"0": 12})  # two looks, five copies, and again
    end = room.cloud / "end"
    child = subprocess.Popen(
      room.command("tpu/supervise.sh", "--name=pod", "--zone=z", *self.WORDS,
                   *self.command(room, f"until [[ -e {end} ]]; do sleep 0.05; done")),
      cwd=room.repository, env=room.environment, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )  # fmt: skip
    until(room.running)
    room.scenario(ssh_fails={"0": 12 + 22, "1": 22})
    failed = lambda: re.search(r'"0": (\d+)', (room.cloud / "state.json").read_text() or '"0": 0')
    until(lambda: int(failed()[1]) >= 12 + 18)  # more than three looks of five tries
    end.touch()
    said = child.communicate(timeout=120)[0]
    assert child.returncode == 0, said
    assert "cannot be copied" in said
    assert actions(room).count("ssh start") == 1
    assert "delete" not in actions(room)

  def test_silence_is_not_success(self):
    code = f'. "{LAUNCH}/tpu/tpu.sh"; workers=2; answers=$1; run_codes; echo "$code $state"'
    for answers, said in [
      ("", "69 none"), ("[w0] run - none\n[w1] run - none", "69 none"),
      ("[w0] run a exit 0", "69 ran"), ("[w0] run a exit 66", "66 ran"),
      ("[w0] run a exit 0\n[w1] run a exit 0", "0 ran"),
    ]:  # fmt: skip
      ended = subprocess.run(["bash", "-c", code, "_", answers], capture_output=True, text=True)
      assert ended.stdout.strip() == said, (answers, ended.stderr)

  @pytest.mark.slow
  def test_one_that_never_commits_ends_it(self, room):
    said = room.tpu("supervise", *self.WORDS, *self.command(room, "exit 137"), code=137)
    assert "5 restarts in a row" in said
    assert actions(room).count("ssh start") == 6
    assert actions(room).count("ssh install") == 1  # the TPU stayed

  @pytest.mark.slow
  def test_devices_that_fail_twice_are_given_back(self, room):
    room.tpu("supervise", *self.WORDS, *self.command(room, "exit 69"), code=69)
    assert actions(room).count("delete") >= 2

  @pytest.mark.slow
  def test_it_restarts_what_got_further_and_gets_the_tpu_back(self, room):
    """Step by step: attempt n commits step n, dies; during the third the TPU is taken away."""
    code = """
      set -e; cd "${1#--workdir=}"; n=$(ls checkpoints | wc -l)
      if ((n == 5)); then exit 0; fi
      if ((DIFFJAX_PROCESS == 1)); then until [[ -e checkpoints/$((n + 1)) ]]; do sleep 0.05; done
      else sleep 0.3; mkdir checkpoints/$((n + 1)); fi
      if ((n == 2)); then sleep 60; fi
      exit 134"""
    (room.workdir / "checkpoints").mkdir(parents=True)
    child = subprocess.Popen(
      room.command("tpu/supervise.sh", "--name=pod", "--zone=z", *self.WORDS,
                   *self.command(room, code)),
      cwd=room.repository, env=room.environment, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )  # fmt: skip
    until(lambda: (room.workdir / "checkpoints" / "3").exists())
    room.preempt()
    said = child.communicate(timeout=120)[0]
    assert child.returncode == 0, said
    assert "was taken away" in said
    assert sorted(os.listdir(room.workdir / "checkpoints")) == ["1", "2", "3", "4", "5"]
    done = [action for action in actions(room) if action in ("create", "delete", "ssh install")]
    assert done == ["create", "ssh install", "delete", "create", "ssh install"]

  @pytest.mark.slow
  def test_a_stop_on_demand_is_no_reason_to_restart(self, room):
    argv = room.command("tpu/supervise.sh", "--name=pod", "--zone=z", *self.WORDS, "--",
                        *PATIENT, "_", f"--workdir={room.workdir}")  # fmt: skip
    child = subprocess.Popen(argv, cwd=room.repository, env=room.environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    until(lambda: len([*room.cloud.glob("tpu-1/*/diffjax-run/*/attempt")]) == 2)
    room.tpu("stop", "--seconds=20", code=75)
    said = child.communicate(timeout=60)[0]
    assert child.returncode == 75
    assert "stopped on demand" in said

  @pytest.mark.slow
  def test_a_run_that_goes_on_is_watched(self, room):
    room.tpu("queue", *V4)
    room.tpu("bootstrap", "--devices=2", f"--workdir={room.workdir}")
    room.tpu("run", "--", "bash", "-c", "sleep 4; exit 66", "_", f"--workdir={room.workdir}")
    room.scenario(
      describe_errors=[""] * 30 + ["ERROR: (gcloud) UNAVAILABLE"] * 9
    )  # while it looks on
    said = room.tpu("supervise", *self.WORDS, *self.command(room, "exit 0"), code=66)
    assert "watching it" in said
    assert actions(room).count("ssh start") == 1
