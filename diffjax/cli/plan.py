"""`diffjax plan`: what a config needs and how fast it could be, on devices that are not there."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from rich.console import Console
from rich.table import Table

from diffjax.config import load_config
from diffjax.types import UserError

if TYPE_CHECKING:
  from diffjax.planning.plan import Plan

_GIB = 2**30
_QUIET = 30  # seconds between lines of progress where nobody watches
_MOST = 8  # rows of a table that are shown; --json has more


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument(
    "--config", required=True, help="FILE.py, FILE.py:ARGUMENT or a run's config.json"
  )
  parser.add_argument(
    "--topology",
    required=True,
    help="v5p:4x4x4, v5e:2x4, 2*v5e:16x16, h100:8, h200:16x8, or an accelerator type: v5p-128",
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="SECTION.FIELD=VALUE",
    help="override a field; also spelled --config.SECTION.FIELD=VALUE",
  )
  parser.add_argument(
    "--model", default="", help="a preset such as xlmr-xxl, where init_from is not there"
  )
  parser.add_argument(
    "--answers",
    type=float,
    default=None,
    help="share of a row's positions that are answers (default: 0.25; of plain text: 1)",
  )
  parser.add_argument(
    "--hbm", type=float, default=0.0, metavar="GIB", help="of a chip (default: the chip's)"
  )
  parser.add_argument("--largest-batch", action="store_true", help="look for the most rows too")
  parser.add_argument(
    "--sampler",
    action="store_true",
    help="plan decoding by the config's evaluation section, parameters in --dtype",
  )
  parser.add_argument(
    "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of --sampler's parameters"
  )
  parser.add_argument(
    "--machine-code",
    action="store_true",
    help="compile to the very end, many times as long; says no more, unless the compiler fails",
  )
  parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole plan there")


def run(arguments: argparse.Namespace) -> None:
  """Plans, compiles where it can, prints tables."""
  config = load_config(arguments.config, arguments.set)
  if arguments.sampler and arguments.largest_batch:
    raise UserError("--largest-batch is for training; leave it or --sampler out")
  if arguments.hbm < 0:
    raise UserError(f"--hbm={arguments.hbm} is GiB of a chip; give a number > 0, or leave it out")
  # What is planned is not what is here: this process wants no accelerator, and no libtpu.
  jax.config.update("jax_platforms", "cpu")
  from diffjax.planning import experiment, plan, topologies
  from diffjax.planning.sampling import Decoding

  topology = topologies.parse(arguments.topology)
  subject = experiment.subject(config, preset=arguments.model, answers=arguments.answers)
  common = dict(preset=arguments.model, hbm=arguments.hbm, to_the_end=arguments.machine_code)
  common["tell"] = _progress()
  if arguments.sampler:
    section = config.evaluation
    canvas = max(1, int(config.data.max_length * subject.answers))
    block = subject.model.contract.block_size
    decoding = Decoding(
      rows=section.batch_size,
      length=config.data.max_length,
      canvas=-(-canvas // block) * block if block else canvas,
      strategy=section.strategy,
      num_steps=section.num_steps,
      temperature=section.temperature,
      dtype=arguments.dtype,
    )
    made = plan.plan_decoding(subject, topology, decoding, **common)
  else:
    made = plan.plan_training(subject, topology, largest_batch=arguments.largest_batch, **common)
  show(made)
  if arguments.json:
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(made.as_json(), indent=1) + "\n")


def _progress() -> Callable[[str, float], None]:
  """A line on stderr that is rewritten, or where nobody watches one now and then."""
  watched, told = sys.stderr.isatty(), [-_QUIET]

  def tell(what: str, seconds: float) -> None:
    line = f"compiling {what}: {seconds:.0f} s"
    if watched:
      print(f"\r{line}", end="", file=sys.stderr, flush=True)
    elif seconds < told[0] or seconds - told[0] >= _QUIET:
      told[0] = seconds
      print(line, file=sys.stderr, flush=True)

  return tell


def show(plan: "Plan") -> None:
  """Prints a plan."""
  if sys.stderr.isatty():
    print("\r\033[K", end="", file=sys.stderr, flush=True)
  console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
  say = lambda text: console.print(text, markup=False, soft_wrap=True)
  kind = f", {plan.accelerator_type}" if plan.accelerator_type else ""
  say(f"{plan.topology}{kind}: {plan.chips} chips, {plan.hosts} hosts; {plan.what}")
  mesh = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1)
  parts = f" in {plan.microbatches} microbatches" if plan.microbatches > 1 else ""
  say(
    f"{plan.parameters / 1e6:.0f} M parameters; {plan.rows} rows of {plan.length}{parts}; "
    f"mesh {mesh or 'of one device'}"
  )
  if plan.remark:
    say(f"{plan.remark}; temporaries, time and MFU are estimates")
  else:
    say(f"compiled in {plan.compile_seconds:.0f} s")
  console.print(_memory(plan))
  if plan.needed <= 0:
    say("does not fit; the compiler does not say by how much")
  elif plan.fits:
    say(f"fits: {_gib(plan.available - plan.needed)} GiB to spare")
  else:
    say(f"does not fit, by {_gib(plan.needed - plan.available)} GiB")
  if plan.largest_by:
    rows = f"{plan.largest_rows} rows" if plan.largest_rows else "none found"
    say(f"largest batch that fits, in as many microbatches: {rows} ({plan.largest_by})")
  if plan.buffers:
    console.print(_buffers(plan))
  if plan.traffic:
    console.print(_traffic(plan))
  if plan.collectives:
    console.print(_collectives(plan))
  if plan.floors:
    _show_floors(plan, console, say)
  _show_host(plan, say)


def _memory(plan: "Plan") -> Table:
  table = Table()
  table.add_column("HBM of a device")
  table.add_column("GiB", justify="right")
  for name, size in plan.memory.items():
    table.add_row(name, _gib(size))
  table.add_row("needed", _gib(plan.needed))
  table.add_row("there, less a reserve", _gib(plan.available))
  return table


def _buffers(plan: "Plan") -> Table:
  table = Table()
  table.add_column("largest temporaries")
  table.add_column("GiB", justify="right")
  table.add_column("source")
  for buffer in plan.buffers:
    table.add_row(buffer.shape, _gib(buffer.bytes), buffer.source)
  return table


def _traffic(plan: "Plan") -> Table:
  table = Table()
  table.add_column("most traffic with HBM")
  table.add_column("GB a step", justify="right")
  table.add_column("share", justify="right")
  for line in plan.traffic[:_MOST]:
    share = line.bytes / plan.hbm_bytes
    table.add_row(line.source, f"{line.bytes / 1e9:.1f}", f"{share:.0%}")
  return table


def _collectives(plan: "Plan") -> Table:
  table = Table()
  table.add_column("collectives of a step")
  for name in ("chips", "times", "GB into a chip"):
    table.add_column(name, justify="right")
  table.add_column("largest")
  for part in plan.collectives[:_MOST]:
    reach = f" over {part.slices} {'slices' if plan.accelerator_type else 'hosts'}"
    reach = reach if part.slices > 1 else ""
    table.add_row(
      part.kind + reach, str(part.group), f"{part.count:.0f}", f"{part.bytes / 1e9:.3f}",
      part.largest,
    )  # fmt: skip
  return table


def _show_floors(plan: "Plan", console: Console, say: Callable[[str], None]) -> None:
  table = Table()
  table.add_column("floors")
  table.add_column("work of a device", justify="right")
  table.add_column("ms", justify="right")
  inside = sum(part.bytes for part in plan.collectives if part.slices < part.group)
  across = sum(part.bytes for part in plan.collectives if part.slices > 1)
  work: Mapping[str, tuple[str, float]] = {
    "arithmetic": (f"{plan.flops / 1e12:.2f} TFLOP", plan.floors.arithmetic),
    "HBM": (f"{plan.hbm_bytes / 1e9:.1f} GB", plan.floors.hbm),
    "interconnect": (f"{inside / 1e9:.2f} GB", plan.floors.interconnect),
    "network": (f"{across / 1e9:.2f} GB", plan.floors.network),
  }
  for name, (amount, seconds) in work.items():
    if seconds:
      table.add_row(name, amount, f"{1e3 * seconds:.1f}")
  console.print(table)
  share = plan.scored / (plan.rows * plan.length)
  say(f"{plan.answers:.0%} of positions are answers: {share:.2f} scored for every position read")
  for loop in plan.loops:
    say(f"a loop whose turns depend on data is counted {loop.trips:.0f} times: {loop.name}")
  say(
    f"model FLOPs of all devices: {plan.model_flops / 1e12:.1f} T, "
    f"{plan.model_flops / plan.devices / plan.flops:.0%} of what is computed"
  )
  step = plan.floors.step
  say(
    f"at best {step:.3g} s, {plan.tokens / step / plan.chips:.0f} tokens/s a chip, "
    f"MFU {plan.mfu:.1%}; bound by {plan.floors.bound}"
  )


def _show_host(plan: "Plan", say: Callable[[str], None]) -> None:
  host = {name: size for name, size in plan.host.items() if size}
  told = ", ".join(f"{name} {_gib(size)}" for name, size in host.items())
  total = sum(host.values())
  over = "" if total <= plan.host_available else ": TOO MUCH"
  say(f"memory of a host, GiB: {told}; {_gib(total)} of {_gib(plan.host_available)}{over}")
  if plan.checkpoint:
    say(f"a checkpoint: {_gib(plan.checkpoint)} GiB")


def _gib(size: float) -> str:
  return f"{size / _GIB:.2f}"
