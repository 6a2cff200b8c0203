"""`diffjax sample`: answers prompts from the shell.

Of several processes, which a mesh may span, all compute and the first one prints and writes.
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.text import Text

from diffjax.cli import decoding
from diffjax.cli.answer_file import AnswerFile
from diffjax.cli.terminal_trace import animate, print_trace
from diffjax.types import UserError

if TYPE_CHECKING:
  from diffjax.sampling import Generation, Sampler

_PAGE = Path("trace.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's arguments."""
  parser.add_argument("--model", required=True, help="a run, a checkpoint or a model directory")
  parser.add_argument(
    "--prompt",
    action="append",
    default=[],
    help="may be given several times; without prompts, a terminal starts a conversation",
  )
  parser.add_argument(
    "--file", type=Path, help='prompts: .jsonl with {"inputs": ...} a line, else text, one a line'
  )
  parser.add_argument(
    "--output",
    type=Path,
    help="write answers as JSON lines instead of printing; the same command goes on after a stop",
  )
  parser.add_argument(
    "--length", type=int, help="tokens to generate; without it the model predicts how many"
  )
  decoding.add_options(parser)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--batch-size", type=int, default=32, help="rows computed at a time")
  parser.add_argument(
    "--strict", action="store_true", help="answers bit-equal whatever else is in the list; slower"
  )
  parser.add_argument(
    "--trace",
    nargs="?",
    const="terminal",
    choices=("terminal", "html"),
    help="show the canvas after every step, here or in one HTML page",
  )
  parser.add_argument(
    "--trace-output", type=Path, help=f"where --trace html writes its page; default {_PAGE}"
  )


def run(args: argparse.Namespace) -> None:
  """Generates, then prints, shows or writes. Raises UserError."""
  prompts = list(args.prompt)
  if args.file is not None:
    prompts += read_prompts(args.file)
  page = _page_path(args)
  if not prompts:
    return _converse(args, Console(highlight=False, soft_wrap=True))

  from diffjax import hosts

  if not args.mesh:
    hosts.alone("sample without --mesh")
  hosts.start()
  quiet = not hosts.is_first()
  with hosts.Peers():
    _answer(args, prompts, page, Console(highlight=False, soft_wrap=True, quiet=quiet))
  return None


def _answer(
  args: argparse.Namespace, prompts: list[str], page: Path | None, console: Console
) -> None:
  """Generates, then prints, shows or writes, unless the console is quiet. Raises UserError."""
  writes = not console.quiet
  if writes and args.output is not None and not args.output.parent.is_dir():
    raise UserError(f"--output {args.output}: the folder does not exist; make it first")
  path = _weights(args.model)
  sampler, changes = _load(args, path)
  settings = sampler.settings(args.preset, **changes)
  how = {"seed": args.seed, "strict": args.strict, "batch_size": args.batch_size}
  how |= {"lengths": args.length}
  options = how | {"preset": args.preset} | changes
  trace = args.trace is not None
  if args.output is None:
    progress = "decoding" if console.is_terminal else ""  # else it would be among the answers
    answers = sampler.generate(prompts, return_trace=trace, progress=progress, **options)
  else:
    decided = {"model": str(path.resolve()), "dtype": args.dtype} | how
    decided |= dataclasses.asdict(settings)
    file = AnswerFile(args.output, prompts, decided, writes=writes)
    file.done = _of_first(file.done)
    first = file.done
    rows_each = settings.length_beam * settings.num_samples
    answers = answer_into(file, sampler, prompts, options, rows_each=rows_each, return_trace=trace)
    prompts = prompts[first:] if trace else []
    console.print(f"{args.output}: {file.done - first} answers added, {file.done} in all")
  for prompt, answer in zip(prompts, answers, strict=True):
    if args.trace == "terminal" and writes:
      (animate if console.is_terminal else print_trace)(console, prompt, answer)
    elif args.output is None:
      console.print(Text(answer.text))
  if page is not None and answers and writes:
    from diffjax.cli import trace_page

    text = trace_page.page(answers, prompts, caption=f"{args.model} · {settings.strategy}")
    _write_page(page, text)
    console.print(f"wrote {page}; open it in a browser")


