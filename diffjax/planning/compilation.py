"""Compiles a program for TPUs that are not there: libtpu's compiler, in a process of its own.

`compile_ahead` starts that process with the environment libtpu wants; its other end is `main`,
which lowers the very program that a run would and hands it to the compiler. What the compiler makes
of it is read from what XLA writes down: the optimized program, in the order it runs in, and where
every buffer lies. Then the process is ended: what is left is to turn the program into machine code,
which takes most of the time and changes none of this.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies as jax_topologies
from jax.sharding import Mesh

from diffjax import sharding
from diffjax.config import config_from_dict
from diffjax.planning import buffers, costs, estimates, hlo, sampling, topologies
from diffjax.planning.buffers import Buffer
from diffjax.planning.costs import Costs
from diffjax.planning.experiment import Subject, absent_mesh, subject
from diffjax.planning.sampling import Decoding
from diffjax.planning.topologies import Topology
from diffjax.sampling import programs as sampling_programs
from diffjax.types import UserError

# What the two processes leave for each other in a folder.
_REQUEST, _SLICES, _DUMP, _LOG = "request.json", "slices.json", "dump", "log"
_MISTAKE, _REFUSAL = "mistake", "refusal"
# What is read of XLA's dump: the program in the order it runs in, and the places of its buffers.
_PARTS = (
  "after_optimizations", "after_optimizations-buffer-assignment"
)  # fmt: skip
_SETTLED = 2.0  # seconds after which a file is no longer being written
_BUFFERS = 8
_CORES_AS_ONE = ("v4", "v5p")  # chips whose two TensorCores are one device


class Request(NamedTuple):
  """What the other process is to compile."""

  config: dict[str, Any]
  topology: str
  preset: str
  answers: float | None
  decoding: Decoding | None


class Memory(NamedTuple):
  """Bytes of HBM of one device, as the compiler has laid them out; machine code aside."""

  arguments: float
  temporaries: float
  returned: float  # of what a program returns, what takes no argument's place

  @property
  def total(self) -> float:
    """All of it."""
    return float(sum(self))


class Compiled(NamedTuple):
  """What the compiler made of a program."""

  memory: Memory | None  # None: refused, for it needs more than there is
  needed: float  # bytes of HBM that it asked for
  costs: Costs | None
  buffers: tuple[Buffer, ...]
  seconds: float  # of compilation


def is_available() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec("libtpu") is not None


def compile_ahead(
  request: Request, *, tell: Callable[[float], None], to_the_end: bool = False
) -> Compiled:
  """Compiles in another process.

  Args:
    request: what and for which topology.
    tell: called every second with the seconds since the start.
    to_the_end: machine code too, many times as long, in case the compiler fails at it.

  Raises:
    UserError: what is asked for is wrong; or another process has loaded libtpu.
    RuntimeError: the compiler failed otherwise; its last words.
  """
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is found there is not written down again
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": topologies.parse(request.topology).accelerator_type,
    "TPU_WORKER_HOSTNAMES": "localhost",
  }
  with tempfile.TemporaryDirectory(prefix="diffjax-plan-") as folder:
    room = Path(folder)
    (room / _REQUEST).write_text(json.dumps(request._asdict()))
    began = time.monotonic()
    with (room / _LOG).open("w") as log:
      worker = subprocess.Popen(
        [sys.executable, "-m", __name__, folder], env=environment, stdout=log, stderr=log
      )
      try:
        while worker.poll() is None and (to_the_end or not _is_written(room, _SETTLED)):
          tell(time.monotonic() - began)
          time.sleep(1)
      finally:
        worker.kill()
        worker.wait()
    known = any((room / name).exists() for name in (_MISTAKE, _REFUSAL))
    if to_the_end and worker.returncode and not known:
      raise _failure(room)
    return read(room, request, seconds=time.monotonic() - began)


def read(room: Path, request: Request, *, seconds: float) -> Compiled:
  """What the other end has left in its folder.

  Args:
    room: the folder.
    request: what was asked.
    seconds: how long it took.

  Raises:
    UserError, RuntimeError: see `compile_ahead`.
  """
  if (room / _MISTAKE).exists():
    raise UserError((room / _MISTAKE).read_text())
  if not _is_written(room):
    if (room / _REFUSAL).exists():
      return refusal((room / _REFUSAL).read_text(), seconds=seconds)
    raise _failure(room)
  program, assignment = ((room / _DUMP / _name(room, part)).read_text() for part in _PARTS)
  planned = subject(
    config_from_dict(request.config), preset=request.preset, answers=request.answers
  )
  mesh = absent_mesh(planned.config, topologies.parse(request.topology))
  module = hlo.Module(program)
  memory = Memory(*buffers.memory(assignment))
  return Compiled(
    memory=memory,
    needed=memory.total,
    costs=costs.count(
      module,
      unknown_trips=_turns(planned, mesh, request.decoding),
      slices=json.loads((room / _SLICES).read_text()),
    ),
    buffers=tuple(buffers.largest(assignment, module, count=_BUFFERS)),
    seconds=seconds,
  )


def _failure(room: Path) -> Exception:
  words = (room / _LOG).read_text()
  if "lockfile" in words:
    return UserError(
      "another process has loaded libtpu, which runs once at a time on a machine; wait for it"
    )
  return RuntimeError(f"the compiler failed: {words[-2000:]}")


def _name(room: Path, part: str) -> str:
  """The newest dumped file of a kind, or ''."""
  found = sorted((room / _DUMP).glob(f"*.{part}.txt"), key=lambda file: file.stat().st_mtime)
  return found[-1].name if found else ""


def _is_written(room: Path, settled: float = 0.0) -> bool:
  """Whether the compiler has written down all that is read here, so many seconds ago."""
  files = [room / _DUMP / _name(room, part) for part in _PARTS]
  latest = time.time() - settled
  return all(file.is_file() and file.stat().st_mtime <= latest for file in files)


def main(folder: str) -> None:
  """The other end: reads the request in a folder, compiles, and leaves there what it finds."""
  room = Path(folder)
  request = Request(**json.loads((room / _REQUEST).read_text()))
  request = request._replace(decoding=request.decoding and Decoding(*request.decoding))
  planned = subject(
    config_from_dict(request.config), preset=request.preset, answers=request.answers
  )
  try:
    mesh = sharding.make_mesh(planned.config.mesh, _devices(topologies.parse(request.topology)))
    slices = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    (room / _SLICES).write_text(json.dumps(slices))
    lowered = _lower(planned, mesh, request.decoding)
    lowered.compile(compiler_options={"xla_dump_to": str(room / _DUMP)})
  except UserError as error:
    (room / _MISTAKE).write_text(str(error))
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    (room / _REFUSAL).write_text(str(error))


def _devices(topology: Topology) -> list[Any]:
  """The devices of a topology that is not there."""
  wanted: dict[str, Any] = {}
  if topology.chip.name in _CORES_AS_ONE:
    wanted |= dict(chip_config_name="megacore", chips_per_host_bounds=(2, 2, 1))
  if topology.slice_chips == 1:
    wanted["chips_per_host_bounds"] = (1, 1, 1)
  if topology.slices > 1:
    wanted["num_slices"] = topology.slices
  shape = "x".join(map(str, topology.shape))
  found = jax_topologies.get_topology_desc(
    platform="tpu", topology_name=f"{topology.chip.name}:{shape}", **wanted
  )
  return list(found.devices)


def _lower(planned: Subject, mesh: Mesh, decoding: Decoding | None) -> Any:
  """The program, lowered for the mesh."""
  if decoding is None:
    program, inputs = estimates.abstract(planned, mesh)
    return program.train_step.lower(program.state, program.frozen, inputs)
  sampler = sampling_programs.abstract_decode(
    planned.model.config, planned.model.contract, planned.config.compute, mesh,
    **decoding._asdict(),
  )  # fmt: skip
  return sampler.function.lower(*sampler.arguments)


def _turns(planned: Subject, mesh: Mesh, decoding: Decoding | None) -> Callable[[str], float]:
  """How often a loop is expected to run whose number of turns depends on data."""
  if decoding is None:
    visits = estimates.visits(planned, mesh)
    return lambda name: visits
  visits = sampling.visits(planned, mesh, decoding)
  # The loop over steps holds the one over the vocabulary.
  return lambda name: visits if "while/body" in name else float(decoding.num_steps)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_AMOUNT = r"([\d.]+)([KMGT]?)i?B?"


def refusal(message: str, *, seconds: float) -> Compiled:
  """What a compiler that ran out of memory says it needs, and for what."""
  amount = lambda match: float(match[1]) * _UNITS[match[2]]
  used = re.search(rf"(?:Used |temporaries \(){_AMOUNT}(?: of|\) exceeds)", message)
  largest = []
  for entry in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
    size = re.match(_AMOUNT, entry)
    shape = re.search(r"Shape: (\w+\[[\d,]*\])", entry)
    operation = re.search(r'op_name="([^"]*)"', entry)
    file = re.search(r'source_file="[^"]*/diffjax/([^"]*)" source_line=(\d+)', entry)
    largest.append(
      Buffer(
        int(amount(size)) if size else 0,
        shape[1] if shape else "",
        f"{file[1]}:{file[2]}" if file else (operation[1].rpartition("/")[2] if operation else ""),
      )
    )
  return Compiled(
    memory=None,
    needed=amount(used) if used else 0.0,
    costs=None,
    buffers=tuple(largest[:_BUFFERS]),
    seconds=seconds,
  )


def request_of(
  planned: Subject, topology: Topology, *, preset: str, decoding: Decoding | None = None
) -> Request:
  """The request for a subject as it stands."""
  return Request(
    config=dataclasses.asdict(planned.config),
    topology=topology.name,
    preset=preset,
    answers=planned.answers,
    decoding=decoding,
  )


if __name__ == "__main__":
  main(sys.argv[1])
