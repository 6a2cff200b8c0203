"""Records of every kind of file: the same ones in any order, or an error that names their place."""

import gzip
import json
import os
import pickle
import random

import pytest

from diffjax.config import SourceConfig
from diffjax.data import prepared
from diffjax.data.records import Lines, open_records
from diffjax.data.sources import open_source
from diffjax.types import Example, UserError


def write_lines(path, records):
  content = "".join(json.dumps(record) + "\n" for record in records).encode()
  path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def check_random_access(records, expected):
  """In any order, and after a journey to another process."""
  order = random.Random(0).sample(range(len(expected)), len(expected))
  copied = pickle.loads(pickle.dumps(records))
  assert len(records) == len(expected)
  for number in order:
    assert records[number] == copied[number] == expected[number]


def test_shards_follow_one_another_by_name(tmp_path):
  rows = [{"n": n} for n in range(10)]
  write_lines(tmp_path / "part-2.jsonl.gz", rows[3:9])
  write_lines(tmp_path / "part-1.jsonl", rows[:3])
  write_lines(tmp_path / "part-3.jsonl", rows[9:])
  records = open_records(SourceConfig(kind="jsonl", path=str(tmp_path / "part-*")))
  check_random_access(records, rows)
  assert records.where(3) == f"{tmp_path}/part-2.jsonl.gz:1"
  assert records.where(9) == f"{tmp_path}/part-3.jsonl:1"
  assert list(records.identity) == [
    "file part-1.jsonl", "file part-2.jsonl.gz", "file part-3.jsonl",
  ]  # fmt: skip
  with pytest.raises(UserError, match="no file has such a name"):
    open_records(SourceConfig(kind="jsonl", path=str(tmp_path / "none-*")))


def test_lines_across_chunks_and_mapped_files(tmp_path, monkeypatch):
  monkeypatch.setattr("diffjax.data.records._CHUNK", 7)
  texts = ["", "a", "ä" * 9, "", "b\tc", "last"]
  (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode())
  lines = Lines(tmp_path / "a")
  assert list(lines) == texts
  assert len(pickle.dumps(lines)) < 1000
  kept = pickle.dumps(lines)
  (tmp_path / "a").write_bytes(b"another\n")
  with pytest.raises(UserError, match="was changed while it is in use"):
    pickle.loads(kept)


def test_a_files_hash_is_of_its_content_not_of_its_packing_or_place(tmp_path):
  (tmp_path / "b").mkdir()
  for name in ("a.jsonl", "b/a.jsonl", "a.jsonl.gz"):
    write_lines(tmp_path / name, [{"inputs": "a", "targets": "b"}])
  identity = lambda name: (
    open_records(SourceConfig(kind="jsonl", path=str(tmp_path / name))).identity
  )
  assert identity("a.jsonl") == identity("b/a.jsonl")
  assert list(identity("a.jsonl").values()) == list(identity("a.jsonl.gz").values())


def test_parquet_rows_through_row_groups(tmp_path, monkeypatch):
  arrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  rows = [
    {"n": n, "text": f"t{n}", "options": ["a", f"b{n}"], "answers": {"text": ["x"] * (n % 3)}}
    for n in range(50)
  ]
  for name, part in (("1", rows[:20]), ("2", rows[20:])):
    table = arrow.Table.from_pylist(part)
    parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=6)
  config = SourceConfig(kind="parquet", path=str(tmp_path / "*.parquet"))
  records = open_records(config)
  check_random_access(records, rows)
  assert records.where(20) == f"{tmp_path}/2.parquet:1"
  monkeypatch.setattr(prepared, "_CACHED_BYTES", 1)
  records = open_records(config)
  check_random_access(records, rows)
  assert len(records._cache) == 1
  (tmp_path / "3.parquet").write_bytes(b"no")
  with pytest.raises(UserError, match=r"3.parquet: no Parquet file"):
    open_records(config)


def test_parquet_bytes_that_are_no_text_hurt_only_who_reads_them(tmp_path):
  arrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  path = tmp_path / "a.parquet"
  texts = [b"dog", b"\xffdog"]
  broken = arrow.Array.from_buffers(  # as other writers leave it
    arrow.string(), 2, arrow.array(texts, arrow.binary()).buffers()
  )
  table = {"inputs": ["a", "b"], "targets": texts, "image": [b"\x89PNG\xff", b"\xfe"]}
  parquet.write_table(arrow.table(table), path)
  source = open_source(SourceConfig(kind="parquet", path=str(path)))
  assert source[0] == Example("a", "dog")
  with pytest.raises(UserError, match=r"a.parquet:2: targets must be text, not bytes that are not"):
    source[1]
  parquet.write_table(arrow.table(table | {"targets": broken}), path)
  source = open_source(SourceConfig(kind="parquet", path=str(path)))
  assert source[0] == Example("a", "dog")
  with pytest.raises(UserError, match=r"a.parquet:2: not valid UTF-8 at byte 1"):
    source[1]