def _of_first(number: int) -> int:
  """What the first of all processes has, which goes on where its own file stopped."""
  import jax
  import numpy as np
  from jax.experimental import multihost_utils

  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def answer_into(
  file: AnswerFile,
  sampler: "Sampler",
  prompts: list[str],
  options: dict[str, Any],
  *,
  rows_each: int = 1,
  return_trace: bool = False,
) -> list["Generation"]:
  """Answers the prompts that have no answer in the file, into it, one batch after the other.

  The batches are the same wherever an earlier run stopped, and so are the answers.

  Args:
    file: made for these prompts.
    sampler: the model's.
    prompts: all of them.
    options: of Sampler.generate.
    rows_each: candidates of a prompt, each of which is a row of a batch.
    return_trace: whether the answers are returned, with their traces.

  Returns:
    With `return_trace`, the answers that were made here; else nothing.

  Raises:
    UserError: as Sampler.generate; the answers of earlier batches are then in the file.
  """
  kept = []
  before: Counter[str] = Counter()
  size = max(1, options["batch_size"] // rows_each)
  columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
  console = Console(stderr=True)
  disabled = not (file.writes and console.is_terminal)
  shown = Progress(*columns, console=console, transient=True, disable=disabled)
  with shown as progress:
    bar = progress.add_task("decoding", total=len(prompts), completed=file.done)
    for start in range(0, len(prompts), size):
      batch = prompts[start : start + size]
      if start + size <= file.done or file.done == len(prompts):
        before.update(batch)
        continue
      # A row's noise counts the equal prompts before it, those of earlier batches too.
      repeats = [before[prompt] for prompt in batch]
      try:
        answers = sampler.generate(batch, repeats=repeats, return_trace=return_trace, **options)
      except UserError as error:
        among = f"among prompts {start + 1} to {start + len(batch)}: " if start else ""
        raise UserError(f"{among}{error}") from None
      before.update(batch)
      new = answers[file.done - start :]
      file.append(new)
      progress.update(bar, completed=file.done)
      if return_trace:
        kept += new
  return kept


def read_prompts(path: Path) -> list[str]:
  """The prompts of a file. Raises UserError naming file and line."""
  try:
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
  except OSError as error:
    raise UserError(f"--file {path}: {error.strerror}; give a readable file") from None
  if lines == [b""]:
    raise UserError(f"{path} is empty; write one prompt a line")
  return [_read_line(line, f"{path}:{n}", path.suffix) for n, line in enumerate(lines, 1)]


def _read_line(line: bytes, where: str, suffix: str) -> str:
  try:
    text = line.decode().removesuffix("\r")
  except UnicodeDecodeError as error:
    raise UserError(
      f"{where}: not valid UTF-8 at byte {error.start + 1}; save the file as UTF-8"
    ) from None
  if suffix == ".jsonl":
    try:
      text = json.loads(text)["inputs"]
    except (ValueError, TypeError, KeyError):
      text = None
    if not isinstance(text, str):
      raise UserError(f'{where}: must be an object with a text, such as {{"inputs": "Hi"}}')
  if not text.strip():
    raise UserError(f"{where}: empty prompt; write one or delete the line")
  return text


def _weights(model: str) -> Path:
  """The checkpoint of a run, so that answers of two are not mixed; else the directory itself."""
  from diffjax.model import CHECKPOINTS, checkpoint_of

  path = Path(model)
  return checkpoint_of(path).directory if (path / CHECKPOINTS).is_dir() else path


def _load(args: argparse.Namespace, path: Path) -> tuple["Sampler", dict[str, Any]]:
  """The model, and the settings that were given, which are checked before it is read."""
  from diffjax.cli import tables
  from diffjax.sampling import Sampler, settings_of

  changes = decoding.given(args)
  settings_of(args.preset, **changes)
  sampler = Sampler.load(path, **decoding.placement(args))
  tables.warn_of_openness(sampler.model)
  return sampler, changes


def _converse(args: argparse.Namespace, console: Console) -> None:
  """Reads prompts from the terminal, if there is one. Raises UserError."""
  if not (sys.stdin.isatty() and console.is_terminal):
    raise UserError("no prompt given; use --prompt TEXT or --file PATH")
  for name, value in (("--output", args.output), ("--trace html", args.trace == "html")):
    if value:
      raise UserError(f"{name} is not for a conversation; give --prompt TEXT or --file PATH too")

  from diffjax.cli.interactive import Conversation

  sampler, changes = _load(args, Path(args.model))
  Conversation(sampler, console, changes, args.preset, args.length, args.seed).run()


def _page_path(args: argparse.Namespace) -> Path | None:
  if args.trace != "html":
    if args.trace_output is not None:
      raise UserError(f"--trace-output {args.trace_output} is for --trace html; give that too")
    return None
  path = args.trace_output or _PAGE
  if not path.parent.is_dir():
    raise UserError(f"--trace-output {path}: the folder does not exist; make it first")
  return path


def _write_page(path: Path, text: str) -> None:
  try:
    path.write_text(text, encoding="utf-8")
  except OSError as error:
    raise UserError(f"--trace-output {path}: {error.strerror}; give a path to write to") from None
