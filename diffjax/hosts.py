"""The processes of one run: how they find each other, wait for each other, and part.

Every wait is bounded and names who is missing. Only the commands call `start`: importing diffjax
starts nothing.
"""

import collections
import contextlib
import importlib.util
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import glob
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

import jax

from diffjax import exits
from diffjax.exits import Exit
from diffjax.types import Unavailable, UserError

COORDINATOR, PROCESSES, PROCESS = (
  "DIFFJAX_COORDINATOR",  # HOST:PORT of process 0
  "DIFFJAX_PROCESSES",  # how many there are
  "DIFFJAX_PROCESS",  # the number of this one
)
LOCAL_DEVICES = "DIFFJAX_LOCAL_DEVICES"  # 0,1: the ids of the GPUs that are this process's
HEARTBEAT = "DIFFJAX_HEARTBEAT"  # seconds after which a silent process counts as dead
_HEARTBEAT_SECONDS = 100
_START_SECONDS = 300.0
_SAID_EVERY = 10.0  # seconds between lines while others are waited for
_ROUND_SECONDS = 0.5
# What computing together says when a process is gone, in the words of gloo, NCCL and gRPC.
_BROKEN = re.compile(r"gloo|nccl|connection|socket|unavailable|remote peer", re.IGNORECASE)
_PARTING_SECONDS = 5.0


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


def start(*, patience: float = _START_SECONDS) -> None:
  """Joins the other processes of the run, if there are any; before any device is asked for.

  The environment says so by the three variables above, else TPU pods, GKE, Slurm and Open MPI are
  recognised as JAX knows them; else the process is alone.

  Args:
    patience: seconds to wait for the others; then the process ends with Exit.DEVICE.

  Raises:
    UserError: the environment contradicts itself.
  """
  if jax.distributed.is_initialized():
    return
  place, seconds = place_of(os.environ), heartbeat()
  if place is not None and place.processes == 1:
    return
  if place is None and not _several(os.environ) and not _on_tpu(os.environ):
    return
  settings: dict[str, Any] = {
    # `Peers` notices a loss after `seconds`, and can say who is lost. JAX then aborts the process.
    "heartbeat_timeout_seconds": 2 * seconds,
    "initialization_timeout": int(patience) + 60,
  }
  if place is not None:
    settings |= {
      "coordinator_address": place.coordinator,
      "num_processes": place.processes,
      "process_id": place.process,
      "local_device_ids": place.local_devices,
      "cluster_detection_method": "deactivate",
    }
  with _impatience(place, patience):
    try:
      jax.distributed.initialize(**settings)
    except ValueError as error:
      if place is not None or _several(os.environ):
        raise Unavailable(f"the processes of this run did not find each other: {error}") from error
      return  # a TPU host that is no part of a pod
  for number in (signal.SIGTERM, signal.SIGINT):
    # JAX takes SIGTERM for its own notifier, under which the process would not end.
    if threading.current_thread() is threading.main_thread():
      signal.signal(number, signal.getsignal(number) or signal.SIG_DFL)


def alone(command: str) -> None:
  """Raises UserError where the environment says that this is one of several processes."""
  place = place_of(os.environ)
  if (place.processes > 1) if place is not None else _several(os.environ):
    raise UserError(
      f"diffjax {command} runs in one process, and the environment says that this is one of "
      f"several; start it once, without {PROCESSES} (under Slurm: --ntasks=1)"
    )


