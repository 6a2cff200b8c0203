"""The built-in data says what it promises, judged from its text alone."""

import collections
import re
import subprocess
import sys

import pytest

from diffjax.data import generator, world
from diffjax.types import UserError

SPLITS = ("train", "validation", "test")
COUNT = 1600
ORIN = {
  **{orin: english for english, orin in world.NOUNS.items()},
  **{orin: english for english, orin in world.ADJECTIVES.items()},
  **{orin: english for english, orin in world.VERBS.items()},
  **{orin: english for english, orin in (*world.PLACES.items(), *world.TIMES.items())},
}
OTHERS = generator.FAMILIES[len(generator.TASKS) :]
OBJECTS = {thing for deed in world.DEEDS.values() for thing in deed.objects}
KINDS = (
  world.ANIMALS, world.FRUITS, world.JOBS, world.TOWNS, world.DAYS, world.NAMES,
  tuple(world.PLACES), tuple(world.ADJECTIVES),
)  # fmt: skip


@pytest.fixture(scope="module")
def examples():
  return {
    split: [generator.task_example(index, split=split) for index in range(COUNT)]
    for split in SPLITS
  }


@pytest.fixture(scope="module")
def others():
  """Of the families that are not in the mixture unless they are named; 200 of each in a split."""
  return {
    split: [generator.task_example(index, split=split, families=OTHERS) for index in range(8 * 200)]
    for split in SPLITS
  }


@pytest.fixture(scope="module")
def passages():
  return {
    split: [generator.passage(index, split=split) for index in range(count)]
    for split, count in zip(SPLITS, (3000, 300, 300), strict=True)
  }


def query_of(example):
  """The prompt without its demonstration, which ends with a semicolon."""
  return example.inputs.rsplit(" ; ", 1)[-1]


def of_task(examples, task):
  return [example for example in examples if example.task == task]


def phrase_from_orin(words):
  if words[0] in world.NAMES:
    return words
  noun = ORIN[words[0]]
  adjective = [ORIN[word] for word in words[1:] if ORIN.get(word) in world.ADJECTIVES]
  number = [word for word in words if word.isdigit()]
  many = "mi" in words or bool(number)
  article = number or (["the"] if "na" in words else ["a"])
  return [*article, *adjective, noun + "s" if many else noun]


def from_orin(words):
  """An Orin sentence as English words, by a grammar written apart from the package's."""
  assert words[-1] == "."
  assert words[-3] == "ko"
  verb, rest, tail = ORIN[words[-2]], list(words[:-3]), []
  if len(rest) > 1 and rest[1] == "di":
    tail, rest = ["in", "the", ORIN[rest[0]]], rest[2:]
  elif ORIN.get(rest[0]) in world.TIMES:
    tail, rest = [ORIN[rest[0]]], rest[1:]
  starts = [
    place for place, word in enumerate(rest) if word in world.NAMES or ORIN.get(word) in world.NOUNS
  ]
  assert len(starts) == 2
  assert starts[0] == 0
  phrases = [phrase_from_orin(part) for part in (rest[: starts[1]], rest[starts[1] :])]
  return " ".join([*phrases[0], verb, *phrases[1], *tail, "."])


def orin_sentences(text):
  """Maximal runs of Orin words, names and numbers that end with a verb and a full stop."""
  for sentence in re.findall(r"[^.?:;]+\.", text):
    words = sentence.split()
    if "ko" in words:
      yield words


def english_of(example):
  """The English side of a translation row, whichever way it goes."""
  if " ko " in example.targets:
    return from_orin(example.targets.split())
  return example.targets


