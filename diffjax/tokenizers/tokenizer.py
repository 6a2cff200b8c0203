"""What every tokenizer can do."""

import abc
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffjax.config import Contract
from diffjax.tokenizers import chat
from diffjax.types import UserError


class Tokenizer(abc.ABC):
  """Text to ids and back. Can be pickled and used from several threads.

  Text that looks like a special token ("</s>", "[MASK]") is literal text, unless the caller asks
  for it to be parsed; plain text never becomes a special id other than <unk>.

  Attributes:
    name: stands for it in errors.
    special_ids: those of bos_id, pad_id, eos_id and mask_id that it knows. A model's [CLS] is its
      bos, [SEP] its eos.
    unk_id: what stands for text it has no piece for; None where all text has pieces.
    vocab_size: one more than the largest id it makes.
    sha256: of all that decides its ids; of a chat's template, which makes texts, not ids, no part.
    beside: the files saved with it for transformers, by name.
    alphabet: the ids that no pruning takes: special ones, <unk>, and the pieces of one character
      or byte that every other piece can be spelled with.
  """

  name: str
  special_ids: Mapping[str, int]
  unk_id: int | None
  vocab_size: int
  sha256: str
  alphabet: frozenset[int]
  beside: Mapping[str, bytes] = types.MappingProxyType({})

  @abc.abstractmethod
  def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
    """The ids of a text, no special ones added.

    Args:
      text: any text of Unicode characters.
      parse_special: "</s>" and its like in the text become the special ids that they name.

    Raises:
      UserError: the text holds a lone surrogate, which no UTF-8 stands for.
    """

  @abc.abstractmethod
  def decode(self, ids: Sequence[int]) -> str:
    """The text of some ids without the special ones; <unk> becomes a question mark (U+2047).

    Raises:
      UserError: an id is outside the vocabulary.
    """

  @abc.abstractmethod
  def piece(self, id_: int) -> str:
    """One id for display: its text, a leading space where a word begins, or "<mask>" and so on.

    Raises:
      UserError: the id is outside the vocabulary.
    """

  @abc.abstractmethod
  def spell(self, id_: int) -> list[int]:
    """The same text as the id's in ids of the alphabet; <unk> where those lack a character."""

  @abc.abstractmethod
  def save(self, directory: str | Path) -> None:
    """Writes its files into a directory, which is made if missing. Raises UserError."""

  def chat_prompt(self, text: str) -> str:
    """The text as a user's turn in the tokenizer's chat template, the answer's opening included.

    It holds special tokens by name. Encoded as a whole with `parse_special`, those in the text
    would count too, as they do in transformers; `data.features.prompt_ids` keeps them apart.

    Raises:
      UserError: there is no template, or it cannot be read or refuses the text.
    """
    tokens = {f"{role.removesuffix('_id')}_token": id_ for role, id_ in self.special_ids.items()}
    spelled = {role: self.piece(id_) for role, id_ in tokens.items()}
    return chat.prompt(text, self.beside, spelled, name=self.name)

  @property
  def bos_id(self) -> int:
    """Begins a row; a tokenizer without it takes its eos. Raises UserError without either."""
    return self._role("bos_id", "eos_id")

  @property
  def pad_id(self) -> int:
    """Fills a row up; a tokenizer without it takes its eos. Raises UserError without either."""
    return self._role("pad_id", "eos_id")

  @property
  def eos_id(self) -> int:
    """Ends a row. Raises UserError where the tokenizer has none."""
    return self._role("eos_id")

  @property
  def mask_id(self) -> int:
    """Stands for a noised token. Raises UserError where the tokenizer has none."""
    return self._role("mask_id")

  @property
  def contract(self) -> Contract:
    """The special ids of a model trained with this tokenizer. Raises UserError without a mask."""
    return Contract(
      bos_id=self.bos_id,
      pad_id=self.pad_id,
      eos_id=self.eos_id,
      mask_id=self.mask_id,
      known_ids=self.vocab_size,
    )

  def _role(self, *roles: str) -> int:
    for role in roles:
      if role in self.special_ids:
        return self.special_ids[role]
    raise UserError(
      f"{self.name} has no {roles[0].removesuffix('_id')} token; take the id from the model's "
      f"contract, or a tokenizer that has one"
    )

  def _check(self, id_: int) -> None:
    if not 0 <= id_ < self.vocab_size:
      raise UserError(f"token id {id_} is outside the tokenizer's {self.vocab_size} ids")


def to_utf8(text: str) -> bytes:
  """The bytes of a text. Raises UserError for a lone surrogate."""
  try:
    return text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"text {text[:40]!r} has the lone surrogate {text[error.start]!r} at character "
      f"{error.start + 1}; it came from invalid UTF-8, mend it there"
    ) from None
