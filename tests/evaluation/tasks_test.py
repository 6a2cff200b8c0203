"""Decoded examples are scored task by task, against a sampler whose answers are known."""

import dataclasses

import pytest

from diffjax.config import Contract, ModelConfig
from diffjax.evaluation import tasks
from diffjax.types import Example, UserError


class Letters:
  def encode(self, text):
    return [ord(letter) for letter in text]


class Answer:
  network_calls = 3

  def __init__(self, text):
    self.text = text


class Parrot:
  """Answers with the end of the prompt, as long as the target is; remembers what it was asked."""

  class model:
    tokenizer = Letters()
    contract = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=3)
    config = ModelConfig(max_positions=64)

  def generate_ids(self, prompts, *, lengths, **settings):
    self.asked = [("".join(map(chr, p)), n) for p, n in zip(prompts, lengths, strict=True)]
    self.settings = settings
    return [Answer(text[-length:]) for text, length in self.asked]


EXAMPLES = [
  Example("say a b c d e", "a b c d e", "copy"),
  Example("not a b c d f", "a b c d e", "copy"),
  Example("letter b", "b", "choice"),
]


def test_scores_are_grouped_by_task_and_answers_keep_their_order():
  report = tasks.evaluate(Parrot(), EXAMPLES)
  assert report.hypotheses == ["a b c d e", "a b c d f", "b"]
  assert list(report.scores) == ["copy", "choice"]
  assert report.scores["copy"]["exact_match"] == 50
  assert 0 < report.scores["copy"]["bleu"] < 100
  choice = report.scores["choice"]
  assert choice["examples"] == 1
  assert (choice["bleu"], choice["number"]) == (None, None)  # one word, and no number
  assert {choice[name] for name in ("exact_match", "chrf", "rouge_1", "rouge_l", "f1")} == {100}
  assert set(tasks.METRICS) < set(choice)
  assert report.mean["exact_match"] == 75
  assert report.mean["bleu"] == report.scores["copy"]["bleu"]
  assert "number" not in report.mean
  assert "tok:13a" in report.bleu_signature
  assert report.network_calls == 3


def test_the_gold_length_and_the_settings_reach_the_sampler():
  parrot = Parrot()
  tasks.evaluate(parrot, EXAMPLES, num_steps=7, seed=5)
  assert [length for _, length in parrot.asked] == [9, 9, 1]
  assert (parrot.settings["num_steps"], parrot.settings["seed"]) == (7, 5)


def test_a_model_that_predicts_the_end_gets_room_for_it():
  parrot = Parrot()
  parrot.model = type("model", (Parrot.model,), {})
  parrot.model.contract = dataclasses.replace(Parrot.model.contract, end="predicted")
  tasks.evaluate(parrot, EXAMPLES)
  assert [length for _, length in parrot.asked] == [10, 10, 2]


def test_a_long_prompt_is_cut_as_in_training_or_refused():
  parrot = Parrot()
  tasks.evaluate(parrot, EXAMPLES[:1], max_length=16, too_long="keep_end")
  assert parrot.asked == [("c d e", 9)]
  with pytest.raises(UserError, match="does not fit 16 positions"):
    tasks.evaluate(parrot, EXAMPLES[:1], max_length=16)


def test_without_the_gold_length_the_model_decides():
  parrot = Parrot()
  parrot.generate_ids = lambda prompts, *, lengths, **settings: [
    Answer("b" if lengths is None else "gold") for _ in prompts
  ]
  report = tasks.evaluate(parrot, EXAMPLES, gold_length=False, length_beam=3)
  assert report.hypotheses == ["b", "b", "b"]


def test_without_examples_there_is_no_mean():
  with pytest.raises(UserError, match="no examples"):
    tasks.evaluate(Parrot(), [])
