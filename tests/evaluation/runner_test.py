"""A run of an evaluation: what is done stays done, and the report says what the lines say."""

import dataclasses
import json
import math
import statistics

import pytest

from diffjax.evaluation import record, runner
from diffjax.evaluation.answering import Answer, Row, Tokens, Way
from diffjax.evaluation.predictions import Predictions
from diffjax.evaluation.suites import Question, Questions
from diffjax.types import UserError

MODEL = {"path": "runs/one", "fingerprint": "a" * 64}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Echo(Way):
  """Answers with its prompt; one that is too long does not fit, one that is long is cut."""

  name = "echoing"
  asked: list = dataclasses.field(default_factory=list)
  stops_after: int = 10**6  # questions
  steps: int = 1

  @property
  def settings(self):
    return {"strategy": "echo", "num_steps": self.steps}

  @property
  def length(self):
    return "gold"

  def lay_out(self, question):
    size = len(question.prompt)
    tokens = Tokens(question.prompt.count("?"), size), Tokens(0, 1)
    return None if size > 20 else Row(question, None, size, size > 10, *tokens)

  def answer(self, rows):
    if len(self.asked) + len(rows) > self.stops_after:
      raise KeyboardInterrupt
    self.asked.extend(row.question.number for row in rows)
    return [Answer(row.question.prompt, -1.5, 2) for row in rows]


def way(**changes):
  return Echo(sampler=None, max_length=1, too_long="keep_end", batch_size=2, **changes)


def job(pairs, *, metrics=("exact_match", "bleu"), fingerprint="f"):
  asked = [Question(n, *pair) for n, pair in enumerate(pairs)]
  return runner.Job("task", 0, Questions(asked, len(asked), fingerprint, {}), metrics)


def evaluate(this, how, directory, **changes):
  return runner.run(this, how, directory=directory, model_fingerprint="m", **changes)


PAIRS = [
  ("a", "a", "x"),
  ("b", "c", "x"),
  ("d", "d", "y"),
  ("e" * 11, "f", "y"),
  ("g" * 21, "g", "y"),
]
MANY = [(str(n), str(n % 7), "") for n in range(30)]


def test_scores_groups_and_counts(tmp_path):
  result = evaluate(job(PAIRS), way(), tmp_path)
  assert result["scores"]["exact_match"]["value"] == 40  # the last one, left out, is wrong
  deviation = statistics.stdev([100, 0, 100, 0, 0])
  assert result["scores"]["exact_match"]["error"] == pytest.approx(deviation / 5**0.5)
  assert "bleu" not in result["scores"]  # single words
  errors = {"x": 50, "y": statistics.stdev([100, 0, 0]) / 3**0.5}
  assert result["groups"] == {
    group: {
      "examples": count,
      "scores": {"exact_match": pytest.approx(100 / count)},
      "errors": {"exact_match": pytest.approx(errors[group])},
    }
    for group, count in {"x": 2, "y": 3}.items()
  }
  assert result["macro"] == {"exact_match": pytest.approx((50 + 100 / 3) / 2)}
  assert result["macro_errors"] == {"exact_match": pytest.approx(math.hypot(*errors.values()) / 2)}
  assert (result["examples"], result["truncated"], result["left_out"]) == (5, 1, 1)
  assert (result["way"], result["average"], result["max_length"]) == ("echoing", "micro", 1)
  assert (result["files"], result["questions_sha256"]) == ([], "f")
  assert (result["network_calls"], result["num_steps"]) == (2, 1)
  lines = [json.loads(x) for x in (tmp_path / result["predictions"]).read_text().splitlines()]
  assert [line["number"] for line in lines] == [0, 1, 2, 3]
  assert lines[1]["scores"] == {"exact_match": 0, "bleu": None}
  assert lines[1] | {"seconds": 0} == {
    "number": 1, "prompt": "b", "prediction": "b", "reference": "c", "group": "x",
    "scores": {"exact_match": 0, "bleu": None}, "log_probability": -1.5, "network_calls": 2,
    "num_steps": 1, "seconds": 0,
  }  # fmt: skip


def test_the_mean_over_groups_weighs_groups_alike(tmp_path):
  result = evaluate(job([("a", "a", "x"), *[("b", "c", "y")] * 3]), way(), tmp_path)
  assert result["scores"]["exact_match"]["value"] == 25
  assert result["macro"]["exact_match"] == 50
  assert result["macro_errors"] == {"exact_match": None}  # x is one example


