"""A small hand-written world: two languages, twelve people, what is true of them, what can happen.

All built-in text is made of it: `draw` picks contents (what an example is about), each of which
belongs to one split, and `generator` puts them into words. English is cut down to regular forms;
Orin is constructed and differs in grammar, not only in words:

  English  [det] [adjective] noun   verb   [det] [adjective] noun   [in the place | time] .
  Orin     [place di | time]   noun [adjective] [mi] [na | number]   ... ko   verb .

that is: the verb is last, adjectives and articles follow the noun, the plural is a word (`mi`)
that a number replaces, `na` is the definite article and there is no indefinite one, `ko` marks the
object, and `di` ("in") follows its place. Words are lower case, single spaces separate them, and
punctuation is a word. The file is long because the word lists are in it.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

NAMES = (
  "ada", "bruno", "clara", "dario", "elsa", "felix",
  "greta", "hugo", "ines", "jonas", "kira", "leo",
)  # fmt: skip
TOWNS = ("velmo", "tarsk", "lune", "orvik", "sandor", "pelia")
DAYS = ("monday", "tuesday", "friday", "sunday")
JOBS = ("teacher", "farmer", "doctor", "sailor", "baker", "painter")
ANIMALS = ("dog", "cat", "horse", "bird")
FRUITS = ("plum", "pear", "lemon", "melon", "fig")
TOOLS = ("lamp", "map", "rope")
OCCASIONS = ("race", "game", "feast", "play")

# English to Orin, word for word.
PERSONS = {"teacher": "nubo", "farmer": "galo", "doctor": "sedo", "sailor": "miro"}
BEASTS = {"dog": "tavo", "cat": "puro", "horse": "hando", "bird": "filo"}
THINGS = {
  "lamp": "zelo", "map": "rivo", "rope": "tolo", "ring": "vano",
  "boat": "bero", "book": "dimo", "plum": "yuko", "pear": "sopo",
}  # fmt: skip
ADJECTIVES = {
  "red": "rasa", "green": "vira", "blue": "sula", "small": "pita",
  "big": "goma", "good": "bela", "dark": "nora", "new": "fela",
}  # fmt: skip
VERBS = {
  "found": "vene", "sold": "dake", "lost": "pume", "bought": "kore", "painted": "tine",
  "saw": "vide", "took": "lume", "carried": "wase", "hid": "mufe", "washed": "lave",
}  # fmt: skip
PLACES = {
  "garden": "gelu", "market": "mandu", "school": "skolu",
  "forest": "boru", "harbor": "havu", "kitchen": "kinu",
}  # fmt: skip
TIMES = {"today": "tosi", "yesterday": "resi", "often": "pasi", "early": "lani"}
NOUNS = {**PERSONS, **BEASTS, **THINGS}

Language = Literal["english", "orin"]
Split = Literal["train", "validation", "test"]
Content = TypeVar("Content")


class Phrase(NamedTuple):
  """A noun phrase. `quantity` is name, a, the, all (the definite plural) or a number from 2."""

  noun: str
  adjective: str | None
  quantity: str


class Clause(NamedTuple):
  """The meaning of one sentence, in English lexemes."""

  subject: Phrase
  verb: str
  object: Phrase
  adjunct: str | None  # a key of PLACES or TIMES


def plural(noun: str) -> str:
  """The English plural: every noun of this world is regular."""
  return noun + "s"


def _english_phrase(phrase: Phrase) -> list[str]:
  if phrase.quantity == "name":
    return [phrase.noun]
  article = "the" if phrase.quantity == "all" else phrase.quantity
  noun = phrase.noun if phrase.quantity in ("a", "the") else plural(phrase.noun)
  return [article, *([phrase.adjective] if phrase.adjective else []), noun]


def _orin_phrase(phrase: Phrase) -> list[str]:
  if phrase.quantity == "name":
    return [phrase.noun]
  words = [NOUNS[phrase.noun]]
  if phrase.adjective:
    words.append(ADJECTIVES[phrase.adjective])
  ending = {"a": [], "the": ["na"], "all": ["mi", "na"]}
  return words + ending.get(phrase.quantity, [phrase.quantity])


def express(clause: Clause, language: Language) -> str:
  """The one sentence that says `clause` in `language`, with its full stop."""
  subject, verb, thing, adjunct = clause
  if language == "english":
    place = ["in", "the", adjunct] if adjunct in PLACES else [adjunct] if adjunct else []
    words = [*_english_phrase(subject), verb, *_english_phrase(thing), *place]
  else:
    place = [PLACES[adjunct], "di"] if adjunct in PLACES else [TIMES[adjunct]] if adjunct else []
    words = [*place, *_orin_phrase(subject), *_orin_phrase(thing), "ko", VERBS[verb]]
  return " ".join([*words, "."])


def express_phrase(phrase: Phrase, language: Language) -> str:
  """A noun phrase alone, without a full stop."""
  return " ".join(_english_phrase(phrase) if language == "english" else _orin_phrase(phrase))


class Event(NamedTuple):
  """Something a report tells: who did what to what, and perhaps where."""

  name: str
  verb: str  # a key of DEEDS
  adjective: str | None
  object: str
  town: str | None


class Deed(NamedTuple):
  """The present form of a verb of reports, and what it is done to."""

  present: str
  objects: Sequence[str]


DEEDS = {
  "won": Deed("wins", ("race", "game", "prize")),
  "found": Deed("finds", ("ring", "map", "lamp")),
  "built": Deed("builds", ("boat", "house", "bridge")),
  "sold": Deed("sells", ("boat", "horse", "house")),
  "painted": Deed("paints", ("house", "bridge", "boat")),
  "opened": Deed("opens", ("school", "shop", "market")),
  "lost": Deed("loses", ("ring", "book", "game")),
  "bought": Deed("buys", ("boat", "horse", "lamp")),
}
EVENT_ADJECTIVES = ("big", "new", "small", "good")


def headline(event: Event) -> str:
  """Who, the verb in the present, the object without its article, and the town if there is one."""
  words = [event.name, DEEDS[event.verb].present, event.adjective, event.object]
  if event.town:
    words += ["in", event.town]
  return " ".join(word for word in words if word)


class Relation(NamedTuple):
  """A kind of fact: how it is asked and told, and the values it takes."""

  question: str
  statements: Sequence[str]
  values: Sequence[str]


class Fact(NamedTuple):
  """`relation` of `thing` is `value`."""

  relation: str
  thing: str
  value: str


# What is true of the world for good: text states it, and questions may ask it without saying it.
LASTING = {
  "home": Relation(
    "where does {thing} live ?",
    ("{thing} lives in {value} .", "the home of {thing} is in {value} ."),
    TOWNS,
  ),
  "job": Relation(
    "what is the job of {thing} ?",
    ("{thing} works as a {value} .", "the job of {thing} is {value} ."),
    JOBS,
  ),
  "pet": Relation(
    "which pet does {thing} keep ?",
    ("{thing} keeps a {value} .", "the pet of {thing} is a {value} ."),
    ANIMALS,
  ),
  "fruit": Relation(
    "which fruit does {thing} like ?",
    ("{thing} likes to eat a {value} .", "the fruit that {thing} likes is the {value} ."),
    FRUITS,
  ),
  "kind": Relation(
    "what kind of thing is a {thing} ?",
    ("a {thing} is a kind of {value} .", "every {thing} is a kind of {value} ."),
    ("animal", "fruit", "tool", "worker"),
  ),
}
# What is true in one text only, which says so.
PASSING = {
  "place": Relation("where is the {thing} ?", ("the {thing} is in the {value} .",), tuple(PLACES)),
  "owner": Relation("who has the {thing} ?", ("{value} has the {thing} .",), NAMES),
  "day": Relation("when is the {thing} ?", ("the {thing} is on {value} .",), DAYS),
  "town": Relation("which town has the {thing} ?", ("the {thing} is in {value} .",), TOWNS),
}
PASSING_THINGS = {
  "place": tuple(THINGS),
  "owner": tuple(THINGS),
  "day": OCCASIONS,
  "town": OCCASIONS,
}
RELATIONS = {**LASTING, **PASSING}

_PEOPLE = {  # home, job, pet, fruit
  "ada": ("velmo", "baker", "dog", "plum"),
  "bruno": ("tarsk", "sailor", "cat", "lemon"),
  "clara": ("lune", "doctor", "bird", "fig"),
  "dario": ("orvik", "farmer", "horse", "pear"),
  "elsa": ("sandor", "painter", "cat", "melon"),
  "felix": ("pelia", "teacher", "dog", "lemon"),
  "greta": ("lune", "sailor", "horse", "plum"),
  "hugo": ("velmo", "doctor", "bird", "melon"),
  "ines": ("pelia", "farmer", "dog", "fig"),
  "jonas": ("orvik", "baker", "cat", "plum"),
  "kira": ("tarsk", "painter", "bird", "pear"),
  "leo": ("sandor", "teacher", "horse", "lemon"),
}
_KINDS = {"animal": ANIMALS, "fruit": FRUITS, "tool": TOOLS, "worker": JOBS}
FACTS = (
  *(
    Fact(relation, name, value)
    for name, values in _PEOPLE.items()
    for relation, value in zip(("home", "job", "pet", "fruit"), values, strict=True)
  ),
  *(Fact("kind", thing, kind) for kind, things in _KINDS.items() for thing in things),
)
FACTS_OF = {name: tuple(fact for fact in FACTS if fact.thing == name) for name in NAMES}


def ask(fact: Fact) -> str:
  """The question whose answer is the fact's value."""
  return RELATIONS[fact.relation].question.format(thing=fact.thing)


