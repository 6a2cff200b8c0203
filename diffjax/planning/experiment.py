"""What is planned: an experiment's network and batch by their shapes, without any of its files."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from diffjax import inspection, sharding, tokenizers
from diffjax import model as models
from diffjax.config import Contract, ExperimentConfig, ModelConfig
from diffjax.diffusion.objectives import Objective
from diffjax.models import architectures
from diffjax.planning.topologies import Topology
from diffjax.training import length, programs
from diffjax.training.adaptation import Annealing, trained_contract
from diffjax.types import Batch, UserError

# Of the positions of a row with a prompt, how many are its answer, where nothing is said.
USUAL_ANSWERS = 0.25
_CAUSAL = ("gpt2", "llama", "qwen")  # how the presets of causal models begin


@dataclasses.dataclass(frozen=True)  # no tuple: NumPy would take it apart
class Absent:
  """As much of a device that is not there as shapes, shardings and kernels ask for."""

  id: int
  platform: str
  device_kind: str
  compute_capability: str
  process_index: int = 0


class Subject(NamedTuple):
  """An experiment, its network, and how much a step of it asks of the network."""

  config: ExperimentConfig
  model: models.Model  # without parameters or tokenizer
  annealing: Annealing | None
  answers: float  # share of a batch's positions that are answers
  scored_share: float  # of these, how many are scored: noised ones

  @property
  def rows(self) -> int:
    """Rows of the longest batch."""
    return self.config.data.rows(self.length)

  @property
  def length(self) -> int:
    """Positions of its rows."""
    return self.config.data.max_length

  @property
  def passes(self) -> int:
    """How often a row goes through the network in a step: twice where it has a twin."""
    return 2 if self.config.diffusion.coupled else 1

  @property
  def tokens(self) -> float:
    """Positions that the network reads in a step."""
    return float(self.rows * self.length * self.passes)

  @property
  def pairs(self) -> float:
    """Pairs of positions that attention sees in a step, every row taken to be one segment."""
    causal = self.model.contract.attention == "causal" and self.annealing is None
    return self.tokens * self.length * (0.5 if causal else 1)

  @property
  def scored(self) -> float:
    """Positions that meet the vocabulary in a step, as expected."""
    return self.tokens * self.answers * self.scored_share


def subject(config: ExperimentConfig, *, preset: str = "", answers: float | None = None) -> Subject:
  """The network that `config` trains, from its own sizes, from `init_from`, or from a preset.

  Args:
    config: the experiment.
    preset: of models/architectures.py, where `init_from` is not there.
    answers: share of a row's positions that are answers; None: USUAL_ANSWERS, or all of plain text.

  Raises:
    UserError: nothing says what the network is; or `answers` is no share.
  """
  source, contract = _source(config, preset)
  causal = contract.attention == "causal"
  if not contract.denoises and config.diffusion.process == "absorbing":
    own = config.adaptation.mask_id < 0  # a new row
    contract = dataclasses.replace(
      contract, mask_id=source.vocab_size if own else config.adaptation.mask_id
    )
    source = dataclasses.replace(source, vocab_size=source.vocab_size + own)
  annealing = None
  if causal and config.diffusion.process == "absorbing":
    steps = config.adaptation.anneal_steps
    annealing = Annealing(steps, contract.openness) if steps else None
    attention = "causal" if annealing or config.diffusion.attention == "causal" else "full"
    contract = dataclasses.replace(contract, attention=attention, openness=0.0, output_shift=1)
  contract = trained_contract(config, contract)
  model = models.Model(source, contract, None, None, config.compute)
  model, _ = length.with_head(config, model)
  if config.data.max_length > source.max_positions:
    raise UserError(
      f"config.data.max_length = {config.data.max_length}: the weights have "
      f"{source.max_positions} positions"
    )
  if answers is None:
    answers = 1.0 if config.data.train.is_plain_text else USUAL_ANSWERS
  if not 0 < answers <= 1:
    raise UserError(f"--answers={answers} is a share of a row's positions; give one in (0, 1]")
  share = noised_share(programs.make_objective(config, contract))
  return Subject(config, model, annealing, answers, share)


def _source(config: ExperimentConfig, preset: str) -> tuple[ModelConfig, Contract]:
  """The architecture that training begins with, and a contract with legal ids."""
  if preset:
    architecture = architectures.preset(preset)
    causal = preset.startswith(_CAUSAL)
    return architecture, _contract(architecture.vocab_size, causal=causal)
  if config.model.is_complete:
    rows = config.model.vocab_size
    if not rows:
      rows = tokenizers.load(models.resolve(config.data.tokenizer)).vocab_size
    return dataclasses.replace(config.model, vocab_size=rows), _contract(rows, causal=False)
  try:
    found = inspection.describe(config.init_from)
  except UserError as error:
    guess = f"xlmr-{config.init_from.rpartition('-')[2]}"
    guess = guess if guess in architectures.PRESETS else "xlmr-base"
    raise UserError(f"{str(error).partition(';')[0]}; or add --model={guess}") from error
  architecture = dataclasses.replace(found.config, length_classes=0)
  return architecture, found.contract


def _contract(rows: int, *, causal: bool) -> Contract:
  return Contract(
    bos_id=0,
    pad_id=1,
    eos_id=2,
    mask_id=-1 if causal else rows - 1,
    attention="causal" if causal else "full",
  )


def noised_share(objective: Objective) -> float:
  """The expected share of canvas positions that are noised, and so scored."""
  if objective.process == "next_token":
    return 1.0
  if objective.times == "fixed":
    return objective.mask_ratio
  count = objective.num_timesteps or 1000
  offset = 0 if objective.num_timesteps else 0.5
  times = (np.arange(1, count + 1) - offset) / count
  return float(np.mean(1 - objective.schedule.alpha(times)))


def absent_mesh(config: ExperimentConfig, topology: Topology) -> Mesh:
  """The mesh over a topology's devices, for shapes alone: nothing compiles for it.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  sizes = sharding.axis_sizes(config.mesh, topology.devices)
  chip = topology.chip
  kind = "gpu" if topology.is_gpu else "tpu", chip.name, chip.compute_capability
  devices = np.array([Absent(number, *kind) for number in range(topology.devices)])
  return Mesh(devices.reshape(sizes), sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))


def batch(subject: Subject, rows: NamedSharding) -> Batch:
  """A batch of the longest rows, as shapes. Raises UserError where it does not divide."""
  count, parts = subject.rows, subject.config.training.microbatches
  sharding.check_rows(count // parts, rows.mesh, "rows of a microbatch")
  shape = lambda dims, kind: jax.ShapeDtypeStruct(dims, kind, sharding=rows)
  both: Sequence[int] = (count, subject.length)
  return Batch(
    tokens=shape(both, jnp.int32),
    segments=shape(both, jnp.int32),
    canvas=shape(both, jnp.bool_),
    index=shape((count,), jnp.int32),
  )


def with_rows(subject: Subject, rows: int) -> Subject:
  """The same with another number of rows in the longest batch, cut into as many microbatches."""
  data = subject.config.data
  size = rows if data.batch_unit == "rows" else rows * subject.length
  data = dataclasses.replace(data, batch_size=size)
  return subject._replace(config=dataclasses.replace(subject.config, data=data))
