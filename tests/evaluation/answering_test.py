"""Rows that a model is given, and what it is asked for, with samplers whose answers are known."""

import dataclasses

import pytest

from diffjax.config import Contract, ModelConfig
from diffjax.evaluation.answering import Choosing, Scoring, Writing, length_of
from diffjax.evaluation.suites import Question
from diffjax.sampling import Generation, Score, Settings
from diffjax.types import UserError


class Letters:
  """Ids 10.. are characters; those after "~" are unknown."""

  unk_id = 9

  def encode(self, text):
    return [10 + ord(letter) if letter <= "~" else 9 for letter in text]

  def decode(self, ids):
    return "".join(chr(id_ - 10) if id_ > 9 else "?" for id_ in ids)


class Parrot:
  """Answers with its prompt's end, and finds what is alike likely; remembers what it was asked."""

  class model:
    tokenizer = Letters()
    contract = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=3)
    config = ModelConfig(max_positions=24)

  def generate_ids(self, prompts, *, lengths, repeats, **settings):
    self.lengths, self.repeats, self.settings = lengths, repeats, settings
    self.prompts = [Letters().decode(prompt) for prompt in prompts]
    total = float("-inf") if settings["num_steps"] == 9 else -2.0
    return [Generation(text[-2:], [], [], 0.0, total, 4) for text in self.prompts]

  def score_rows(self, rows, numbers, **settings):
    self.scored, self.numbers = [Letters().decode(row.tokens[1:-1]) for row in rows], numbers
    return [Score(-float(len(row.tokens) - row.canvas_start), 0.5, 3) for row in rows]


class Chooser(Parrot):
  """Finds the letter likely that its prompt begins with."""

  def score_rows(self, rows, numbers, **settings):
    super().score_rows(rows, numbers)
    return [Score(-1.0 if text[0] == text[-1] else -2.0, 0.0, 1) for text in self.scored]


def way(kind=Writing, *, sampler=None, max_length=24, too_long="keep_end", **changes):
  if kind is Writing:
    changes = {"decoding": Settings(num_steps=7)} | changes
  return kind(sampler=sampler or Parrot(), max_length=max_length, too_long=too_long, **changes)


def ask(this, *pairs):
  rows = [this.lay_out(Question(n, *pair, "")) for n, pair in enumerate(pairs)]
  return rows, this.answer([row for row in rows if row is not None])


def test_gold_canvases_and_settings_reach_the_sampler():
  this = way(seed=5, batch_size=3)
  rows, answers = ask(this, ("hello", "abc"), ("ok", "d"))
  sampler = this.sampler
  assert (sampler.prompts, sampler.lengths) == (["hello", "ok"], [3, 1])
  assert (sampler.settings["num_steps"], sampler.settings["seed"]) == (7, 5)
  assert [(a.text, a.log_probability, a.network_calls) for a in answers] == [
    ("lo", -2.0, 4), ("ok", -2.0, 4),
  ]  # fmt: skip
  assert not any(row.is_cut for row in rows)
  assert this.length == "gold"
  _, (answer,) = ask(way(decoding=Settings(num_steps=9)), ("a", "b"))
  assert answer.log_probability is None  # no token is text


def test_a_model_that_predicts_its_end_gets_room_for_it():
  sampler = Parrot()
  sampler.model = type("model", (Parrot.model,), {})
  sampler.model.contract = dataclasses.replace(Parrot.model.contract, end="predicted")
  ask(way(sampler=sampler), ("hello", "abc"))
  assert sampler.lengths == [4]


@pytest.mark.parametrize(
  ("too_long", "kept"), [("keep_end", "klmnop"), ("keep_start", "abcdef"), ("keep_ends", "amnop")]
)
def test_a_long_prompt_is_cut_by_name_and_counted(too_long, kept):
  this = way(max_length=10, too_long=too_long)
  rows, _ = ask(this, ("abcdefghijklmnop", "xy"), ("short", "xy"))
  assert [row.is_cut for row in rows] == [True, False]
  assert len(rows[0].ids.tokens) == 10
  if too_long != "keep_ends":
    assert this.sampler.prompts[0] == kept
  else:
    assert (this.sampler.prompts[0][0], this.sampler.prompts[0][-4:]) == ("a", "mnop")


def test_what_does_not_fit_is_left_out():
  rows, answers = ask(way(max_length=10, too_long="drop"), ("abcdefghijklmnop", "xy"), ("a", "b"))
  assert rows[0] is None
  assert len(answers) == 1


