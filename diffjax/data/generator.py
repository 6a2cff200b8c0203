"""The built-in data: twelve families of tasks, and plain text of the same world. No files.

Long, because wordings and sentence patterns are data, and stand beside what fills them.

Example `index` of a split is a function of (split, index) alone, so any order and any subset can
be read. The splits share no content: what an example is about (the meaning of a sentence, the event
of a report, the question with what its text states, the numbers of a sum) is hashed to one split,
whatever its wording. Lasting facts of the world and sums of two numbers are common knowledge, told
by the plain text of every split; only the questions about them are held out.
"""

import difflib
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

from diffjax.data import world
from diffjax.types import Example, UserError

TASKS = ("translation", "headline", "choice", "arithmetic")  # the mixture unless others are named
LETTERS = ("a", "b", "c", "d")
MAX_WORDS = 60  # of prompt and target together: with <s> and </s> a row of 64 has two to spare

_LISTED = tuple(relation.values for relation in world.RELATIONS.values())
_FEW_SHOT_SHARE = 0.4  # of the rows that try; about a quarter find a demonstration that fits
_FEW_SHOT_ATTEMPTS = 4
_PASSAGE_WORDS = (40, 55)


# ---- Randomness and splits -----------------------------------------------------------------------


def _random(purpose: str, split: world.Split, index: int) -> random.Random:
  splits = get_args(world.Split)
  if split not in splits:
    raise UserError(f"split {split!r} of the built-in data: use one of {', '.join(splits)}")
  if index < 0:
    raise UserError(f"example {index} of the built-in data: the index must be >= 0")
  return random.Random(world.digest(f"{purpose}/{split}/{index}"))


# ---- From content to prompt and target -----------------------------------------------------------


class _Wording(NamedTuple):
  """`opening` comes once; `shot`, with its {input}, once for each demonstration and the query."""

  opening: str
  shot: str


_WORDINGS = {
  "translation": (
    _Wording("translate into {language} .", "sentence : {input} translation :"),
    _Wording("", "how do you say this in {language} ? {input} answer :"),
    _Wording("", "{source} : {input} {language} :"),
    _Wording("write each sentence in {language} .", "{input} in {language} :"),
    _Wording("please give the {language} of this .", "{input} translation :"),
  ),
  "headline": (
    _Wording("write a headline for the report .", "report : {input} headline :"),
    _Wording("", "{input} what is the headline ?"),
    _Wording("give a short title .", "news : {input} title :"),
    _Wording("read the news .", "{input} say in a few words what happened :"),
    _Wording("", "report : {input} in short :"),
  ),
  "choice": (
    _Wording("choose the right letter .", "question : {input} answer :"),
    _Wording("", "{input} which letter is right ?"),
    _Wording("answer with one letter .", "{input} letter :"),
    _Wording("read and choose one option .", "{input} option :"),
  ),
  "arithmetic": (
    _Wording("solve the problem step by step .", "problem : {input} steps :"),
    _Wording("", "{input} show each step ."),
    _Wording("count with care .", "{input} work :"),
    _Wording("", "question : {input} think step by step :"),
  ),
  "detail": (
    _Wording("read the report .", "report : {input} answer :"),
    _Wording("", "{input} say the one word ."),
    _Wording("give the word that was asked for .", "news : {input} word :"),
    _Wording("", "question on the news : {input} in one word :"),
  ),
  "verification": (
    _Wording("answer so or not .", "{input} answer :"),
    _Wording("", "{input} is it so , or not ?"),
    _Wording("is that right ? say so or not .", "{input} so or not :"),
    _Wording("", "read this : {input} so ?"),
  ),
  "odd": (
    _Wording("which word is not like the other words ?", "words : {input} answer :"),
    _Wording("", "{input} : one word is of a new kind , which ?"),
    _Wording("give the word that is not of the same kind .", "list : {input} word :"),
    _Wording("", "words of one kind and one other : {input} . which is the other ?"),
  ),
  "progression": (
    _Wording("count on in the same steps .", "{input} and now :"),
    _Wording("", "{input} : each step is the same , now what ?"),
    _Wording("keep to the same step .", "list : {input} one more :"),
    _Wording("", "please count on : {input} , answer :"),
  ),
  "comparison": (
    _Wording("count with care and say who .", "{input} who :"),
    _Wording("", "{input} say who ."),
    _Wording("read and answer .", "question : {input} answer :"),
    _Wording("", "read : {input} in one word , who ?"),
  ),
  "lookup": (
    _Wording("read the list .", "list : {input} answer :"),
    _Wording("", "{input} give that one ."),
    _Wording("give one thing of the list .", "{input} thing :"),
    _Wording("", "question on a list : {input} say which :"),
  ),
  "answer": (
    _Wording("answer the question .", "question : {input} answer :"),
    _Wording("", "{input} answer in one word ."),
    _Wording("read and answer in one word .", "{input} word :"),
    _Wording("", "{input} say it in one word :"),
  ),
  "phrase": (
    _Wording("translate the words into {language} .", "words : {input} translation :"),
    _Wording("", "what is {input} in {language} ? answer :"),
    _Wording("", "{source} words : {input} {language} words :"),
    _Wording("write the words in {language} .", "{input} in {language} :"),
  ),
}
FAMILIES = tuple(_WORDINGS)