def tell(fact: Fact, variant: int = 0) -> str:
  """The fact as a sentence; `variant` counts, in a circle, through the ways to say it."""
  statements = RELATIONS[fact.relation].statements
  return statements[variant % len(statements)].format(thing=fact.thing, value=fact.value)


_SUBJECTS, _OBJECTS = (*PERSONS, *BEASTS), (*THINGS, *BEASTS)
_ADJECTIVES, _DEEDS, _PASSING = tuple(ADJECTIVES), tuple(DEEDS), tuple(PASSING)
_VERBS, _ADJUNCTS = tuple(VERBS), (*PLACES, *TIMES)
_SPLITS = ("train", "validation", "test")
_SALT = 45  # one that gives every split questions about every lasting relation
MAX_RESULT = 15


def digest(text: str) -> int:
  """64 bits that stand for `text` on every machine and in every process."""
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def split_of(content: object) -> Split:
  """The split that owns `content`: 80 % train, 10 % validation, 10 % test, by a stable hash."""
  part = digest(f"{_SALT} {content!r}") % 10
  return _SPLITS[max(0, part - 7)]


def draw(make: Callable[[random.Random], Content], rng: random.Random, split: Split) -> Content:
  """The first thing that `make` draws and that belongs to `split`."""
  while True:
    content = make(rng)
    if split_of(content) == split:
      return content


