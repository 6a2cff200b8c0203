"""Traces in the terminal: every step as a line, or the canvas as it changes."""

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from diffjax.cli.frames import Cell, frames

if TYPE_CHECKING:
  from diffjax.sampling import Generation, Step

_STEP_SECONDS, _TRACE_SECONDS = 0.25, 8.0  # a step is shown so long, a whole trace no longer


def print_trace(console: Console, prompt: str, answer: "Generation") -> None:
  """Prints the canvas after every step, a line each, and the answer's text."""
  console.print(Text(prompt, style="bold"))
  for number, cells in enumerate(frames(answer.trace), 1):
    console.print(Text.assemble((f"{number:4d}  ", "dim"), canvas_text(cells)))
  console.print(Text.assemble(("   =  ", "dim"), (answer.text, "green")))


def animate(console: Console, prompt: str, answer: "Generation") -> None:
  """Plays a finished trace in place, then leaves the prompt and the answer's text."""
  pause = min(_STEP_SECONDS, _TRACE_SECONDS / max(1, len(answer.trace)))
  play(console, prompt, answer.trace, pause=pause)
  console.print(Text(prompt, style="bold"))
  console.print(Text(answer.text, style="green"))


def play(
  console: Console, prompt: str, steps: Iterable["Step"], *, pause: float = 0.0
) -> "Step | None":
  """Shows steps in place as they come, then clears them. Returns the last one, if there was any.

  Args:
    console: a terminal.
    prompt: shown above.
    steps: finished, or still being decided.
    pause: seconds that each step stays.
  """
  last = None

  def watched() -> Iterator["Step"]:
    nonlocal last
    for step in steps:
      last = step
      yield step

  title = Text(prompt, style="bold")
  waiting = Group(title, Text("decoding ...", style="dim"))
  # A canvas taller than the terminal ends in an ellipsis until it is over.
  with Live(waiting, console=console, transient=True, auto_refresh=False) as live:
    for number, cells in enumerate(frames(watched()), 1):
      hidden = sum(cell.kind in ("masked", "remasked") for cell in cells)
      status = Text(f"step {number}, {hidden} of {len(cells)} masked", style="dim")
      live.update(Group(title, canvas_text(cells), status), refresh=True)
      time.sleep(pause)
  return last


def canvas_text(cells: list[Cell]) -> Text:
  """The canvas as one line: masks dim, new tokens bold, unsure ones in colour.

  A re-masked position is a mask in magenta; a token that the model gave a probability below 0.5
  when it was revealed is yellow, below 0.2 red.
  """
  from diffjax.sampling import MASK_MARK

  text = Text()
  for cell in cells:
    if cell.kind in ("masked", "remasked"):
      piece = f" {MASK_MARK}"
      style = "magenta" if cell.kind == "remasked" else "dim"
    else:
      piece = cell.token
      weight = "" if cell.kind == "kept" else "bold "
      doubt = "red" if cell.probability < 0.2 else "yellow" if cell.probability < 0.5 else ""
      style = f"not dim {weight}{doubt}".strip()
    text.append(piece if text else piece.removeprefix(" "), style=style)
  return text
