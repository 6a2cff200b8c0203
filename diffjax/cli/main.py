"""`diffjax COMMAND ...`: finds the command's file, and ends with the exit code of what happened."""

import argparse
import difflib
import importlib
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

COMMANDS = {
  "quickstart": "masked LM in, diffusion LM out, text sampled: four minutes on a CPU",
  "train": "train or resume the experiment of a config file",
  "status": "how a run is: its speed, its checkpoint, where its time went, why it stopped",
  "plan": "memory, time and MFU of a config on TPUs or GPUs that are not there",
  "sample": "answer prompts by iterative denoising",
  "data": "what a config's examples are: counts, lengths, shares, padding, a few of them rendered",
  "evaluate": "tasks and held-out examples decoded, scored and reported",
  "report": "tables and figures over the evaluations of several runs",
  "convert": "pretrained weights to our format, and any model back to Hugging Face layout",
  "inspect": "what a model, a run or a directory of weights holds",
  "tokenizer": "train a SentencePiece model on text files",
}

_ALONE = ("quickstart", "data", "report", "convert", "tokenizer")  # run in one process
_USAGE = 64  # exits.Exit.USAGE, without the seconds in which JAX is imported


class Parser(argparse.ArgumentParser):
  """Options are written out, and a mistake is one line that names the nearest one."""

  def __init__(self, **settings: Any):
    """As argparse.ArgumentParser."""
    super().__init__(**settings, allow_abbrev=False)

  def parse_known_args(
    self, args: Sequence[str], namespace: argparse.Namespace | None = None
  ) -> tuple[argparse.Namespace, list[str]]:
    """As argparse.ArgumentParser, but no option is unknown: exits with 64 on a mistake."""
    known = [option for option in self._option_string_actions if option.startswith("--")]
    for word in args:
      name = word.partition("=")[0]
      if name.startswith("--") and name not in known and " " not in name:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        self.error(f"no option {name}; did you mean {near}?")
    return super().parse_known_args(args, namespace)

  def error(self, message: str) -> NoReturn:
    """Prints it on one line and exits with 64."""
    _fail(f"{' '.join(message.split())}; {self.prog} --help tells the options")


def main() -> None:
  """Entry point of the `diffjax` command. Exits as diffjax/exits.py says, the cause last."""
  name = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if name in ("-h", "--help"):
    print("usage: diffjax COMMAND ...   (diffjax COMMAND --help tells its options)\n")
    for command, text in COMMANDS.items():
      print(f"  {command:<11} {text}")
    return
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
    _fail(f"no command {name!r}; did you mean {near!r}? commands: {', '.join(COMMANDS)}")
  module = importlib.import_module(f"diffjax.cli.{name}")
  parser = Parser(prog=f"diffjax {name}", description=COMMANDS[name])
  module.add_arguments(parser)
  arguments = parser.parse_args(_joined(sys.argv[2:]))
  from diffjax import exits, hosts
  from diffjax.cli.compilation import ask_for_memory

  ask_for_memory()
  try:
    if name in _ALONE:
      hosts.alone(name)
    module.run(arguments)
  except (Exception, KeyboardInterrupt) as error:
    code, cause = exits.explain(error)
    if code == exits.Exit.PREEMPTED:  # the same signal may come twice, see supervision.Stop
      for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if code == exits.Exit.BUG:
      traceback.print_exc()
    _say(cause)
    hosts.part(code)
    sys.exit(int(code))


def _joined(arguments: list[str]) -> list[str]:
  """Rewrites `--config.field=value` as `--set field=value`, which argparse can read."""
  joined = []
  for argument in arguments:
    if argument.startswith("--config."):
      joined += ["--set", argument.removeprefix("--config.")]
    else:
      joined.append(argument)
  return joined


def _fail(message: str) -> NoReturn:
  _say(message)
  sys.exit(_USAGE)


def _say(message: str) -> None:
  print(f"diffjax: {message}", file=sys.stderr)
