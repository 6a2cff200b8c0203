"""The page of an evaluation says what its files say, escaped, and names what they lack."""

import json
import re
from html.parser import HTMLParser

import pytest
from evaluated_runs import prediction, result, write_evaluation, write_run

from diffjax.evaluation import pages, plots, report
from diffjax.types import UserError

VOID = {"meta", "br", "img", "input"}


class Page(HTMLParser):
  """The elements and the text of a page; fails where elements are not closed in order."""

  def __init__(self, file):
    super().__init__()
    self.open, self.tags, self.links, self.words = [], [], [], []
    self.feed(file.read_text(encoding="utf-8"))
    assert not self.open, f"never closed: {self.open}"

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.links += [v for name, v in attributes if name.endswith(("href", "src"))]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append(tag)
    self.links += [v for name, v in attributes if name.endswith(("href", "src"))]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] != ["style"]:
      self.words.append(data)

  @property
  def text(self):
    return " ".join(" ".join(self.words).split())


def write(directory, results, **rest):
  return Page(report.write_page(write_evaluation(directory, results, **rest)))


def test_page_holds_every_score_with_its_error_and_how_it_was_made(tmp_path):
  scores = {
    "bleu": {"value": 34.125, "error": 0.25, "signature": "nrefs:1|case:mixed"},
    "chrf": {"value": 55.5, "error": None, "signature": "nc:6"},
  }
  results = [
    result("iwslt14", metric="bleu", scores=scores, truncated=17),
    result("mmlu", value=31.75, shots=2),
  ]
  page = write(tmp_path / "out", results)
  shown = ("34.1 ± 0.2", "55.5", "nrefs:1|case:mixed", "31.8 ± 1.5", "17", "2-shot", "8.5", "12.2")
  for text in (*shown, "diffjax evaluate --model=runs/one --tasks=mmlu", "3.11.2", "sums"):
    assert text in page.text, text


def test_page_needs_nothing_else_and_runs_nothing(tmp_path):
  steps = [result(num_steps=steps, value=steps) for steps in (1, 10)]
  write_run(tmp_path / "run", steps)
  page = Page(report.write_page(tmp_path / "run" / "evaluation"))
  assert page.tags.count("svg") == 2  # loss by noise level, score by steps
  assert "script" not in page.tags
  assert all(link.startswith("#") for link in page.links)
  assert "prefers-color-scheme: dark" in (tmp_path / "run/evaluation/index.html").read_text()


HOSTILE = "<script>alert(1)</script> & \x00 \x1b[31m \ud800 $x_1$"


def test_texts_from_outside_are_shown_and_never_markup(tmp_path):
  lines = [prediction(prompt=HOSTILE, prediction=HOSTILE, reference="", group=HOSTILE)]
  groups = {name: {"examples": 1, "scores": {"exact_match": 1.0}} for name in (HOSTILE, "b")}
  results = [
    result(HOSTILE, num_steps=steps, groups=groups, predictions="predictions/x.jsonl")
    for steps in (2, 4)
  ]
  page = write(
    tmp_path / "out", results, predictions={"x.jsonl": lines}, path=HOSTILE.replace("\x00", "")
  )
  assert "script" not in page.tags
  assert page.text.count("<script>alert(1)</script>") > 8
  assert not re.search(r"[\x00-\x08\x0b-\x1f]", page.text)


def test_noise_levels_are_those_of_the_evaluated_step(tmp_path):
  write_run(tmp_path / "run", [result()], training_steps=50)
  page = Page(report.write_page(tmp_path / "run" / "evaluation"))
  assert "at step 50" in page.text
  assert "2.75" in page.text
  assert "1.75" not in page.text


def test_noise_levels_stand_at_the_middle_of_their_tenth():
  plot = report.noise_plot({"a": {"nll": 9.0, "nll_0.0": 1.0, "nll_0.9": 2.0, "loss": 8.0}})
  assert plot.series == (plots.Series("a", (5.0, 95.0), (1.0, 2.0), (None, None)),)
  assert report.noise_plot({"a": {"nll": 9.0}}) is None


@pytest.mark.parametrize("process", ["absorbing", "next_token"])
def test_what_is_not_there_is_named(tmp_path, process):
  page = write(tmp_path / "out", [result(predictions="predictions/none.jsonl")], process=process)
  assert "svg" not in page.tags
  assert "Score by decoding steps: no task" in page.text
  assert "predictions/none.jsonl is missing" in page.text
  reason = "no noise levels" if process == "next_token" else "no metrics.jsonl"
  assert f"Loss by noise level: {reason}" in re.sub("an autoregressive model has ", "", page.text)


def test_samples_come_from_all_over_the_file_and_a_torn_line_is_left_out(tmp_path):
  lines = [prediction(prompt=f"number {number}.") for number in range(100)]
  directory = write_evaluation(tmp_path / "out", [result()], predictions={"mmlu.jsonl": lines})
  with (directory / "predictions/mmlu.jsonl").open("a") as file:
    file.write('{"prompt": "torn')
  page = Page(report.write_page(directory))
  shown = [int(number) for number in re.findall(r"number (\d+)\.", page.text)]
  assert len(shown) == 8
  assert shown == sorted(set(shown))
  assert min(shown) < 15
  assert max(shown) > 80
  assert "of the 100 in" in page.text


