"""Processes that wait for each other, in one process and without the others."""

import subprocess
import sys
import time

import pytest

from diffjax import hosts
from diffjax.exits import Exit
from diffjax.types import UserError

THREE = {hosts.COORDINATOR: "10.0.0.1:8476", hosts.PROCESSES: "4", hosts.PROCESS: "3"}


def test_commands_of_one_process_refuse_to_be_one_of_several(monkeypatch):
  hosts.alone("sample")
  for name, value in THREE.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match="diffjax sample runs in one process"):
    hosts.alone("sample")
  monkeypatch.setenv(hosts.PROCESSES, "1")
  monkeypatch.setenv(hosts.PROCESS, "0")
  hosts.alone("sample")
  for name in THREE:
    monkeypatch.delenv(name)
  monkeypatch.setenv("SLURM_NTASKS", "2")
  monkeypatch.setenv("SLURM_STEP_NODELIST", "node1")
  with pytest.raises(UserError, match="--ntasks=1"):
    hosts.alone("sample")


def test_alone_nobody_is_waited_for():
  with hosts.Peers() as peers:
    peers.say("something")
  hosts.barrier("nothing", 0.0)
  assert hosts.is_first()
  assert hosts.in_turn("work", lambda: 3, 0.0) == 3


# As JAX 0.10 and 0.12 word them.
LATE = (
  "DEADLINE_EXCEEDED: Barrier timed out. Id: x::0. # of tasks that reached the barrier: 1/4.\n"
  "The first task at the barrier: 0. Some timed out task names:\n1\n3\n\n\nRPC: /xla.x/Barrier"
)
SILENT = (
  "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n2\n"
  "The tasks have crashed. Check the task logs"
)
LEADER = "UNAVAILABLE: Failed to send RPC. Either the leader task was preempted/died"


@pytest.mark.parametrize(
  ("said", "who"), [(LATE, "processes 1, 3"), (SILENT, "process 2"), (LEADER, "process 0")]
)
def test_whom_the_service_misses_is_named(said, who):
  assert hosts._lost(RuntimeError(said)) == who


def test_a_peer_that_is_lost_while_all_agree_ends_the_others(monkeypatch):
  left = []
  peers = hosts.Peers(hear=lambda heard: peers.exchange("passed", "1"))
  peers._life, peers._seconds = 0, 10

  def tell(folder, words):
    if folder.endswith("passed"):
      raise RuntimeError(LATE)
    return [(0, "stop")]

  monkeypatch.setattr(peers, "_tell", tell)
  monkeypatch.setattr(hosts, "leave", lambda code, line, ended: left.append((code, line)))
  peers._meet()
  assert left == [(Exit.DEVICE, "processes 1, 3 is gone: nothing heard for 10 s")]


def test_a_folder_that_is_not_shared_is_refused(tmp_path, monkeypatch):
  hosts.check_shared(tmp_path)  # alone
  monkeypatch.setattr(hosts, "several", lambda: True)
  monkeypatch.setattr(hosts, "barrier", lambda *_: None)
  monkeypatch.setattr(hosts, "_SEEN_SECONDS", 0.0)
  hosts.check_shared(tmp_path / "new")
  assert not list((tmp_path / "new").iterdir())
  monkeypatch.setattr(hosts, "is_first", lambda: False)
  with pytest.raises(UserError, match="is not seen by process 0"):
    hosts.check_shared(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("number", "who"), [(0, "some of 1 of 2"), (1, "process 0 of 2, which does not")]
)
def test_others_that_never_come_are_waited_for_in_words_and_not_for_ever(number, who):
  port = 20000 + number
  script = (
    f"import os; os.environ.update({hosts.COORDINATOR}='localhost:{port}', "
    f"{hosts.PROCESSES}='2', {hosts.PROCESS}='{number}')\n"
    "from diffjax import hosts; hosts.start(patience=14)"
  )
  began = time.monotonic()
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
  assert done.returncode == Exit.DEVICE
  assert time.monotonic() - began < 60
  lines = [line for line in done.stderr.splitlines() if line.startswith("diffjax: ")]
  assert lines[0].startswith(f"diffjax: waiting for {who}")
  assert lines[-1].startswith("diffjax: waited 2")
  assert who in lines[-1]
