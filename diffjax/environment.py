"""What the environment says of this process: which one of a run's it is, and who started it."""

import importlib.util
import os
from collections.abc import Mapping
from glob import glob
from typing import NamedTuple

from diffjax.types import UserError

COORDINATOR, PROCESSES, PROCESS = (
  "DIFFJAX_COORDINATOR",  # HOST:PORT of process 0
  "DIFFJAX_PROCESSES",  # how many there are
  "DIFFJAX_PROCESS",  # the number of this one
)
LOCAL_DEVICES = "DIFFJAX_LOCAL_DEVICES"  # 0,1: the ids of the GPUs that are this process's
HEARTBEAT = "DIFFJAX_HEARTBEAT"  # seconds after which a silent process counts as dead
_HEARTBEAT_SECONDS = 100


class Place(NamedTuple):
  """Which process of a run this is, as the environment says it."""

  coordinator: str
  processes: int
  process: int
  local_devices: tuple[int, ...] | None = None


def place_of(environment: Mapping[str, str]) -> Place | None:
  """What DIFFJAX_COORDINATOR, DIFFJAX_PROCESSES and DIFFJAX_PROCESS say; None without any.

  Raises:
    UserError: one of the three is missing or no number, or they contradict each other.
  """
  given = {name: environment.get(name, "") for name in (COORDINATOR, PROCESSES, PROCESS)}
  if not any(given.values()):
    return None
  for name, text in given.items():
    if not text:
      raise UserError(f"{name} is not set, but {_others(given)} is; set all three, or none")
  host, colon, port = given[COORDINATOR].rpartition(":")
  if not (host and colon and port.isdecimal()):
    raise UserError(f"{COORDINATOR} = {given[COORDINATOR]!r} must be HOST:PORT of process 0")
  count, number = (_whole(name, given[name]) for name in (PROCESSES, PROCESS))
  if not number < count:
    raise UserError(f"{PROCESS} = {number} must be in 0 .. {count - 1}, as {PROCESSES} = {count}")
  devices = environment.get(LOCAL_DEVICES, "")
  ids = tuple(_whole(LOCAL_DEVICES, text) for text in devices.split(",")) if devices else None
  return Place(given[COORDINATOR], count, number, ids)


def _others(given: Mapping[str, str]) -> str:
  return next(name for name, text in given.items() if text)


def _whole(name: str, text: str) -> int:
  if not text.isdecimal():
    raise UserError(f"{name} = {text!r} must be a whole number")
  return int(text)


def heartbeat(environment: Mapping[str, str] = os.environ) -> int:
  """Seconds after which a silent process counts as dead. Raises UserError."""
  seconds = _whole(HEARTBEAT, environment.get(HEARTBEAT, "") or str(_HEARTBEAT_SECONDS))
  if seconds < 2:
    raise UserError(f"{HEARTBEAT} = {seconds} must be at least 2 seconds")
  return seconds


def started_together(environment: Mapping[str, str]) -> bool:
  """Whether a launcher that JAX recognises started several processes."""
  # A batch script is no step of Slurm's, though it has SLURM_PROCID and SLURM_NTASKS too.
  tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "")
  counts = [tasks] * ("SLURM_STEP_NODELIST" in environment)
  counts += [environment.get("OMPI_COMM_WORLD_SIZE", "")]
  if any(text.isdecimal() and int(text) > 1 for text in counts):
    return True
  names = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
  return any("," in environment.get(name, "") for name in names) or bool(
    environment.get("MEGASCALE_COORDINATOR_ADDRESS")
  )


def on_tpu(environment: Mapping[str, str]) -> bool:
  """Whether this is a TPU host, which learns of its pod from the metadata server."""
  platforms = environment.get("JAX_PLATFORMS", "")
  wanted = not platforms or "tpu" in platforms
  return wanted and bool(
    importlib.util.find_spec("libtpu") and (glob("/dev/accel*") or glob("/dev/vfio/[0-9]*"))
  )
