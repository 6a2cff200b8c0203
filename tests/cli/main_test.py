"""The command line as a whole: every end has its exit code, and the cause as the last line."""

import errno
import importlib
import os
import sys

import pytest

from diffjax.cli import decoding, main
from diffjax.exits import Exit
from diffjax.sampling import PRESETS
from diffjax.types import BadData, Diverged, MissingInput, Preempted, Unavailable, UserError


@pytest.fixture
def command(monkeypatch, capsys):
  """What `diffjax` says on stderr, on its way out with an exit code."""

  def run(*words, code=Exit.USAGE):
    monkeypatch.setattr(sys, "argv", ["diffjax", *words])
    with pytest.raises(SystemExit) as left:
      main.main()
    assert left.value.code == code
    said = capsys.readouterr()
    assert not said.out
    return said.err

  return run


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("smple", "no command 'smple'; did you mean 'sample'?"),
    ("sample --modle=x", "no option --modle; did you mean --model?"),
    ("sample --model=x --num-step 3", "no option --num-step; did you mean --num-steps?"),
    ("sample --model=x --prompt=a b", "unrecognized arguments: b"),
    ("sample --model=x --length=x", "argument --length: invalid int value: 'x'"),
    ("sample --prompt=a", "the following arguments are required: --model"),
    ("evaluate --model=x --split=tst", "invalid choice: 'tst'"),
    ("train --confg.seed=1", "did you mean --config?"),
    ("sample --model=no/such --prompt=a --num-steps=0", "num_steps = 0 must be"),
    ("sample --model=no/such --prompt=a", "no/such does not exist"),
  ],
)
def test_a_mistake_is_one_line(command, line, message):
  missing = "no/such does not exist" in message
  said = command(*line.split(), code=Exit.INPUT if missing else Exit.USAGE)
  assert said.startswith("diffjax: ")
  assert message in said
  assert said.count("\n") == 1


ENDS = [
  (UserError("a mistake"), Exit.USAGE, "a mistake"),
  (BadData("a record"), Exit.DATA, "a record"),
  (MissingInput("a file"), Exit.INPUT, "a file"),
  (Unavailable("process 1 is gone"), Exit.DEVICE, "process 1 is gone"),
  (Preempted("stopped at step 3"), Exit.PREEMPTED, "stopped at step 3"),
  (Diverged("step 3: nan"), Exit.DIVERGED, "step 3: nan"),
  (KeyboardInterrupt(), Exit.INTERRUPTED, "interrupted"),
  (FileNotFoundError(errno.ENOENT, "No such file", "x"), Exit.INPUT, "x: No such file"),
  (PermissionError(errno.EACCES, "Permission denied", "x"), Exit.CREATE, "x: Permission denied"),
  (OSError(errno.EROFS, "Read-only", "x"), Exit.CREATE, "x: Read-only"),
  (OSError(errno.ENOSPC, "No space left", "x"), Exit.DISK, "x: No space left"),
  (OSError(errno.EIO, "Input/output error"), Exit.DISK, "Input/output error"),
  (RuntimeError("Unable to initialize backend 'tpu'"), Exit.DEVICE, "Unable to initialize backend"),
  (ZeroDivisionError("division by zero"), Exit.BUG, "ZeroDivisionError: division by zero"),
]


@pytest.mark.parametrize(("error", "code", "cause"), ENDS, ids=[cause for *_, cause in ENDS])
def test_every_end_has_a_code_and_a_cause(command, monkeypatch, error, code, cause):
  from diffjax.cli import inspect

  def run(arguments):
    raise error

  ignored = []
  monkeypatch.setattr(main.signal, "signal", lambda number, handler: ignored.append(number))
  monkeypatch.setattr(inspect, "run", run)
  lines = command("inspect", "x", code=code).splitlines()
  assert lines[-1].startswith("diffjax: ")
  assert cause in lines[-1]
  assert (len(lines) > 1) == (code == Exit.BUG)  # a traceback, of a fault of ours alone
  assert bool(ignored) == (code == Exit.PREEMPTED)  # the same signal once more changes no code


@pytest.mark.parametrize("name", ["convert", "data", "report"])
def test_what_writes_one_file_refuses_to_run_several_times(command, monkeypatch, name):
  for variable, value in {"SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "2"}.items():
    monkeypatch.setenv(variable, value)
  words = {"convert": ["--from=x", "--to=y"], "data": ["--config=x"], "report": ["x", "--out=y"]}
  assert f"diffjax {name} runs in one process" in command(name, *words[name])


def test_gpus_are_used_as_far_as_plans_count_on_unless_told_otherwise(command, monkeypatch):
  name, old = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
  for variable in (name, old):
    monkeypatch.setenv(name, "0.1")  # so that it is put back
    monkeypatch.delenv(name)
    monkeypatch.setenv(variable, "0.5")
    command("inspect", "no/such", code=Exit.INPUT)
    assert (os.environ.get(name), os.environ.get(old)) in (("0.5", None), (None, "0.5"))
    monkeypatch.delenv(variable)
  command("inspect", "no/such", code=Exit.INPUT)
  assert os.environ[name] == "0.92"


def test_a_text_that_looks_like_an_option_is_a_text():
  parser = main.Parser()
  parser.add_argument("--prompt")
  assert parser.parse_args(["--prompt", "-- what is this?"]).prompt == "-- what is this?"
  assert parser.parse_args(["--prompt=--x"]).prompt == "--x"


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_tells_its_options(name, capsys):
  parser = main.Parser(prog=name)
  importlib.import_module(f"diffjax.cli.{name}").add_arguments(parser)
  with pytest.raises(SystemExit) as left:
    parser.parse_args(["--help"])
  assert left.value.code == 0
  assert "--" in capsys.readouterr().out


def test_the_presets_are_named():
  parser = main.Parser()
  decoding.add_options(parser)
  assert ", ".join(PRESETS) in " ".join(parser.format_help().split())
