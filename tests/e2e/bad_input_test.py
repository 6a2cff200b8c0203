"""Every command answers a mistake with one line on stderr and an exit code, leaving nothing."""

import json
import shutil

import pytest

from diffjax.cli import main as cli
from diffjax.exits import Exit
from diffjax.model import resolve


@pytest.fixture
def room(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def copy_of_shipped(room, **changes):
  """The shipped masked LM with fields of its config.json changed."""
  target = room / "weights"
  shutil.copytree(resolve("tiny_mlm"), target)
  config = json.loads((target / "config.json").read_text())
  (target / "config.json").write_text(json.dumps(config | changes))
  return target


def fails(monkeypatch, capsys, *arguments, code=Exit.USAGE) -> str:
  monkeypatch.setattr("sys.argv", ["diffjax", *map(str, arguments)])
  with pytest.raises(SystemExit) as stop:
    cli.main()
  assert stop.value.code == code
  message = capsys.readouterr().err.strip()
  assert "\n" not in message
  assert message.startswith("diffjax: ")
  return message


def sample(*arguments, model="tiny_mlm", length=4):
  return ["sample", f"--model={model}", f"--length={length}", *arguments]


def train(*overrides, config=None, workdir="run"):
  config = config or resolve("tiny_mlm").parents[2] / "configs" / "quickstart_instruct.py"
  return ["train", f"--config={config}", f"--workdir={workdir}", *overrides]


MISTAKES = [
  (["sampel"], "did you mean 'sample'"),
  (train("--config.optimizer.lerning_rate=1"), "optimizer.learning_rate"),
  (train("--config.training.steps=many"), "training.steps = 'many' must be a whole number"),
  (train("--config.diffusion.schedule=cos"), "'cosine'"),
  (train(config="none.py"), "none.py does not exist"),
  (train("--config.init_from=none"), "none does not exist"),
  (train("--config.data.tokenizer=none.model", "--config.init_from="), "none.model"),
  (train("--config.mesh.data=3"), "needs 3 devices"),
  (train("--config.model.width=64"), "has 128"),
  (
    train("--config.data.train.kind=jsonl", "--config.data.train.path=none.jsonl",
          "--config.data.train.limit=0"),
    "none.jsonl: No such file",
  ),
  (sample("--prompt=a", model="none"), "none does not exist"),
  (sample("--prompt=a", model="."), "is no model"),
  (sample("--prompt="), "prompt 1 is empty"),
  (sample(), "no prompt given"),
  (sample("--prompt=a", length=0), "length 0 of prompt 1"),
  (sample("--prompt=a", length=600), "the model has 512 positions"),
  (sample("--prompt=" + "a " * 520), "shorten either"),
  (sample("--prompt=a", "--strategy=reparam-uncond"), "did you mean 'reparam-uncond"),
  (sample("--prompt=a", "--num-steps=0"), "num_steps = 0"),
  (sample("--prompt=a", "--temperature=-1"), "temperature = -1"),
  (sample("--file=none.txt"), "none.txt: No such file"),
  (["evaluate", "--model=tiny_mlm"], "is no run"),
  (["convert", "--from=none", "--to=x"], "none does not exist"),
  (["tokenizer", "--input", "none.txt", "--vocab-size=50", "--output=x.model"], "none.txt"),
]  # fmt: skip

MISSING = (
  "none does not exist", "none.model", "none.jsonl: No such file", "is no model",
  "none.txt",
)  # fmt: skip


@pytest.mark.parametrize(("arguments", "hint"), MISTAKES, ids=[hint for _, hint in MISTAKES])
def test_one_line_and_its_code(room, monkeypatch, capsys, arguments, hint):
  code = Exit.INPUT if hint in MISSING else Exit.USAGE
  assert hint in fails(monkeypatch, capsys, *arguments, code=code)
  assert not list(room.iterdir())


def test_unreadable_weights(room, monkeypatch, capsys):
  weights = copy_of_shipped(room)
  file = weights / "model.safetensors"
  file.write_bytes(file.read_bytes()[:1000])
  message = fails(
    monkeypatch, capsys, "convert", f"--from={weights}", "--to=target", code=Exit.INPUT
  )
  assert "model.safetensors" in message
  assert not (room / "target").exists()


def test_a_vocabulary_larger_than_the_embedding(room, monkeypatch, capsys):
  weights = copy_of_shipped(room)
  words = " ".join(f"{n * n:x}" for n in range(3000))
  (room / "text").write_text(words)
  monkeypatch.setattr(
    "sys.argv",
    ["diffjax", "tokenizer", "--input", "text", "--vocab-size=800", "--kind=bpe",
     f"--output={weights / 'sentencepiece.bpe.model'}"],
  )  # fmt: skip
  cli.main()
  capsys.readouterr()
  message = fails(monkeypatch, capsys, *sample("--prompt=a", model=weights))
  assert "the tokenizer has 800 ids, the embedding 704 rows" in message


def test_invalid_utf8_is_named_by_line(room, monkeypatch, capsys):
  (room / "prompts.txt").write_bytes(b"good\nbad \xff\n")
  message = fails(monkeypatch, capsys, *sample("--file=prompts.txt", "--output=out.jsonl"))
  assert "prompts.txt:2: not valid UTF-8" in message
  assert not (room / "out.jsonl").exists()


def test_converting_never_writes_into_a_folder_that_holds_something(room, monkeypatch, capsys):
  (room / "target").mkdir()
  (room / "target" / "precious").write_text("x")
  message = fails(monkeypatch, capsys, "convert", "--from=tiny_mlm", "--to=target")
  assert "target" in message
  assert [entry.name for entry in (room / "target").iterdir()] == ["precious"]
