"""What the environment says of a run's processes, and what its mistakes are answered with."""

import subprocess
import sys
import time

import pytest

from diffjax import hosts
from diffjax.exits import Exit
from diffjax.types import UserError

THREE = {hosts.COORDINATOR: "10.0.0.1:8476", hosts.PROCESSES: "4", hosts.PROCESS: "3"}


def test_the_environment_says_which_process_this_is():
  assert hosts.place_of({}) is None
  assert hosts.place_of(THREE) == hosts.Place("10.0.0.1:8476", 4, 3)
  assert hosts.place_of(THREE | {hosts.LOCAL_DEVICES: "2,3"}).local_devices == (2, 3)
  assert hosts.heartbeat({}) == 100
  assert hosts.heartbeat({hosts.HEARTBEAT: "10"}) == 10


MISTAKES = [
  ({hosts.PROCESS: ""}, f"{hosts.PROCESS} is not set"),
  ({hosts.COORDINATOR: ""}, f"{hosts.COORDINATOR} is not set"),
  ({hosts.COORDINATOR: "host"}, "must be HOST:PORT"),
  ({hosts.PROCESS: "4"}, r"= 4 must be in 0 .. 3"),
  ({hosts.PROCESSES: "many"}, "must be a whole number"),
  ({hosts.LOCAL_DEVICES: "0;1"}, "must be a whole number"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_one_line(changes, message):
  with pytest.raises(UserError, match=message) as raised:
    hosts.place_of(THREE | changes)
  assert "\n" not in str(raised.value)


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
  hosts.alone("sample")  # an allocation in which nothing was started by srun
  monkeypatch.setenv("SLURM_PROCID", "1")
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
