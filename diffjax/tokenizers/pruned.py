"""A tokenizer of a part of another one's ids, for models whose unused rows were cut away."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from diffjax.tokenizers import files
from diffjax.tokenizers.tokenizer import Tokenizer
from diffjax.types import UserError

FILE_NAME = "vocabulary.json"


class PrunedTokenizer(Tokenizer):
  """Another tokenizer with its ids renumbered 0 .. n - 1; a text's pieces that are not kept are
  spelled with those of its characters or bytes, which always are.

  So no text is lost that the other could encode, and `decode(encode(x))` is the other's; only a
  piece with a character that has no piece of its own becomes <unk>, as rare characters do there.
  A byte-level model has a piece for every byte and needs none.
  """

  def __init__(self, inner: Tokenizer, kept: Sequence[int]):
    """Takes the ids that stay, in their new order.

    Args:
      inner: the tokenizer to cut down. If it is pruned itself, the result is one of the whole.
      kept: ids of `inner`, all of its `alphabet` among them.

    Raises:
      UserError: an id twice, outside the vocabulary, or one of the alphabet not kept.
    """
    missing = sorted(inner.alphabet.difference(kept))
    if missing:
      raise UserError(
        f"{inner.name}: id {missing[0]} ({inner.piece(missing[0])!r}) must be kept, as every "
        f"special token and single character; {len(missing)} of them are missing"
      )
    inside = all(0 <= id_ < inner.vocab_size for id_ in kept)
    if not inside or not 0 < len(set(kept)) == len(kept):
      raise UserError(
        f"{inner.name}: kept ids must differ and lie in 0 .. {inner.vocab_size - 1}; copy "
        f"{FILE_NAME} again, beside the tokenizer that it belongs to"
      )
    if isinstance(inner, PrunedTokenizer):
      inner, kept = inner.inner, inner.original_ids(kept)
    self.inner, self.kept = inner, tuple(map(int, kept))
    self._new = {old: new for new, old in enumerate(self.kept)}
    self.name, self.beside = inner.name, inner.beside
    self.vocab_size = len(self.kept)
    self.special_ids = {role: self._new[id_] for role, id_ in inner.special_ids.items()}
    self.unk_id = None if inner.unk_id is None else self._new[inner.unk_id]
    self.alphabet = frozenset(self._new[id_] for id_ in inner.alphabet)
    self._content = (json.dumps({"kept": self.kept}) + "\n").encode()
    self.sha256 = hashlib.sha256(inner.sha256.encode() + self._content).hexdigest()

  def __reduce__(self) -> tuple:
    return type(self), (self.inner, self.kept)

  @classmethod
  def load(cls, inner: Tokenizer, file: str | Path) -> "PrunedTokenizer":
    """Reads the kept ids of `inner` from a vocabulary.json. Raises UserError."""
    kept = files.read_json(Path(file)).get("kept")
    if not isinstance(kept, list) or not kept or not all(type(id_) is int for id_ in kept):
      raise UserError(f"{file}: kept must be a list of ids; copy it again")
    return cls(inner, kept)

  def save(self, directory: str | Path) -> None:
    """Writes the other tokenizer's files, and vocabulary.json with the ids that are kept."""
    self.inner.save(directory)
    files.write(Path(directory) / FILE_NAME, self._content)

  def original_ids(self, ids: Sequence[int]) -> list[int]:
    """The ids that these were before pruning. Raises UserError for one out of the vocabulary."""
    for id_ in ids:
      self._check(id_)
    return [self.kept[id_] for id_ in ids]

  def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
    """As `Tokenizer.encode`."""
    ids: list[int] = []
    for old in self.inner.encode(text, parse_special=parse_special):
      if old in self._new:
        ids.append(self._new[old])
      else:
        ids += [self._new[letter] for letter in self.inner.spell(old)]
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """As `Tokenizer.decode`."""
    return self.inner.decode(self.original_ids(ids))

  def piece(self, id_: int) -> str:
    """As `Tokenizer.piece`."""
    return self.inner.piece(self.original_ids([id_])[0])

  def spell(self, id_: int) -> list[int]:
    """As `Tokenizer.spell`."""
    return [self._new[letter] for letter in self.inner.spell(self.original_ids([id_])[0])]
