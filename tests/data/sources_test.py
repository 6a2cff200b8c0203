"""Files become numbered examples, or an error that names file, line and reason."""

import gzip
import json
import pickle
from pathlib import Path

import pytest

from diffjax.config import SourceConfig
from diffjax.data.sources import open_source
from diffjax.types import Example, UserError

GOOD = json.dumps({"inputs": "hallo", "targets": "hello"}).encode()


def write(path: Path, content: bytes) -> str:
  path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
  return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_plain_or_packed(tmp_path, name):
  third = json.dumps({"inputs": "ä", "targets": "x", "task": "t", "more": 1}).encode()
  path = write(tmp_path / name, b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD + b"\n" + third)
  source = open_source(SourceConfig(kind="jsonl", path=path, template="say: {inputs}!"))
  assert len(source) == 3
  assert source[0] == source[1] == Example("say: hallo!", "hello", "")
  assert source[2] == Example("say: ä!", "x", "t")
  assert pickle.loads(pickle.dumps(source))[2] == source[2]


BAD_LINES = [
  (b"{", "not JSON"),
  (b"[1]", "not an object"),
  (b'"text"', "not an object"),
  (b'{"inputs": "x"}', "no targets"),
  (b'{"inputs": 3, "targets": "x"}', "inputs must be text, not int"),
  (b'{"inputs": "x", "targets": " "}', "targets is empty"),
  (b'{"inputs": "x", "targets": "y", "task": null}', "task must be text"),
  (b'{"inputs": "\xff", "targets": "y"}', "not valid UTF-8 at byte 13"),
  (b"", "not JSON"),
  (b"[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[r for _, r in BAD_LINES])
def test_a_bad_line_is_named(tmp_path, line, reason):
  path = write(tmp_path / "a.jsonl", GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
  source = open_source(SourceConfig(kind="jsonl", path=path))
  assert source[2] == source[0]
  with pytest.raises(UserError) as error:
    source[1]
  assert str(error.value).startswith(f"{path}:2: {reason}")
  assert "\n" not in str(error.value)


def test_missing_empty_and_damaged_files(tmp_path):
  config = lambda path: SourceConfig(kind="jsonl", path=str(path))
  with pytest.raises(UserError, match="No such file"):
    open_source(config(tmp_path / "none.jsonl"))
  with pytest.raises(UserError, match="is empty"):
    open_source(config(write(tmp_path / "a.jsonl", b"\n")))
  packed = gzip.compress(GOOD * 100)
  for name, content in (("cut.gz", packed[:-9]), ("not.gz", GOOD)):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"damaged .gz"):
      open_source(config(tmp_path / name))


def test_pairs_go_line_by_line(tmp_path):
  de = write(tmp_path / "a.de.gz", b"eins\nzwei\n\n")
  en = write(tmp_path / "a.en", b"one\ntwo\nthree\n")
  config = SourceConfig(kind="pairs", path=de, target_path=en, limit=3)
  source = open_source(config)
  assert [source[0], source[1]] == [Example("eins", "one"), Example("zwei", "two")]
  with pytest.raises(UserError, match=r"a.de.gz:3: an empty line"):
    source[2]
  short = write(tmp_path / "b.en", b"one\n")
  with pytest.raises(UserError, match=r"3 lines.*1; paired files"):
    open_source(SourceConfig(kind="pairs", path=de, target_path=short))


def test_text_skips_empty_lines_and_has_no_prompt(tmp_path):
  path = write(tmp_path / "a.txt", b"one\n\n  \ntwo")
  source = open_source(SourceConfig(kind="text", path=path))
  assert [source[n] for n in range(len(source))] == [Example("", "one"), Example("", "two")]


def test_generators_and_limits(tmp_path):
  tasks = open_source(SourceConfig(kind="generator", split="test", limit=8))
  assert (len(tasks), len({tasks[n].task for n in range(8)})) == (8, 4)
  text = open_source(SourceConfig(kind="generator_text", limit=3))
  assert text[0].inputs == ""
  path = write(tmp_path / "a.jsonl", (GOOD + b"\n") * 5)
  assert len(open_source(SourceConfig(kind="jsonl", path=path, limit=2))) == 2


def test_the_fingerprint_follows_the_content(tmp_path):
  path = write(tmp_path / "a.jsonl", GOOD)
  fingerprint = lambda **changes: (
    open_source(SourceConfig(**{"kind": "jsonl", "path": path, **changes})).fingerprint
  )
  before = fingerprint()
  assert fingerprint() == before
  assert fingerprint(template="{inputs} =") != before
  assert fingerprint(limit=1) != before
  write(tmp_path / "a.jsonl", GOOD + b"\n" + GOOD)
  assert fingerprint() != before
