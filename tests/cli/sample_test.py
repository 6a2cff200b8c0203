"""`diffjax sample`: files in and out, going on after a stop, traces, the conversation, mistakes."""

import argparse
import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from diffjax import model as models
from diffjax.cli import decoding, sample, terminal_trace
from diffjax.cli.interactive import Conversation
from diffjax.config import Contract, MeshConfig, ModelConfig
from diffjax.model import Model
from diffjax.models import transformer
from diffjax.sampling import MASK_MARK, Generation, Sampler, Settings, Step
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
  monkeypatch.setattr(Sampler, "load", classmethod(lambda cls, path, **how: sampler))

  def run(*arguments):
    parser = argparse.ArgumentParser()
    sample.add_arguments(parser)
    sample.run(parser.parse_args(["--model", "toy", *map(str, arguments)]))

  return run


def lines_of(path):
  return [json.loads(line) for line in path.read_text().rstrip().split("\n")]


def flags(**settings):
  return [x for k, v in settings.items() for x in (f"--{k.replace('_', '-')}", v)]


NOISY = {"num_steps": 3, "temperature": 0.5, "seed": 7}
# "zwei" again in a later batch: its noise counts the first.
PROMPTS = ["eins", "zwei", "drei\nvier", "zwei", "fünf"]


@pytest.fixture
def source(tmp_path):
  path = tmp_path / "prompts.jsonl"
  path.write_text("".join(json.dumps({"inputs": p, "targets": "x"}) + "\n" for p in PROMPTS[1:]))
  return path


@pytest.fixture
def into(command, source):
  """Runs the command with these prompts, in batches of two, into a file."""
  fixed = flags(length=4, batch_size=2, **NOISY)
  return lambda path, *more: command(
    "--prompt", "eins", "--file", source, "--output", path, "--strict", *fixed, *more
  )


def test_answers_are_those_of_the_sampler_in_order(into, sampler, tmp_path):
  into(tmp_path / "out.jsonl")
  records = lines_of(tmp_path / "out.jsonl")
  assert [record["prompt"] for record in records] == PROMPTS
  expected = sampler.generate(PROMPTS, lengths=4, strict=True, batch_size=2, **NOISY)
  for record, answer in zip(records, expected, strict=True):
    assert (record["ids"], record["text"]) == (answer.ids, answer.text)
  assert records[1]["ids"] != records[3]["ids"]  # or the count of equal prompts was not tested


def test_a_stopped_command_goes_on_to_the_same_answers(into, sampler, monkeypatch, tmp_path):
  into(tmp_path / "whole.jsonl")
  path = tmp_path / "out.jsonl"
  generate, calls = Sampler.generate, []

  def stopped(self, prompts, **options):
    calls.append(prompts)
    assert len(prompts) <= 2  # a batch: nothing is decoded for its counts of equal prompts
    if len(calls) == 2:
      raise KeyboardInterrupt
    return generate(self, prompts, **options)

  monkeypatch.setattr(Sampler, "generate", stopped)
  with pytest.raises(KeyboardInterrupt):
    into(path)
  assert len(lines_of(path)) == 2
  # A stop within a batch and a line: one answer of the next batch, and a part of one.
  whole = (tmp_path / "whole.jsonl").read_bytes()
  path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]) + b'{"prompt": "zw')
  into(path)
  assert path.read_bytes() == whole
  before = len(calls)
  into(path)  # complete: nothing is decoded
  assert len(calls) == before


def test_other_settings_do_not_go_into_the_same_file(into, tmp_path):
  path = tmp_path / "out.jsonl"
  into(path)
  for more, name in (("--top-k", 5), "top_k"), (("--length", 5), "lengths"):
    with pytest.raises(UserError, match=f"was made with {name} = "):
      into(path, *more)


def test_answers_of_two_checkpoints_do_not_go_into_the_same_file(sampler, monkeypatch, tmp_path):
  path, run = tmp_path / "out.jsonl", tmp_path / "run"
  (run / "checkpoints").mkdir(parents=True)
  read = []
  load = lambda cls, path, **how: read.append(path) or sampler
  monkeypatch.setattr(Sampler, "load", classmethod(load))
  parser = argparse.ArgumentParser()
  sample.add_arguments(parser)
  words = ["--model", str(run), "--prompt=a", "--output", str(path), "--length=4"]
  arguments = parser.parse_args([*words, "--num-steps=1"])
  for step in (100, 200):
    found = models.Checkpoint(run, step, {})
    monkeypatch.setattr(models, "checkpoint_of", lambda directory, found=found: found)
    if step == 100:
      sample.run(arguments)
      continue
    with pytest.raises(UserError, match=r"made with model = '.*/100', now it is '.*/200'"):
      sample.run(arguments)
  assert read == [run / "checkpoints" / "100", run / "checkpoints" / "200"]