def test_unknown_tokens_and_ties_are_told(tmp_path):
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Tied(Echo):
    def answer(self, rows):
      said = super().answer(rows)
      return [a._replace(details={"tied": a.text == "??"}) for a in said]

  pairs = [("??", "a", ""), ("a?", "b", ""), ("abcd", "c", "")]
  result = evaluate(job(pairs), Tied(sampler=None, max_length=1, too_long="drop"), tmp_path)
  assert result["unknown_tokens"] == pytest.approx(100 * 3 / 11)  # a reference has one token
  assert result["unknown_in_references"] == 0
  assert result["ties"] == 1


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
  whole = evaluate(job(MANY), way(), tmp_path / "whole")
  stopped = way(stops_after=20)  # groups are of eight
  with pytest.raises(KeyboardInterrupt):
    evaluate(job(MANY), stopped, tmp_path)
  assert len(stopped.asked) == 16
  (file,) = (tmp_path / runner.PREDICTIONS).iterdir()
  with file.open("ab") as torn:
    torn.write(b'{"number": 29, "predic')
  again = way()
  result = evaluate(job(MANY), again, tmp_path)
  assert sorted(stopped.asked + again.asked) == list(range(30))
  assert result["scores"] == whole["scores"]
  names = "number", "prediction", "reference", "scores"
  read = lambda d, r: [json.loads(x) for x in (d / r["predictions"]).read_text().splitlines()]
  kept = lambda lines: [[line[name] for name in names] for line in lines]
  assert kept(read(tmp_path, result)) == kept(read(tmp_path / "whole", whole))
  done = way()
  evaluate(job(MANY), done, tmp_path)
  assert done.asked == []


@pytest.mark.parametrize("change", ["questions", "model", "settings", "seed", "max_length"])
def test_lines_of_anything_else_are_not_taken(tmp_path, change):
  evaluate(job(MANY[:3]), way(), tmp_path)
  this, how, model = job(MANY[:3]), way(), "m"
  if change == "questions":
    this = job(MANY[:3], fingerprint="g")
  elif change == "model":
    model = "n"
  else:
    how = dataclasses.replace(how, **({"steps": 2} if change == "settings" else {change: 7}))
  runner.run(this, how, directory=tmp_path, model_fingerprint=model)
  assert how.asked == [0, 1, 2]


def test_more_examples_or_other_metrics_use_what_is_there(tmp_path):
  few = job(MANY)
  few = few._replace(questions=few.questions._replace(asked=few.questions.asked[::10]))
  assert evaluate(few, way(), tmp_path)["examples"] == 3
  rest = way()
  evaluate(job(MANY), rest, tmp_path)
  assert len(rest.asked) == 27
  other = way()
  result = evaluate(job(MANY, metrics=("number",)), other, tmp_path)
  assert other.asked == []
  assert result["scores"]["number"]["value"] == pytest.approx(100 * 7 / 30)
  line = json.loads((tmp_path / result["predictions"]).read_text().splitlines()[8])
  assert line["scores"] == {"number": 0}


def test_shares_are_put_together(tmp_path):
  whole = evaluate(job(MANY), way(), tmp_path / "whole")
  shares = [way() for _ in range(3)]
  for number, share in enumerate(shares):
    assert evaluate(job(MANY), share, tmp_path, share=(number, 3)) is None
  assert sorted(n for share in shares for n in share.asked) == list(range(30))
  assert all(len(share.asked) == 10 for share in shares)
  merging = way()
  result = evaluate(job(MANY), merging, tmp_path)
  assert merging.asked == []
  assert result["scores"] == whole["scores"]
  assert len(list((tmp_path / runner.PREDICTIONS).iterdir())) == 1


def test_references_that_cannot_be_compared_are_told_before_anything_is_answered(tmp_path):
  how = way()
  with pytest.raises(UserError, match="'none' has none of what this metric compares"):
    evaluate(job([("1", "1", ""), ("2", "none", "")], metrics=("number",)), how, tmp_path)
  assert how.asked == []


def test_lines_that_are_damaged_are_predicted_again(tmp_path):
  file = tmp_path / "lines.jsonl"
  file.write_bytes(b'{"number": 1}\n\x00\x00\n{"number": 3}\n{"numb')
  predictions = Predictions(file)
  assert sorted(predictions.lines) == [1, 3]
  predictions.append([{"number": 0, "text": "\udc80"}])
  predictions.finish()
  assert [json.loads(x)["number"] for x in file.read_text().splitlines()] == [0, 1, 3]


def test_likelihoods_add_up_over_lines(tmp_path):
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Scored(Echo):
    def answer(self, rows):
      told = {"error": 3.0, "tokens": 2, "unknown": 0}
      return [Answer("", -2.0 * len(row.question.prompt), None, told) for row in rows]

  pairs = [("a", "é", ""), ("aaa", "bcd", "")]
  how = Scored(sampler=None, max_length=1, too_long="keep_end")
  result = evaluate(job(pairs, metrics=("likelihood",)), how, tmp_path)
  scores = result["scores"]
  assert scores["nats_per_token"]["value"] == 8 / 4
  assert scores["nats_per_token"]["error"] == pytest.approx(math.sqrt(18) / 4)
  assert scores["bits_per_byte"]["value"] == pytest.approx(8 / math.log(2) / 5)
  assert scores["bits_per_character"]["value"] == pytest.approx(8 / math.log(2) / 4)
  assert scores["perplexity"]["value"] == pytest.approx(math.exp(2))
  assert result["network_calls"] is None
  assert result["metric"] == "likelihood"
  pairs.append(("g" * 21, "left out", ""))
  again = evaluate(job(pairs, metrics=("likelihood",)), how, tmp_path)
  assert (again["scores"], again["left_out"], again["examples"]) == (scores, 1, 2)


