"""`tokenizer.json`, as the `tokenizers` library runs it: byte-level BPE, WordPiece, Unigram.

The library takes special tokens out of a text before its model sees it, and a model that has them
in its vocabulary (Unigram's, say) finds them there again. So that text stays text, what encodes is
a copy of the file in which every special token has a name that no text contains; its ids are the
file's own. Added tokens that are not special keep their meaning.

Where `decode(encode(x))` is not x:

Byte-level BPE gives every text back, byte for byte. Exceptions are what the file asks for: a
normaliser (NFC, say), `add_prefix_space` (one space more at the front), and added tokens that take
the white space beside them (`lstrip`, `rstrip`).

WordPiece gives words joined by single spaces, as its normaliser left them (lower case without
accents in uncased models, no control characters). Punctuation is a word too, with no space before
. ? ! and , but one before all other. A word that has no pieces comes back as U+2047.

Unigram, and BPE over characters, lose what their normaliser changes (NFKC and runs of white space
in XLM-R's and T5's) and a space at the front; U+2581, which stands for a space in pieces, becomes
one; characters without a piece come back as U+2047, unless the model has pieces for bytes.

ESM's residues come back without the white space that stood between them. Each run of characters
that are no residues (lower case letters, digits) comes back as one U+2047: as many as there are
between residues and white space.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from diffjax.tokenizers import files
from diffjax.tokenizers import roles as role_files
from diffjax.tokenizers.tokenizer import Tokenizer, to_utf8
from diffjax.types import UserError

FILE_NAME = "tokenizer.json"
_UNKNOWN_MARK = "\u2047"  # as SentencePiece decodes <unk>
_NEVER = "\U0010fffe"  # a noncharacter of Unicode, which text between programs has no use for


class HuggingFaceTokenizer(Tokenizer):
  """A tokenizer.json with the roles of its special tokens. See the module for what it loses."""

  def __init__(
    self,
    model: bytes,
    roles: Mapping[str, str | None],
    *,
    name: str = FILE_NAME,
    beside: Mapping[str, bytes] | None = None,
  ):
    """Builds it.

    Args:
      model: the bytes of a tokenizer.json.
      roles: "bos_token", "cls_token", ... -> the token, or None where the model has none. One left
        out is looked for among the added tokens by its usual spellings.
      name: stands for the file in errors.
      beside: what is saved with it for transformers to read, as `files.read_beside` gives it;
        without a file that says the roles, one is made of them. Decides no ids.

    Raises:
      UserError: the library cannot read it.
    """
    self.name, self._model, self.beside = name, model, dict(beside or {})
    values = files.parse_json(model, name=name)
    with _library_errors(f"{name} is no tokenizer.json that can be read", "copy it again"):
      self._build(values, roles)
    if not self.beside.keys() & set(role_files.ROLE_FILES):
      self.beside[files.CONFIG] = role_files.describe(
        self._roles, self._unknown_token, has_types=self._has_types
      )
    described = json.dumps(self._roles, sort_keys=True).encode()
    self.sha256 = hashlib.sha256(hashlib.sha256(model).digest() + described).hexdigest()

  def _build(self, values: dict[str, Any], roles: Mapping[str, str | None]) -> None:
    """Fills everything from the file's values, which are empty afterwards."""
    added = [token["content"] for token in values.get("added_tokens") or () if token["content"]]
    self._roles = {
      key: roles[key] if key in roles else next((s for s in usual if s in added), None)
      for key, usual in role_files.SPELLINGS.items()
    }
    unknown = self._unknown_token = _unknown_token(values["model"])
    special = _special_tokens(values, (*self._roles.values(), unknown))
    names = {token: f"{_NEVER}{number}{_NEVER}" for number, token in enumerate(special)}
    self._byte_level = (values.get("decoder") or {}).get("type") == "ByteLevel"
    self._prefix = values["model"].get("continuing_subword_prefix") or ""
    self._suffix = values["model"].get("end_of_word_suffix") or ""
    self._has_bytes = bool(values["model"].get("byte_fallback"))
    self._has_types = _has_types(values.get("post_processor"), self._roles)
    self._tokenizer = _load(values, names)
    self._tokenizer.encode_special_tokens = True  # even a text with such a name stays text
    tokens = {name: token for token, name in names.items()}
    vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
    self._ids = {tokens.get(piece, piece): id_ for piece, id_ in vocabulary.items()}
    self._pieces = {id_: piece for piece, id_ in self._ids.items()}
    self._added = {self._ids[token] for token in added}
    self._special = {self._ids[token] for token in special}
    self._unknown_name = names.get(unknown, _UNKNOWN_MARK)
    shared = unknown in self._roles.values()  # GPT-2's is its </s> too, and never needed
    self.unk_id = None if shared or unknown is None else self._ids.get(unknown)
    self._forbidden = frozenset(self._special - {self.unk_id})
    self.special_ids = {}
    for role, keys in role_files.ROLES.items():
      known = [self._ids[self._roles[key]] for key in keys if self._roles[key] in names]
      if known:
        self.special_ids[role] = known[0]
    self.vocab_size = max(self._pieces, default=-1) + 1
    self._is_word_piece = isinstance(self._tokenizer.model, tokenizers.models.WordPiece)

  def __reduce__(self) -> tuple:
    return _restore, (self._model, self._roles, self.name, self.beside)

  @classmethod
  def load(cls, path: str | Path) -> "HuggingFaceTokenizer":
    """Reads a tokenizer.json, or the one in a directory, and the roles from the files beside it.

    Raises:
      UserError: a file cannot be read, or holds something else.
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    beside = files.read_beside(file.parent)
    return cls(files.read(file), role_files.read(file.parent), name=str(file), beside=beside)

  def save(self, directory: str | Path) -> None:
    """Writes `tokenizer.json`, byte for byte, and what came beside it: the class that transformers
    takes, the roles, the template of a chat. Where no roles came, they are written.
    """
    for name, content in {FILE_NAME: self._model, **self.beside}.items():
      files.write(Path(directory) / name, content)

  def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
    """As `Tokenizer.encode`. Raises UserError, too, where the file's own rules fail on the text."""
    to_utf8(text)
    with _library_errors(f"{self.name} cannot encode {text[:40]!r}", "use another tokenizer"):
      tokenizer = self._parser if parse_special else self._tokenizer
      ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not parse_special and not self._forbidden.isdisjoint(ids):
      return self._without_forbidden(ids)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """As `Tokenizer.decode`."""
    kept = []
    for id_ in map(int, ids):
      self._check(id_)
      if id_ not in self._forbidden and id_ in self._pieces:
        kept.append(id_)
    if self._byte_level:
      return b"".join(map(self._bytes, kept)).decode(errors="replace")
    with _library_errors(f"{self.name} cannot decode", "use another tokenizer"):
      text = self._tokenizer.decode(kept, skip_special_tokens=False)
    return text.replace(self._unknown_name, _UNKNOWN_MARK)

  def piece(self, id_: int) -> str:
    """As `Tokenizer.piece`; empty for an id that the file leaves out."""
    self._check(id_)
    piece = self._pieces.get(int(id_), "")
    if not piece or id_ in self._special or id_ in self._added:
      return piece
    if self._byte_level:
      return self._bytes(int(id_)).decode(errors="replace")
    if self._is_word_piece:
      continues = piece.startswith(self._prefix) and self._prefix
      return piece.removeprefix(self._prefix) if continues else f" {piece}"
    if self._suffix and piece.endswith(self._suffix):
      piece = piece.removesuffix(self._suffix) + " "
    return piece.replace("▁", " ")

  def spell(self, id_: int) -> list[int]:
    """As `Tokenizer.spell`; empty where characters are missing and there is no <unk>."""
    self._check(id_)
    if id_ in self.alphabet:
      return [int(id_)]
    if self._byte_level:
      ids = [self._ids.get(_CHARACTERS[byte]) for byte in self._bytes(int(id_))]
      return ids if None not in ids else self._unknown
    body, starts, ends = self._body(self._pieces.get(int(id_), ""))
    ids = []
    for place, letter in enumerate(body):
      prefix = self._prefix if place or not starts else ""
      suffix = self._suffix if place == len(body) - 1 and ends else ""
      ids += self._letter(f"{prefix}{letter}{suffix}", letter)
    return ids if set(ids) - set(self._unknown) else self._unknown

  @functools.cached_property
  def alphabet(self) -> frozenset[int]:
    """As `Tokenizer.alphabet`."""
    if self._byte_level:
      letters = {id_ for id_ in self._pieces if len(self._bytes(id_)) == 1}
    else:
      letters = {id_ for id_, piece in self._pieces.items() if len(self._body(piece)[0]) == 1}
    if self._has_bytes:
      letters |= {self._ids[name] for name in map(_byte_name, range(256)) if name in self._ids}
    return frozenset(letters | self._special)

  @functools.cached_property
  def _parser(self) -> tokenizers.Tokenizer:
    """The file as it is, with the roles' tokens special even where it does not say so."""
    parser = _load(files.parse_json(self._model, name=self.name), {})
    tokens = (self._pieces[id_] for id_ in sorted(self._forbidden))
    parser.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in tokens])
    return parser

  @property
  def _unknown(self) -> list[int]:
    return [] if self.unk_id is None else [self.unk_id]

  def _without_forbidden(self, ids: Sequence[int]) -> list[int]:
    """What a model says of words it does not know: these are names of ours, which no text has."""
    return [i for id_ in ids for i in (self._unknown if id_ in self._forbidden else [id_])]

  def _bytes(self, id_: int) -> bytes:
    """The bytes that an id of a byte-level model stands for."""
    piece = self._pieces[id_]
    if id_ == self.unk_id:
      return _UNKNOWN_MARK.encode()
    if id_ in self._added or id_ in self._special or not _BYTES.keys() >= set(piece):
      return piece.encode()
    return bytes(_BYTES[letter] for letter in piece)

  def _body(self, piece: str) -> tuple[str, bool, bool]:
    """A piece's text, and whether a word may begin with it and ends with it."""
    continues = bool(self._prefix) and piece.startswith(self._prefix) and piece != self._prefix
    body = piece.removeprefix(self._prefix) if continues else piece
    ends = bool(self._suffix) and body.endswith(self._suffix) and body != self._suffix
    return body.removesuffix(self._suffix) if ends else body, not continues, ends

  def _letter(self, name: str, letter: str) -> list[int]:
    by_byte = [self._ids.get(_byte_name(byte)) for byte in letter.encode()]
    if name in self._ids:
      return [self._ids[name]]
    return by_byte if self._has_bytes and None not in by_byte else self._unknown