@pytest.mark.parametrize("canvas", ["predicted", 8])
def test_what_is_kept_of_a_prompt_says_nothing_of_the_reference(canvas):
  prompts = []
  for reference in ("x", "the answer", "a reference longer than the row"):
    this = way(max_length=20, canvas=canvas)
    this.sampler.model = type("model", (Parrot.model,), {})
    this.sampler.model.config = ModelConfig(max_positions=24, length_classes=8)
    rows, _ = ask(this, ("abcdefghijklmnopqrstuvwxyz", reference))
    assert rows[0].is_cut
    prompts += this.sampler.prompts
  assert prompts == ["qrstuvwxyz"] * 3  # beside <s>, eight places and </s>


def test_unknown_tokens_are_counted():
  (row, plain), _ = ask(way(Scoring, samples=4), ("aé", "é猫b"), ("", "né"))
  assert (row.prompt, row.reference) == ((1, 2), (2, 4))
  assert (plain.prompt, plain.reference) == ((0, 0), (1, 2))


def test_a_given_canvas_takes_its_room_from_the_prompt():
  this = way(max_length=12, canvas=8)
  rows, _ = ask(this, ("abcdefghij", "xy"), ("k", "the reference"[:9]))
  assert this.sampler.lengths == 8
  # <s>, two of the prompt, the canvas, </s>.
  assert this.sampler.prompts[0] == "ij"
  assert rows[0].is_cut
  assert this.length == "given"
  assert this.identity != way(max_length=12, canvas=9).identity


def test_noise_is_keyed_by_the_questions_number():
  this = way(canvas="predicted")
  rows = [
    this.lay_out(Question(n, prompt, "x", "")) for n, prompt in [(3, "a"), (8, "b"), (9, "a")]
  ]
  this.answer(rows)
  # The sampler adds how many equal prompts of the call came before.
  assert this.sampler.repeats == [3, 8, 9 - 1]
  assert this.sampler.lengths is None


def test_the_likelier_option_is_chosen():
  this = way(Choosing, sampler=Chooser(), max_length=40, samples=4)
  _, answers = ask(this, ("B? (A) x (B) y A:", "B"), ("C? (A) x (B) y (C) z A:", "C"))
  assert this.sampler.numbers == [0, 0, 1, 1, 1]
  assert this.length == "options"
  assert [answer.text for answer in answers] == ["B", "C"]
  assert answers[0].details["options"] == {"A": -2.0, "B": -1.0}
  assert (answers[0].log_probability, answers[0].network_calls) == (-1.0, None)
  _, (tie,) = ask(this, ("? (A) x (B) y A:", "A"))
  assert (tie.text, tie.details["tied"]) == ("", True)
  with pytest.raises(UserError, match=r"question 0 of law: the question 'what\?' has no options"):
    this.lay_out(Question(0, "what?", "A", "law"))


def test_options_are_compared_in_rows_of_the_length_that_was_asked_for():
  this = way(Choosing, sampler=Chooser(), max_length=12, samples=4)
  rows, _ = ask(this, ("B? it is (A) x (B) y A:", "B"))
  assert rows[0].is_cut
  assert this.sampler.scored == [" (B) y A:A", " (B) y A:B"]
  assert ask(way(Choosing, sampler=Chooser(), max_length=12, too_long="drop", samples=4),
             ("B? it is (A) x (B) y A:", "B"))[0] == [None]  # fmt: skip


def test_references_are_scored_after_their_prompts():
  this = way(Scoring, samples=4)
  _, (answer,) = ask(this, ("ab", "cd"))
  assert this.sampler.scored == ["abcd"]
  assert (answer.text, answer.log_probability) == ("", -3.0)  # of c, d and </s>
  assert answer.details == {"error": 0.5, "tokens": 3, "unknown": 0}
  assert this.sampler.numbers == [0]


def test_plain_text_longer_than_the_model_is_scored_in_windows():
  text = "abcdefghijklmnopqrstuvwxyz" * 2
  this = way(Scoring, samples=4)
  (row,), (answer,) = ask(this, ("", text))
  assert not row.is_cut
  assert answer.details["tokens"] == len(text) + 1
  assert answer.log_probability == -(len(text) + 1)  # each scored once


def test_settings_tell_ways_apart():
  ways = [
    way(), way(seed=1), way(too_long="drop"), way(max_length=9), way(canvas="predicted"),
    way(decoding=Settings(num_steps=8)), way(Choosing, samples=4), way(Choosing, samples=5),
    way(Scoring, samples=4),
  ]  # fmt: skip
  identities = [repr(one.identity) for one in ways]
  assert len(set(identities)) == len(identities)


def test_lengths_are_read_or_refused():
  assert [length_of(text) for text in ("gold", "predicted", "12")] == ["gold", "predicted", 12]
  for text in ("0", "-1", "golden", "1.5", ""):
    with pytest.raises(UserError, match="must be gold, predicted, or a whole number"):
      length_of(text)