class _Shot(NamedTuple):
  input: str
  target: str


def _report(event: world.Event, rng: random.Random) -> str:
  """The event with its day, and before or after it a detail that no headline takes up."""
  other = rng.choice([name for name in world.NAMES if name != event.name])
  words = [event.name, event.verb, "a", event.adjective, event.object]
  deed = " ".join(word for word in words if word)
  day, town = rng.choice(world.DAYS), event.town
  if town is None:
    tellings = (f"on {day} {deed} .", f"{deed} on {day} .")
  else:
    tellings = (
      f"on {day} {deed} in {town} .",
      f"{deed} in {town} on {day} .",
      f"{deed} on {day} . it happened in {town} .",
      f"there is news from {town} . {deed} on {day} .",
    )
  details = (
    f"{other} came to watch .",
    "the day was cold and dark .",
    "many people were there .",
    world.tell(rng.choice(world.FACTS_OF[other]), rng.randrange(2)),
  )
  sentences = [rng.choice(tellings), rng.choice(details)]
  return " ".join(sentences if rng.random() < 0.6 else sentences[::-1])


def _options(fact: world.Fact, rng: random.Random) -> tuple[str, str]:
  """Four options, one of them true, as one string; and the letter of the true one."""
  values = world.RELATIONS[fact.relation].values
  options = rng.sample([value for value in values if value != fact.value], len(LETTERS) - 1)
  place = rng.randrange(len(LETTERS))
  options.insert(place, fact.value)
  return _enumeration(options), LETTERS[place]


def _enumeration(items: Sequence[str]) -> str:
  return " ".join(f"( {letter} ) {item}" for letter, item in zip(LETTERS, items, strict=True))


def _choice(question: world.Question, rng: random.Random) -> _Shot:
  options, letter = _options(question.asked, rng)
  context = [world.tell(fact) for fact in rng.sample(question.stated, len(question.stated))]
  return _Shot(" ".join([*context, world.ask(question.asked), options]), letter)


def _change(change: int, name: str, rng: random.Random) -> str:
  other = rng.choice([candidate for candidate in world.NAMES if candidate != name])
  count = abs(change)
  if change > 0:
    return rng.choice((
      f"{name} finds {count} more .",
      f"{name} buys {count} more .",
      f"{other} gives {name} {count} more .",
    ))  # fmt: skip
  return rng.choice((
    f"{name} eats {count} .",
    f"{name} loses {count} .",
    f"{name} gives {other} {count} .",
  ))  # fmt: skip


def _story(problem: world.Sum, name: str, fruits: str, rng: random.Random) -> str:
  changes = [_change(change, name, rng) for change in problem.changes]
  return " ".join([f"{name} has {problem.start} {fruits} .", *changes])


def _arithmetic(problem: world.Sum, rng: random.Random) -> _Shot:
  name, fruits = rng.choice(world.NAMES), world.plural(rng.choice(world.FRUITS))
  story = _story(problem, name, fruits, rng)
  question = rng.choice(("how many now ?", f"how many {fruits} has {name} now ?"))
  total, steps = problem.start, []
  for change in problem.changes:
    steps.append(f"{total} {'+' if change > 0 else '-'} {abs(change)} = {total + change} .")
    total += change
  return _Shot(f"{story} {question}", " ".join([*steps, f"answer : {total}"]))


