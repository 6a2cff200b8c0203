"""A study compares what is comparable, says what is not equal, and invents nothing."""

import dataclasses
import json

import jax
import pytest
from evaluated_runs import result, write_evaluation, write_run

from diffjax.config import ModelConfig
from diffjax.evaluation import runs, study, study_page
from diffjax.model import Checkpoint
from diffjax.models import transformer
from diffjax.types import UserError

NEXT_TOKEN = {
  "diffusion": {
    "process": "next_token", "attention": "causal", "coupled": False, "weight": "constant"
  }
}  # fmt: skip


def make(*directories):
  return study.make(runs.read_runs(directories))


def figure(made, start):
  (drawn,) = [each for each in made.figures if each.plot.name.startswith(start)]
  return drawn


def lines(drawn):
  return {series.label: list(zip(series.x, series.y, strict=True)) for series in drawn.plot.series}


def has(made, start):
  return any(line.startswith(start) for line in made.missing)


def test_score_by_size_has_a_line_for_each_start_and_number_of_shots(tmp_path):
  directories = [
    write_run(
      tmp_path / f"{start}{size}",
      [result(shots=shots, value=float(size + shots + (start == "a"))) for shots in (0, 2)],
      parameters=size * 1000, init_from="tiny_mlm" if start == "a" else "",
    )
    for start in "as"
    for size in (30, 10)
  ]  # fmt: skip
  assert lines(figure(make(*directories), "size")) == {
    "adapted, 0-shot": [(10_000, 11), (30_000, 31)],
    "adapted, 2-shot": [(10_000, 13), (30_000, 33)],
    "from scratch, 0-shot": [(10_000, 10), (30_000, 30)],
    "from scratch, 2-shot": [(10_000, 12), (30_000, 32)],
  }


def test_of_several_numbers_of_steps_the_highest_counts(tmp_path):
  results = [result(num_steps=steps, value=float(steps)) for steps in (2, 50, 10)]
  made = make(write_run(tmp_path / "a", results))
  assert [point.value for point in made.points] == [50.0]
  assert lines(figure(made, "steps"))["mmlu"] == [(2, 2), (10, 10), (50, 50)]


def test_a_trial_of_a_few_examples_does_not_stand_for_all(tmp_path):
  results = [result(value=30.0), result(value=99.0, examples=5, num_steps=50)]
  for number, order in enumerate((results, results[::-1])):
    made = make(write_run(tmp_path / str(number), order))
    assert [point.value for point in made.points] == [30.0]


CHOOSING = {"settings": {"strategy": "likelihood", "num_steps": 128}, "num_steps": 128}


def test_what_was_not_done_in_the_same_way_is_not_compared(tmp_path):
  ways = {
    "gold": {}, "fixed": {"length": "given", "canvas": 16},
    "wider": {"length": "given", "canvas": 32},
    "choosing": {"way": "choosing", "length": "options"},
    "choosing once": {"length": "given"} | CHOOSING,  # of a report that does not say its way
    "macro": {"average": "macro", "macro": {"exact_match": 30.0}},
  }  # fmt: skip
  directories = [
    write_run(tmp_path / name, [result(**changes)], parameters=10 + number)
    for number, (name, changes) in enumerate(ways.items())
  ]
  drawn = figure(make(*directories), "size")
  assert drawn.plot.series[0].x == (13, 14)  # the two by choosing alone
  assert drawn.notes == (
    "By likelihood of the options.", "Not equal: mmlu, diffusion: decoding steps 10, 128.",
    "Not equal: mmlu, diffusion: strategy reparam-uncond-deterministic-cosine, likelihood.",
  )  # fmt: skip
  both = [result(value=30.0), result(value=40.0, way="choosing", **CHOOSING)]
  made = make(write_run(tmp_path / "both", both))
  assert {point.evaluation: point.value for point in made.points} == {
    "mmlu, 0-shot, gold length": 30.0, "mmlu, 0-shot, likelihood of the options": 40.0
  }  # fmt: skip