def test_with_unknown_tokens_there_are_no_bits_per_byte(tmp_path):
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Unknown(Echo):
    def answer(self, rows):
      return [Answer("", -2.0, None, {"error": 0.0, "tokens": 2, "unknown": 1}) for _ in rows]

  how = Unknown(sampler=None, max_length=1, too_long="drop")
  scores = evaluate(job([("a", "猫猫猫", "")], metrics=("likelihood",)), how, tmp_path)["scores"]
  assert list(scores) == ["nats_per_token", "perplexity"]
  assert "unknown:1" in scores["perplexity"]["signature"]


def test_the_longest_are_answered_first(tmp_path):
  how = way()
  evaluate(job([("a" * n, "b", "") for n in (3, 9, 1, *[7] * 8)]), how, tmp_path)
  assert 1 in how.asked[:8]
  assert set(how.asked[8:]) == {0, 2, 10}


def result_of(directory, *, steps=1, pairs=PAIRS, fingerprint="f", **changes):
  this = job(pairs, fingerprint=fingerprint, **changes)
  return evaluate(this, way(steps=steps), directory)


def read(directory):
  return json.loads((directory / record.FILE).read_text())


def save(directory, result, *, model=MODEL, command="c"):
  record.save(directory, result, model=model, command=command)


def test_a_result_replaces_that_of_the_same_evaluation_alone(tmp_path):
  for steps in (1, 2):
    save(tmp_path, result_of(tmp_path, steps=steps), command=f"first {steps}")
  save(tmp_path, result_of(tmp_path, steps=1), command="again")
  assert [one["command"] for one in read(tmp_path)["results"]] == ["first 2", "again"]
  save(tmp_path, result_of(tmp_path, steps=1, fingerprint="g"), command="of other questions")
  save(tmp_path, result_of(tmp_path, steps=1, metrics=("chrf",)), command="by another metric")
  seeded = evaluate(job(PAIRS), dataclasses.replace(way(), seed=1), tmp_path)
  save(tmp_path, seeded, command="of another seed")
  report = read(tmp_path)
  assert [one["command"] for one in report["results"]] == [
    "first 2", "again", "of other questions", "by another metric", "of another seed",
  ]  # fmt: skip
  assert report["model"] == MODEL
  libraries = {"python", "diffjax", "jax", "sacrebleu", "rouge-score"}
  for one in report["results"]:
    assert libraries <= set(one["versions"]) <= libraries | {"revision"}
    assert one["device"]
    assert (tmp_path / one["predictions"]).is_file()


def test_a_part_does_not_replace_the_whole(tmp_path, capsys):
  save(tmp_path, result_of(tmp_path, pairs=MANY), command="all")
  save(tmp_path, result_of(tmp_path, pairs=MANY[:3]), command="some")
  assert [one["examples"] for one in read(tmp_path)["results"]] == [30]
  assert "keeps the result of 30 examples" in capsys.readouterr().err


@pytest.mark.parametrize("broken", [False, True])
def test_the_report_of_another_model_is_set_aside(tmp_path, broken, capsys):
  save(tmp_path, result_of(tmp_path), command="old")
  if broken:
    (tmp_path / record.FILE).write_text("{")
  other = {"path": "runs/two", "fingerprint": "b" * 64}
  save(tmp_path, result_of(tmp_path, steps=2), model=other, command="new")
  assert [one["command"] for one in read(tmp_path)["results"]] == ["new"]
  assert "was of another model" in capsys.readouterr().err
  assert (tmp_path / f"report.{'unreadab' if broken else 'a' * 8}.json").is_file()


def test_models_in_turn_lose_no_results(tmp_path):
  other = {"path": "runs/two", "fingerprint": "b" * 64}
  for turn in range(4):
    save(tmp_path, result_of(tmp_path, steps=turn + 1), model=(MODEL, other)[turn % 2])
  assert [one["num_steps"] for one in read(tmp_path)["results"]] == [2, 4]
  aside = json.loads((tmp_path / "report.aaaaaaaa.json").read_text())
  assert [one["num_steps"] for one in aside["results"]] == [1, 3]
  assert not list(tmp_path.glob("*.tmp"))


def test_names_of_files_are_no_patterns(tmp_path):
  for number in range(2):
    Predictions(tmp_path / "q[1].jsonl", share=(number, 2)).append([{"number": number}])
  assert sorted(Predictions(tmp_path / "q[1].jsonl").lines) == [0, 1]
