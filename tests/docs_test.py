"""The pages say what is so: their commands parse, their configs load, their names exist."""

import argparse
import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffjax.cli import decoding, main, quickstart
from diffjax.config import flatten, load_config
from diffjax.diffusion.strategies.reparam import masked_counts
from diffjax.sampling import settings_of
from diffjax.types import UserError

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("README.md")]
SHELLS = ("bash", "sh", "shell", "console")
SECTIONS = (
  "model", "compute", "mesh", "data", "diffusion", "adaptation", "lora", "length", "optimizer",
  "training", "evaluation",
)  # fmt: skip

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, *languages: str) -> list[str]:
  found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
  return [text for language, text in found if language in languages]


def inline_code(page: Path) -> list[str]:
  prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
  return re.findall(r"`([^`\n]+)`", prose)


def commands(shell: str) -> Iterator[list[str]]:
  """The words of every diffjax command in some lines of shell, without `diffjax` itself."""
  for line in shell.replace("\\\n", " ").splitlines():
    words = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="&;|")
    words.whitespace_split = True
    command: list[str] = []
    for word in [*words, ";"]:
      if set(word) <= set("&;|"):
        while command and re.match(r"[A-Z_]+=", command[0]):  # VARIABLE=value before a command
          command.pop(0)
        if command[:1] == ["diffjax"]:
          yield command[1:]
        command = []
      else:
        command.append(word)


def collect() -> list[tuple[str, list[str]]]:
  """(where, words) of all commands in the pages and in the heads of the config files."""
  shells = [(page.name, text) for page in PAGES for text in blocks(page, *SHELLS)]
  for file in sorted((ROOT / "configs").glob("*.py")):
    head = ast.get_docstring(ast.parse(file.read_text())) or ""
    indented = re.findall(r"^  .*$", head, re.MULTILINE)
    shells.append((file.name, "\n".join(indented)))
  return [(where, words) for where, shell in shells for words in commands(shell)]


COMMANDS = collect()


def parse(words: list[str]) -> argparse.Namespace:
  """As diffjax.cli.main does it, but a mistake raises."""
  name, *rest = words
  assert name in main.COMMANDS, f"no command {name}"
  parser = main.Parser(prog=f"diffjax {name}")
  parser.error = lambda message: pytest.fail(f"diffjax {shlex.join(words)}: {message}")
  importlib.import_module(f"diffjax.cli.{name}").add_arguments(parser)
  return parser.parse_args(main._joined(rest))


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=lambda x: x if type(x) is str else x[0])
def test_every_command_parses_and_its_config_loads(where, words, monkeypatch):
  monkeypatch.chdir(ROOT)
  arguments = parse(words)
  if words[0] == "train":
    load_config(arguments.config, arguments.set)
  elif words[0] == "quickstart":
    load_config(quickstart._CONFIG, arguments.set)
  elif words[0] in ("sample", "evaluate"):
    given = decoding.given(arguments)
    steps = str(given.pop("num_steps", None) or 10).split(",")
    for number in steps:
      settings_of(arguments.preset, **given, num_steps=int(number))


def test_every_command_has_an_example():
  assert {words[0] for where, words in COMMANDS if where.endswith(".md")} == set(main.COMMANDS)


@pytest.mark.parametrize(
  "wrong",
  [
    "diffjax sample --length=3",  # no model
    "pip install . && diffjax train --config=c.py --workdir=w --confg.seed=1",
    "A=1 diffjax evaluate \\\n  --model=x --splt=test",
  ],
)
def test_a_wrong_command_is_found(wrong):
  (words,) = commands(wrong)
  with pytest.raises(pytest.fail.Exception):
    parse(words)


@every_page
def test_relative_links_lead_somewhere(page):
  for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
    if not re.match(r"[a-z]+:|#", target):
      assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


@every_page
def test_named_paths_exist(page):
  for code in inline_code(page):
    if re.match(r"(diffjax|configs|docs|tests|benchmarks)/\S*$", code):
      assert (ROOT / code.partition(":")[0]).exists(), f"{page.name}: {code}"


@every_page
def test_named_fields_exist(page):
  fields = flatten(load_config(ROOT / "configs/quickstart_instruct.py"))
  for code in inline_code(page):
    is_file = code.endswith((".py", ".json", ".safetensors"))
    if re.match(rf"({'|'.join(SECTIONS)})(\.\w+)+$", code) and not is_file:
      known = any(name == code or name.startswith(code + ".") for name in fields)
      assert known, f"{page.name}: {code}"


@every_page
def test_named_commands_exist(page):
  for code in inline_code(page):
    if match := re.match(r"diffjax ([a-z]\w*)", code):
      assert match[1] in main.COMMANDS, f"{page.name}: {code}"


def resolve(node: ast.expr) -> object | None:
  """What `diffjax.a.b` stands for; None where the expression is something else."""
  if isinstance(node, ast.Name) and node.id == "diffjax":
    return importlib.import_module("diffjax")
  if isinstance(node, ast.Attribute):
    owner = resolve(node.value)
    if owner is not None:
      return getattr(owner, node.attr)  # raises, naming both, where there is none
  return None


def check_python(code: str) -> None:
  for node in ast.walk(ast.parse(code)):
    if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "diffjax":
      module = importlib.import_module(node.module)
      for name in node.names:
        getattr(module, name.name)
    elif isinstance(node, ast.Import):
      for name in node.names:
        importlib.import_module(name.name)
    elif isinstance(node, ast.Attribute):
      resolve(node)
    elif isinstance(node, ast.Call) and (function := resolve(node.func)) is not None:
      keywords = {keyword.arg: None for keyword in node.keywords}
      inspect.signature(function).bind(*node.args, **keywords)


@every_page
def test_python_uses_names_and_arguments_that_exist(page):
  for code in blocks(page, "python"):
    compile(code, page.name, "exec")
    check_python(code)


@pytest.mark.parametrize(
  "wrong", ["diffjax.Smpler", "diffjax.Sampler.lod('x')", "diffjax.load('x', computer=1)"]
)
def test_wrong_python_is_found(wrong):
  with pytest.raises((AttributeError, TypeError)):
    check_python(wrong)


def test_the_page_rebuilds_the_tiny_model_as_its_config_says():
  head = [words for where, words in COMMANDS if where == "pretrain_tiny_mlm.py"]
  page = [words for where, words in COMMANDS if where == "models.md"]
  assert head
  for words in head:
    assert words in page, f"models.md lacks: diffjax {shlex.join(words)}"


def test_error_examples_are_what_is_printed(monkeypatch):
  monkeypatch.chdir(ROOT)
  text = (ROOT / "docs/training.md").read_text()
  examples = re.findall(r"^\$ (diffjax train .*)\ndiffjax: (.*)$", text, re.MULTILINE)
  assert examples
  for command, message in examples:
    (words,) = commands(command)
    arguments = parse(words)
    with pytest.raises(UserError) as error:
      load_config(arguments.config, arguments.set)
    assert str(error.value) == message


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_example_of_counts_is_what_the_sampler_uses(schedule):
  text = (ROOT / "docs/decoding.md").read_text()
  (shown,) = re.findall(rf"^{schedule} +([\d ]+)$", text, re.MULTILINE)
  counts = masked_counts(schedule, 10, 40)[:, 40]
  assert [int(number) for number in shown.split()] == counts.tolist()
