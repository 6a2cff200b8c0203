"""SentencePiece models, with ids laid out as XLM-R lays them out or as Llama 2 does.

In XLM-R's layout ("fairseq"): <s> 0, <pad> 1, </s> 2, <unk> 3, then SentencePiece's pieces from its
fourth on, one id later than SentencePiece counts them, and <mask> last: a model with n pieces makes
n + 2 ids. In Llama 2's ("plain") the ids are SentencePiece's own: <unk> 0, <s> 1, </s> 2; there is
no <pad> and no <mask>.

Where `decode(encode(x))` is not x: the model's normaliser acts first. As trained here (and XLM-R's)
it applies NFKC, makes one space of a run of white space and none at the ends, so that line ends
are lost; characters without a piece come back as U+2047 between spaces. A model trained with
identity normalisation, byte pieces and all white space kept gives every text back, except that
U+2581, which stands for a space in pieces, becomes one.
"""

import functools
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import sentencepiece

from diffjax.tokenizers import files
from diffjax.tokenizers.tokenizer import Tokenizer, to_utf8
from diffjax.types import UserError

FILE_NAME = "sentencepiece.bpe.model"  # what Hugging Face calls it for XLM-R, unigram or not
PLAIN_FILE_NAME = "tokenizer.model"  # and for Llama 2
FILE_NAMES = (FILE_NAME, PLAIN_FILE_NAME)

Layout = Literal["fairseq", "plain"]

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 .. 3 of the fairseq layout
_FEWEST_IDS = len(_SPECIAL) + 2  # one character, and <mask>
_LONGEST_LINE = 1 << 24  # bytes; SentencePiece silently skips what is longer than its default


class SentencePieceTokenizer(Tokenizer):
  """A SentencePiece model in XLM-R's id layout, or in Llama 2's. See the module for both."""

  def __init__(
    self,
    model: bytes,
    *,
    name: str = "the SentencePiece model",
    layout: Layout = "fairseq",
    beside: Mapping[str, bytes] | None = None,
  ):
    """Takes a model file's bytes; `name` stands for it in errors.

    `beside` is saved with it for transformers to read, as `files.read_beside` gives it.

    Raises:
      UserError: it is no such model.
    """
    self.beside = dict(beside or {})
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
    count = len(self._processor)
    self.name, self._model, self._layout = name, model, layout
    self.sha256 = hashlib.sha256(model).hexdigest()
    if layout == "fairseq":
      self._offset, self.unk_id, self.vocab_size = 1, 3, count + 2
      self.special_ids = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "mask_id": count + 1}
      spellings = [*_SPECIAL, "<mask>"]
      self._special = dict(zip(spellings, [0, 1, 2, 3, count + 1], strict=True))
    else:
      self._offset, self.unk_id, self.vocab_size = 0, 0, count
      self.special_ids = {"bos_id": 1, "eos_id": 2}
      self._special = {self._processor.id_to_piece(id_): id_ for id_ in range(3)}
    self._spelling = {id_: spelling for spelling, id_ in self._special.items()}
    self._split = re.compile("(" + "|".join(map(re.escape, self._special)) + ")").split

  def __reduce__(self) -> tuple:
    return _restore, (self._model, self.name, self._layout, self.beside)

  @classmethod
  def load(cls, path: str | Path) -> "SentencePieceTokenizer":
    """Reads a model file, or the one in a directory; plain where it is called tokenizer.model.

    Raises:
      UserError: it cannot be read, or is no such model.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    if path.is_dir() and not file.is_file() and (path / PLAIN_FILE_NAME).is_file():
      file = path / PLAIN_FILE_NAME
    layout = "plain" if file.name == PLAIN_FILE_NAME else "fairseq"
    beside = files.read_beside(file.parent) if file.name in FILE_NAMES else {}
    return cls(files.read(file), name=str(file), layout=layout, beside=beside)

  def save(self, directory: str | Path) -> None:
    """Writes `sentencepiece.bpe.model`, or `tokenizer.model` where its ids are plain, and what came
    beside it.
    """
    name = FILE_NAME if self._layout == "fairseq" else PLAIN_FILE_NAME
    for file, content in {name: self._model, **self.beside}.items():
      files.write(Path(directory) / file, content)

  def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
    """As `Tokenizer.encode`; what stands between parsed special tokens is encoded by itself."""
    if not parse_special:
      return self._encode(text)
    ids: list[int] = []
    for part in self._split(text):
      ids += [self._special[part]] if part in self._special else self._encode(part)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """As `Tokenizer.decode`."""
    raws = []
    for id_ in map(int, ids):
      self._check(id_)
      if id_ == self.unk_id:
        raws.append(0)
      elif id_ not in self._spelling:
        raws.append(id_ - self._offset)
    return self._processor.decode(raws)

  def piece(self, id_: int) -> str:
    """As `Tokenizer.piece`."""
    self._check(id_)
    if id_ in self._spelling:
      return self._spelling[id_]
    return self._processor.id_to_piece(int(id_) - self._offset).replace("▁", " ")

  def spell(self, id_: int) -> list[int]:
    """As `Tokenizer.spell`."""
    self._check(id_)
    if id_ in self.alphabet:
      return [id_]
    ids: list[int] = []
    for letter in self._processor.id_to_piece(int(id_) - self._offset):
      raw = self._processor.piece_to_id(letter)
      by_byte = [self._bytes.get(f"<0x{byte:02X}>") for byte in letter.encode()]
      if raw > 2:
        ids.append(raw + self._offset)
      elif None not in by_byte:
        ids += [byte + self._offset for byte in by_byte]
      else:
        ids.append(self.unk_id)
    return ids if set(ids) != {self.unk_id} else [self.unk_id]

  @functools.cached_property
  def alphabet(self) -> frozenset[int]:
    """As `Tokenizer.alphabet`; asks for every piece, which only pruning needs."""
    ordinary = range(3, len(self._processor))
    letters = (raw for raw in ordinary if len(self._processor.id_to_piece(raw)) == 1)
    ids = (raw + self._offset for raw in (*letters, *self._bytes.values()))
    return frozenset((*self._spelling, *ids))

  @functools.cached_property
  def _bytes(self) -> dict[str, int]:
    """ "<0x0A>" -> SentencePiece's id, where the model has pieces for bytes."""
    ordinary = range(3, len(self._processor))
    return {
      self._processor.id_to_piece(raw): raw for raw in ordinary if self._processor.is_byte(raw)
    }

  def _encode(self, text: str) -> list[int]:
    raws = self._processor.encode(to_utf8(text))
    return [raw + self._offset if raw else self.unk_id for raw in raws]


def _restore(
  model: bytes, name: str, layout: Layout, beside: Mapping[str, bytes]
) -> SentencePieceTokenizer:
  return SentencePieceTokenizer(model, name=name, layout=layout, beside=beside)


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
  text = [to_utf8(line) for line in lines if line.strip()]
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
  files.write(Path(path), model.getvalue())


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