def test_parquet_without_its_library(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
  (tmp_path / "a.parquet").write_bytes(b"")
  with pytest.raises(UserError, match="run: pip install pyarrow"):
    open_records(SourceConfig(kind="parquet", path=str(tmp_path / "a.parquet")))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """A data folder with a small builder, written as array_record."""
  pytest.importorskip("array_record")
  tfds = pytest.importorskip("tensorflow_datasets")
  core, features = tfds.core, tfds.features

  class TinyTranslate(core.GeneratorBasedBuilder):
    """A builder of a user's own."""

    VERSION = core.Version("1.0.0")
    BUILDER_CONFIGS = (core.BuilderConfig(name="de-en"), core.BuilderConfig(name="fr-en"))

    def _info(self):
      texts = {name: features.Text() for name in ("en", *self.builder_config.name.split("-")[:1])}
      texts["more"] = features.Sequence(features.Text())
      keys = tuple(self.builder_config.name.split("-"))
      return core.DatasetInfo(
        builder=self, features=features.FeaturesDict(texts), supervised_keys=keys
      )

    def _split_generators(self, manager):
      del manager
      return {"train": self._generate_examples(20), "test": self._generate_examples(5)}

    def _generate_examples(self, count):
      other = self.builder_config.name.split("-")[0]
      for n in range(count):
        yield n, {"en": f"dog {n}", other: f"Hünd {n}", "more": ["a", "ß"]}

  root = tmp_path_factory.mktemp("tfds")
  for name in ("de-en", "fr-en"):
    builder = TinyTranslate(config=name, data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
  return root


def tfds_config(root, path="tiny_translate/de-en", **more):
  return SourceConfig(kind="tfds", path=path, data_dir=str(root), **more)


def test_tfds_by_name_split_and_module(built):
  records = open_records(tfds_config(built))
  rows = [records[n] for n in range(20)]
  check_random_access(records, rows)
  assert sorted(row["en"] for row in rows) == sorted(f"dog {n}" for n in range(20))
  assert all(list(row) == ["de", "en", "more"] and row["more"] == ["a", "ß"] for row in rows)
  assert records.where(3) == "tiny_translate/de-en train:4"
  part = open_records(tfds_config(built, path="my.sets.TinyTranslate/de-en", split="train[50%:]"))
  assert [part[n] for n in range(len(part))] == rows[10:]
  assert part.identity != records.identity
  folder = built / "tiny_translate" / "de-en" / "1.0.0"
  assert open_records(tfds_config(built, path=str(folder)))[0] == rows[0]
  example = open_source(tfds_config(built, task="translation", wording=3))[0]
  de, en = rows[0]["de"], rows[0]["en"]
  assert example == Example(f"German: {de} English:", en, "translation")


def test_tfds_says_what_to_run(built):
  match = r"not prepared in .*; write it: tfds build wmt14_translate/de-en --file_format=array_rec"
  with pytest.raises(UserError, match=match):
    open_records(tfds_config(built, path="wmt14_translate/de-en"))
  with pytest.raises(UserError, match=r'write it: python -c "from my.sets import Mine as b; b'):
    open_records(tfds_config(built, path="my.sets.Mine"))
  with pytest.raises(UserError, match="name one of tiny_translate/de-en, tiny_translate/fr-en"):
    open_records(tfds_config(built, path="tiny_translate"))
  with pytest.raises(UserError, match=r"it has the splits (test, train|train, test), and"):
    open_records(tfds_config(built, split="dev"))
  folder = built / "tiny_translate" / "fr-en" / "1.0.0"
  info = json.loads((folder / "dataset_info.json").read_text())
  before = open_records(tfds_config(built, path="tiny_translate/fr-en")).identity
  info["description"] = "changed"
  (folder / "dataset_info.json").write_text(json.dumps(info))
  assert open_records(tfds_config(built, path="tiny_translate/fr-en")).identity != before
  info["fileFormat"] = "tfrecord"
  (folder / "dataset_info.json").write_text(json.dumps(info))
  with pytest.raises(UserError, match=r"written as tfrecord .* which has no random access; write"):
    open_records(tfds_config(built, path="tiny_translate/fr-en"))
  (folder / "dataset_info.json").write_text("{")
  with pytest.raises(UserError, match="is damaged") as error:
    open_records(tfds_config(built, path="tiny_translate/fr-en"))
  assert "\n" not in str(error.value)


def test_tfds_finds_the_folder_of_the_environment(built, monkeypatch):
  monkeypatch.setitem(os.environ, "TFDS_DATA_DIR", str(built))
  assert len(open_records(SourceConfig(kind="tfds", path="tiny_translate/de-en:1.0.0"))) == 20
  monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
  with pytest.raises(UserError, match="run: pip install tensorflow-datasets array_record"):
    open_records(SourceConfig(kind="tfds", path="tiny_translate/de-en"))