def _detail(event: world.Event, rng: random.Random) -> _Shot:
  """One of who, when and, where the event has a town, where."""
  report = _report(event, rng)
  day = next(word for word in report.split() if word in world.DAYS)
  answers = {"who was it ?": event.name, "when was it ?": day}
  if event.town:
    answers["where was it ?"] = event.town
  question = rng.choice(tuple(answers))
  return _Shot(f"{report} {question}", answers[question])


def _told(facts: Sequence[world.Fact], rng: random.Random) -> str:
  return " ".join(world.tell(fact) for fact in rng.sample(facts, len(facts)))


def _verification(claim: world.Claim, rng: random.Random) -> _Shot:
  name = rng.choice([name for name in world.NAMES if name != claim.claimed.value])
  says = f"{_told(claim.stated, rng)} {name} says that {world.tell(claim.claimed)}"
  return _Shot(says, "so" if claim.claimed in claim.stated else "not")


def _odd(content: world.Words, rng: random.Random) -> _Shot:
  del rng
  return _Shot(" , ".join(content.words), content.meant)


def _progression(content: world.Progression, rng: random.Random) -> _Shot:
  del rng
  *shown, answer = map(str, content.numbers)
  return _Shot(" , ".join(shown), answer)


def _comparison(counts: world.Counts, rng: random.Random) -> _Shot:
  """Who has more than each other, or less."""
  fruits = world.plural(counts.fruit)
  owned = dict(zip(counts.names, counts.numbers, strict=True))
  story = " ".join(f"{name} has {number} {fruits} ." for name, number in owned.items())
  question, most = rng.choice((("more", max), ("less", min)))
  return _Shot(f"{story} who has {question} {fruits} ?", most(owned, key=owned.__getitem__))


def _lookup(content: world.Words, rng: random.Random) -> _Shot:
  """The letter of a word in a list, or the word of a letter."""
  letter, options = LETTERS[content.words.index(content.meant)], _enumeration(content.words)
  if rng.random() < 0.5:
    return _Shot(f"{options} which letter has {content.meant} ?", letter)
  return _Shot(f"{options} which word has the letter {letter} ?", content.meant)


def _answer(question: world.Question, rng: random.Random) -> _Shot:
  return _Shot(f"{_told(question.stated, rng)} {world.ask(question.asked)}", question.asked.value)


class _Maker(NamedTuple):
  """How an example's content is drawn, how it becomes a shot, and the blanks of its wording."""

  draw: Callable[[random.Random], Any]
  shoot: Callable[[Any, random.Random], _Shot]
  names: dict[str, str]


_MAKERS = {
  "headline": _Maker(
    world.draw_event, lambda event, rng: _Shot(_report(event, rng), world.headline(event)), {}
  ),
  "arithmetic": _Maker(world.draw_sum, _arithmetic, {}),
  "detail": _Maker(world.draw_event, _detail, {}),
  "verification": _Maker(world.draw_claim, _verification, {}),
  "odd": _Maker(world.draw_odd, _odd, {}),
  "progression": _Maker(world.draw_progression, _progression, {}),
  "comparison": _Maker(world.draw_counts, _comparison, {}),
  "lookup": _Maker(world.draw_listed, _lookup, {}),
  "answer": _Maker(world.draw_context_question, _answer, {}),
}


def _maker(family: str, rng: random.Random) -> _Maker:
  if family == "choice":
    make = world.draw_memory_question if rng.random() < 0.35 else world.draw_context_question
    return _Maker(make, _choice, {})
  if family in ("translation", "phrase"):
    source, language = rng.sample(get_args(world.Language), 2)
    names = {"source": source, "language": language}
    make, say = {
      "translation": (world.draw_clause, world.express),
      "phrase": (world.draw_phrase, world.express_phrase),
    }[family]
    return _Maker(make, lambda c, rng: _Shot(say(c, source), say(c, language)), names)
  return _MAKERS[family]


