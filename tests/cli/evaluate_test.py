"""`diffjax evaluate`, with a small model in place of the run's: splits, suites, files, mistakes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from diffjax import model as models
from diffjax.cli import evaluate, evaluation_work, main, tables
from diffjax.config import Contract, DataConfig, ExperimentConfig, ModelConfig, SourceConfig
from diffjax.data import generator
from diffjax.evaluation import runner, suites
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
  unk_id = None

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
  monkeypatch.setattr(models, "load", lambda directory, **how: model)
  monkeypatch.setattr(models, "checkpoint_of", lambda directory: found)

  def execute(*words):
    parser = main.Parser()
    evaluate.add_arguments(parser)
    evaluate.run(parser.parse_args([f"--model={run}", *words]))

  return execute


def read(directory):
  """The results of a report, each with its lines."""
  results = json.loads((directory / "report.json").read_text())["results"]
  for result in results:
    lines = (directory / result["predictions"]).read_text().splitlines()
    result["lines"] = [json.loads(line) for line in lines]
  return results


def test_every_number_of_steps_has_a_table_and_a_result(command, model, tmp_path, capsys):
  command("--num-steps=1,3", "--batch-size=4")
  shown = capsys.readouterr().out
  assert "test, 0-shot: 4 of 4 examples" in shown
  for steps in (1, 3):
    assert f"{steps} steps, reparam-uncond-deterministic-cosine, gold length, " in shown
  assert "4 examples, 0 truncated, 1 left out and counted as wrong" in shown
  one, three = read(tmp_path / "run/evaluation")
  assert (one["settings"]["num_steps"], three["settings"]["num_steps"]) == (1, 3)
  assert one["network_calls"] == 1
  assert {group: scored["examples"] for group, scored in three["groups"].items()} == {
    "words": 3, "digits": 1,
  }  # fmt: skip
  assert one["metric"] == "exact_match"
  assert {"exact_match", "chrf", "rouge_l", "f1"} <= set(one["scores"])
  assert not {"bleu", "number"} & set(one["scores"])  # words, and only one number
  kept = [record for record in RECORDS if len(record["inputs"]) < 40]
  answers = Sampler(model).generate(
    [record["inputs"] for record in kept],
    lengths=[len(record["targets"]) for record in kept],
    num_steps=3,
    batch_size=4,
  )
  assert [line["prediction"] for line in three["lines"]] == [answer.text for answer in answers]
  for line, answer in zip(three["lines"], answers, strict=True):
    assert line["log_probability"] == pytest.approx(answer.total, rel=1e-5)
  assert (tmp_path / "run/evaluation/index.html").is_file()
  report = json.loads((tmp_path / "run/evaluation/report.json").read_text())
  assert report["model"]["process"] == "absorbing"
  assert report["model"]["training_steps"] == 3
  assert report["model"]["mixture"] == list(generator.TASKS)
  assert report["model"]["parameters"] == sum(x.size for x in jax.tree.leaves(model.params))


def test_predicted_lengths_and_a_limit(command, model, tmp_path):
  out = tmp_path / "out"
  command("--num-steps=1", "--length=predicted", "--length-beam=2", "--limit=2", f"--out={out}",
          "--too-long=keep_end")  # fmt: skip
  (result,) = read(out)
  assert (result["length"], result["examples"], result["truncated"]) == ("predicted", 2, 1)
  answers = Sampler(model).generate(["eins"], num_steps=1, length_beam=2)
  assert result["lines"][0]["prediction"] == answers[0].text
  assert result["network_calls"] == 2


def test_the_same_command_again_answers_nothing_again(command, tmp_path, monkeypatch):
  command("--num-steps=1", "--batch-size=4")
  before = read(tmp_path / "run/evaluation")
  monkeypatch.setattr(Sampler, "generate_ids", lambda *_, **__: pytest.fail("was asked"))
  command("--num-steps=1", "--batch-size=4")
  assert read(tmp_path / "run/evaluation") == before


@pytest.fixture
def suite(tmp_path):
  """Two subjects of MMLU, with short questions."""
  folder = tmp_path / "files/instruct"
  folder.mkdir(parents=True)
  record = lambda n: {"inputs": f"Q{n}? (A) x (B) y A:", "targets": "AB"[n % 2]}
  for shots in (0, 2):
    text = "".join(json.dumps(record(n)) + "\n" for n in range(4))
    (folder / f"mmlu.{shots}-shot.full.jsonl").write_text(text)
  subjects = json.dumps(["law", "law", "art", "art"])
  (folder / "mmlu.0-shot.index2subject.json").write_text(subjects)
  return f"--data-dir={folder.parent}"


def test_a_suite_has_its_own_steps_and_every_number_of_shots(command, suite, tmp_path, capsys):
  command("--tasks=mmlu", suite, "--shots=0,2", f"--out={tmp_path / 'out'}")
  results = read(tmp_path / "out")
  assert [(one["shots"], one["num_steps"], one["length"]) for one in results] == [
    (0, 1, "gold"), (2, 1, "gold"),
  ]  # fmt: skip
  assert results[0]["examples_in_paper"] == {"": 1531}
  shown = capsys.readouterr().out
  assert "in all 4, in the paper 1531" in shown
  assert "mean of 2 groups" in shown
  assert "all *" in shown
  assert results[0]["files"] == [str(tmp_path / "files/instruct/mmlu.0-shot.full.jsonl")]
  assert list(results[0]["groups"]) == ["art", "law"]
  assert all(len(line["prediction"]) <= 1 for line in results[0]["lines"])


def test_options_are_compared_by_likelihood(command, model, suite, tmp_path):
  command(
    "--tasks=mmlu",
    suite,
    "--choose=likelihood",
    "--samples=4",
    "--batch-size=4",
    f"--out={tmp_path / 'out'}",
  )
  (result,) = read(tmp_path / "out")
  assert result["settings"] == {"strategy": "likelihood", "num_steps": 4}
  assert (result["way"], result["length"], result["ties"]) == ("choosing", "options", 0)
  sampler = Sampler(model)
  for line in result["lines"]:
    scores = [sampler.score(line["prompt"], letter, samples=4).log_likelihood for letter in "AB"]
    assert line["prediction"] == "AB"[scores.index(max(scores))]
    assert line["log_probability"] == pytest.approx(max(scores), rel=1e-4)


def test_a_prompt_without_options_is_told_before_anything_is_scored(
  command, suite, tmp_path, monkeypatch
):
  file = tmp_path / "files/instruct/mmlu.0-shot.full.jsonl"
  lines = file.read_text().splitlines()
  lines[3] = json.dumps({"inputs": "no options? A:", "targets": "A"})
  file.write_text("\n".join(lines) + "\n")
  monkeypatch.setattr(Sampler, "score_rows", lambda *_, **__: pytest.fail("was asked"))
  with pytest.raises(UserError, match=r"question 3 of art: .* has no options"):
    command("--tasks=mmlu", suite, "--choose=likelihood", f"--out={tmp_path / 'out'}")
  file.write_text("\n".join(lines[:3] + lines[:1]) + "\n")
  (file.parent / "bbh-nlp.0-shot.snarks.jsonl").write_text(lines[3] + "\n")
  with pytest.raises(UserError, match="question 0 of snarks"):  # of the second task
    command("--tasks=mmlu,bbh", suite, "--choose=likelihood", f"--out={tmp_path / 'out'}")


@pytest.fixture
def without_letters(command, model, monkeypatch):
  """The command, of a model whose tokenizer has no capitals."""

  class Tokenizer(ByteTokenizer):
    unk_id = 3

    def encode(self, text):
      return [3 if 65 <= id_ - 3 < 91 else id_ for id_ in super().encode(text)]

  changed = dataclasses.replace(model, tokenizer=Tokenizer())
  monkeypatch.setattr(models, "load", lambda directory, **how: changed)
  return command


def test_options_that_the_model_cannot_read_are_refused(without_letters, suite, tmp_path, capsys):
  command = without_letters
  out = f"--out={tmp_path / 'out'}"
  with pytest.raises(UserError, match="question 0 of law: options 'A' and 'B' are the same"):
    command("--tasks=mmlu", suite, "--choose=likelihood", out)
  command("--tasks=mmlu", suite, out)
  (result,) = read(tmp_path / "out")
  # Q, A, B, A of the 18 letters of a prompt; the one of a reference, and its </s>.
  assert result["unknown_tokens"] == 100 * 5 / 20
  assert result["unknown_in_references"] == 50
  said = capsys.readouterr().err
  assert "does not know 25.0 % of the tokens, 50.0 % of those of references" in said


def test_a_host_has_its_share(monkeypatch):
  assert evaluation_work.share_of("") == (0, 1)
  monkeypatch.setattr(jax, "process_index", lambda: 2)
  monkeypatch.setattr(jax, "process_count", lambda: 4)
  assert evaluation_work.share_of("") == (2, 4)
  assert evaluation_work.share_of("0/1") == (0, 1)


@pytest.mark.parametrize(
  ("sizes", "told"),
  [
    ({"snarks": 36, "date": 7}, "2 groups, 1 as large as in the paper"),
    ({"snarks": 35, "date": 7}, "2 groups, snarks 35, in the paper 36"),
  ],
)
def test_counts_are_compared_with_the_papers_group_by_group(sizes, told):
  asked = [suites.Question(n, "", "", group) for n, group in enumerate(sizes)]
  questions = suites.Questions(asked, 43, "", {"": 14052, "snarks": 36}, sizes=sizes)
  assert tables.announcement(runner.Job("bbh", 0, questions, ())).endswith(f"examples, {told}")


def test_any_file_by_any_metric(command, tmp_path):
  data, text = tmp_path / "sums.jsonl", tmp_path / "plain.txt"
  data.write_text(json.dumps({"inputs": "1 + 1", "targets": "so it is 2"}) + "\n")
  text.write_text("first line\nanother line\n")
  out = f"--out={tmp_path / 'out'}"
  command(f"--data={data}", "--metric=number", "--num-steps=1", out)
  command(f"--data={text}", "--samples=2", "--batch-size=4", out)
  numbers, plain = read(tmp_path / "out")
  assert (numbers["task"], numbers["metric"], list(numbers["scores"])) == (
    "sums.jsonl", "number", ["number"],
  )  # fmt: skip
  assert plain["metric"] == "likelihood"
  assert set(plain["scores"]) == {
    "bits_per_byte", "bits_per_character", "nats_per_token", "perplexity",
  }  # fmt: skip
  assert plain["lines"][0]["tokens"] == len("first line") + 1


def test_records_of_a_file_are_rendered_with_shots(command, tmp_path):
  data, train = tmp_path / "maths.jsonl", tmp_path / "train.jsonl"
  record = lambda n: json.dumps({"question": f"Q{n}?", "answer": f"#### {n}"}) + "\n"
  data.write_text(record(1))
  train.write_text("".join(map(record, range(2, 6))))
  command(f"--data={data}", "--task=maths", f"--demonstrations={train}", "--shots=2",
          "--num-steps=1", f"--out={tmp_path / 'out'}")  # fmt: skip
  (result,) = read(tmp_path / "out")
  assert (result["metric"], result["shots"]) == ("number", 2)
  assert result["lines"][0]["prompt"].count("Question:") == 3


def test_an_autoregressive_model_writes_from_left_to_right(command, model, tmp_path, monkeypatch):
  contract = dataclasses.replace(CONTRACT, mask_id=-1, attention="causal", output_shift=1)
  control = dataclasses.replace(model, contract=contract)
  monkeypatch.setattr(models, "load", lambda directory, **how: control)
  command("--num-steps=1,5", f"--out={tmp_path / 'out'}")
  (result,) = read(tmp_path / "out")  # of all numbers of steps, which mean nothing to it
  assert result["settings"]["strategy"] == "left_to_right"
  report = json.loads((tmp_path / "out/report.json").read_text())
  assert report["model"]["process"] == "next_token"
  # One call for the prompt's first token, and one for each further one, up to a </s>.
  for line in result["lines"]:
    assert 1 <= line["network_calls"] <= len(line["reference"]) + 2


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--num-steps=1,x"], "--num-steps '1,x' must be whole numbers"),
    (["--num-steps=0"], "--num-steps '0' must be whole numbers >= 1"),
    (["--shots=-1"], "--shots '-1' must be whole numbers >= 0"),
    (["--length-beam=5"], "--length-beam 5 tries predicted lengths; give --length=predicted"),
    (["--length=long"], "--length 'long' must be gold, predicted"),
    (["--temperature=-1"], "temperature = -1.0 must be"),
    (["--preset=lama"], "did you mean 'llada'"),
    (["--batch-size=0"], "batch_size = 0 must be"),
    (["--samples=0"], "--samples = 0 must be"),
    (["--seed=-1"], "seed = -1 must be"),
    (["--limit=-1"], "--limit -1 must be"),
    (["--share=4/4"], "--share '4/4' must be K/N"),
    (["--tasks=mmlu,gsm8"], "did you mean 'gsm8k'"),
    (["--metric=bleau"], "did you mean 'bleu'"),
    (["--tasks=,"], "--tasks ',' names none; give some of mmlu, bbh"),
    (["--tasks=mmlu", "--data=x.jsonl"], "--tasks and --data: give one"),
    (["--task=maths"], "--task belongs to --data FILE"),
    (["--out={file}"], "is a file; name a folder"),
  ],
)
def test_mistakes_are_one_line_before_the_model_is_read(
  command, monkeypatch, tmp_path, words, message
):
  monkeypatch.setattr(models, "load", lambda directory, **how: pytest.fail("was read"))
  with pytest.raises(UserError, match=message) as error:
    command(*(word.format(file=tmp_path / "test.jsonl") for word in words))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--split=validation"], r"names no data\.validation"),
    (["--shots=1"], "name what renders records"),
    (["--data={file}"], "say with --metric"),
    (["--data={file}", "--metric=number"], "has none of what this metric compares"),
    (["--data={file}x", "--metric=bleu"], "is plain text, which answers nothing"),
    (["--data={file}", "--task=math", "--metric=bleu"], "did you mean 'maths'"),
    (["--tasks=mmlu", "--data-dir=no/such"], "no/such has no instruct/mmlu.0-shot.full.jsonl"),
  ],
)
def test_mistakes_about_data_are_one_line(command, tmp_path, words, message):
  with pytest.raises(UserError, match=message) as error:
    command(*(word.format(file=tmp_path / "test.jsonl") for word in words))
  assert "\n" not in str(error.value)


def test_without_an_example_there_is_nothing_to_score(command, tmp_path):
  (tmp_path / "test.jsonl").write_text(json.dumps(RECORDS[2]) + "\n")
  with pytest.raises(UserError, match="none of its 1 examples fits 40 positions"):
    command()