def test_other_questions_are_another_evaluation(tmp_path):
  asked = lambda first, **rest: result(questions_sha256=first * 64, **rest)
  small, large, other, untold = (
    write_run(tmp_path / name, [made], parameters=size)
    for name, size, made in (
      ("small", 10, asked("a", value=1.0)), ("large", 20, asked("a", value=2.0)),
      ("other", 30, asked("b", value=3.0)), ("untold", 40, result(value=4.0)),
    )
  )  # fmt: skip
  assert has(make(small, other), "Score by size")
  assert has(
    make(small, other), "mmlu, 0-shot is not one evaluation: questions aaaaaaaa, questions"
  )
  (line,) = lines(figure(make(small, large, other), "size")).values()
  assert line == [(10, 1), (20, 2)]
  drawn = figure(make(small, large, untold), "size")  # it may have been the same: joined, and told
  assert lines(drawn) == {"diffusion": [(10, 1), (20, 2), (40, 4)]}
  assert "Not equal: mmlu, 0-shot: questions aaaaaaaa, not told." in drawn.notes
  both = [asked("a", shots=0), asked("b", shots=2)]  # other files for other shots are no difference
  made = make(*(write_run(tmp_path / n, both, parameters=int(n)) for n in ("10", "20")))
  assert {point.questions for point in made.points} == {""}


def test_adapted_stands_beside_scratch_only_at_equal_shape_process_and_data(tmp_path):
  scratch = write_run(tmp_path / "scratch", [result(value=10.0)])
  adapted = write_run(tmp_path / "adapted", [result(value=20.0)], init_from="x")
  for name, different in {
    "wider": {"width": 128},
    "deeper": {"layers": 3},
    "data": {"mixture": ["sums", "lists"]},
    "process": {"process": "next_token"},
  }.items():
    config = NEXT_TOKEN if name == "process" else None
    other = write_run(tmp_path / name, [result()], config=config, init_from="x", **different)
    assert has(make(scratch, other), "Adapted against"), name
  drawn = figure(make(scratch, adapted), "start")
  assert lines(drawn) == {"adapted": [(20, 0)], "from scratch": [(10, 0)]}
  assert drawn.notes == ("Canvas of gold length.",)


def test_diffusion_stands_beside_its_autoregressive_control(tmp_path):
  for size in (64, 128):
    for config in (None, NEXT_TOKEN):
      process = "next_token" if config else "absorbing"
      write_run(
        tmp_path / f"{process}{size}", [result(value=size + (0.5 if config else 0))],
        config=config, process=process, width=size, parameters=size * 1000,
      )  # fmt: skip
  drawn = figure(make(*sorted(tmp_path.iterdir())), "process")
  assert drawn.plot.rows == ("64k", "128k")
  assert lines(drawn) == {
    "diffusion": [(64, 0), (128, 1)],
    "autoregressive": [(64.5, 0), (128.5, 1)],
  }
  assert drawn.notes == ("Canvas of gold length.",)  # their processes may differ: that is the point


def test_what_is_not_equal_between_compared_runs_is_told(tmp_path):
  one = write_run(tmp_path / "one", [result()])
  two = write_run(
    tmp_path / "two", [result(examples=100, num_steps=4)], init_from="x", training_steps=50,
    config={"optimizer": {"learning_rate": 0.25}, "seed": 3},
  )  # fmt: skip
  notes = " ".join(figure(make(one, two), "start").notes)
  for text in ("optimizer.learning_rate", "0.25 of two", "examples 200, 100", "steps 10, 4"):
    assert text in notes
  assert "one was trained 100 steps, two 50" in notes
  assert "seed" not in notes
  assert "init_from" not in notes


def test_zero_shot_against_few_shot_by_number_of_tasks(tmp_path):
  directories = [
    write_run(
      tmp_path / str(count), [result(shots=shots, value=count + shots / 2) for shots in (0, 1)],
      mixture=[f"task {n}" for n in range(count)],
    )
    for count in (8, 2)
  ]  # fmt: skip
  before = write_evaluation(
    tmp_path / "before", [result(value=1.0)], training_steps=None, mixture=[], path="tiny_mlm"
  )
  drawn = figure(make(*directories, before), "tasks")
  assert lines(drawn) == {
    "from scratch, 0-shot": [(2, 2), (8, 8)],
    "from scratch, 1-shot": [(2, 2.5), (8, 8.5)],
    "untuned, 0-shot": [(0, 1)],
  }


