"""A prompt as the turn of a chat, by the Jinja template that lies beside a tokenizer.

The template is the files' own program: it runs in Jinja's sandbox, which lets it reach and change
nothing, and sees what transformers shows it, but for the date: today's prompt is tomorrow's.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes, sandbox

from diffjax.tokenizers import files
from diffjax.types import UserError

_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_TOKENS += ("mask_token",)
_PLACE = "\U0010fffd"  # stands for a text; a private character, which no text has


def template(beside: Mapping[str, bytes]) -> str:
  """The template among the files beside a tokenizer; empty where there is none.

  Raises:
    UserError: a file is damaged.
  """
  if files.CHAT_TEMPLATE in beside:
    try:
      return beside[files.CHAT_TEMPLATE].decode()
    except UnicodeDecodeError as error:
      raise UserError(
        f"{files.CHAT_TEMPLATE} is not UTF-8 at byte {error.start}; copy it again"
      ) from None
  found = _values(beside, files.CONFIG).get("chat_template")
  if isinstance(found, list):  # several, by name
    named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    found = named.get("default")
  return found if isinstance(found, str) else ""


def prompt(text: str, beside: Mapping[str, bytes], tokens: Mapping[str, str], *, name: str) -> str:
  """The text as what a user says, up to where the model begins to answer.

  Args:
    text: of the user.
    beside: as `files.read_beside` gives it.
    tokens: "bos_token" and so on, where those files do not say them.
    name: stands for the tokenizer in errors.

  Raises:
    UserError: there is no template, it cannot be read, or it refuses the text.
  """
  source = template(beside)
  if not source:
    raise UserError(
      f"{name} has no chat template (chat_template.jinja, or chat_template in "
      f"{files.CONFIG}); leave data.chat out, or take the tokenizer of a model for chats"
    )
  said = dict(tokens)
  for file in (files.SPECIAL_TOKENS, files.CONFIG):  # the latter counts
    for key, value in _values(beside, file).items():
      if key in _TOKENS:
        said[key] = value.get("content") if isinstance(value, dict) else value
  known = {key: value for key, value in said.items() if isinstance(value, str)}
  turn = [{"role": "user", "content": text}]
  try:
    return _compiled(source).render(
      messages=turn, add_generation_prompt=True, tools=None, documents=None, **known
    )
  except Exception as error:  # whatever a program of others' can do wrong inside the sandbox
    reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
    raise UserError(
      f"{name}: its chat template fails on {text[:40]!r} ({reason}); mend it or leave data.chat out"
    ) from None


def split(render: Callable[[str], str], text: str) -> tuple[str, str, str]:
  """What a template writes before the text, the text as it writes it, and what it writes behind.

  Args:
    render: `Tokenizer.chat_prompt`.
    text: of the user.

  Raises:
    UserError: as `prompt`, or the template does not put every text between the same words.
  """
  head, place, tail = render(_PLACE).partition(_PLACE)
  whole = render(text)
  said = whole[len(head) : len(whole) - len(tail)]
  if not place or _PLACE in tail or f"{head}{said}{tail}" != whole:
    raise UserError(
      f"the chat template does not write {text[:40]!r} once, between the same words as every other "
      f"text; mend it or leave data.chat out"
    )
  return head, said, tail


def _values(beside: Mapping[str, bytes], file: str) -> dict[str, Any]:
  return _parsed(beside[file], file) if file in beside else {}


@functools.lru_cache(maxsize=8)
def _parsed(content: bytes, file: str) -> dict[str, Any]:
  return files.parse_json(content, name=file)  # a config of Llama 3 alone takes half a millisecond


class _Generation(jinja2.ext.Extension):
  """`{% generation %}` marks answers for those who train with transformers; its body is text."""

  tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

  def parse(self, parser: Any) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.Scope(body, lineno=line)


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
  """Raises what Jinja raises."""
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = _refuse
  return environment.from_string(source)


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
  return json.dumps(value, ensure_ascii=False, **options)  # Jinja's own is made for HTML