def _phrase(rng: random.Random, nouns: Sequence[str], adjective_share: float) -> Phrase:
  noun = rng.choice(nouns)
  adjective = rng.choice(_ADJECTIVES) if rng.random() < adjective_share else None
  quantity = rng.choice(("a", "the", "all", "number"))
  return Phrase(noun, adjective, str(rng.randint(2, 9)) if quantity == "number" else quantity)


def draw_subject(rng: random.Random) -> Phrase:
  """A person by name, or a phrase about someone."""
  if rng.random() < 0.35:
    return Phrase(rng.choice(NAMES), None, "name")
  return _phrase(rng, _SUBJECTS, 0.35)


def draw_object(rng: random.Random) -> Phrase:
  """A phrase about a thing or an animal."""
  return _phrase(rng, _OBJECTS, 0.5)


def draw_clause(rng: random.Random) -> Clause:
  """Any meaning that both languages can say."""
  adjunct = rng.choice(_ADJUNCTS) if rng.random() < 0.5 else None
  return Clause(draw_subject(rng), rng.choice(_VERBS), draw_object(rng), adjunct)


def draw_event(rng: random.Random) -> Event:
  """Any event that a report can tell."""
  verb = rng.choice(_DEEDS)
  return Event(
    rng.choice(NAMES),
    verb,
    rng.choice(EVENT_ADJECTIVES) if rng.random() < 0.4 else None,
    rng.choice(DEEDS[verb].objects),
    rng.choice(TOWNS) if rng.random() < 0.75 else None,
  )


