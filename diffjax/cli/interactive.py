"""The conversation of `diffjax sample` without prompts: a line in, its answer shown as it forms."""

import contextlib
import dataclasses
import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from diffjax.cli import decoding
from diffjax.cli.terminal_trace import animate, play
from diffjax.types import UserError

if TYPE_CHECKING:
  from diffjax.sampling import Sampler

_HELP = """\
a line          is a prompt, answered with the settings in force
:set            lists the settings
:set NAME=VALUE changes one, for all later prompts; an empty VALUE takes the change back
:help           this
Ctrl-C          leaves an answer, which is still computed to its end; Ctrl-D ends"""
_OTHERS = {"preset": str, "length": int, "seed": int}  # settable beside the decoder's settings


@dataclasses.dataclass
class Conversation:
  """What the prompts are answered with, as far as it was given."""

  sampler: "Sampler"
  console: Console
  changes: dict[str, Any]  # settings of the decoder
  preset: str = ""
  length: int | None = None  # None: predicted
  seed: int = 0

  def run(self, read: Callable[[str], str] = input) -> None:
    """Answers lines until the end of the input. Mistakes are told in one line each.

    Args:
      read: prompts for and returns a line; raises EOFError at the end.
    """
    with contextlib.suppress(ImportError):
      import readline  # noqa: F401  lines can be edited and recalled

    self.console.print("a line is a prompt; :help tells the rest, Ctrl-D ends", style="dim")
    while True:
      try:
        line = read("> ").strip()
        if line:
          self.take(line)
      except UserError as error:
        self.console.print(Text(str(error), style="red"))
      except KeyboardInterrupt:
        self.console.print("stopped; Ctrl-D ends", style="dim")
      except EOFError:
        self.console.print()
        return

  def take(self, line: str) -> None:
    """Obeys one line that is not empty. Raises UserError."""
    command, _, rest = line.partition(" ")
    if not line.startswith(":"):
      self.answer(line)
    elif command == ":set":
      self.set(rest.strip())
    elif command == ":help":
      self.console.print(Text(_HELP))
    else:
      raise UserError(f"no command {command!r}; there are :set and :help, and Ctrl-D ends")

  def answer(self, prompt: str) -> None:
    """Shows the answer to a prompt, forming. Raises UserError."""
    settings = self.sampler.settings(self.preset, **self.changes)
    predicted = self.length is None and self.sampler.model.config.length_classes
    options = {"lengths": self.length, "preset": self.preset, "seed": self.seed, **self.changes}
    if settings.num_samples > 1 or (predicted and settings.length_beam > 1):
      # Which of the candidates will be chosen is known in the end only.
      (answer,) = self.sampler.generate([prompt], return_trace=True, **options)
      animate(self.console, prompt, answer)
      return
    last = play(self.console, prompt, self.sampler.stream(prompt, **options))
    self.console.print(Text(self.sampler.text(last) if last else "", style="green"))

  def set(self, assignment: str) -> None:
    """Lists the settings, or changes one. Raises UserError, and then nothing is changed."""
    if not assignment:
      settings = dataclasses.asdict(self.sampler.settings(self.preset, **self.changes))
      for name, value in {name: getattr(self, name) for name in _OTHERS}.items():
        settings[name] = value
      for name, value in settings.items():
        self.console.print(Text(f"{name:<14} {'' if value is None else value}".rstrip()))
      return
    name, equals, text = (part.strip() for part in assignment.partition("="))
    name = name.replace("-", "_")
    kinds = _OTHERS | {name: option.kind for name, option in decoding.OPTIONS.items()}
    if not equals or name not in kinds:
      near = difflib.get_close_matches(name, kinds, n=1, cutoff=0.0)[0]
      raise UserError(
        f":set {assignment}: did you mean :set {near}=VALUE? names: {', '.join(kinds)}"
      )
    from diffjax.sampling import checks

    value = decoding.convert(name, text, kinds[name]) if text else None
    if name in _OTHERS:
      if name == "preset":
        self.sampler.settings(text, **self.changes)
      elif name == "seed" and value is not None:
        checks.check_seed(value)
      elif name == "length" and value is not None:
        checks.check_lengths(value, 1)
      defaults = {field.name: field.default for field in dataclasses.fields(self)}
      setattr(self, name, defaults[name] if value is None else value)
      return
    changes = {key: old for key, old in self.changes.items() if key != name}
    changes |= {} if value is None else {name: value}
    self.sampler.settings(self.preset, **changes)  # for its checks
    self.changes = changes
