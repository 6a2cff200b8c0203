"""`diffjax evaluate` over a run's held-out examples, with a small model in place of the run's."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from diffjax import model as models
from diffjax.cli import evaluate, main
from diffjax.config import Contract, DataConfig, ExperimentConfig, ModelConfig, SourceConfig
from diffjax.models import transformer
from diffjax.sampling import Sampler
from diffjax.types import UserError

CONFIG = ModelConfig(
  vocab_size=260, width=16, layers=1, heads=2, ffn_width=16, max_positions=40, dropout=0.0,
  length_classes=8,
)  # fmt: skip
CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=259)
RECORDS = [
  {"inputs": "eins", "targets": "uno", "task": "words"},
  {"inputs": "zwei", "targets": "dos", "task": "words"},
  {"inputs": "x" * 60, "targets": "too long", "task": "words"},
  {"inputs": "drei", "targets": "3", "task": "digits"},
]


class ByteTokenizer:
  """Ids 3 .. 258 are bytes."""

  vocab_size = 259
  sha256 = "0" * 64

  def encode(self, text):
    return [3 + byte for byte in text.encode()]

  def decode(self, ids):
    return "".join(chr(id_ - 3) for id_ in ids)


@pytest.fixture(scope="module")
def model():
  draw = lambda leaf: jax.numpy.asarray(np.random.default_rng(0).normal(0, 0.2, leaf.shape), "f4")
  params = jax.tree.map(draw, transformer.shapes(CONFIG))
  return models.Model(CONFIG, CONTRACT, params, ByteTokenizer())


@pytest.fixture
def command(model, tmp_path, monkeypatch):
  """Runs the command on a run whose weights are the small model's."""
  run, data = tmp_path / "run", tmp_path / "test.jsonl"
  (run / models.CHECKPOINTS).mkdir(parents=True)
  data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
  test = SourceConfig(kind="jsonl", path=str(data))
  train = SourceConfig(kind="generator", limit=1)
  config = ExperimentConfig(
    init_from="weights", data=DataConfig(train=train, test=test, max_length=40)
  )
  (run / models.CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config)))
  found = models.Checkpoint(run, 3, {})
  monkeypatch.setattr(models, "load", lambda directory: model)
  monkeypatch.setattr(models, "checkpoint_of", lambda directory: found)

  def execute(*words):
    parser = main.Parser()
    evaluate.add_arguments(parser)
    evaluate.run(parser.parse_args([f"--model={run}", *words]))

  return execute


def test_every_number_of_steps_has_a_table_and_an_entry(command, model, tmp_path, capsys):
  output = tmp_path / "scores.json"
  command("--num-steps=1,3", f"--output={output}", "--batch-size=4")
  shown = capsys.readouterr().out
  assert "3 of 4 examples, 1 too long, gold length" in shown
  for steps in (1, 3):
    assert f"\n{steps} steps, reparam-uncond-deterministic-cosine, " in shown
  assert "tok:13a" in shown
  one, three = json.loads(output.read_text())
  assert (one["settings"]["num_steps"], three["settings"]["num_steps"]) == (1, 3)
  assert one["network_calls"] == 1
  assert {task: scores["examples"] for task, scores in three["scores"].items()} == {
    "words": 2, "digits": 1,
  }  # fmt: skip
  kept = [record for record in RECORDS if len(record["inputs"]) < 40]
  answers = Sampler(model).generate(
    [record["inputs"] for record in kept],
    lengths=[len(record["targets"]) for record in kept],
    num_steps=3,
    batch_size=4,
  )
  assert three["hypotheses"] == [answer.text for answer in answers]


def test_predicted_lengths_and_a_limit(command, model, tmp_path, capsys):
  output = tmp_path / "scores.json"
  command(
    "--num-steps=1", "--length=predicted", "--length-beam=2", "--limit=2", f"--output={output}"
  )
  assert "2 of 4 examples, 1 too long, predicted length" in capsys.readouterr().out
  (entry,) = json.loads(output.read_text())
  answers = Sampler(model).generate(["eins", "zwei"], num_steps=1, length_beam=2)
  assert entry["hypotheses"] == [answer.text for answer in answers]
  assert entry["network_calls"] == 2


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--num-steps=1,x"], "--num-steps '1,x' must be whole numbers"),
    (["--num-steps=0"], "--num-steps '0' must be whole numbers >= 1"),
    (["--length-beam=5"], "--length-beam 5 tries predicted lengths; give --length=predicted"),
    (["--temperature=-1"], "temperature = -1.0 must be"),
    (["--preset=lama"], "did you mean 'llada'"),
    (["--batch-size=0"], "batch_size = 0 must be"),
    (["--seed=-1"], "seed = -1 must be"),
    (["--limit=-1"], "--limit -1 must be"),
    (["--output=."], "--output . is a folder"),
    (["--output=no/such/scores.json"], "the folder does not exist"),
  ],
)
def test_mistakes_are_one_line_before_the_model_is_read(command, monkeypatch, words, message):
  monkeypatch.setattr(models, "load", lambda directory: pytest.fail("was read"))
  with pytest.raises(UserError, match=message) as error:
    command(*words)
  assert "\n" not in str(error.value)


def test_without_an_example_there_is_nothing_to_score(command, tmp_path):
  (tmp_path / "test.jsonl").write_text(json.dumps(RECORDS[2]) + "\n")
  with pytest.raises(UserError, match=r"data\.test of .* has no example that fits"):
    command()
  with pytest.raises(UserError, match=r"names no data\.validation"):
    command("--split=validation")