def count_words(text: str) -> int:
  """Words of a text in this world's normal form, where punctuation is a word."""
  return len(text.split())


def task_example(index: int, *, split: world.Split, families: Sequence[str] = ()) -> Example:
  """Example `index` of an instruction mixture, whose families take turns.

  About a quarter of the prompts show one solved demonstration, taken from the training contents and
  never the example's own.

  Args:
    index: >= 0.
    split: whose contents it is about.
    families: of `FAMILIES`, in the order of their turns; empty: `TASKS`.

  Raises:
    UserError: an unknown family or split, or a negative index.
  """
  families = families or TASKS
  for family in families:
    if family not in FAMILIES:
      near = difflib.get_close_matches(family, FAMILIES, n=1, cutoff=0.0)[0]
      raise UserError(
        f"family {family!r} of the built-in data: did you mean {near!r}? there are "
        f"{', '.join(FAMILIES)}"
      )
  rng = _random("task", split, index)
  task = families[index % len(families)]
  make, shoot, names = _maker(task, rng)  # before `draw`, which would shift the shares
  wording = rng.choice(_WORDINGS[task])
  content = world.draw(make, rng, split)
  query = shoot(content, rng)

  def prompt(shots: Sequence[_Shot]) -> str:
    demonstrations = [wording.shot.format(input=s.input, **names) + f" {s.target} ;" for s in shots]
    parts = [wording.opening.format(**names), *demonstrations]
    return " ".join([*filter(None, parts), wording.shot.format(input=query.input, **names)])

  if rng.random() < _FEW_SHOT_SHARE:
    for _ in range(_FEW_SHOT_ATTEMPTS):
      demonstration = world.draw(make, rng, "train")
      few_shot = prompt([shoot(demonstration, rng)])
      fits = count_words(few_shot) + count_words(query.target) <= MAX_WORDS
      if demonstration != content and fits:
        return Example(few_shot, query.target, task)
  return Example(prompt([]), query.target, task)


# ---- Plain text ----------------------------------------------------------------------------------

# Ordinary sentences that hold the words instructions are made of.
_REMARKS = (
  "people in {town} speak english and people in {other} speak orin .",
  "{name} can read english but not orin .",
  "{name} can translate a short book into english or into orin .",
  "a translation says the same in other words .",
  "the teacher asked {name} a question , and the answer was right .",
  "how do you do , said {name} . what do you think ?",
  "please show me the way , said {name} .",
  "the problem was hard , but step by step {name} could solve it .",
  "each step of the way was steep , and {name} took many steps with care .",
  "{name} read the report in the news and liked the title .",
  "a good headline says in a few words what happened .",
  "{name} had to choose one option , this or that .",
  "a sentence is made of words , and each word of one letter or more .",
  "{name} likes to write and to count , and has work in {town} .",
  "when will you give me the book ? which book ? the short one .",
  "the child wrote + and - and = and : on the wall .",
  "for {name} the way to {town} is short .",
  "do you know where {name} was and who came too ?",
  "does {name} live in this town ? people say so .",
  "people like to keep a good thing ; so does {name} .",
)


def _remark(rng: random.Random) -> str:
  town, other = rng.sample(world.TOWNS, 2)
  return rng.choice(_REMARKS).format(name=rng.choice(world.NAMES), town=town, other=other)


def _sentences(languages: Sequence[world.Language]) -> Callable[..., Callable[[], str]]:
  """A little scene: few people and things that return, never the same sentence twice.

  With two languages each sentence picks one; the scene is shared, no sentence is translated.
  """

  def scene(rng: random.Random, split: world.Split) -> Callable[[], str]:
    subjects = [world.draw_subject(rng) for _ in range(2)]
    objects = [world.draw_object(rng) for _ in range(2)]
    verbs = rng.sample(tuple(world.VERBS), 2)
    adjuncts = [None, *rng.sample((*world.PLACES, *world.TIMES), 2)]
    told: set[world.Clause] = set()

    def recombined() -> world.Clause:
      parts = (rng.choice(subjects), rng.choice(verbs), rng.choice(objects), rng.choice(adjuncts))
      return world.Clause(*parts)

    def unit() -> str:
      for _ in range(40):  # a scene has 24 sentences; a small split may own none that is left
        clause = recombined()
        if clause not in told and world.split_of(clause) == split:
          break
      else:
        clause = world.draw(world.draw_clause, rng, split)
      told.add(clause)
      return world.express(clause, rng.choice(languages))

    return unit

  return scene