def _several(environment: Mapping[str, str]) -> bool:
  """Whether a launcher that JAX recognises started several processes."""
  counts = [environment.get(name, "") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
  started = "SLURM_PROCID" in environment or "OMPI_COMM_WORLD_RANK" in environment
  if started and any(text.isdecimal() and int(text) > 1 for text in counts):
    return True
  names = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
  return any("," in environment.get(name, "") for name in names) or bool(
    environment.get("MEGASCALE_COORDINATOR_ADDRESS")
  )


def _on_tpu(environment: Mapping[str, str]) -> bool:
  """Whether this is a TPU host, which learns of its pod from the metadata server."""
  platforms = environment.get("JAX_PLATFORMS", "")
  wanted = not platforms or "tpu" in platforms
  return wanted and bool(
    importlib.util.find_spec("libtpu") and (glob("/dev/accel*") or glob("/dev/vfio/[0-9]*"))
  )


@contextlib.contextmanager
def _impatience(place: Place | None, patience: float) -> Iterator[None]:
  """Says every ten seconds that the others are waited for; ends the process at last."""
  joined = threading.Event()

  def wait() -> None:
    began = time.monotonic()
    while not joined.wait(min(_SAID_EVERY, patience)):
      waited = time.monotonic() - began
      who = _who_is_missing(place)
      if waited >= patience:
        _leave(Exit.DEVICE, f"waited {waited:.0f} s for {who}; start all processes of the run")
      _say(f"waiting for {who} ({waited:.0f} s of {patience:.0f} s)")

  thread = threading.Thread(target=wait, daemon=True)
  thread.start()
  try:
    yield
  finally:
    joined.set()
    thread.join()


def _who_is_missing(place: Place | None) -> str:
  if place is None:
    return "the other processes of the run"
  others = f"{place.processes - 1} of {place.processes} processes"
  if place.process == 0:
    return f"some of {others}, which come to {place.coordinator}"
  host, _, port = place.coordinator.rpartition(":")
  try:
    socket.create_connection((host, int(port)), timeout=2).close()
  except OSError as error:
    reason = error.strerror or error
    return (
      f"process 0 of {place.processes}, which does not answer at {place.coordinator} ({reason})"
    )
  return f"some of {others}; process 0 is there"


def several() -> bool:
  """Whether the run has other processes too. Asks for no device where it has not."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this process writes what is written once: process 0."""
  return not several() or jax.process_index() == 0


def barrier(name: str, seconds: float) -> None:
  """Waits until all processes are here.

  Args:
    name: what all of them have done then, in words.
    seconds: how long to wait.

  Raises:
    Unavailable: some did not come; they are named.
  """
  if not several():
    return
  try:
    _client().wait_at_barrier(f"diffjax/{name}", max(1, int(1000 * seconds)))
  except RuntimeError as error:
    raise Unavailable(f"{_lost(error)} did not come to: {name} (waited {seconds:.0f} s)") from error


def in_turn(name: str, work: Callable[[], Any], seconds: float) -> Any:
  """`work` in the first process, and when that is done in the others: they find what it wrote.

  Raises:
    Unavailable: the first one did not end in time.
  """
  if is_first():
    result = work()
    barrier(name, seconds)
    return result
  barrier(name, seconds)
  return work()


def _client() -> Any:
  """JAX's coordination service, which has no public name yet."""
  from jax._src import distributed

  return distributed.global_state.client


def _lost(error: Exception) -> str:
  """Whom an error of the coordination service names: `process 1`."""
  text = str(error)
  for pattern in (
    r"timed out task names:\s*([^#]*?)(?:\n\n|RPC|$)",
    r"\(stopped sending heartbeats\):\s*(.*?)(?:\n[A-Z]|$)",
    r"[Tt]ask (\d+) heartbeat timeout",
  ):
    found = re.search(pattern, text, re.DOTALL)
    numbers = re.findall(r"(?:task:)?(\d+)\s*$", found.group(1), re.MULTILINE) if found else []
    if numbers:
      return f"process{'es' * (len(numbers) > 1)} {', '.join(sorted(numbers, key=int))}"
  if "leader" in text or "Socket closed" in text or "failed to connect" in text.lower():
    return "process 0"
  return f"a process of the run ({' '.join(text.split())[:200]})"


def _say(line: str) -> None:
  print(f"diffjax: {line}", file=sys.stderr, flush=True)


def _leave(code: int, line: str) -> NoReturn:
  """Ends the process from any thread, whatever the others do."""
  sys.stdout.flush()
  _say(line)
  os._exit(code)


def part(code: int) -> None:
  """Of several processes ends this one at once, as JAX would wait for those that are gone.

  Those that hear of it end by themselves. The first one is the last to go: it holds the service
  without which the others are aborted.
  """
  if several():
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
      time.sleep(1.0)
    os._exit(code)


class Peers:
  """All processes of a run meet about twice a second, each in a thread of its own.

  So all know that all are alive, what one of them wants all to know, and why one of them ended. A
  process that is alone meets nobody. A context manager: an error that leaves it is told to the
  others, which end with the same code; without one, leaving waits for the others.
  """

  _lives = itertools.count()

  def __init__(
    self,
    *,
    hear: Callable[[Mapping[int, Sequence[str]]], None] | None = None,
    ended: Callable[[int, str], None] | None = None,
  ):
    """Meets nobody before it is entered.

    Args:
      hear: called in that thread with what was said in a round, by process; in all processes alike.
      ended: is told the exit code and the cause before the process is ended from here.
    """
    self._hear, self._ended = hear, ended
    self._said: collections.deque[str] = collections.deque()
    self._wake, self._failing = threading.Event(), threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> "Peers":
    if several():
      self._life, self._seconds = next(Peers._lives), heartbeat()
      self._thread = threading.Thread(target=self._meet, name="peers", daemon=True)
      self._thread.start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    if self._thread is None:
      return
    if error is None:
      self.say("done")
    else:
      if _BROKEN.search(str(error)):
        self._thread.join(self._seconds + 1.0)  # rather the cause than what it broke: who is gone?
      code, cause = exits.explain(error)
      self._failing.set()
      self.say(f"end {int(code)} {cause}")
    self._wake.set()
    self._thread.join(None if error is None else self._seconds + 2 * _PARTING_SECONDS)

  def say(self, word: str) -> None:
    """All hear it in the next round, this process too. A signal's handler may call it."""
    self._said.append(word)

  def exchange(self, name: str, word: str) -> list[str]:
    """What all say to one question; asked inside `hear`, so that all ask it together."""
    return [text for _, text in self._tell(f"diffjax/{self._life}/{name}", [word])]

  def _meet(self) -> None:
    done: set[int] = set()
    for number in itertools.count():
      said = [self._said.popleft() for _ in range(len(self._said))]
      try:
        told = self._tell(f"diffjax/{self._life}/{number}", said)
      except RuntimeError as error:
        if not self._failing.is_set():
          self._end(Exit.DEVICE, f"{_lost(error)} is gone: nothing heard for {self._seconds} s")
        return
      heard: dict[int, list[str]] = {}
      for process, word in told:
        heard.setdefault(process, []).append(word)
      for process, words in heard.items():
        for word in words:
          if word.startswith("end "):
            self._part(process, *word.split(" ", 2)[1:])
            return
      if self._hear is not None and heard:
        self._hear(heard)
      done |= {process for process, words in heard.items() if "done" in words}
      if len(done) == jax.process_count():
        return
      self._wake.wait(_ROUND_SECONDS)

  def _tell(self, folder: str, words: Sequence[str]) -> list[tuple[int, str]]:
    """Tells the words, waits for all, and returns those of all: (process, word)."""
    client = _client()
    for place, word in enumerate(words):
      client.key_value_set(f"{folder}/{jax.process_index():06d}.{place}", word)
    client.wait_at_barrier(f"diffjax/{self._life}/round", 1000 * self._seconds)
    found = sorted(client.key_value_dir_get(f"{folder}/"))
    return [(int(name.rpartition("/")[2].partition(".")[0]), word) for name, word in found]

  def _part(self, process: int, code: str, cause: str) -> None:
    """One of the processes failed. Those that did not fail themselves end with its code."""
    failed = self._failing.wait(_PARTING_SECONDS)
    with contextlib.suppress(RuntimeError):
      milliseconds = int(2000 * _PARTING_SECONDS)
      _client().wait_at_barrier(f"diffjax/{self._life}/parting", milliseconds)
    if not failed:
      self._end(int(code), f"process {process} ended: {cause}")

  def _end(self, code: int, line: str) -> NoReturn:
    if self._ended is not None:
      with contextlib.suppress(Exception):
        self._ended(code, line)
    _leave(code, line)
