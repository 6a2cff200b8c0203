"""`diffjax sample`: files in and out, the printed trace, mistakes."""

import argparse
import json
import math

import jax
import numpy as np
import pytest
from rich.console import Console

from diffjax.cli import sample
from diffjax.config import Contract, ModelConfig
from diffjax.diffusion.strategies import masked_counts
from diffjax.model import Model
from diffjax.models import transformer
from diffjax.sampling import MASK_MARK, Generation, Sampler
from diffjax.types import UserError

CONFIG = ModelConfig(
  vocab_size=260, width=16, layers=1, heads=2, ffn_width=16, max_positions=40, dropout=0.0
)
CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=259)


class ByteTokenizer:
  """Ids 3 .. 258 are bytes, shown as Latin-1."""

  vocab_size = 259

  def encode(self, text):
    return [3 + byte for byte in text.encode()]

  def decode(self, ids):
    return "".join(self.piece(id_) for id_ in ids)

  def piece(self, id_):
    return chr(id_ - 3) if id_ >= 3 else ""


@pytest.fixture(scope="module")
def sampler():
  draw = lambda leaf: jax.numpy.asarray(np.random.default_rng(0).normal(0, 0.2, leaf.shape), "f4")
  params = jax.tree.map(draw, transformer.shapes(CONFIG))
  return Sampler(Model(CONFIG, CONTRACT, params, ByteTokenizer()))


@pytest.fixture
def command(sampler, monkeypatch):
  """Runs the command line with the toy model."""
  monkeypatch.setattr(Sampler, "load", classmethod(lambda cls, path: sampler))

  def run(*arguments):
    parser = argparse.ArgumentParser()
    sample.add_arguments(parser)
    sample.run(parser.parse_args(["--model", "toy", *map(str, arguments)]))

  return run


def test_answers_are_those_of_the_sampler_in_order(command, sampler, tmp_path, capsys):
  source, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
  source.write_text('{"inputs": "zwei"}\n{"inputs": "drei\\nvier", "targets": "x"}\n')
  settings = {"num_steps": 3, "temperature": 0.5, "seed": 7}
  flags = [x for k, v in settings.items() for x in (f"--{k.replace('_', '-')}", v)]
  options = ("--trace", "--output", output, "--length", 4, *flags)
  command("--prompt", "eins", "--file", source, *options)
  records = [json.loads(line) for line in output.read_text().rstrip().split("\n")]
  assert [record["prompt"] for record in records] == ["eins", "zwei", "drei\nvier"]
  expected = sampler.generate(
    ["eins", "zwei", "drei\nvier"], lengths=4, return_trace=True, **settings
  )
  assert [record["ids"] for record in records] == [answer.ids for answer in expected]
  assert [record["text"] for record in records] == [answer.text for answer in expected]
  assert len(list(tmp_path.iterdir())) == 2  # nothing unfinished is left
  assert capsys.readouterr().out.count(MASK_MARK) == 3 * sum(masked_counts("cosine", 3, 4)[:, 4])


def test_text_files_are_one_prompt_a_line(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_bytes("eins\r\nzwei ü\n".encode())
  assert sample.read_prompts(path) == ["eins", "zwei ü"]


def test_answers_alone_are_printed(command, sampler, monkeypatch, capsys):
  answers = [Generation(text, [5], [0.0], 0.0, 1, None) for text in ("one [b]", "two " * 60)]
  monkeypatch.setattr(sampler, "generate", lambda prompts, **options: answers)
  command("--prompt", "eins", "--prompt", "zwei", "--length", 4)
  assert capsys.readouterr().out.splitlines() == [answer.text for answer in answers]


def test_masks_are_dim_and_text_is_not():
  answer = Generation("a [b] c", [5], [0.0], 0.0, 2, [f"a {MASK_MARK} c", "a [b] c"])
  console = Console(force_terminal=True, color_system="standard", record=True, width=80)
  sample.print_trace(console, "prompt", answer)
  styled = console.export_text(styles=True, clear=False)
  assert f"\x1b[2m{MASK_MARK}\x1b[0m" in styled
  assert "\x1b[2ma" not in styled
  assert console.export_text().count("a [b] c") == 2  # brackets are text, not markup


def test_an_answer_without_text_is_valid_json(tmp_path):
  answer = Generation("", [2], [-0.1], -math.inf, 1, None)
  sample.write_answers(tmp_path / "out.jsonl", ["x"], [answer])
  refuse = lambda name: pytest.fail(f"{name} is no JSON")
  record = json.loads((tmp_path / "out.jsonl").read_text(), parse_constant=refuse)
  assert record["score"] is None
  assert record["text"] == ""


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.txt", b"ok\nb\xffd\n", r"a.txt:2: not valid UTF-8 at byte 2"),
    ("a.txt", b"ok\n\nok\n", r"a.txt:2: empty prompt"),
    ("a.txt", b"", r"a.txt is empty"),
    ("a.jsonl", b'{"inputs": "a"}\n{"input": "b"}\n', r"a.jsonl:2: must be an object"),
    ("a.jsonl", b'{"inputs": 3}\n', r"a.jsonl:1: must be an object"),
    ("a.jsonl", b"[1]\n", r"a.jsonl:1: must be an object"),
    ("a.jsonl", b"{\n", r"a.jsonl:1: must be an object"),
    ("a.jsonl", b'{"inputs": " "}\n', r"a.jsonl:1: empty prompt"),
  ],
)
def test_mistakes_in_a_file_name_file_and_line(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as error:
    sample.read_prompts(path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), "no prompt given"),
    (("--prompt", ""), "prompt 1 is empty"),
    (("--prompt", "a\udcff"), "prompt 1 is not valid UTF-8"),
    (("--file", "no/such/file.txt"), "--file no/such/file.txt: No such file"),
    (("--prompt", "a", "--output", "no/such/out.jsonl"), "the folder does not exist"),
    (("--prompt", "a", "--num-steps", 0), "num_steps = 0"),
    (("--prompt", "a" * 40), "40 tokens"),
  ],
)
def test_mistakes_are_one_line_and_write_nothing(command, tmp_path, arguments, message):
  output = tmp_path / "out.jsonl"
  with pytest.raises(UserError, match=message) as error:
    command("--length", 4, "--output", output, *arguments)
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())