def _reports(rng: random.Random, split: world.Split) -> Callable[[], str]:
  """Reports without headlines, retold in the past or followed by what goes on in the present."""

  def unit() -> str:
    event = world.draw(world.draw_event, rng, split)
    present = world.DEEDS[event.verb].present
    thing = f"{event.adjective} {event.object}" if event.adjective else event.object
    place = f" in {event.town}" if event.town else ""
    other = rng.choice([name for name in world.NAMES if name != event.name])
    sequels = (
      f"people{place} say that {event.name} {event.verb} the {thing} .",
      f"{other} says that {event.name} {event.verb} the {thing}{place} .",
      f"now {event.name} {present} one more {thing}{place} .",
      f"so each {rng.choice(world.DAYS)} {event.name} {present} a {thing}{place} .",
    )
    return f"{_report(event, rng)} {rng.choice(sequels)}"

  return unit


def _facts(rng: random.Random, split: world.Split) -> Callable[[], str]:
  del split  # lasting facts belong to every split
  return lambda: world.tell(rng.choice(world.FACTS), rng.randrange(2))


def _numbers(rng: random.Random, split: world.Split) -> Callable[[], str]:
  """Stories told to their end, and sums in words."""

  def unit() -> str:
    if rng.random() < 0.5:
      problem = world.draw(world.draw_sum, rng, split)
      name, fruits = rng.choice(world.NAMES), world.plural(rng.choice(world.FRUITS))
      total = problem.start + sum(problem.changes)
      return f"{_story(problem, name, fruits, rng)} now {name} has {total} {fruits} ."
    while True:
      first, second = rng.randint(1, world.MAX_RESULT), rng.randint(1, 6)
      if first + second <= world.MAX_RESULT:
        break
    total = first + second
    sums = (f"{first} plus {second} is {total} .", f"{total} less {second} is {first} .")
    return rng.choice(sums)

  return unit


def _lists(rng: random.Random, split: world.Split) -> Callable[[], str]:
  """Lettered lists, and statements that come again in other words."""

  def unit() -> str:
    name = rng.choice(world.NAMES)
    if rng.random() < 0.4:
      stated = world.draw(world.draw_context_question, rng, split)
      context = " ".join(world.tell(fact) for fact in stated.stated)
      return f"{context} {name} knows that {world.tell(stated.asked)}"
    items = rng.sample(rng.choice(_LISTED), len(LETTERS))
    first, second = rng.sample(range(len(LETTERS)), 2)
    return (
      f"{name} wrote a list , {_enumeration(items)} . the letter of {items[first]} is"
      f" {LETTERS[first]} , and the letter of {items[second]} is {LETTERS[second]} ."
    )

  return unit


_TEXTS = {  # kinds of plain text and their shares
  _sentences(("english",)): 10,
  _sentences(("orin",)): 14,
  _sentences(("english", "orin")): 26,
  _reports: 12,
  _facts: 14,
  _numbers: 12,
  _lists: 12,
}


def passage(index: int, *, split: world.Split) -> str:
  """Passage `index` of the plain text: 40 to 55 words of one kind, for masked-LM pretraining.

  It shows the languages, the facts, reports, numbers and lists of the world and none of the tasks:
  no instruction, no sentence beside its translation, no headline, no worked sum, no answer letter
  after a question. Raises UserError for an unknown split or a negative index.
  """
  rng = _random("passage", split, index)
  kind = rng.choices(tuple(_TEXTS), tuple(_TEXTS.values()))[0]
  unit = kind(rng, split)
  fewest, most = _PASSAGE_WORDS
  sentences: list[str] = []
  words = 0
  while words < fewest:
    # A remark now and then; and when the kind's next piece is too long, remarks fill what is left.
    for piece in (_remark(rng) if rng.random() < 0.06 else unit(), _remark(rng)):
      if words + count_words(piece) <= most and piece not in sentences:
        sentences.append(piece)
        words += count_words(piece)
        break
  return " ".join(sentences)
