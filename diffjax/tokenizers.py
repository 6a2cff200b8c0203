"""Text to ids and back: SentencePiece models, with ids laid out as XLM-R lays them out.

<s> 0, <pad> 1, </s> 2, <unk> 3, then SentencePiece's pieces from its fourth on, one id later than
SentencePiece counts them, and <mask> last. A model with n pieces makes n + 2 ids.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import sentencepiece

from diffjax.config import Contract
from diffjax.types import UserError

FILE_NAME = "sentencepiece.bpe.model"  # what Hugging Face calls it for XLM-R, unigram or not

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 .. 3
_OFFSET = 1  # our id of an ordinary piece minus SentencePiece's
_FEWEST_IDS = len(_SPECIAL) + 2  # one character, and <mask>
_LONGEST_LINE = 1 << 24  # bytes; SentencePiece silently skips what is longer than its default


class SentencePieceTokenizer:
  """A SentencePiece model in XLM-R's id layout. Can be pickled and used from several threads."""

  bos_id, pad_id, eos_id, unk_id = range(4)

  def __init__(self, model: bytes, *, name: str = "the SentencePiece model"):
    """Takes a model file's bytes; `name` stands for it in errors. Raises UserError."""
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError):
      raise UserError(
        f"{name} is no SentencePiece model; give a .model file, as `diffjax tokenizer` writes"
      ) from None
    if not model:
      raise UserError(f"{name} is empty; give a .model file, as `diffjax tokenizer` writes")
    ids = [getattr(self._processor, f"{role}_id")() for role in ("unk", "bos", "eos")]
    if ids != [0, 1, 2]:
      raise UserError(
        f"{name} numbers <unk>, <s>, </s> as {ids}, not as XLM-R's [0, 1, 2]; "
        f"train one with `diffjax tokenizer`"
      )
    self._model = model
    self.sha256 = hashlib.sha256(model).hexdigest()
    self.mask_id = len(self._processor) + 1
    self.vocab_size = len(self._processor) + 2

  def __reduce__(self) -> tuple:
    return type(self), (self._model,)

  @classmethod
  def load(cls, path: str | Path) -> "SentencePieceTokenizer":
    """Reads a model file, or the one in a directory. Raises UserError."""
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    try:
      return cls(file.read_bytes(), name=str(file))
    except OSError as error:
      raise UserError(
        f"tokenizer {file}: {error.strerror}; give a SentencePiece .model file or a directory "
        f"with a {FILE_NAME}"
      ) from None

  def save(self, directory: str | Path) -> None:
    """Writes the model as `sentencepiece.bpe.model` into a directory, which is made if missing."""
    _write(Path(directory) / FILE_NAME, self._model)

  @property
  def contract(self) -> Contract:
    """The special ids that a model trained with this tokenizer has."""
    return Contract(
      bos_id=self.bos_id,
      pad_id=self.pad_id,
      eos_id=self.eos_id,
      mask_id=self.mask_id,
      known_ids=self.vocab_size,
    )

  def encode(self, text: str) -> list[int]:
    """The ids of a text, no special ones added; "<mask>" or "</s>" in it is literal text.

    Raises:
      UserError: the text holds a lone surrogate, which no UTF-8 stands for.
    """
    ids = self._processor.encode(_to_utf8(text))
    return [i + _OFFSET if i else self.unk_id for i in ids]

  def decode(self, ids: Sequence[int]) -> str:
    """The text of some ids without <s>, <pad>, </s> and <mask>; <unk> becomes a question mark.

    Raises:
      UserError: an id is outside the vocabulary.
    """
    pieces = []
    for i in map(int, ids):
      self._check(i)
      if i == self.unk_id:
        pieces.append(0)
      elif self.unk_id < i < self.mask_id:
        pieces.append(i - _OFFSET)
    return self._processor.decode(pieces)

  def piece(self, id_: int) -> str:
    """One id for display: its text, a leading space where a word begins, or "<mask>" and so on.

    Raises:
      UserError: the id is outside the vocabulary.
    """
    self._check(id_)
    if id_ == self.mask_id:
      return "<mask>"
    if id_ < len(_SPECIAL):
      return _SPECIAL[id_]
    return self._processor.id_to_piece(int(id_) - _OFFSET).replace("▁", " ")

  def _check(self, id_: int) -> None:
    if not 0 <= id_ < self.vocab_size:
      raise UserError(f"token id {id_} is outside the tokenizer's {self.vocab_size} ids")


def train_sentencepiece(
  lines: Iterable[str],
  *,
  vocab_size: int,
  path: str | Path,
  kind: Literal["unigram", "bpe"] = "unigram",
) -> None:
  """Trains a model on the lines and writes it; the same lines give the same bytes.

  Normalised as XLM-R's (NFKC, runs of white space to one space). Every character gets a
  piece, but those found in spellings such as "</s>" alone, which SentencePiece learns nothing from.

  Args:
    lines: the text. All of it is held in memory.
    vocab_size: ids that the tokenizer will have, special ones included.
    path: the model file; its folder is made if missing. Appears only when complete.
    kind: unigram for ordinary text. bpe for a text of few distinct words: it makes a frequent word
      one piece even if no other word contains it, which unigram's candidates do not.

  Raises:
    UserError: no text, a lone surrogate, or a vocabulary too small or too large for the text.
  """
  if vocab_size < _FEWEST_IDS:
    raise UserError(f"vocabulary of {vocab_size} ids: ask for {_FEWEST_IDS} at least")
  text = [_to_utf8(line) for line in lines if line.strip()]
  if not text:
    raise UserError("there is no text to train a tokenizer on; give files that are not empty")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(text),
      model_writer=model,
      model_type=kind,
      vocab_size=vocab_size - 2,  # <pad> and <mask> are ours
      character_coverage=1.0,
      max_sentence_length=_LONGEST_LINE,
      shuffle_input_sentence=False,
      num_threads=1,  # with more, sums in another order give another model
      minloglevel=2,
    )
  except (RuntimeError, OSError) as error:
    raise UserError(_training_failure(str(error), vocab_size)) from None
  _write(Path(path), model.getvalue())


def _training_failure(reason: str, vocab_size: int) -> str:
  """SentencePiece's complaint in our numbers, which count two ids more."""
  too_many = re.search(r"size too high .* <= (\d+)", reason)
  if too_many:
    return (
      f"vocabulary of {vocab_size} ids: this text has pieces for {int(too_many[1]) + 2} at most; "
      f"ask for fewer or give more text"
    )
  too_few = re.search(r"required_chars\. \d+ vs (\d+)", reason)
  if too_few:
    return (
      f"vocabulary of {vocab_size} ids: the characters of this text alone need "
      f"{int(too_few[1]) + 2}; ask for more"
    )
  return f"vocabulary of {vocab_size} ids: SentencePiece refused it, {reason or 'without a reason'}"


def _to_utf8(text: str) -> bytes:
  try:
    return text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"text {text[:40]!r} has the lone surrogate {text[error.start]!r} at character "
      f"{error.start + 1}; it came from invalid UTF-8, mend it there"
    ) from None


def _write(path: Path, content: bytes) -> None:
  """Writes a file that is either whole or not there."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    temporary.replace(path)
  except OSError as error:
    raise UserError(
      f"tokenizer {path}: {error.strerror}; give a path that can be written"
    ) from None
  finally:
    temporary.unlink(missing_ok=True)
