"""Options found in prompts, and the likeliest of them chosen."""

import gzip
import json
import os
from pathlib import Path

import pytest

from diffjax.config import Contract, ModelConfig
from diffjax.evaluation.choice import choose, letters
from diffjax.sampling import Score
from diffjax.types import UserError

DATA = Path(os.environ.get("DIFFJAX_DATA", Path(__file__).parents[3] / "shared" / "data"))
QUESTION = "Q: Two and two? (A) 3 (B) 4 (C) 5 A:"


@pytest.mark.parametrize(
  ("prompt", "found"),
  [
    (QUESTION, "ABC"),
    (f"{QUESTION} B | Q: Is it so? (A) yes (B) no A:", "AB"),
    (f"Q: Is it so? (A) yes (B) no\nA: B\n{QUESTION}", "ABC"),
    (f"Q: Is it so? (A) yes (B) no\nAnswer: (B)\n{QUESTION}", "ABC"),
    ("Which? (A) x (B) y (C) both (A) and (B) (D) neither A:", "ABCD"),
    (" Q: Which is sarcastic? (a) this. (b) that.\nA: (A) (a) (B) (b) A:", "AB"),
    ("Q: Which letter? \nA: (A) A (B) B A:", "AB"),
  ],
)
def test_letters_are_those_of_the_last_question(prompt, found):
  assert letters(prompt) == list(found)


def test_a_prompt_without_options_is_refused():
  for prompt in ("Q: Two and two? A:", "Q: (A) 3 A:", f"{QUESTION} B | Q: Two and three? A:"):
    with pytest.raises(UserError, match="has no options"):
      letters(prompt)


@pytest.mark.parametrize("shots", [0, 2])
def test_every_question_of_the_real_file_has_its_answer_among_its_letters(shots):
  file = DATA / "instruct" / f"mmlu.{shots}-shot.full.jsonl.gz"
  if not file.exists():
    pytest.skip("no real data")
  with gzip.open(file, "rt", encoding="utf-8") as lines:
    records = [json.loads(line) for line in lines]
  found = [letters(record["inputs"]) for record in records]
  assert all(r["targets"] in some for r, some in zip(records, found, strict=True))
  # One question of the file spells its fourth option "(D) (E)".
  assert sum(some == list("ABCD") for some in found) >= len(records) - 1


class Letters:
  """Ids are letters; capitals are unknown."""

  def encode(self, text):
    return [4 if letter.isupper() else 10 + ord(letter) for letter in text]


class Known:
  """A sampler whose scores are known: one nat a letter, and something for the first letter."""

  class model:
    tokenizer = Letters()
    contract = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=3)
    config = ModelConfig(max_positions=24)

  def score_rows(self, rows, **options):
    decode = lambda ids: "".join(chr(id_ - 10) for id_ in ids)
    starts = [row.canvas_start for row in rows]
    targets = [decode(row.tokens[start:-1]) for row, start in zip(rows, starts, strict=True)]
    prompts = [decode(row.tokens[1:start]) for row, start in zip(rows, starts, strict=True)]
    self.asked, self.options = list(zip(prompts, targets, strict=True)), options
    own = {"a": -3.0, "b": -1.0, "c": -2.0, "d": -1.0}
    return [Score(own[t[0]] - len(t), 0.1 * len(t), len(t) + 1) for t in targets]


def test_the_likeliest_option_is_chosen():
  sampler = Known()
  first, second = choose(sampler, ["p", "q"], [["a", "b", "c"], ["cc", "ccc"]], samples=9)
  assert (first.index, first.scores) == (1, [-4.0, -2.0, -3.0])
  assert (second.index, second.scores) == (0, [-4.0, -5.0])
  assert second.errors == pytest.approx([0.2, 0.3])
  assert sampler.asked == [("p", "a"), ("p", "b"), ("p", "c"), ("q", "cc"), ("q", "ccc")]
  assert sampler.options["samples"] == 9
  assert first.best == 1
  (equal,) = choose(sampler, ["p"], [["b", "d", "a"]])
  assert (equal.index, equal.best) == (0, 2)


def test_options_that_the_tokenizer_does_not_tell_apart_are_refused():
  message = "prompt 2: options 'A' and 'B' are the same to this model's tokenizer"
  with pytest.raises(UserError, match=message):
    choose(Known(), ["p", "q"], [["a", "b"], ["a", "A", "B"]])


def test_a_long_option_can_win_by_its_mean():
  options = [["b", "baaaaaa"]]
  (total,) = choose(Known(), ["p"], options)
  (mean,) = choose(Known(), ["p"], options, length_normalised=True)
  assert (total.index, mean.index) == (0, 0)
  (mean,) = choose(Known(), ["p"], [["a", "aaaaaaa"]], length_normalised=True)
  assert mean.index == 1
  assert mean.scores == pytest.approx([-4 / 2, -10 / 8])
  assert mean.errors == pytest.approx([0.1 / 2, 0.7 / 8])


def test_mistakes_are_one_line():
  with pytest.raises(UserError, match="1 lists of options for 2 prompts"):
    choose(Known(), ["p", "q"], [["a", "b"]])
  with pytest.raises(UserError, match=r"prompt 1: options = \['a'\]: give at least two"):
    choose(Known(), ["p"], [["a"]])
  with pytest.raises(UserError, match="prompt 1 does not fit 24 positions"):
    choose(Known(), ["p" * 24], [["a", "b"]])