class Question(NamedTuple):
  """What is stated, told in any order, and the fact that is asked for."""

  stated: tuple[Fact, ...]
  asked: Fact


def _passing_fact(rng: random.Random, relation: str) -> Fact:
  thing = rng.choice(PASSING_THINGS[relation])
  return Fact(relation, thing, rng.choice(PASSING[relation].values))


def draw_context_question(rng: random.Random) -> Question:
  """Two passing facts of different things, often of different kinds, and one of them is asked."""
  relation = rng.choice(_PASSING)
  first = _passing_fact(rng, relation)
  while True:
    second = _passing_fact(rng, relation if rng.random() < 0.3 else rng.choice(_PASSING))
    if second.thing != first.thing and second.value != first.value:
      return Question(tuple(sorted((first, second))), rng.choice((first, second)))


def draw_memory_question(rng: random.Random) -> Question:
  """A lasting fact is asked and nothing stated."""
  return Question((), rng.choice(FACTS))


class Sum(NamedTuple):
  """`start`, then what is added (or, below zero, taken away)."""

  start: int
  changes: tuple[int, ...]


def draw_sum(rng: random.Random) -> Sum:
  """One or two steps; no total is below 0 or above 15."""
  while True:
    start = rng.randint(2, 12)
    changes = [rng.choice((-1, 1)) * rng.randint(1, 6) for _ in range(rng.randint(1, 2))]
    middle = start + changes[0]
    if 1 <= middle <= MAX_RESULT and 0 <= start + sum(changes) <= MAX_RESULT:
      return Sum(start, tuple(changes))


def draw_phrase(rng: random.Random) -> Phrase:
  """Someone or something, without a sentence around it."""
  return _phrase(rng, tuple(NOUNS), 0.6)


class Claim(NamedTuple):
  """What is stated, and a statement about one of the same things, true or not."""

  stated: tuple[Fact, ...]
  claimed: Fact


def draw_claim(rng: random.Random) -> Claim:
  """Two passing facts, and one of them again: as it is, or with another value of its relation."""
  stated, fact = draw_context_question(rng)
  if rng.random() < 0.5:
    return Claim(stated, fact)
  others = [value for value in RELATIONS[fact.relation].values if value != fact.value]
  named = [other.value for other in stated if other.value in others]
  return Claim(stated, fact._replace(value=rng.choice(named or others)))


_SETS = (ANIMALS, FRUITS, JOBS, TOWNS, DAYS, NAMES, tuple(PLACES), tuple(ADJECTIVES))


class Words(NamedTuple):
  """Words in their order, and the one that is meant."""

  words: tuple[str, ...]
  meant: str


def draw_odd(rng: random.Random) -> Words:
  """Three words of one kind and, meant, one of another."""
  kind, other = rng.sample(_SETS, 2)
  meant = rng.choice(other)
  words = [*rng.sample(kind, 3), meant]
  return Words(tuple(rng.sample(words, len(words))), meant)


def draw_listed(rng: random.Random) -> Words:
  """Four words of one kind, one of which is meant."""
  words = rng.sample(rng.choice(_SETS), 4)
  return Words(tuple(words), rng.choice(words))


class Counts(NamedTuple):
  """How many of a fruit some people have, each another number."""

  names: tuple[str, ...]
  numbers: tuple[int, ...]
  fruit: str


def draw_counts(rng: random.Random) -> Counts:
  """Three people with 2 to 15 of a fruit."""
  names, numbers = rng.sample(NAMES, 3), rng.sample(range(2, MAX_RESULT + 1), 3)
  return Counts(tuple(names), tuple(numbers), rng.choice(FRUITS))


class Progression(NamedTuple):
  """Four numbers at equal distances, of which the last is to be found."""

  numbers: tuple[int, ...]


def draw_progression(rng: random.Random) -> Progression:
  """Upwards or downwards by 1 to 4, between 0 and 15."""
  while True:
    start, step = rng.randint(0, MAX_RESULT), rng.choice((-1, 1)) * rng.randint(1, 4)
    numbers = tuple(start + step * place for place in range(4))
    if 0 <= numbers[-1] <= MAX_RESULT:
      return Progression(numbers)
