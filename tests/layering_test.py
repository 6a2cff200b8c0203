"""Who may import whom: downward only, and third parties only where they live."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffjax"

# From the bottom up; a module may import from layers below its own, and from its own package.
LAYERS = (
  {"types"},
  {"exits", "config", "environment"},
  {"models", "diffusion", "tokenizers", "similarity", "chips", "arithmetic", "hosts"},
  {"data", "sharding", "checkpoints", "conversion"},
  {"model"},
  {"sampling", "inspection"},
  {"training", "evaluation"},
  {"planning"},
  {"cli"},
)
THIRD_PARTIES = {
  "flax.linen": ("models",),
  "orbax": ("checkpoints",),
  "tensorflow_datasets": ("data",),
  "grain": ("data",),
  "pyarrow": ("data",),
  "jinja2": ("tokenizers",),
  "lm_eval": ("evaluation",),
  "absl.flags": ("cli", "data"),
  "torch": (),
  "transformers": (),
}


def imports(file: Path) -> list[str]:
  names = []
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names += [f"{node.module}.{alias.name}" for alias in node.names]
  return names


def room_of(file: Path) -> str:
  return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer_of(room: str) -> int:
  return next(number for number, rooms in enumerate(LAYERS) if room in rooms)


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if room_of(file) != "__init__"]


def test_every_room_has_a_layer():
  assert {room_of(file) for file in FILES} <= set().union(*LAYERS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_downward(file):
  room = room_of(file)
  for name in imports(file):
    if name.startswith("diffjax."):
      other = name.split(".")[1]
      below = layer_of(other) < layer_of(room) if other in set().union(*LAYERS) else False
      training_uses_evaluation = (room, other) == ("training", "evaluation")
      assert other == room or below or training_uses_evaluation, f"{file} imports {name}"
    elif room == "diffusion":
      assert not name.startswith("flax"), f"{file} imports {name}"
    for library, homes in THIRD_PARTIES.items():
      if name == library or name.startswith(library + "."):
        assert room in homes, f"{file} imports {name}"


def test_only_commands_touch_jax_config():
  for file in FILES:
    if room_of(file) != "cli":
      assert not re.search(r"\bjax\.config", file.read_text()), file