def test_examples_depend_on_split_and_index_alone(examples):
  for index in (777, 3, 1599):
    assert generator.task_example(index, split="test") == examples["test"][index]
  code = (
    "from diffjax.data.generator import passage, task_example\n"
    "print([task_example(i, split='train') for i in range(9)], passage(5, split='train'))"
  )
  runs = {
    subprocess.run(
      [sys.executable, "-c", code],
      env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed in ("1", "2")
  }
  here = [generator.task_example(index, split="train") for index in range(9)]
  assert runs == {f"{here} {generator.passage(5, split='train')}\n"}


def test_tasks_take_turns_and_rows_differ(examples):
  for rows in examples.values():
    assert [example.task for example in rows[:8]] == [*generator.TASKS, *generator.TASKS]
  assert len(set(examples["train"])) > 0.95 * COUNT


def test_families_take_turns_and_the_mixture_is_four_of_them(examples, others):
  assert len(generator.FAMILIES) >= 10
  assert len(set(generator.FAMILIES)) == len(generator.FAMILIES)
  for split, rows in examples.items():
    named = [
      generator.task_example(index, split=split, families=generator.TASKS) for index in range(40)
    ]
    assert named == rows[:40]
  for split, rows in others.items():
    assert [example.task for example in rows[:16]] == [*OTHERS, *OTHERS]
    one = generator.task_example(9, split=split, families=(OTHERS[1],))
    assert one == rows[9]  # what else is in the mixture does not matter


def test_an_unknown_family_names_the_nearest():
  with pytest.raises(UserError, match=r"'headlines'.*did you mean 'headline'\?.*phrase"):
    generator.task_example(0, split="train", families=("choice", "headlines"))


def test_text_is_in_normal_form(examples, others, passages):
  for split in SPLITS:
    rows = examples[split] + others[split]
    texts = [text for example in rows for text in example[:2]] + passages[split]
    for text in texts:
      assert text == " ".join(text.lower().split())
      for word in text.split():
        assert word.isalpha() or word.isdigit() or len(word) == 1, text


def test_vocabulary_is_small_and_known_from_plain_text(examples, others, passages):
  rows = examples["train"] + others["train"]
  used = {word for e in rows for text in e[:2] for word in text.split()}
  told = {word for text in passages["train"] for word in text.split()}
  assert len(used | told) <= 350
  assert not used - told
  numbers = [int(word) for word in used | told if word.isdigit()]
  assert min(numbers) >= 0
  assert max(numbers) <= 20


def test_rows_fit_with_their_ends(examples, others):
  for split, rows in examples.items():
    counts = [
      [len(re.findall(r"\w+|[^\w\s]", " ".join(example[:2]))) for example in part]
      for part in (rows, others[split])
    ]
    assert max(max(lengths) for lengths in counts) <= 62
    assert sum(counts[0]) / len(counts[0]) > 30


@pytest.mark.parametrize("task", generator.FAMILIES)
def test_wordings_and_demonstrations(examples, others, task):
  rows = of_task(examples["train"] + others["train"], task)
  zero_shot = [example for example in rows if " ; " not in example.inputs]
  assert len(generator._WORDINGS[task]) >= 4
  for opening, shot in generator._WORDINGS[task]:
    pattern = re.escape(f"{opening} {shot}".strip()).replace(r"\{input\}", ".+")
    pattern = re.sub(r"\\{\w+\\}", r"\\w+", pattern)
    found = sum(bool(re.fullmatch(pattern, example.inputs)) for example in zero_shot)
    assert found > len(zero_shot) / 10
  few_shot = 1 - len(zero_shot) / len(rows)
  assert 0.04 < few_shot < 0.5


def test_a_quarter_of_the_rows_show_one_demonstration(examples):
  for rows in examples.values():
    shots = collections.Counter(example.inputs.count(" ; ") for example in rows)
    assert set(shots) == {0, 1}
    assert 0.18 < shots[1] / len(rows) < 0.32


def test_demonstrations_are_of_the_training_side_and_never_the_query(examples):
  held_out = {example.targets for example in of_task(examples["test"], "headline")}
  for split in SPLITS:
    for example in of_task(examples[split], "headline"):
      if " ; " in example.inputs:
        shot = example.inputs.rsplit(" ; ", 1)[0]
        shown = re.split(r"headline : | \? |title : |happened : |short : ", shot)[-1]
        assert shown != example.targets
        assert shown not in held_out


def test_translations_are_exact_both_ways(examples):
  directions = collections.Counter()
  for split in SPLITS:
    for example in of_task(examples[split], "translation"):
      query = query_of(example)
      into_orin = " ko " in example.targets
      directions[into_orin] += 1
      if into_orin:
        assert f" {from_orin(example.targets.split())} " in f" {query} "
      else:
        (source,) = orin_sentences(query)
        assert from_orin(source) == example.targets
  assert min(directions.values()) > 0.4 * sum(directions.values())


def test_sums_are_right_and_tell_the_story(examples):
  for split in SPLITS:
    for example in of_task(examples[split], "arithmetic"):
      *steps, answer = example.targets.split(" . ")
      assert 1 <= len(steps) <= 2
      total, told = None, [int(word) for word in query_of(example).split() if word.isdigit()]
      assert len(told) == 1 + len(steps)
      for step, change in zip(steps, told[1:], strict=True):
        first, sign, second, equals, result = step.split()
        assert equals == "="
        assert int(first) == (told[0] if total is None else total)
        assert int(second) == change
        total = int(first) + int(second) * {"+": 1, "-": -1}[sign]
        assert int(result) == total
      assert answer == f"answer : {total}"
      signs = [step.split()[1] for step in steps]
      verbs = re.findall(r"finds|buys|eats|loses|gives \w+ \d+( more)?", query_of(example))
      assert len(verbs) == len(steps)
      more = [
        " more" in part for part in re.split(r" \. ", query_of(example)) if " has " not in part
      ]
      assert [flag for flag in more if flag] == [True] * signs.count("+")


def options_of(example):
  """The last list of options of a prompt, as {letter: option}."""
  found = re.findall(r"\( (\w) \) (\w+)", query_of(example))
  assert [letter for letter, _ in found] == list(generator.LETTERS)
  return dict(found)


def question_of(example):
  return re.search(r"((?:where|what|which|who|when) (?!letter)[^?:.]*\?)", query_of(example))[1]


def asking(relation):
  return re.escape(relation.question).replace(r"\{thing\}", r"(\w+)")


def stated_in(example):
  """Sentences of the prompt before the question that state something."""
  sentences = re.findall(r"[^.:?;]+ \.", query_of(example).split(question_of(example))[0])
  return frozenset(
    s.strip() for s in sentences if " has the " in s or " is in " in s or " on " in s
  )


def test_the_chosen_option_is_the_fact(examples):
  kinds = collections.Counter()
  for split in SPLITS:
    for example in of_task(examples[split], "choice"):
      options = options_of(example)
      assert len(set(options.values())) == len(options)
      answer = options[example.targets]
      stated = stated_in(example)
      kinds[bool(stated)] += 1
      question = question_of(example)
      right = [
        relation.statements[0].format(thing=thing, value=option)
        for relation in world.RELATIONS.values()
        for option in options.values()
        for thing in [re.fullmatch(asking(relation), question)]
        if thing
        for thing in [thing[1]]
        if relation.statements[0].format(thing=thing, value=option) in stated
        or (not stated and any(f.thing == thing and f.value == option for f in world.FACTS))
      ]
      assert len(right) == 1
      assert answer in right[0].split()
  assert kinds[True] > kinds[False] > 0.2 * kinds[True]


def test_letters_are_uniform():
  letters = collections.Counter(
    generator.task_example(4 * index + 2, split="train").targets for index in range(4000)
  )
  assert set(letters) == set(generator.LETTERS)
  for count in letters.values():
    assert abs(count - 1000) < 5 * 27.4  # standard deviations of a fair count


def test_headlines_follow_from_their_reports(examples):
  present = {deed.present: past for past, deed in world.DEEDS.items()}
  for split in SPLITS:
    for example in of_task(examples[split], "headline"):
      words = example.targets.split()
      assert 3 <= len(words) <= 6
      report = f" {query_of(example)} "
      name, verb, *rest = words
      thing = rest[: rest.index("in")] if "in" in rest else rest
      assert f" {name} {present[verb]} a {' '.join(thing)} " in report
      assert "in" not in rest or f" {rest[-1]} " in report
      if "in" not in rest:  # no other town happened to be the event's
        assert f"{thing[-1]} in " not in report
        assert "it happened" not in report


def test_details_are_of_the_event(others):
  lasting = r"\w+ lives in \w+ \.|the home of \w+ is in \w+ \."
  asked = collections.Counter()
  for split in SPLITS:
    for example in of_task(others[split], "detail"):
      report = query_of(example)
      kind = re.search(r"(who|when|where) was it \?", report)[1]
      asked[kind] += 1
      words = re.sub(lasting, "", report).split()
      (name,) = re.findall(rf"(\w+) (?:{'|'.join(world.DEEDS)}) a ", report)
      found = {
        "who": [name],
        "when": [word for word in words if word in world.DAYS],
        "where": [word for word in words if word in world.TOWNS],
      }
      assert found[kind] == [example.targets]
  assert min(asked[kind] for kind in ("who", "when", "where")) > 0.2 * sum(asked.values())


def claim_of(example):
  """What a prompt states, and the statement that it asks about."""
  stated, claim = re.search(
    r"((?:[^.:?;]+ \. )+)\w+ says that ([^.]+ \.)", query_of(example)
  ).groups()
  sentences = [sentence.strip() for sentence in re.findall(r"[^.]+\.", stated)]
  return frozenset(s for s in sentences if re.search(r" has the | is (in|on) ", s)), claim


def test_claims_are_so_where_they_are_stated(others):
  answers = collections.Counter()
  for split in SPLITS:
    for example in of_task(others[split], "verification"):
      stated, claim = claim_of(example)
      assert len(stated) == 2
      assert example.targets == ("so" if claim in stated else "not")
      answers[example.targets] += 1
  assert abs(answers["so"] - answers["not"]) < 5 * sum(answers.values()) ** 0.5


def kinds_of(word):
  return [number for number, kind in enumerate(KINDS) if word in kind]


def odd_words(example):
  return tuple(re.search(r"\w+(?: , \w+){3}", query_of(example))[0].split(" , "))


def test_the_odd_word_is_of_another_kind(others):
  for split in SPLITS:
    for example in of_task(others[split], "odd"):
      words = odd_words(example)
      kinds = collections.Counter(kind for word in words for kind in kinds_of(word))
      assert sorted(kinds.values()) == [1, 3]
      (kind,) = kinds_of(example.targets)
      assert kinds[kind] == 1
      assert example.targets in words


def test_progressions_go_on(others):
  for split in SPLITS:
    for example in of_task(others[split], "progression"):
      first, second, third = (int(n) for n in re.findall(r"\d+", query_of(example)))
      assert second - first == third - second != 0
      assert int(example.targets) == 2 * third - second


def counts_of(example):
  return re.findall(r"(\w+) has (\d+) (\w+) \.", query_of(example))


def test_comparisons_name_who_has_most_or_least(others):
  for split in SPLITS:
    for example in of_task(others[split], "comparison"):
      numbers = {name: int(number) for name, number, _ in counts_of(example)}
      assert len(set(numbers.values())) == 3
      wanted, fruits = re.search(r"who has (more|less) (\w+) \?", query_of(example)).groups()
      assert {fruit for *_, fruit in counts_of(example)} == {fruits}
      assert numbers[example.targets] == {"more": max, "less": min}[wanted](numbers.values())


def listed_of(example):
  """The options, and the letter and word that belong together in question and target."""
  letter = re.search(r"which word has the letter (\w) \?", query_of(example))
  if letter:
    return options_of(example), letter[1], example.targets
  return (
    options_of(example),
    example.targets,
    re.search(r"which letter has (\w+) \?", query_of(example))[1],
  )


def test_letters_and_words_of_a_list_are_found(others):
  asked = collections.Counter()
  for split in SPLITS:
    for example in of_task(others[split], "lookup"):
      options, letter, word = listed_of(example)
      assert options[letter] == word
      assert len(set(options.values())) == 4
      asked[letter == example.targets] += 1
  assert min(asked.values()) > 0.4 * sum(asked.values())


def test_answers_are_the_values_that_are_stated(others):
  for split in SPLITS:
    for example in of_task(others[split], "answer"):
      question = question_of(example)
      right = [
        relation
        for relation in world.PASSING.values()
        for thing in re.findall(asking(relation), question)
        if relation.statements[0].format(thing=thing, value=example.targets) in stated_in(example)
      ]
      assert len(right) == 1


def phrase_of(example):
  """The English side of a phrase, having checked that it is what the Orin side says."""
  query, target = query_of(example), example.targets.split()
  if target[0] in ORIN:
    english = " ".join(phrase_from_orin(target))
    assert f" {english} " in f" {query} "
    return english
  (noun,) = (word for word in query.split() if ORIN.get(word) in world.NOUNS)
  orin = re.search(rf"{noun}(?: (?:{'|'.join((*ORIN, 'mi', 'na'))}|\d))*", query)[0]
  assert phrase_from_orin(orin.split()) == target
  return example.targets


def test_phrases_are_exact_both_ways(others):
  directions = collections.Counter()
  for split in SPLITS:
    for example in of_task(others[split], "phrase"):
      assert phrase_of(example)
      directions[example.targets.split()[0] in ORIN] += 1
  assert min(directions.values()) > 0.4 * sum(directions.values())


def contents(rows):
  """What each row is about, read from its text."""
  for example in rows:
    if example.task == "translation":
      yield "translation", english_of(example)
    elif example.task == "detail":
      deed = rf"\w+ (?:{'|'.join(world.DEEDS)}) a (?:\w+ )?(?:{'|'.join(OBJECTS)})\b"
      lasting = r"\w+ lives in \w+ \.|the home of \w+ is in \w+ \."
      told = re.sub(lasting, "", query_of(example)).split()
      towns = [word for word in told if word in world.TOWNS]
      yield "event", re.search(deed, query_of(example))[0], tuple(towns)
    elif example.task == "verification":
      yield "verification", *claim_of(example)
    elif example.task == "odd":
      yield "odd", odd_words(example)
    elif example.task == "progression":
      yield "progression", tuple(re.findall(r"\d+", query_of(example)))
    elif example.task == "comparison":
      yield "comparison", tuple(counts_of(example))
    elif example.task == "lookup":
      options, letter, _ = listed_of(example)
      yield "lookup", tuple(options.values()), letter
    elif example.task == "answer":
      yield "choice", stated_in(example), question_of(example)
    elif example.task == "phrase":
      yield "phrase", phrase_of(example)
    elif example.task == "choice":
      yield "choice", stated_in(example), question_of(example)
    else:  # the event of a headline, the numbers of a sum
      yield example.task, example.targets


def test_splits_share_no_content(examples, others):
  about = {split: set(contents(examples[split] + others[split])) for split in SPLITS}
  assert not about["train"] & about["test"]
  assert not about["train"] & about["validation"]
  assert not about["validation"] & about["test"]
  for task in generator.TASKS:
    assert sum(key[0] == task for key in about["test"]) >= 40
  for task in {key[0] for key in about["train"]}:
    assert sum(key[0] == task for key in about["test"]) >= 3


def test_plain_text_has_the_right_length_and_both_languages(passages):
  for texts in passages.values():
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 40
    assert max(lengths) <= 55
  orin = sum(any(orin_sentences(text)) for text in passages["train"])
  assert 0.3 < orin / len(passages["train"]) < 0.6


def test_plain_text_knows_no_task(examples, passages):
  wordings = [w for wordings in generator._WORDINGS.values() for w in wordings]
  fragments = {
    part.strip().format(language=language, source=language)
    for wording in wordings
    for part in (wording.opening, *wording.shot.split("{input}"))
    for language in ("english", "orin")
    if len(part.split()) > 1
  }
  headlines = {e.targets for e in of_task(examples["train"], "headline")}
  for texts in passages.values():
    for text in texts:
      assert not re.search(r"\d [=+-]|[=+-] \d|answer :|\w : \w", text.replace("= and : on", ""))
      for fragment in fragments:
        assert f" {fragment} " not in f" {text} ", (fragment, text)
      assert not any(f" {line} " in f" {text} " for line in headlines)


def test_no_sentence_stands_with_its_translation(passages):
  for texts in passages.values():
    for text in texts:
      told = [from_orin(words) for words in orin_sentences(text)]
      assert len(set(told)) == len(told)
      for english in told:
        assert f" {english} " not in f" {text} "


def test_plain_text_shows_no_held_out_sentence_event_or_story(examples, passages):
  text = " ".join(passages["train"])
  told = {from_orin(words) for words in orin_sentences(text)}
  assert len(told) > 100
  for split in ("validation", "test"):
    for example in of_task(examples[split], "translation"):
      english = english_of(example)
      assert english not in told
      assert f" . {english} " not in text
    for example in of_task(examples[split], "headline"):
      assert example.targets.replace(" in ", " a in ") not in text


def test_every_fact_is_told_and_every_split_asks_about_every_relation(examples, passages):
  text = f" {' '.join(passages['train'])} "
  for fact in world.FACTS:
    assert f" {world.tell(fact)} " in text
    assert f" {world.tell(fact, 1)} " in text
  for split in SPLITS:
    asked = {
      question_of(example).split()[0] + question_of(example).split()[1]
      for example in of_task(examples[split], "choice")
      if not stated_in(example)
    }
    assert len(asked) == len(world.LASTING)


@pytest.mark.parametrize("make", [generator.task_example, generator.passage])
def test_bad_requests_name_the_value(make):
  with pytest.raises(UserError, match=r"'dev'.*train, validation, test"):
    make(0, split="dev")
  with pytest.raises(UserError, match="-1"):
    make(-1, split="train")
