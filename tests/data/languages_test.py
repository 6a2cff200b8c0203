"""German is seen in German texts and in few others."""

import gzip
import json
import os
from pathlib import Path

import pytest

from diffjax.data.languages import is_german

DATA = Path(os.environ.get("DIFFJAX_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def share(name: str, field: str = "") -> float:
  if not (DATA / name).is_file():
    pytest.skip(f"no {DATA / name}")
  with gzip.open(DATA / name, "rt") as file:
    lines = [line for line in file if line.strip()][:3000]
  return sum(is_german(json.loads(n)[field] if field else n) for n in lines) / len(lines)


@pytest.mark.parametrize(("text", "german"), [
  ("Zwei Männer stehen am Herd und bereiten Essen zu.", True),
  ("translate to english. German: ich weiß nicht, was es ist. English:", True),
  ("The man is in the car. Er hat keine Zeit für mich, sagt sie. It was late.", True),
  ("die landwirtschaft verbraucht 70 prozent der frischwasservorräte der erde.", True),
  ("sie lebten oberhalb der geschäfte, in denen sie arbeiteten.", True),
  ("die technologische revolution öffnet die welt.", True),
  ("Guten Morgen", True),
  ("Der Hund schläft", True),
  ("Es war fantastisch.", True),
  ("danke.", True),
  ("I am an engineer in Berlin, as is Dr Müller", False),  # shared words, and an umlaut
  ("die, man, or die in war", False),
  ("36 degrees Fahrenheit", False),
  ("Den man är så glad som den är stor", False),
  ("Mies ja hänen äitinsä", False),
  ("an so war die man in am was hat", False),  # words that other languages have too
  ("I'm so warm in it; the die was cast", False),
  ("De man zei dat het niet van hem is", False),
  ("Det er ikke den mand som jeg så", False),
  ("Il est allé des uns aux autres", False),
  ("18", False),
  ("", False),
])  # fmt: skip
def test_sentences(text, german):
  assert is_german(text) == german


def test_real_texts():
  assert share("multi30k/val.de.gz") > 0.998
  assert share("iwslt14/valid.deen.jsonl.gz", "inputs") > 0.98
  assert share("multi30k/val.en.gz") == 0
  assert share("iwslt14/valid.deen.jsonl.gz", "targets") < 1e-3
  assert share("gsm8k/train.jsonl.gz", "question") == 0
  assert share("tinyshakespeare/input.txt.gz") < 1e-3
  assert share("instruct/tydiqa.0-shot.finnish.jsonl.gz", "inputs") < 0.01
