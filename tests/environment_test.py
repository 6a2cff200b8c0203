"""What the environment says of a run's processes, and what its mistakes are answered with."""

import pytest

from diffjax import environment
from diffjax.types import UserError

THREE = {
  environment.COORDINATOR: "10.0.0.1:8476",
  environment.PROCESSES: "4",
  environment.PROCESS: "3",
}


def test_the_environment_says_which_process_this_is():
  assert environment.place_of({}) is None
  assert environment.place_of(THREE) == environment.Place("10.0.0.1:8476", 4, 3)
  assert environment.place_of(THREE | {environment.LOCAL_DEVICES: "2,3"}).local_devices == (2, 3)
  assert environment.heartbeat({}) == 100
  assert environment.heartbeat({environment.HEARTBEAT: "10"}) == 10


MISTAKES = [
  ({environment.PROCESS: ""}, f"{environment.PROCESS} is not set"),
  ({environment.COORDINATOR: ""}, f"{environment.COORDINATOR} is not set"),
  ({environment.COORDINATOR: "host"}, "must be HOST:PORT"),
  ({environment.PROCESS: "4"}, r"= 4 must be in 0 .. 3"),
  ({environment.PROCESSES: "many"}, "must be a whole number"),
  ({environment.LOCAL_DEVICES: "0;1"}, "must be a whole number"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_one_line(changes, message):
  with pytest.raises(UserError, match=message) as raised:
    environment.place_of(THREE | changes)
  assert "\n" not in str(raised.value)


SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}  # as a batch script sees it
STEP = {"SLURM_STEP_NODELIST": "node1"}  # that srun adds


@pytest.mark.parametrize(
  ("variables", "several"),
  [
    ({}, False),
    (SLURM, False),
    (SLURM | STEP, True),
    (SLURM | STEP | {"SLURM_STEP_NUM_TASKS": "1"}, False),  # srun --ntasks=1 in it
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, True),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
  ],
)
def test_launchers_are_known_by_what_they_set(variables, several):
  assert environment.started_together(variables) == several