def _restore(
  model: bytes, roles: Mapping[str, str | None], name: str, beside: Mapping[str, bytes]
) -> HuggingFaceTokenizer:
  return HuggingFaceTokenizer(model, roles, name=name, beside=beside)


def _byte_name(byte: int) -> str:
  return f"<0x{byte:02X}>"


def _characters() -> list[str]:
  """The character that byte-level BPE writes for every byte: the byte's own if it can be seen."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  others = iter(letter for letter in alphabet if ord(letter) > 255)
  return [chr(byte) if chr(byte) in alphabet else next(others) for byte in range(256)]


_CHARACTERS = _characters()
_BYTES = {letter: byte for byte, letter in enumerate(_CHARACTERS)}


def _has_types(value: Any, roles: Mapping[str, str | None]) -> bool:
  """Whether a post-processor is that of a model like BERT, which is told of two texts."""
  if not roles["cls_token"] or not roles["sep_token"]:
    return False  # others number texts too (Llama's), for models that take no such number
  if isinstance(value, dict):
    if value.get("type") == "BertProcessing" or value.get("type_id") == 1:
      return True
    value = list(value.values())
  return isinstance(value, list) and any(_has_types(part, roles) for part in value)


def _unknown_token(model: Mapping[str, Any]) -> str | None:
  if isinstance(model["vocab"], list):
    return None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]
  return model.get("unk_token") or None


def _special_tokens(values: Mapping[str, Any], others: Sequence[str | None]) -> list[str]:
  """The added tokens that are special, and of the others those that have an id."""
  added = values.get("added_tokens") or ()
  vocabulary = values["model"]["vocab"]
  pieces = {piece for piece, _ in vocabulary} if isinstance(vocabulary, list) else vocabulary
  contents = {token["content"] for token in added}
  special = [token["content"] for token in added if token["special"] and token["content"]]
  special += [token for token in others if token and (token in pieces or token in contents)]
  return list(dict.fromkeys(special))


def _load(values: dict[str, Any], names: Mapping[str, str]) -> tokenizers.Tokenizer:
  """A tokenizer.json with tokens under other names, that neither cuts, pads, adds nor draws.

  Takes the values for itself and empties them: of a large vocabulary, they, their text and what
  the library makes of it are each some 50 MB.
  """
  name = lambda token: names.get(token, token)
  model = values["model"]
  if isinstance(model["vocab"], list):
    for entry in model["vocab"]:
      entry[0] = name(entry[0])
  else:
    model["vocab"] = {name(piece): id_ for piece, id_ in model["vocab"].items()}
  if model.get("unk_token"):
    model["unk_token"] = name(model["unk_token"])
  if model.get("merges"):
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    rules = zip(model["merges"], pairs, strict=True)
    model["merges"] = [m for m, pair in rules if not {*pair, "".join(pair)} & names.keys()]
  model |= {"dropout": None} if "dropout" in model else {}
  values["added_tokens"] = [
    {**token, "content": name(token["content"])} for token in values.get("added_tokens") or ()
  ]
  values |= dict.fromkeys(("truncation", "padding", "post_processor"))
  content = json.dumps(values).encode()
  values.clear()
  del model
  return tokenizers.Tokenizer.from_buffer(content)


@contextlib.contextmanager
def _library_errors(what: str, remedy: str) -> Iterator[None]:
  """Whatever goes wrong with a file of others', panics of the library included, in one line."""
  try:
    yield
  except BaseException as error:
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
      raise
    reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
    raise UserError(f"{what} ({reason}); {remedy}") from None
