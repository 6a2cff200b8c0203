"""A plan: what a step needs and how fast it could be, on devices that are not there.

The formula part is always made; for TPUs, with libtpu, the program is compiled as well, and what
the compiler says stands in the place of the estimates.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from diffjax import arithmetic, sharding
from diffjax.planning import compilation, estimates, experiment, sampling, search
from diffjax.planning.buffers import Buffer
from diffjax.planning.compilation import Compiled
from diffjax.planning.costs import Collective, Loop, Traffic
from diffjax.planning.estimates import Work
from diffjax.planning.experiment import Subject
from diffjax.planning.sampling import Decoding
from diffjax.planning.topologies import Topology
from diffjax.training import programs

# Share of HBM that programs do not get. Of a TPU of 16 GiB they get 15.75. Of a GPU the driver
# keeps up to 1 %, and JAX's pool is 92 % of what CUDA shows, as diffjax's commands set it: the rest
# is for the CUDA context, libraries and their workspaces.
_TPU_RESERVE, _GPU_RESERVE = 0.02, 0.09

Tell = Callable[[str, float], None]  # what is being compiled, and for how many seconds


@dataclasses.dataclass(frozen=True)
class Floors:
  """Seconds that a step takes at least, by what limits it; 0 where there is nothing of it."""

  arithmetic: float
  hbm: float
  interconnect: float  # between chips of a slice, GPUs of a host
  network: float  # between slices, hosts of GPUs

  @property
  def step(self) -> float:
    """Seconds of a step where all of them overlap perfectly."""
    return max(dataclasses.astuple(self))

  @property
  def bound(self) -> str:
    """What limits the step."""
    named = dataclasses.asdict(self)
    return max(named, key=lambda name: named[name])


@dataclasses.dataclass(frozen=True)
class Plan:
  """Bytes and FLOPs are of one device, unless said otherwise."""

  what: str  # training step, or decoding
  topology: str
  accelerator_type: str
  chips: int
  hosts: int
  devices: int
  mesh: dict[str, int]
  parameters: int  # of the network
  rows: int  # of the longest batch; of a batch that is decoded
  length: int
  microbatches: int
  answers: float  # share of positions that are answers
  scored: float  # expected positions that meet the vocabulary in a step, of all devices
  compiled: bool
  remark: str  # why it was not compiled
  memory: dict[str, float]  # part -> bytes
  needed: float
  available: float
  buffers: tuple[Buffer, ...]
  collectives: tuple[Collective, ...]
  loops: tuple[Loop, ...]  # whose number of turns was estimated
  flops: float
  hbm_bytes: float
  traffic: tuple[Traffic, ...]  # of these bytes, the lines of code that move most
  model_flops: float  # of a step, of all devices
  floors: Floors | None  # None: not known, where the compiler refused
  mfu: float  # that the floors allow; 0: not known
  compile_seconds: float
  checkpoint: float  # bytes of a checkpoint, of all devices
  host: dict[str, float]  # part -> bytes of a host's memory
  host_available: float
  largest_rows: int = 0  # rows of the largest batch that fits; 0: not asked
  largest_by: str = ""  # how that is known
  tokens: float = 0.0  # that a batch yields: positions read in training, written in decoding

  @property
  def fits(self) -> bool:
    """Whether all of it is in HBM."""
    return 0 < self.needed <= self.available

  def as_json(self) -> dict[str, Any]:
    """Plain values, the derived ones too."""
    values = dataclasses.asdict(self)
    values["buffers"] = [buffer._asdict() for buffer in self.buffers]
    values["collectives"] = [part._asdict() for part in self.collectives]
    values["traffic"] = [line._asdict() for line in self.traffic]
    values["loops"] = [loop._asdict() for loop in self.loops]
    if self.floors:
      values["floors"] |= {"step": self.floors.step, "bound": self.floors.bound}
    return values | {"fits": self.fits}


def available_bytes(topology: Topology, hbm: float) -> float:
  """HBM of one device less the reserve.

  Args:
    topology: its chip says how much HBM there is.
    hbm: GiB of a chip to reckon with instead; 0: the chip's own.
  """
  whole = hbm * 2**30 / topology.chip.devices if hbm else topology.chip.device_hbm
  return whole * (1 - (_GPU_RESERVE if topology.is_gpu else _TPU_RESERVE))


def floors(
  topology: Topology, *, flops: float, hbm_bytes: float, collectives: tuple[Collective, ...]
) -> Floors:
  """The least time of a step, by each of its limits.

  Args:
    topology: whose peaks count, of which a device has its share.
    flops: of a device, at dense bfloat16 peak.
    hbm_bytes: of a device.
    collectives: what has to enter a device. Through the network every slice brings in what it
      lacks once, all its chips of a group sharing in that.
  """
  chip = topology.chip
  inside = sum(c.bytes for c in collectives if c.slices < c.group)
  across = sum(c.bytes * c.slices / c.group for c in collectives if c.slices > 1)
  links = topology.link_bandwidth / chip.devices
  return Floors(
    arithmetic=flops / chip.device_flops,
    hbm=hbm_bytes / (chip.hbm_bandwidth / chip.devices),
    interconnect=inside / links if links else 0.0,
    network=across / (chip.network_bandwidth / chip.devices),
  )


def plan_training(
  planned: Subject,
  topology: Topology,
  *,
  preset: str = "",
  hbm: float = 0.0,
  largest_batch: bool = False,
  to_the_end: bool = False,
  tell: Tell = lambda what, seconds: None,
) -> Plan:
  """Plans the training step of a subject.

  Args:
    planned: the experiment.
    topology: where it is to run.
    preset: as `planned` was made with.
    hbm: see `available_bytes`.
    largest_batch: also looks for the most rows that fit, by the formula, scaled to what the
      compiler says, and confirmed by it.
    to_the_end: see compilation.compile_ahead.
    tell: of progress.

  Raises:
    UserError: the mesh, the batch or a parameter does not divide over the topology.
  """
  mesh = experiment.absent_mesh(planned.config, topology)
  program, inputs = estimates.abstract(planned, mesh)
  state = estimates.state_bytes(program, inputs)._asdict()
  temporaries = estimates.temporary_bytes(planned, program, mesh)
  plan = _plan(
    topology,
    mesh,
    _compile(planned, topology, preset, None, tell, to_the_end),
    hbm=hbm,
    kept={name: size for name, size in state.items() if size},
    guessed=temporaries._asdict(),
    work=estimates.work(planned, program, mesh, together=topology.together),
    model_flops=arithmetic.step_flops(
      planned.model.config,
      tokens=planned.tokens,
      pairs=planned.pairs,
      scored=planned.scored,
      lora=planned.config.lora,
      backward=not planned.config.length.alone,
    ),
    what="training step",
    parameters=programs.count(program.state.params) + programs.count(program.frozen),
    rows=planned.rows,
    length=planned.length,
    microbatches=planned.config.training.microbatches,
    answers=planned.answers,
    scored=planned.scored,
    checkpoint=estimates.checkpoint_bytes(program),
    host=estimates.host_bytes(
      planned, program, mesh, devices=topology.devices // topology.hosts, hosts=topology.hosts
    )._asdict(),
    tokens=planned.rows * planned.length,
  )
  if not largest_batch:
    return plan

  def ask(rows: int) -> float:
    return _compile(experiment.with_rows(planned, rows), topology, preset, None, tell)[0].needed

  rows, how = search.largest_rows(
    planned, mesh, needed=plan.needed, available=plan.available, ask=ask if plan.compiled else None
  )
  return dataclasses.replace(plan, largest_rows=rows, largest_by=how)


def plan_decoding(
  planned: Subject,
  topology: Topology,
  decoding: Decoding,
  *,
  preset: str = "",
  hbm: float = 0.0,
  to_the_end: bool = False,
  tell: Tell = lambda what, seconds: None,
) -> Plan:
  """Plans the decoding of one batch; arguments and errors as of `plan_training`."""
  mesh = sharding.without_sequence(experiment.absent_mesh(planned.config, topology))
  sharding.check_rows(decoding.rows, mesh, "rows")
  shapes = sampling.parameter_shapes(planned, mesh, decoding.dtype)
  wanted = float(decoding.rows * decoding.canvas)
  return _plan(
    topology,
    mesh,
    _compile(planned, topology, preset, decoding, tell, to_the_end),
    hbm=hbm,
    kept={"parameters": estimates.tree_bytes(shapes)},
    guessed={"temporaries": sampling.temporary_bytes(planned, mesh, decoding)},
    work=sampling.work(planned, mesh, decoding, together=topology.together),
    model_flops=sampling.model_flops(planned, decoding),
    what=f"decoding, {decoding.num_steps} steps of {decoding.strategy}",
    parameters=programs.count(shapes),
    rows=decoding.rows,
    length=decoding.length,
    microbatches=1,
    answers=decoding.canvas / decoding.length,
    scored=wanted,
    checkpoint=0.0,
    host=sampling.host_bytes(shapes, devices=topology.devices // topology.hosts),
    tokens=wanted,
  )


def _plan(
  topology: Topology,
  mesh: Mesh,
  answer: tuple[Compiled | None, str],
  *,
  hbm: float,
  kept: dict[str, float],
  guessed: dict[str, float],
  work: Work,
  model_flops: float,
  **rest: Any,
) -> Plan:
  """The plan by formula, or by what the compiler answered."""
  compiled, remark = answer
  parts = kept | guessed
  needed, flops, moved, collectives = sum(parts.values()), *work
  buffers, traffic, loops = (), (), ()
  if compiled is not None:
    parts = kept | _rest(compiled, sum(kept.values()), guessed.get("gradients", 0.0))
    needed, buffers = compiled.needed, compiled.buffers
    flops, moved, traffic, collectives, loops = _costs(compiled)
  limits = (
    floors(topology, flops=flops, hbm_bytes=moved, collectives=collectives) if flops else None
  )
  return Plan(
    topology=topology.name,
    accelerator_type=topology.accelerator_type,
    chips=topology.chips,
    hosts=topology.hosts,
    devices=topology.devices,
    mesh=dict(mesh.shape),
    compiled=compiled is not None,
    remark=remark,
    memory=parts,
    needed=needed,
    available=available_bytes(topology, hbm),
    buffers=buffers,
    collectives=collectives,
    loops=loops,
    flops=flops,
    hbm_bytes=moved,
    traffic=traffic,
    model_flops=model_flops,
    floors=limits,
    mfu=_mfu(topology, model_flops, limits),
    compile_seconds=compiled.seconds if compiled else 0.0,
    host_available=topology.host_bytes,
    **rest,
  )


def _compile(
  planned: Subject,
  topology: Topology,
  preset: str,
  decoding: Decoding | None,
  tell: Tell,
  to_the_end: bool = False,
) -> tuple[Compiled | None, str]:
  """What the compiler says, or why it was not asked."""
  if topology.is_gpu:
    return None, "GPUs are planned by formula alone"
  if not compilation.is_available():
    return None, "libtpu is not installed (pip install 'diffjax[tpu]'): by formula alone"
  request = compilation.request_of(planned, topology, preset=preset, decoding=decoding)
  what = f"{planned.rows if decoding is None else decoding.rows} rows for {topology.name}"
  compiled = compilation.compile_ahead(
    request, tell=lambda seconds: tell(what, seconds), to_the_end=to_the_end
  )
  return compiled, ""


def _rest(compiled: Compiled, arguments: float, gradients: float) -> dict[str, float]:
  """What the compiler needs beyond the state, whose arrays it may pad."""
  if compiled.memory is None:
    return {"temporaries": max(0.0, compiled.needed - arguments)}
  memory = compiled.memory
  return {
    "padding": max(0.0, memory.arguments - arguments),
    **({"gradients": min(gradients, memory.temporaries)} if gradients else {}),
    "temporaries": max(0.0, memory.temporaries - gradients),
    "returned": memory.returned,
  }


def _costs(
  compiled: Compiled,
) -> tuple[float, float, tuple[Traffic, ...], tuple[Collective, ...], tuple[Loop, ...]]:
  costs = compiled.costs
  if costs is None:
    return 0.0, 0.0, (), (), ()
  guessed = tuple(loop for loop in costs.loops if not loop.is_known)
  return costs.flops, costs.hbm_bytes, costs.traffic, costs.collectives, guessed


def _mfu(topology: Topology, model_flops: float, limits: Floors | None) -> float:
  if limits is None or not limits.step:
    return 0.0
  return model_flops / (limits.step * topology.chips * topology.chip.peak_flops)
