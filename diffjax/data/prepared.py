"""Records of files that others prepared: Parquet, and TFDS builders written as array_record.

Their libraries are imported when a source asks for them.
"""

import bisect
import collections
import hashlib
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.config import SourceConfig
from diffjax.data.records import Record, Records, find_files, identify
from diffjax.types import MissingInput, UserError

_CACHED_BYTES = 1 << 29  # of decoded Parquet row groups, a process


# ---- Parquet -------------------------------------------------------------------------------------


class ParquetRecords(Records):
  """One row a record. Row groups are decoded when asked for, and the latest stay in memory.

  They stay as Arrow's columns, up to 512 MiB of them, and only the row asked for becomes Python.
  """

  def __init__(self, config: SourceConfig):
    self._paths = find_files(config.path)
    self._groups: list[tuple[int, int]] = []  # (file, row group in it)
    counts, hashes = [], {}
    for number, path in enumerate(self._paths):
      metadata = _open_parquet(path).metadata
      for group in range(metadata.num_row_groups):
        self._groups.append((number, group))
        counts.append(metadata.row_group(group).num_rows)
      hashes[path] = _hash_file(path)
    self._stops = np.cumsum(counts).tolist()
    if not sum(counts):
      raise UserError(f"{config.path} has no rows; give a file with one record a row")
    self.identity = identify(hashes)
    self._start_cache()

  def _start_cache(self) -> None:
    self._cache: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._files: dict[int, Any] = {}
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._stops[-1]

  def _find(self, number: int) -> tuple[int, int]:
    group = bisect.bisect_right(self._stops, number)
    return group, number - (self._stops[group - 1] if group else 0)

  def __getitem__(self, number: int) -> Record:
    group, row = self._find(number)
    with self._lock:
      if group not in self._cache:
        self._cache[group] = self._read(group)
      self._cache.move_to_end(group)
      while len(self._cache) > 1 and sum(t.nbytes for t in self._cache.values()) > _CACHED_BYTES:
        self._cache.popitem(last=False)
      table = self._cache[group]
    try:
      return _plain(table.slice(row, 1).to_pylist()[0])
    except UnicodeDecodeError as error:  # a column of texts, which Arrow does not look into
      raise self.error(number, f"not valid UTF-8 at byte {error.start + 1} of a text") from None

  def _read(self, group: int) -> Any:
    file, group_of_file = self._groups[group]
    if file not in self._files:
      self._files[file] = _open_parquet(self._paths[file])
    return self._files[file].read_row_group(group_of_file)

  def where(self, number: int) -> str:
    """`file:row`, counted from 1 in every file."""
    group, _ = self._find(number)
    file = self._groups[group][0]
    before = [self._stops[g] for g in range(group) if self._groups[g][0] < file]
    return f"{self._paths[file]}:{number - (before[-1] if before else 0) + 1}"

  def __getstate__(self) -> dict[str, Any]:
    left = ("_cache", "_files", "_lock")
    return {name: value for name, value in self.__dict__.items() if name not in left}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._start_cache()


def _open_parquet(path: Path) -> Any:
  try:
    from pyarrow import ArrowException, parquet
  except ImportError:
    raise UserError(f"{path}: Parquet needs a library; run: pip install pyarrow") from None
  try:
    return parquet.ParquetFile(path, memory_map=True)
  except ArrowException as error:
    reason = " ".join(str(error).split())
    raise MissingInput(f"{path}: no Parquet file ({reason}); copy it again") from None
  except OSError as error:
    raise MissingInput(f"{path}: {error.strerror or error}; give a readable file") from None


