"""lm-evaluation-harness runs local tasks on the shipped model, and gets what the sampler says."""

import json
import types

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")

from diffjax.evaluation.choice import choose  # noqa: E402
from diffjax.evaluation.harness import HarnessModel  # noqa: E402
from diffjax.evaluation.likelihood import text_bounds  # noqa: E402
from diffjax.types import UserError  # noqa: E402

SENTENCE = "english : a cat carried 3 green pears . orin :"
QUESTIONS = [
  {"question": SENTENCE, "options": ["pila", "nubo na puro"], "answer": 0},
  {
    "question": "english : the small hen saw the lamb . orin :",
    "options": ["4", "ko"],
    "answer": 1,
  },
]
TASKS = """
task: toy_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: options
doc_to_target: answer
metric_list: [{{metric: acc}}]
---
task: toy_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
---
task: toy_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{options[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 5, num_steps: 2}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def model():
  return HarnessModel("tiny_mlm", samples=4, batch_size=4, num_steps=2)


def ask(*arguments):
  return types.SimpleNamespace(args=arguments)


def test_local_tasks_run_offline_by_the_name_of_the_model(model, tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  file = tmp_path / "questions.jsonl"
  file.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
  tasks = TASKS.format(file=file, cache=tmp_path / "cache").split("---")
  for number, task in enumerate(tasks):
    (tmp_path / f"toy_{number}.yaml").write_text(task)
  results = lm_eval.simple_evaluate(
    model="diffjax",
    model_args="path=tiny_mlm,samples=4,num_steps=2",
    batch_size=4,
    tasks=["toy_choice", "toy_text", "toy_writing"],
    task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
    bootstrap_iters=0,
    num_fewshot=0,
    log_samples=True,
  )
  sampler, prompts = model.sampler, [question["question"] for question in QUESTIONS]
  options = {"samples": 4, "batch_size": 4}
  chosen = choose(sampler, prompts, [question["options"] for question in QUESTIONS], **options)
  right = [choice.index == q["answer"] for choice, q in zip(chosen, QUESTIONS, strict=True)]
  assert results["results"]["toy_choice"]["acc,none"] == np.mean(right)
  bounds = text_bounds(sampler, prompts, **options)
  bits = sum(bound.nats for bound in bounds) / sum(bound.bytes for bound in bounds) / np.log(2)
  assert results["results"]["toy_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
  answers = sampler.generate(prompts, lengths=5, num_steps=2, batch_size=4)
  said = [sample["resps"][0][0] for sample in results["samples"]["toy_writing"]]
  assert said == [answer.text for answer in answers]
  assert results["config"]["samples"] == 4


def test_a_continuation_is_a_target_and_greedy_if_the_sampler_says_it(model):
  (answer,) = model.sampler.generate(SENTENCE, lengths=3, batch_size=4, num_steps=2)
  first, other, spaced = model.loglikelihood(
    [ask(SENTENCE, answer.text), ask(SENTENCE, "pila"), ask(SENTENCE, " pila")]
  )
  score = model.sampler.score(SENTENCE, answer.text, samples=4, batch_size=4)
  if model.sampler.model.tokenizer.encode(answer.text) == answer.ids:
    assert first == (score.log_likelihood, True)
  assert other == spaced
  assert other[1] is False
  assert model.max_standard_error >= score.standard_error


def test_a_plain_language_model_is_scored_without_an_end(model):
  plain = HarnessModel("tiny_mlm", samples=4, batch_size=4, as_trained=False, check_greedy=False)
  row = plain._row("english :", " pila")
  trained = model._row("english :", " pila")
  assert trained.tokens.tolist() == [*row.tokens.tolist(), 2]
  assert plain.loglikelihood([ask("english :", " pila")])[0][1] is False


def test_texts_are_cut_at_stops_and_long_contexts_at_their_start(model):
  stops = {"until": ["a", "o"], "max_gen_toks": 5}
  context = "english : " + "a cat carried 3 green pears . " * 120
  plain, cut = model.generate_until(
    [ask(context, {"max_gen_toks": 5}), ask(context, stops)], disable_tqdm=True
  )
  ends = [plain.find(letter) for letter in "ao" if letter in plain]
  assert cut == (plain[: min(ends)] if ends else plain)


def test_mistakes_are_one_line(model):
  with pytest.raises(UserError, match=r"generation_kwargs\.beams is no setting of the sampler"):
    model.generate_until([ask(SENTENCE, {"beams": 3})])
  with pytest.raises(UserError, match="the continuation ' ' has no tokens"):
    model.loglikelihood([ask(SENTENCE, " ")])
  with pytest.raises(UserError, match="'num_step' is no setting"):
    HarnessModel("tiny_mlm", num_step=3)
  assert model.loglikelihood_rolling([ask("")]) == [0.0]
