"""The processes of one run: how they find each other, wait for each other, and part.

Every wait is bounded and names who is missing. Only the commands call `start`: importing diffjax
starts nothing. Joining, meeting and parting stay in one file, longer than others: they share the
client of JAX's service, the words for who is missing, and the way out.
"""

import collections
import contextlib
import ctypes
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import jax

from diffjax import exits
from diffjax.environment import (
  COORDINATOR,
  PROCESS,
  PROCESSES,
  Place,
  heartbeat,
  on_tpu,
  place_of,
  started_together,
)
from diffjax.exits import Exit
from diffjax.types import Unavailable, UserError

_START_SECONDS = 300.0
_SAID_EVERY = 10.0  # seconds between lines while others are waited for
_ROUND_SECONDS = 0.5
# What computing together says when a process is gone, in the words of gloo, NCCL and gRPC.
_BROKEN = re.compile(r"gloo|nccl|connection|socket|unavailable|remote peer", re.IGNORECASE)
_PARTING_SECONDS = 5.0
_REFUSALS = 4  # connections in a row, a round apart, after which nobody listens any more
_SEEN_SECONDS = 60.0  # until a shared file system shows what another host wrote
_marks = itertools.count()


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
  if place is None and not started_together(os.environ) and not on_tpu(os.environ):
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
    except (ValueError, jax.errors.JaxRuntimeError) as error:
      if place is not None or started_together(os.environ):
        where = f" at {place.coordinator}" if place else ""
        raise Unavailable(
          f"the processes of this run did not find each other{where}: {error}; start all of them, "
          f"with a port that is free"
        ) from error
      return  # a TPU host that is no part of a pod
  for number in (signal.SIGTERM, signal.SIGINT):
    # JAX takes SIGTERM for its own notifier, under which the process would not end.
    if threading.current_thread() is threading.main_thread():
      signal.signal(number, signal.getsignal(number) or signal.SIG_DFL)
  _abort_slowly()


def _abort_slowly() -> None:
  """Leaves `Peers` the time to name process 0, without which JAX aborts all others at once.

  The handler is C's own sleep: it takes the signal's number as its seconds and needs nothing of
  Python. Then the abort goes on.
  """
  libc = ctypes.CDLL(None)
  libc.signal(int(signal.SIGABRT), ctypes.cast(libc.sleep, ctypes.c_void_p))


def alone(command: str) -> None:
  """Raises UserError where the environment says that this is one of several processes."""
  place = place_of(os.environ)
  if (place.processes > 1) if place is not None else started_together(os.environ):
    raise UserError(
      f"diffjax {command} runs in one process, and the environment says that this is one of "
      f"several; start it once, without {COORDINATOR}, {PROCESSES} and {PROCESS} (under Slurm: "
      f"--ntasks=1)"
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
        leave(Exit.DEVICE, f"waited {waited:.0f} s for {who}; start all processes of the run")
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


def check_shared(folder: Path) -> None:
  """Raises UserError where a process does not see the folder in which the first one writes."""
  if not several():
    return
  mark = folder / f".seen{next(_marks)}"
  if is_first():
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
  barrier(f"{mark} is written", _START_SECONDS)
  deadline = time.monotonic() + _SEEN_SECONDS
  while not (seen := mark.exists()) and time.monotonic() < deadline:
    time.sleep(0.5)
  barrier(f"{mark} is looked for", _START_SECONDS)
  if is_first():
    mark.unlink(missing_ok=True)
  if not seen:
    raise UserError(
      f"{folder} of process 0 is not seen by process {jax.process_index()} on "
      f"{socket.gethostname()}; name a folder on a file system that all processes share"
    )


def _client() -> Any:
  """JAX's coordination service, which has no public name yet."""
  from jax._src import distributed

  return distributed.global_state.client


def _coordinator() -> str:
  """HOST:PORT of that service."""
  from jax._src import distributed

  return distributed.global_state.coordinator_address


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


def _gone(error: Exception, seconds: float) -> str:
  late = "DEADLINE_EXCEEDED" in str(error)
  how = f"nothing heard for {seconds} s" if late else "the connection is lost"
  return f"{_lost(error)} is gone: {how}"


def _say(line: str) -> None:
  print(f"diffjax: {line}", file=sys.stderr, flush=True)


def leave(code: int, line: str, ended: Callable[[int, str], None] | None = None) -> NoReturn:
  """Ends the process from any thread, whatever the others and the disk do.

  Args:
    code: of the exit.
    line: the cause, the last line of stderr.
    ended: is told both before, and has two seconds for it.
  """
  if ended is not None:

    def tell() -> None:
      with contextlib.suppress(Exception):
        ended(code, line)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    teller.join(2.0)
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
      if not is_first():
        threading.Thread(target=self._watch_first, name="first", daemon=True).start()
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
      heard: dict[int, list[str]] = {}
      try:
        for process, word in self._tell(f"diffjax/{self._life}/{number}", said):
          heard.setdefault(process, []).append(word)
        for process, words in heard.items():
          for word in words:
            if word.startswith("end "):
              self._part(process, *word.split(" ", 2)[1:])
              return
        if self._hear is not None and heard:
          self._hear(heard)
      except RuntimeError as error:
        if not self._failing.is_set():
          leave(Exit.DEVICE, _gone(error, self._seconds), self._ended)
        return
      done |= {process for process, words in heard.items() if "done" in words}
      if len(done) == jax.process_count():
        return
      self._wake.wait(_ROUND_SECONDS)

  def _watch_first(self) -> None:
    """Names process 0 when it is lost, in the seconds that an abort then takes: see `start`.

    The service's own answers do not come by then. Its server closes idle connections now and then;
    only one that refuses several in a row is gone.
    """
    host, _, port = _coordinator().rpartition(":")
    refused = 0
    while self._thread.is_alive() and not self._failing.is_set():
      try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as line:
          refused = 0
          line.settimeout(self._seconds)
          while line.recv(4096):
            pass
      except ConnectionRefusedError:
        refused += 1
        if refused == _REFUSALS:
          leave(Exit.DEVICE, "process 0 is gone: the connection is lost", self._ended)
      except OSError:  # late or unreachable: `_meet` has more patience
        pass
      time.sleep(_ROUND_SECONDS)

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
      leave(int(code), f"process {process} ended: {cause}", self._ended)
