"""A tokenizer's files: read with limits on size and depth, written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffjax.types import MissingInput, UserError

_CONFIG_BYTES = 16 * 2**20  # of a file that describes a tokenizer
_TOKENIZER_BYTES = 256 * 2**20  # of one that holds a vocabulary; the largest known has 33 MiB
_TEMPLATE_BYTES = 2**20
_JSON_DEPTH = 64

# What transformers reads beside the vocabulary. The first two say which tokens have which roles;
# where both do, the first counts.
CONFIG, SPECIAL_TOKENS, CHAT_TEMPLATE = _BESIDE = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "chat_template.jinja",
)
_REMOTE_CODE = ("auto_map", "trust_remote_code", "code_revision")  # fields that name code to fetch


def read(file: Path, *, limit: int = _TOKENIZER_BYTES) -> bytes:
  """A file of at most `limit` bytes. Raises UserError."""
  try:
    size = file.stat().st_size
    if size > limit:
      raise MissingInput(f"tokenizer {file} has {size} bytes, more than {limit}; copy it again")
    return file.read_bytes()
  except OSError as error:
    raise MissingInput(
      f"tokenizer {file}: {error.strerror}; give a SentencePiece .model file, a tokenizer.json, or "
      f"a directory with one"
    ) from None


def parse_json(content: bytes, *, name: str) -> dict[str, Any]:
  """A JSON object of at most 64 levels; `name` stands for it in errors. Raises UserError."""
  deep = f"{name} is nested deeper than {_JSON_DEPTH} levels; copy it again"
  try:
    values = json.loads(content, parse_int=_parse_int)
  except RecursionError:
    raise UserError(deep) from None
  except (ValueError, OverflowError) as error:  # no JSON, no UTF-8, or a number without end
    raise UserError(f"{name} is not valid JSON ({error}); copy it again") from None
  if not isinstance(values, dict):
    raise UserError(f"{name} holds a JSON {type(values).__name__}, not an object; copy it again")
  if _is_deep(values):
    raise UserError(deep)
  return values


def _parse_int(text: str) -> int:
  """A whole number that a float can stand for. Raises OverflowError for others."""
  value = int(text)
  float(value)
  return value


def _is_deep(values: Any) -> bool:
  level = [values]
  for _ in range(_JSON_DEPTH):
    level = [
      child
      for parent in level
      for child in (parent.values() if isinstance(parent, dict) else parent)
      if isinstance(child, dict | list)
    ]
    if not level:
      return False
  return True


def read_json(file: Path) -> dict[str, Any]:
  """A JSON object from a file of at most 16 MiB; empty where there is none. Raises UserError."""
  if not file.is_file():
    return {}
  return parse_json(read(file, limit=_CONFIG_BYTES), name=str(file))


def read_beside(directory: Path) -> dict[str, bytes]:
  """What a directory has for transformers beside a vocabulary: name of the file -> its bytes.

  They are carried along, not interpreted; fields that name code to fetch are left out.

  Raises:
    UserError: one cannot be read.
  """
  found = {}
  for name in _BESIDE:
    file = directory / name
    if not file.is_file():
      continue
    if name == CHAT_TEMPLATE:
      found[name] = read(file, limit=_TEMPLATE_BYTES)
      continue
    found[name] = read(file, limit=_CONFIG_BYTES)
    values = parse_json(found[name], name=str(file))
    own = {key: value for key, value in values.items() if key not in _REMOTE_CODE}
    if own != values:
      found[name] = to_json(own)
  return found


def to_json(values: Mapping[str, Any]) -> bytes:
  """An object as indented JSON."""
  return (json.dumps(values, indent=2) + "\n").encode()


def write(file: Path, content: bytes) -> None:
  """Writes a file that is either whole or not there. Raises UserError."""
  temporary = file.with_name(f".{file.name}.{os.getpid()}")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    temporary.replace(file)
  except OSError as error:
    raise UserError(
      f"tokenizer {file}: {error.strerror}; give a path that can be written"
    ) from None
  finally:
    temporary.unlink(missing_ok=True)