def test_groups_are_listed_with_their_mean(tmp_path):
  group = lambda value: {"examples": 7, "scores": {"exact_match": value}}
  groups = {"b": group(75.0), "a": group(20.0)}
  told = {"macro": {"exact_match": 47.5}, "examples_in_paper": {"a": 921}}
  page = write(tmp_path / "out", [result(groups=groups, **told)])
  assert "a 7 921 20.0 b 7 75.0 mean over groups 47.5" in page.text
  groups["a"]["errors"] = {"exact_match": 2.5}
  told |= {"macro_errors": {"exact_match": 1.25}, "average": "macro"}
  page = write(tmp_path / "out", [result(groups=groups, value=30.0, **told)])
  assert "a 7 921 20.0 ± 2.5 b 7 75.0 mean over groups 47.5 ± 1.2" in page.text
  assert "0-shot, 10 steps, gold length: exact match, mean over groups 47.5 ± 1.2" in page.text
  assert "exact match, mean over groups 47.5 1.25 exact match 30.0 1.5 v1" in page.text


def test_counts_of_the_files_and_of_the_paper_are_told(tmp_path):
  counts = {"examples_in_files": 14042, "examples_in_paper": {"": 1531}, "too_long": "keep_end"}
  page = write(tmp_path / "out", [result(**counts, command="diffjax evaluate --shots=2")])
  for text in ("200 of 14042 in the files, 1531 in the paper's", "keep_end", "--shots=2"):
    assert text in page.text


def test_what_was_asked_is_told_and_unknown_text_is_warned_of(tmp_path):
  told = {"files": ["mmlu/test.jsonl"], "questions_sha256": "5e" * 32, "unknown_tokens": 31.25}
  made_by = {"versions": {"diffjax": "0.1.0+g12ab"}, "device": "4 x TPU"}
  page = write(tmp_path / "out", [result(**told, **made_by)])
  for text in ("31.2 %", "mmlu/test.jsonl", "5e" * 32, "diffjax 0.1.0+g12ab", "4 x TPU"):
    assert text in page.text, text
  assert "Unknown tokens hide their text from the model, so scores of mmlu say" in page.text
  page = write(tmp_path / "out", [result(unknown_tokens=0.5), result(unknown_tokens=None)])
  assert "0.50 %" in page.text
  assert "Unknown tokens hide their text" not in page.text


def test_steps_plots_join_only_what_differs_in_steps_alone():
  other = result(num_steps=10, value=9.0)
  other["settings"] = other["settings"] | {"temperature": 0.5}
  trial = [result(num_steps=n, value=99.0, examples=5) for n in (2, 10)]
  fixed = result(num_steps=20, length="given", canvas=16)
  likely = result(num_steps=128, way="choosing")
  results = [result(num_steps=n, value=float(n)) for n in (50, 2, 10)]
  results += [other, *trial, fixed, likely]
  (plot,) = report.steps_plots([("", each) for each in results])
  (series,) = plot.series
  assert (series.x, series.y) == ((2, 10, 50), (2.0, 10.0, 50.0))


@pytest.mark.parametrize(
  "text", ["{", "[]", '{"results": []}', '{"model": {"path": "x"}, "results": [{"task": "a"}]}']
)
def test_a_broken_report_is_one_line(tmp_path, text):
  with pytest.raises(UserError, match=r"has no report\.json.*diffjax evaluate"):
    report.write_page(tmp_path)
  (tmp_path / "report.json").write_text(text)
  with pytest.raises(UserError, match="evaluate again") as error:
    report.write_page(tmp_path)
  assert "\n" not in str(error.value)


def test_a_report_of_the_fewest_fields_has_a_page(tmp_path):
  fewest = {"task": "a", "metric": "likelihood", "num_steps": 1}
  fewest["scores"] = {"per_token": {"value": 2.5}}
  (tmp_path / "report.json").write_text(json.dumps({"model": {"path": "x"}, "results": [fewest]}))
  page = Page(report.write_page(tmp_path))
  assert "per token 2.50" in page.text


def test_labels_say_what_differs_and_nothing_else():
  facts = [
    {"task": "a", "shots": "0-shot", "length": "gold"},
    {"task": "a", "shots": "2-shot", "length": "gold"},
  ]
  assert plots.told_apart(facts) == ["0-shot", "2-shot"]
  assert plots.told_apart(facts[:1]) == ["a"]


@pytest.mark.parametrize(
  ("number", "shown"),
  [(9.7e9, "9.7B"), (278e6, "278M"), (999_999, "1M"), (1300, "1.3k"), (50, "50")],
)
def test_counts_for_people(number, shown):
  assert plots.human(number) == shown


def test_a_picture_has_the_colours_of_the_page_and_every_label(tmp_path):
  series = tuple(
    plots.Series(f"_run {n} <$>\0\ud800", (1.0, 2.0), (3.0, float(n))) for n in range(10)
  )
  plot = plots.Plot("name", "title", "x <", "y", series, log_x=True)
  picture = plots.svg(plot)
  assert not re.search(r"#[0-9a-f]{6}", re.sub(r'(href="|url\()#\w+', "", picture))
  assert set(re.findall(r"var\(--([\w-]+)\)", picture)) <= set(plots.COLORS)
  assert all(f"_run {n} &lt;$&gt;" in picture for n in range(10))
  picture.encode()  # no lone surrogate
  assert "\0" not in picture
  plots.save_png(plot, tmp_path / "name.png")
  assert (tmp_path / "name.png").read_bytes().startswith(b"\x89PNG")


def test_only_markup_is_not_escaped():
  table = pages.table(("<a>", "b"), [("<b>", pages.Markup("<i>x</i>")), ("1", None)])
  for text in ("&lt;a&gt;", "&lt;b&gt;", "<i>x</i>"):
    assert text in table