def _hash_file(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
  """Texts as str, NumPy's scalars and arrays as Python's, in whatever they are nested.

  Bytes that are no text stay: pictures and the like, which a task may well leave alone.
  """
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      return value
  if isinstance(value, Mapping):
    return {name: _plain(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  return value


# ---- TFDS ----------------------------------------------------------------------------------------


class TfdsRecords(Records):
  """A prepared TFDS builder, read from its array_record files without TensorFlow.

  The fields of `supervised_keys` come first and in their order: de, en of wmt14_translate/de-en.
  """

  def __init__(self, config: SourceConfig):
    self._name, self._split = config.path, config.split
    self._directory, self._root = _find_builder(config)
    self._source = self._open()
    if not len(self._source):
      raise UserError(f"{self._name}: split {self._split!r} has no examples; name another split")

  def _open(self) -> Any:
    builder = _load_builder(self._directory, self._name, self._root)
    info = builder.info
    keys = info.supervised_keys or ()
    self._first = [key for key in keys if isinstance(key, str)]
    form = info.file_format.value if info.file_format else "unknown"
    if form != "array_record":
      raise UserError(
        f"{self._name} is written as {form} in {self._directory}, which has no random access; "
        f"write it again: {_build_command(self._name, self._root)}"
      )
    try:
      source = builder.as_data_source(split=self._split)
    except ImportError as error:
      raise UserError(
        f"{self._name} is read by array_record ({error}); run: pip install array_record"
      ) from None
    except ValueError:  # TFDS has one kind for all that is wrong with a split's name
      raise UserError(
        f"split {self._split!r} of {self._name}: it has the splits {', '.join(info.splits)}, and "
        f"parts of them such as train[:10%]"
      ) from None
    self.identity = _identify_builder(self._directory, self._root, self._split)
    return source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, number: int) -> Record:
    record = _plain(self._source[number])
    if not isinstance(record, dict):
      raise self.error(number, "not a record with fields")
    return {name: record[name] for name in (*self._first, *record) if name in record}

  def where(self, number: int) -> str:
    """`builder split:record`, counted from 1."""
    return f"{self._name} {self._split}:{number + 1}"


_VERSION = re.compile(r"\d+\.\d+\.\d+")


def _find_builder(config: SourceConfig) -> tuple[Path, Path]:
  """The prepared folder, DATA_DIR/name/config/version or what `path` is itself; and DATA_DIR."""
  itself = Path(config.path)
  if (itself / "dataset_info.json").is_file():
    return itself, itself.parent.parent
  root = Path(
    config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  ).expanduser()
  name, _, version = config.path.partition(":")
  module, _, rest = name.partition("/")
  folder = root / _to_snake(module.rpartition(".")[2]) / rest
  versions = [version] if version else _versions(folder)
  if not version and not versions and not rest and folder.is_dir():
    choices = [child for child in sorted(folder.iterdir()) if _versions(child)]
    if len(choices) == 1:
      folder = choices[0]
      versions = _versions(folder)
    elif choices:
      names = ", ".join(f"{name}/{child.name}" for child in choices)
      raise UserError(f"{name} is prepared in several forms; name one of {names}")
  if versions and (folder / versions[-1] / "dataset_info.json").is_file():
    return folder / versions[-1], root
  raise MissingInput(
    f"{config.path} is not prepared in {root}; write it: {_build_command(config.path, root)}"
  )


def _versions(folder: Path) -> list[str]:
  """Names of the prepared versions in a folder, ascending."""
  if not folder.is_dir():
    return []
  names = [child.name for child in folder.iterdir() if _VERSION.fullmatch(child.name)]
  return sorted(names, key=lambda name: [int(number) for number in name.split(".")])


def _to_snake(name: str) -> str:
  return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _build_command(name: str, root: Path) -> str:
  """How a user writes a builder as array_record, in one line."""
  module, _, rest = name.partition(":")[0].partition("/")
  if re.fullmatch(r"\w+", module):
    return (
      f"tfds build {name} --file_format=array_record --data_dir={root} (it downloads, and needs "
      f"pip install tensorflow; reading does not)"
    )
  if not re.fullmatch(r"\w+(\.\w+)+", module):
    return "builder.download_and_prepare() with file_format='array_record' (it has no module here)"
  package, _, kind = module.rpartition(".")
  asked = f"config={rest!r}, " if rest else ""
  return (
    f'python -c "from {package} import {kind} as b; b({asked}data_dir={str(root)!r}, '
    f"file_format='array_record').download_and_prepare()\""
  )


def _load_builder(directory: Path, name: str, root: Path) -> Any:
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise UserError(
      f"{name} is read by TFDS; run: pip install tensorflow-datasets array_record"
    ) from None
  try:
    return tfds.builder_from_directory(directory)
  except ImportError as error:
    raise UserError(
      f"{name} in {directory} cannot be read here ({error}); install what it names"
    ) from None
  except Exception as error:  # its files are foreign: whatever reading them raises is damage
    reason = " ".join(str(error).split())[:200]
    raise MissingInput(
      f"{name} in {directory} is damaged ({type(error).__name__}: {reason}); write it again: "
      f"{_build_command(name, root)}"
    ) from None


def _identify_builder(directory: Path, root: Path, split: str) -> dict[str, str]:
  """What TFDS says of a builder (version, features, shards), and its files' names and sizes."""
  digest = hashlib.sha256()
  for path in sorted(directory.iterdir()):
    if path.suffix == ".json":
      digest.update(f"{path.name}\0".encode() + path.read_bytes())
    elif path.is_file():
      digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
  return {f"data set {directory.relative_to(root)}": digest.hexdigest(), "split": split}
