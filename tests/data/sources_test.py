"""Files become numbered examples, or an error that names file, line and reason."""

import gzip
import inspect
import json
import pickle
import re
from pathlib import Path

import pytest

from diffjax.config import SourceConfig
from diffjax.data.sources import Part, changes, open_source, read_texts
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


def write_rows(path: Path, rows: list[dict]) -> str:
  return write(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def test_an_example_groups_by_its_own_task_then_the_configs_then_the_name(tmp_path):
  plain = write_rows(tmp_path / "a.jsonl", [{"inputs": "a", "targets": "b"}])
  own = write_rows(
    tmp_path / "b.jsonl", [{"question": "q", "answer": "a\n#### 1", "task": "own"}] * 2
  )
  open_task = lambda path, **more: open_source(SourceConfig(kind="jsonl", path=path, **more))
  assert open_task(plain)[0].task == ""
  assert open_task(plain, name="mine")[0].task == "mine"
  assert open_task(plain, name="mine", task="instruct")[0].task == "instruct"
  assert open_task(own, name="mine", task="maths")[0].task == "own"


def test_wordings_demonstrations_and_options_are_drawn_by_the_example(tmp_path):
  rows = [
    {"question": f"q{n}", "options": [f"a{n}", f"b{n}", f"c{n}"], "answer": n % 3}
    for n in range(40)
  ]
  path = write_rows(tmp_path / "a.jsonl", rows)
  config = SourceConfig(
    kind="jsonl", path=path, task="choice", shots=3, shuffle_options=True, template="[{inputs}]"
  )
  source, again = open_source(config), pickle.loads(pickle.dumps(open_source(config)))
  examples = [source[n] for n in range(40)]
  assert examples == [again[n] for n in reversed(range(40))][::-1]
  for n, example in enumerate(examples):
    asked = re.findall(r"q(\d+)", example.inputs)
    assert asked[-1] == str(n)
    assert len(set(asked)) == len(asked) == 4
    query = example.inputs[example.inputs.rindex(f"q{n}") :]
    assert f"({example.targets}) {'abc'[n % 3]}{n}" in query
    assert example.inputs[0] + example.inputs[-1] == "[]"
  assert {example.targets for example in examples} == {"A", "B", "C"}
  shuffled = {re.findall(r"\([A-C]\) (\w)", e.inputs)[-3:].__str__() for e in examples}
  assert len(shuffled) > 3
  assert len({re.sub(r"\d+", "", e.inputs).split(" ")[0] for e in examples}) > 1  # wordings
  fixed = open_source(SourceConfig(kind="jsonl", path=path, task="choice", wording=0))
  assert fixed[5].inputs == "Q: q5 (A) a5 (B) b5 (C) c5 A:"
  with pytest.raises(UserError, match="wording = 9 of task 'choice': it has 0 to 3"):
    open_source(SourceConfig(kind="jsonl", path=path, task="choice", wording=9))
  with pytest.raises(UserError, match="did you mean 'choice'"):
    open_source(SourceConfig(kind="jsonl", path=path, task="choise"))


def test_demonstrations_come_from_their_files_alike_and_never_the_example(tmp_path):
  def row(n, subject):
    return {"question": f"q{n}", "options": ["x", "y"], "answer": 0, "subject": subject}

  test = write_rows(tmp_path / "test.jsonl", [row(0, "law"), row(1, "art"), row(2, "art")])
  pool = [row(n, "law") for n in (0, 3, 3, 4)] + [row(5, "art")]
  train = write_rows(tmp_path / "train.jsonl", pool)
  config = SourceConfig(
    kind="jsonl", path=test, task="mmlu", wording=0, shots=2, demonstrations=train
  )
  source = open_source(config)
  assert set(re.findall(r"Q: (q\d)", source[0].inputs)) == {"q0", "q3", "q4"}
  assert source[0].inputs.count("Q:") == 3
  with pytest.raises(UserError, match=r"test.jsonl:2: only 1 of 2 demonstrations"):
    source[1]
  assert source.identity["demonstrations' file train.jsonl"]
  (tmp_path / "train.jsonl").write_bytes(b"{\n")
  with pytest.raises(UserError, match=r"train.jsonl:1: not JSON"):
    open_source(config)[0]


def test_pairs_are_shown_from_a_jsonl_file(tmp_path):
  de, en = (write(tmp_path / name, b"x\ny\n") for name in ("a.de", "a.en"))
  train = write_rows(tmp_path / "train.jsonl", [{"de": "ja", "en": "yes"}])
  config = lambda shown: SourceConfig(
    kind="pairs", path=de, target_path=en, task="translation_de_en", wording=3, shots=1,
    demonstrations=shown,
  )  # fmt: skip
  example = open_source(config(train))[1]
  assert example.inputs == "German: ja English: yes German: y English:"
  with pytest.raises(UserError, match=r"is shown from a .jsonl file"):
    open_source(config(de))


def test_a_malformed_record_shows_nothing_to_its_neighbours(tmp_path):
  lines = [json.dumps({"question": f"q{n}", "answer": "a\n#### 1"}) for n in range(6)]
  path = write(tmp_path / "a.jsonl", "\n".join([*lines, "{", '{"question": "bad"}']).encode())
  source = open_source(SourceConfig(kind="jsonl", path=path, task="maths", shots=5))
  assert all(source[n].inputs.count("q") >= 6 for n in range(6))
  for number, reason in ((6, "not JSON"), (7, "no answer, only question")):
    with pytest.raises(UserError, match=f"a.jsonl:{number + 1}: {reason}"):
      source[number]


def test_a_mixture_numbers_part_after_part(tmp_path):
  one = write_rows(tmp_path / "one.jsonl", [{"inputs": f"{n}", "targets": "x"} for n in range(3)])
  two = write(tmp_path / "two.txt.gz", b"first\n\nsecond\n")
  part = lambda **fields: SourceConfig(**fields)
  parts = (
    part(kind="jsonl", path=one, epochs=2.0, cap=2, template="<{inputs}>"),
    part(kind="text", path=two, name="plain"),
    part(kind="generator", limit=4, epochs=0.5),
    part(kind="jsonl", path=one, limit=1),
  )
  mixed = open_source(SourceConfig(kind="mixture", parts=parts, temperature=2.0))
  assert mixed.temperature == 2
  assert mixed.parts == (
    Part("one", 0, 3, 0.0, 2.0, 2), Part("plain", 3, 5, 0.0, 1.0, 0),
    Part("generator", 5, 9, 0.0, 0.5, 0), Part("one 2", 9, 10, 0.0, 1.0, 0),
  )  # fmt: skip
  alone = [source[n] for source in map(open_source, parts) for n in range(len(source))]
  assert [mixed[n] for n in range(len(mixed))] == alone
  assert pickle.loads(pickle.dumps(mixed))[4] == Example("", "second", "plain")
  with pytest.raises(IndexError):
    mixed[10]
  with pytest.raises(IndexError):
    mixed[-1]
  plain = open_source(parts[0])
  assert plain.parts == (Part("one", 0, 3, 0.0, 2.0, 2),)
  assert plain.temperature == 1


def test_german_is_kept_out_where_a_part_says_so(tmp_path):
  rows = [{"inputs": "say it", "targets": "es ist nicht da"}, {"inputs": "say", "targets": "it is"}]
  path = write_rows(tmp_path / "a.jsonl", rows)
  strict = SourceConfig(kind="jsonl", path=path, exclude_language="german")
  source = open_source(strict)
  assert [source.keeps(source[n], n) for n in range(2)] == [False, True]
  free = SourceConfig(kind="jsonl", path=path)
  assert open_source(free).keeps(source[0], 0)
  mixed = open_source(SourceConfig(kind="mixture", parts=(strict, free)))
  assert [mixed.keeps(mixed[n], n) for n in range(4)] == [False, True, True, True]


def test_german_demonstrations_are_left_out_and_judge_nobody(tmp_path):
  german = "wo ist denn das nun wieder"
  rows = [
    {"question": german if n % 3 == 0 else f"where is {n}", "options": ["x", "y"], "answer": 0}
    for n in range(30)
  ]
  path = write_rows(tmp_path / "a.jsonl", rows)
  for demonstrations in ("", path):
    source = open_source(SourceConfig(
      kind="jsonl", path=path, task="choice", shots=3, exclude_language="german",
      demonstrations=demonstrations,
    ))  # fmt: skip
    examples = [source[n] for n in range(30)]  # a record that is left out needs none to be shown
    assert [source.keeps(e, n) for n, e in enumerate(examples)] == [n % 3 > 0 for n in range(30)]
    kept = [example for n, example in enumerate(examples) if n % 3]
    assert all(e.inputs.count("where is") == 4 and german not in e.inputs for e in kept)


def test_no_demonstration_asks_what_the_example_does(tmp_path):
  rows = [{"id": str(n), "question": f"q{n % 4}", "answer": f"{n}\n#### 1"} for n in range(16)]
  path = write_rows(tmp_path / "a.jsonl", rows)
  source = open_source(SourceConfig(kind="jsonl", path=path, task="maths", shots=3))
  for n in range(16):
    assert sorted(re.findall(r"q\d", source[n].inputs)) == ["q0", "q1", "q2", "q3"]


@pytest.mark.parametrize(("written", "changed"), [
  ("letters = string.ascii_uppercase\n", {"", "choice", "german"}),  # a helper
  ("_CALCULATOR.sub", {"", "choice", "german"}),
  ("draw.randrange(len(task.wordings))", {"", "choice", "german"}),
  ("_LEAST_SHARE = 0.125", {"german"}),
])  # fmt: skip
def test_the_fingerprint_follows_all_code_that_decides(tmp_path, monkeypatch, written, changed):
  rows = [{"question": "q", "options": ["a", "b"], "answer": 0, "inputs": "q", "targets": "a"}]
  path = write_rows(tmp_path / "a.jsonl", rows)

  def fingerprints():
    cases = {"": {}, "choice": {"task": "choice"}, "german": {"exclude_language": "german"}}
    return {
      name: open_source(SourceConfig(kind="jsonl", path=path, **more)).fingerprint
      for name, more in cases.items()
    }

  before = fingerprints()
  read = inspect.getsource
  monkeypatch.setattr(inspect, "getsource", lambda each: read(each).replace(written, "other"))
  after = fingerprints()
  assert {name for name in before if before[name] != after[name]} == changed


def test_a_task_is_checked_before_a_file_is_opened():
  config = lambda **more: SourceConfig(kind="jsonl", path="none.jsonl", **more)
  with pytest.raises(UserError, match="did you mean 'choice'"):
    open_source(config(task="choise"))
  with pytest.raises(UserError, match="wording = 9"):
    open_source(config(task="choice", wording=9))


def test_path_star_and_families():
  star = SourceConfig(kind="path_star", limit=3, arms=2, arm_length=3)
  source = open_source(star)
  assert len(source) == 3
  assert len(source[0].targets.split()) == 3
  assert open_source(SourceConfig(kind="path_star", limit=3, arms=3, arm_length=3))[0] != source[0]
  family = open_source(SourceConfig(kind="generator", limit=6, families=("arithmetic",)))
  assert {family[n].task for n in range(6)} == {"arithmetic"}
  with pytest.raises(UserError):
    open_source(SourceConfig(kind="generator", limit=6, families=("arithmetics",)))


def test_changes_say_what_differs(tmp_path):
  path = write_rows(tmp_path / "a.jsonl", [{"inputs": "a", "targets": "b"}] * 3)
  identity = lambda **more: (
    open_source(SourceConfig(**{"kind": "jsonl", "path": path, **more})).identity
  )
  then = identity()
  assert changes(then, identity()) == []
  assert changes(then, identity(template="{inputs}!")) == ["template '{inputs}' is now '{inputs}!'"]
  assert changes(then, identity(limit=2)) == ["limit '0' is now '2'"]
  other = write_rows(tmp_path / "b.jsonl", [{"inputs": "a", "targets": "b"}])
  assert changes(then, identity(path=str(tmp_path / "*.jsonl"))) == ["file b.jsonl is new"]
  assert changes(then, identity(path=other)) == ["file a.jsonl is gone", "file b.jsonl is new"]
  write_rows(tmp_path / "a.jsonl", [{"inputs": "a", "targets": "c"}] * 3)
  assert changes(then, identity()) == ["file a.jsonl changed"]
  mixed = lambda **more: open_source(SourceConfig(kind="mixture", parts=(
    SourceConfig(kind="jsonl", path=path, name="first"),
    SourceConfig(kind="generator", limit=4, **more),
  ))).identity  # fmt: skip
  assert changes(mixed(), mixed(split="test")) == ["generator: split 'train' is now 'test'"]
  shots = [identity(task="translation_de_en", shots=n) for n in (0, 1)]
  assert changes(*shots) == ["shots '0' is now '1'"]


def test_texts_of_files_are_read_for_tokenizers(tmp_path):
  rows = write_rows(tmp_path / "a.jsonl", [{"inputs": "a", "targets": "b", "task": "x", "n": 1}])
  other = write_rows(tmp_path / "q.jsonl", [{"question": "c", "answer": "d"}])
  text = write(tmp_path / "b.txt", b"e\nf\n")
  assert list(read_texts([Path(rows), Path(other), Path(text)])) == [*"abcdef"]
