"""The decoder's settings as options of a command, and as lines typed in a conversation."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

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
  """Declares --preset and an option for every setting; one not given keeps the preset's value.

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
