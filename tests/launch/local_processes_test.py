"""launch/local/processes.sh: several processes, one exit code, one end."""

import functools
import os
import signal
import subprocess
import time


def processes(room, *words) -> list[str]:
  return room.command("local/processes.sh", *words)


def test_places_prefixes_and_words(room):
  code = (
    'echo "$DIFFJAX_PROCESS/$DIFFJAX_PROCESSES $DIFFJAX_HEARTBEAT ${JAX_NUM_CPU_DEVICES-} <$1>"'
  )
  said = room.run(
    "local/processes.sh", "--processes=3", "--devices=2", "--heartbeat=9", "--", "bash", "-c", code,
    "_", "a b;$(c)",
  )  # fmt: skip
  lines = sorted(said.splitlines())
  assert lines == [f"[p{number}] {number}/3 9 2 <a b;$(c)>" for number in range(3)]


def test_sigterm_goes_to_all(room):
  code = "trap 'exit 75' TERM; echo up; for ((;;)); do sleep 0.05; done"
  argv = processes(room, "--processes=2", "--", "bash", "-c", code)
  child = subprocess.Popen(argv, env=room.environment, stdout=subprocess.PIPE, text=True)
  assert sorted(child.stdout.readline() for _ in range(2)) == ["[p0] up\n", "[p1] up\n"]
  child.send_signal(signal.SIGTERM)
  assert child.wait(30) == 75


def test_ctrl_c_reaches_each_process_once_and_leaves_none_behind(room):
  """A terminal sends SIGINT to the whole group: the launcher, its sleep and whoever is in it."""
  code = """
    trap 'n=$((n + 1))' TERM INT; n=0; echo up $$; until ((n)); do sleep 0.05; done
    sleep 0.3; echo saved; exit $((n == 1 ? 75 : 70))"""
  argv = processes(room, "--processes=2", "--", "bash", "-c", code)
  child = subprocess.Popen(
    argv, env=room.environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
    # Whoever runs the tests in the background has it ignored, which a shell cannot undo.
    preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
  )  # fmt: skip
  for _ in range(2):
    assert " up " in child.stdout.readline()
  os.killpg(child.pid, signal.SIGINT)
  assert child.communicate(timeout=30)[0].count("saved") == 2
  assert child.returncode == 75


def test_the_others_are_ended_after_one_that_failed(room):
  # The one that fails leaves a helper that holds its output, as a killed trainer's readers do.
  code = "((DIFFJAX_PROCESS == 0)) || { sleep 100 & exit 66; }; exec sleep 60"
  began = time.monotonic()
  said = room.run(
    "local/processes.sh", "--processes=2", "--grace=1", "--", "bash", "-c", code, code=66
  )
  assert time.monotonic() - began < 40
  assert "process 1 ended with 66" in said
  assert "process 0 ended with 143" in said


def test_supervised_it_restarts_until_done(room):
  room.workdir.mkdir(parents=True)
  code = """
    ((DIFFJAX_PROCESS == 0)) || exit 0
    cd "${1#--workdir=}"; n=$(ls checkpoints 2>/dev/null | wc -l); mkdir -p checkpoints/$((n + 1))
    ((n == 2)) || exit 137"""
  said = room.run(
    "local/processes.sh", "--processes=2", "--supervise", "--", "bash", "-c", code, "_",
    f"--workdir={room.workdir}",
  )  # fmt: skip
  assert "restart 2 after code 137; the newest committed step seen is 2" in said
  assert "restart 3" not in said
