"""lm-evaluation-harness runs local tasks on the shipped model, and gets what the sampler says."""

import importlib.util
import json
import types

import numpy as np
import pytest

if importlib.util.find_spec("lm_eval") is None:  # a broken one fails
  pytest.skip("needs the [eval] extra", allow_module_level=True)

import lm_eval

from diffjax.evaluation import harness
from diffjax.evaluation.choice import choose
from diffjax.evaluation.harness import HarnessModel
from diffjax.evaluation.likelihood import text_bounds
from diffjax.types import UserError

pytestmark = pytest.mark.parity

SENTENCE = "english : a cat carried 3 green pears . orin :"
OTHER = "english : the small hen saw the lamb . orin :"
QUESTIONS = [  # of sizes that need one compiled program of a kind
  {"question": SENTENCE, "options": ["pila", "nubo na puro"], "answer": 0},
  {"question": OTHER, "options": ["nubo na", "pila"], "answer": 1},
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
doc_to_target: "{{{{options[0]}}}}"
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


@pytest.fixture(autouse=True)
def compiled_once(model, monkeypatch):
  """Further models of the same path get the first one's sampler."""
  of_path = {"tiny_mlm": model.sampler}
  monkeypatch.setattr(harness, "Sampler", types.SimpleNamespace(load=of_path.__getitem__))


def ask(*arguments):
  return types.SimpleNamespace(args=arguments)


def test_local_tasks_run_offline_by_the_name_of_the_model(model, tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip, slowly
  file = tmp_path / "questions.jsonl"
  file.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
  tasks = TASKS.format(file=file, cache=tmp_path / "cache").split("---")
  for number, task in enumerate(tasks):
    (tmp_path / f"toy_{number}.yaml").write_text(task)
  results = lm_eval.simple_evaluate(
    model="diffjax",
    model_args="path=tiny_mlm,samples=4,num_steps=2,check_greedy=False",
    batch_size=4,
    tasks=["toy_choice", "toy_text", "toy_writing"],
    task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
    bootstrap_iters=0,
    torch_random_seed=None,  # loads torch
    num_fewshot=0,
    log_samples=True,
  )
  sampler, prompts = model.sampler, [question["question"] for question in QUESTIONS]
  options = {"samples": 4, "batch_size": 4}
  chosen = choose(sampler, prompts, [question["options"] for question in QUESTIONS], **options)
  right = [choice.index == q["answer"] for choice, q in zip(chosen, QUESTIONS, strict=True)]
  assert results["results"]["toy_choice"]["acc,none"] == np.mean(right)
  bounds = text_bounds(sampler, [question["options"][0] for question in QUESTIONS], **options)
  bits = sum(bound.nats for bound in bounds) / sum(bound.bytes for bound in bounds) / np.log(2)
  assert results["results"]["toy_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
  answers = sampler.generate(prompts, lengths=5, num_steps=2, batch_size=4)
  said = [sample["resps"][0][0] for sample in results["samples"]["toy_writing"]]
  assert said == [answer.text for answer in answers]
  assert results["config"]["samples"] == 4


def test_a_continuation_is_a_target_and_greedy_if_the_sampler_says_it(model):
  answer, _ = model.sampler.generate([SENTENCE, OTHER], lengths=3, batch_size=4, num_steps=2)
  assert model.sampler.model.tokenizer.encode(answer.text) == answer.ids  # else it is no target
  pairs = [(SENTENCE, text) for text in (answer.text, "pila", " pila")]
  first, other, spaced = model.loglikelihood([ask(*pair) for pair in pairs])
  score = model.sampler.score(SENTENCE, answer.text, samples=4, batch_size=4)
  assert first == (score.log_likelihood, True)
  assert other == spaced
  assert other[1] is False
  assert model.max_standard_error >= score.standard_error > 0

  plain = HarnessModel("tiny_mlm", samples=4, batch_size=4, as_trained=False, check_greedy=False)
  ((likelihood, is_greedy),) = plain.loglikelihood([ask(*pairs[0])])
  assert is_greedy is False  # not found out
  assert likelihood != score.log_likelihood  # has no </s>
  row, trained = (each._row(*pairs[0]) for each in (plain, model))
  assert trained.tokens.tolist() == [*row.tokens.tolist(), 2]


@pytest.mark.parametrize(
  ("until", "text"),
  [
    (["three", "\n"], "one two"), (["\n", "three"], "one two"), ("two", "one "),
    (["four", ""], "one two\nthree"), ([], "one two\nthree"),
  ],
)  # fmt: skip
def test_texts_are_cut_at_stops_and_long_contexts_at_their_start(model, monkeypatch, until, text):
  asked = []

  def generate_ids(prompts, **settings):
    asked.extend((prompt, settings["lengths"]) for prompt in prompts)
    return [types.SimpleNamespace(text="one two\nthree") for _ in prompts]

  monkeypatch.setattr(model.sampler, "generate_ids", generate_ids)
  contexts = ["the small hen", "the small hen . " * 200 + SENTENCE]
  options = {"until": until, "max_gen_toks": 5}
  said = model.generate_until([ask(context, options) for context in contexts], disable_tqdm=True)
  assert said == [text] * 2
  short, long = map(model.sampler.model.tokenizer.encode, contexts)
  room = model.sampler.model.config.max_positions - 5 - 2
  assert len(long) > room
  assert asked == [(short, 5), (long[-room:], 5)]


def test_mistakes_are_one_line(model):
  with pytest.raises(UserError, match=r"generation_kwargs\.beams is no setting of the sampler"):
    model.generate_until([ask(SENTENCE, {"beams": 3})])
  with pytest.raises(UserError, match="the continuation ' ' has no tokens"):
    model.loglikelihood([ask(SENTENCE, " ")])
  with pytest.raises(UserError, match="'A' and 'B' are the same to this model's tokenizer"):
    model.loglikelihood([ask(SENTENCE, " A"), ask(SENTENCE, " B")])
  with pytest.raises(UserError, match="'num_step' is no setting"):
    HarnessModel("tiny_mlm", num_step=3)
  assert model.loglikelihood_rolling([ask("")]) == [0.0]
  with pytest.warns(UserWarning, match="1 of 5 tokens are unknown"):
    model.loglikelihood_rolling([ask("a B c")])