def test_an_option_for_every_setting():
  defaults = dataclasses.asdict(Settings())
  assert decoding.OPTIONS.keys() == defaults.keys()
  for name, option in decoding.OPTIONS.items():
    assert option.kind is type(defaults[name])
    assert f"default {defaults[name]}" in option.help


def test_a_preset_is_changed_by_what_is_given_only(command, sampler, monkeypatch):
  seen = {}
  record = lambda prompts, **options: seen.update(options) or [ANSWER] * len(prompts)
  monkeypatch.setattr(sampler, "generate", record)
  command("--prompt", "a", "--preset", "llada", "--num-steps", 7)
  given = {"preset": "llada", "num_steps": 7}
  assert seen.items() >= (given | {"lengths": None}).items()
  assert not seen.keys() & (Settings.__dataclass_fields__.keys() - given.keys())


def test_text_files_are_one_prompt_a_line(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_bytes("eins\r\nzwei ü\n".encode())
  assert sample.read_prompts(path) == ["eins", "zwei ü"]


HIDDEN = float("-inf")
ANSWER = Generation(
  "a [b] c", [5, 6, 7], [0.0, -1.0, -2.0], -1.0, -3.0, 2,
  [
    Step(["a", "", " c"], [False, True, False], [0.0, HIDDEN, -2.0]),
    Step(["a", " [b]", ""], [False, False, True], [0.0, -1.0, HIDDEN]),
    Step(["a", " [b]", " c"], [False] * 3, [0.0, -1.0, -0.01]),
  ],
)  # fmt: skip


def test_answers_alone_are_printed(command, sampler, monkeypatch, capsys):
  texts = ["one [b]", "two " * 60]
  answers = [dataclasses.replace(ANSWER, text=text) for text in texts]
  monkeypatch.setattr(sampler, "generate", lambda prompts, **options: answers)
  command("--prompt", "eins", "--prompt", "zwei", "--length", 4)
  assert capsys.readouterr().out.splitlines() == texts


def test_a_trace_is_a_line_a_step_where_there_is_no_terminal(command, sampler, capsys):
  command("--trace", "--prompt", "eins", *flags(length=4, **NOISY))
  out = capsys.readouterr().out.splitlines()
  (answer,) = sampler.generate(["eins"], lengths=4, return_trace=True, **NOISY)
  assert out[0] == "eins"
  assert [line[6:] for line in out[1:-1]] == [step.text for step in answer.trace]
  assert [line.count(MASK_MARK) for line in out[1:-1]] == [sum(s.masked) for s in answer.trace]
  assert out[-1] == f"   =  {answer.text}"


def test_the_page_of_a_trace(command, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  command("--trace", "html", "--prompt", "eins", *flags(length=4, **NOISY))
  assert "trace.html" in capsys.readouterr().out
  assert "eins" in (tmp_path / "trace.html").read_text()
  output = tmp_path / "other.html"
  command("--trace=html", "--trace-output", output, "--prompt=b", *flags(length=4, **NOISY))
  assert output.read_text().startswith("<!doctype html>")


def terminal():
  return Console(
    file=io.StringIO(), force_terminal=True, color_system="standard", record=True, width=80
  )


def test_masks_are_dim_doubt_is_coloured_and_brackets_are_text():
  console = terminal()
  terminal_trace.print_trace(console, "prompt", ANSWER)
  styled = console.export_text(styles=True, clear=False)
  assert f"\x1b[2m {MASK_MARK}\x1b[0m" in styled
  assert f"\x1b[35m {MASK_MARK}\x1b[0m" in styled  # masked again
  assert "\x1b[2ma" not in styled
  assert "\x1b[1;31m c" in styled  # exp(-2) < 0.2
  assert console.export_text().count("a [b] c") == 2


def test_an_animation_shows_every_step_and_leaves_the_answer(monkeypatch):
  monkeypatch.setattr(terminal_trace, "_TRACE_SECONDS", 0.0)
  console = terminal()
  terminal_trace.animate(console, "the prompt", ANSWER)
  drawn = console.file.getvalue()
  for number in (1, 2, 3):
    assert f"step {number}, " in drawn
  assert drawn.rstrip().endswith("a [b] c\x1b[0m")


@pytest.fixture
def talk(sampler, monkeypatch):
  """What a conversation shows after these lines; the stream's own program is not compiled."""

  def stream(prompt, *, lengths, **options):
    yield from sampler.generate([prompt], lengths=lengths, return_trace=True, **options)[0].trace

  monkeypatch.setattr(sampler, "stream", stream)

  def run(*lines, **options):
    console = terminal()
    conversation = Conversation(sampler, console, {"num_steps": 3}, **options)
    replies = iter(lines)

    def read(mark):
      line = next(replies, None)
      if line is None:
        raise EOFError
      if line is KeyboardInterrupt:
        raise line
      return line

    conversation.run(read)
    return conversation, console.export_text()

  return run


def test_a_conversation_answers_as_generate_does(talk, sampler):
  _, shown = talk(":set temperature=0.5", "eins", ":set seed = 7", "eins", length=4)
  first, second = (
    sampler.generate(["eins"], lengths=4, return_trace=True, **NOISY | {"seed": seed})[0].text
    for seed in (0, 7)
  )
  assert first.strip() in shown
  assert second.strip() in shown
  assert first != second


def test_a_conversation_with_candidates_shows_the_best(talk, sampler, monkeypatch):
  monkeypatch.setattr(terminal_trace, "_TRACE_SECONDS", 0.0)
  seen = {}
  monkeypatch.setattr(sampler, "generate", lambda prompts, **how: seen.update(how) or [ANSWER])
  _, shown = talk(":set temperature=0.9", ":set num-samples=3", "eins", length=4)
  assert ANSWER.text in shown
  expected = {"num_samples": 3, "temperature": 0.9, "num_steps": 3, "lengths": 4, "preset": ""}
  assert expected.items() <= seen.items()


def test_settings_of_a_conversation(talk):
  talked, shown = talk(":set length=4", ":set num_steps=5", ":set", ":set num_steps=", ":help")
  assert talked.length == 4
  assert talked.changes == {}
  assert "num_steps      5" in shown
  assert ":set NAME=VALUE" in shown
  assert talk(":set length=4", ":set length=")[0].length is None
  talked, shown = talk(":set preset=llada", ":set")
  assert "confidence-block32" in shown
  assert "num_steps      3" in shown  # what was given stays


def test_mistakes_do_not_end_a_conversation(talk):
  talked, shown = talk(
    ":set seed=-1", ":set length=0",
    ":set num_step=3", ":set num_steps=x", ":set num_steps=0", ":set preset=x", ":quit",
    KeyboardInterrupt, "eins", ":set length=4", ":set temperature=0.5", "eins",
  )  # fmt: skip
  assert "did you mean :set num_steps=VALUE" in shown
  assert "seed = -1 must be" in shown
  assert "length 0 of prompt 1 must be" in shown
  assert (talked.seed, talked.length) == (0, 4)
  assert "num_steps = 'x' must be a whole number" in shown
  assert "num_steps = 0 must be" in shown
  assert "preset 'x' is none of" in shown
  assert "no command ':quit'" in shown
  assert "how long are the answers?" in shown  # the first, without a length
  assert (talked.changes, talked.preset) == ({"num_steps": 3, "temperature": 0.5}, "")


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
    (("--prompt", "a", "--strategy", "entropie"), "entropy"),
    (("--prompt", "a", "--preset", "lada"), "did you mean 'llada'"),
    (("--prompt", "a", "--trace-output", "x.html"), "is for --trace html"),
    (("--prompt", "a", "--trace=html", "--trace-output=no/such/x.html"), "does not exist"),
  ],
)
def test_mistakes_are_one_line_and_write_nothing(command, tmp_path, arguments, message):
  output = tmp_path / "out.jsonl"
  with pytest.raises(UserError, match=message) as error:
    command("--length", 4, "--output", output, *arguments)
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_a_mesh_is_read_as_it_is_written():
  parse = lambda text: decoding.placement(argparse.Namespace(mesh=text, dtype="bfloat16"))
  assert parse("") == {"mesh": None, "dtype": "bfloat16"}
  assert parse("tensor=8")["mesh"] == MeshConfig(tensor=8)
  assert parse("fsdp=2, tensor=-1")["mesh"] == MeshConfig(data=1, fsdp=2, tensor=-1)
  for wrong in ("8", "tensor=two", "heads=8", "tensor=2,tensor=4", "tensor=2,"):
    with pytest.raises(UserError, match="such as tensor=8"):
      parse(wrong)
  with pytest.raises(UserError, match=r"mesh.tensor = 0"):
    parse("tensor=0")
