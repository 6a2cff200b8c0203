"""The decoder's settings as options of a command, and as lines typed in a conversation."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from diffjax.config import MeshConfig
from diffjax.types import UserError


class Option(NamedTuple):
  """One setting of diffjax.sampling.Settings."""

  kind: Callable[[str], Any]
  help: str


OPTIONS = {
  "strategy": Option(
    str,
    "which positions are decided in a step, such as confidence-block32, entropy, threshold0.9, "
    "ancestral-cosine; default reparam-uncond-deterministic-cosine; all of them: docs/decoding.md",
  ),
  "num_steps": Option(int, "decoding steps; default 10"),
  "temperature": Option(float, "of what is sampled; default 0.0, the argmax"),
  "top_p": Option(
    float, "sample among the likeliest tokens of this total probability; default 1.0"
  ),
  "top_k": Option(int, "sample among so many likeliest tokens; default 0, all of them"),
  "guidance": Option(float, "weight of classifier-free guidance; default 0.0, none"),
  "unconditional": Option(
    str, "what guidance puts in the prompt's place: masked or absent; default masked"
  ),
  "length_beam": Option(int, "likeliest lengths tried, where they are predicted; default 1"),
  "num_samples": Option(int, "samples of each length, of which the best is shown; default 1"),
  "select": Option(str, "the best by mean, total, bleu or rouge; default mean"),
}
_KINDS = {int: "a whole number", float: "a number"}


def add_options(parser: argparse.ArgumentParser, *, without: tuple[str, ...] = ()) -> None:
  """Declares --preset, an option for every setting, and those of `placement`.

  A setting that is not given keeps the preset's value.

  Args:
    parser: of the command.
    without: settings that the command declares itself, in its own way.
  """
  parser.add_argument(
    "--preset",
    default="",
    help="settings by where they are from: paper-mt, paper-mmlu, llada, dream, fast-dllm; the "
    "options below change single ones",
  )
  for name, option in OPTIONS.items():
    if name in without:
      continue
    parser.add_argument(f"--{name.replace('_', '-')}", type=option.kind, help=option.help)
  parser.add_argument(
    "--mesh",
    default="",
    help="for a model that does not fit one device: devices along each axis, such as tensor=8 or "
    "fsdp=2,tensor=4; default: every device has the whole model",
  )
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    default="float32",
    help="of the parameters and what is computed with them; bfloat16 takes half the memory",
  )


def placement(arguments: argparse.Namespace, *, local: bool = False) -> dict[str, Any]:
  """How the model is loaded, as Sampler.load and diffjax.load take it.

  Args:
    arguments: of `add_options`.
    local: whether every process has a mesh of its own, over its own devices.

  Raises:
    UserError: --mesh is not written as it must be, or does not fit the devices.
  """
  mesh = _parse_mesh(arguments.mesh) if arguments.mesh else None
  if mesh is not None and local:
    import jax

    from diffjax import sharding

    mesh = sharding.make_mesh(mesh, jax.local_devices())
  return {"mesh": mesh, "dtype": arguments.dtype}


def _parse_mesh(text: str) -> MeshConfig:
  axes = [field.name for field in dataclasses.fields(MeshConfig)]
  sizes = {}
  for part in text.split(","):
    name, _, size = part.strip().partition("=")
    try:
      number = int(size)
    except ValueError:
      number = None
    if name not in axes or name in sizes or number is None:
      raise UserError(
        f"--mesh {text}: {part.strip()!r} must be one of {', '.join(axes)}, =, and a number, such "
        f"as tensor=8; give each once"
      )
    sizes[name] = number
  if -1 in sizes.values():
    sizes.setdefault("data", 1)  # which is the rest, where no other axis is
  return MeshConfig(**sizes)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
  """The settings that were given, by name."""
  values = {name: getattr(arguments, name) for name in OPTIONS}
  return {name: value for name, value in values.items() if value is not None}


def convert(name: str, text: str, kind: Callable[[str], Any]) -> Any:
  """The value that a text stands for. Raises UserError where it stands for none."""
  try:
    return kind(text)
  except ValueError:
    raise UserError(f"{name} = {text!r} must be {_KINDS[kind]}") from None