def test_groups_of_own_examples_are_tasks_and_those_of_others_are_not(tmp_path):
  groups = {n: {"examples": 5, "scores": {"exact_match": v}} for n, v in (("a", 1.0), ("b", 2.0))}
  groups["a"]["errors"] = {"exact_match": 0.5}
  results = [result(task, groups=groups) for task in ("test", "mmlu")]
  made = make(write_run(tmp_path / "run", results))
  assert [(point.task, point.value, point.error) for point in made.points] == [
    ("test", 30.0, 1.5), ("test/a", 1.0, 0.5), ("test/b", 2.0, None), ("mmlu", 30.0, 1.5)
  ]  # fmt: skip


def test_different_lengths_and_metrics_share_no_figure(tmp_path):
  a = write_run(tmp_path / "a", [result(length="gold")], parameters=10)
  b = write_run(tmp_path / "b", [result(length="predicted")], parameters=20)
  c = write_run(tmp_path / "c", [result(metric="f1")], parameters=30)
  assert has(make(a, b, c), "Score by size")


def test_a_run_without_scores_is_named_and_draws_its_loss_alone(tmp_path):
  made = make(write_run(tmp_path / "bare"))
  assert [drawn.plot.name for drawn in made.figures] == ["noise_levels"]
  assert lines(made.figures[0]) == {"bare": [(15, 1.75), (95, 3.25)]}
  for start in ("bare has no scores", "bare has no size", "Score by size", "Adapted against",
                "Zero-shot against", "Diffusion against", "Score by decoding"):  # fmt: skip
    assert has(made, start), start


def test_size_of_a_run_without_scores_is_its_checkpoints(tmp_path, monkeypatch):
  directory = write_run(tmp_path / "run")
  (directory / "checkpoints").mkdir()
  config = ModelConfig(vocab_size=300, width=16, layers=3, heads=2, ffn_width=8, max_positions=9)
  found = Checkpoint(directory, 7, {"model": dataclasses.asdict(config)})
  monkeypatch.setattr(runs, "checkpoint_of", lambda directory: found)
  (run,) = runs.read_runs([directory])
  shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), config=config))
  assert run.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert (run.shape, run.process, run.start) == ((3, 16), "diffusion", "from scratch")


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
  a, b = (write_run(tmp_path / folder / "run", [result()]) for folder in "ab")
  assert [run.name for run in runs.read_runs([a, b])] == ["a/run", "b/run"]


def test_mistakes_are_one_line(tmp_path):
  run = write_run(tmp_path / "run")
  with pytest.raises(UserError, match="given twice"):
    runs.read_runs([run, tmp_path / "." / "run"])
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="empty is no run"):
    runs.read_runs([tmp_path / "empty"])


def test_on_disk_are_a_page_pictures_and_the_numbers(tmp_path):
  directories = [
    write_run(tmp_path / name, [result("a/b", value=value)], parameters=size)
    for name, value, size in (("small", 10.0, 10), ("large", 20.0, 20))
  ]
  out = tmp_path / "out"
  made = make(*directories)
  page = study_page.write(made, out, command="diffjax report ...")
  record = json.loads((out / "study.json").read_text())
  files = {figure["file"] for figure in record["figures"]}
  assert files == {f"figures/{file.name}" for file in (out / "figures").iterdir()}
  size = next(each for each in record["figures"] if each["x"] == "parameters")
  (series,) = size["series"]
  assert (series["x"], series["y"], series["error"]) == ([10, 20], [10, 20], [1.5, 1.5])
  assert record["missing"] == list(made.missing)
  assert page.read_text().count("<svg") == len(files)
  for line in (*record["missing"], "diffjax report ..."):
    assert line.split("`")[0] in page.read_text()

  study_page.write(make(directories[0]), out, command="")  # fewer figures: the old ones go
  assert {file.name for file in (out / "figures").iterdir()} == {"noise_levels.png"}


def test_equal_names_of_figures_are_different_files(tmp_path):
  directories = [
    write_run(tmp_path / str(size), [result("a/b"), result("a b")], parameters=size)
    for size in (10, 20)
  ]
  study_page.write(make(*directories), tmp_path / "out", command="")
  assert len(list((tmp_path / "out/figures").glob("size_*.png"))) == 2


def test_a_directory_with_another_study_json_is_refused(tmp_path):
  (tmp_path / "study.json").write_text("[1]")
  with pytest.raises(UserError, match="give another --out"):
    study_page.write(make(write_run(tmp_path / "run")), tmp_path, command="")
