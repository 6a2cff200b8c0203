"""The command line as a whole: a mistake is one line and exit status 2."""

import importlib
import sys

import pytest

from diffjax.cli import decoding, main
from diffjax.sampling import PRESETS


@pytest.fixture
def command(monkeypatch, capsys):
  """What `diffjax` says on stderr, on its way out with status 2."""

  def run(*words):
    monkeypatch.setattr(sys, "argv", ["diffjax", *words])
    with pytest.raises(SystemExit) as left:
      main.main()
    assert left.value.code == 2
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
  said = command(*line.split())
  assert said.startswith("diffjax: ")
  assert message in said
  assert said.count("\n") == 1


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
