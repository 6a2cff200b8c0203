"""Texts with gaps: `The {{8}} sat on the {{3-6}}.`"""

import itertools
import math
import re
from typing import NamedTuple

from diffjax.types import UserError

MOST_CANDIDATES = 256  # combinations of lengths that are tried
_GAP = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_SIZE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", re.ASCII)


class Template(NamedTuple):
  """Fixed texts around gaps; the texts are one more than the gaps, and may be empty."""

  texts: list[str]
  gaps: list[range]  # tokens that each may have

  @property
  def sizes(self) -> list[tuple[int, ...]]:
    """Every combination of the gaps' lengths."""
    return list(itertools.product(*self.gaps))


def parse(template: str) -> Template:
  """Finds the gaps: {{n}} has n tokens, {{a-b}} from a to b.

  A space before a gap belongs to the gap, as the tokens of most vocabularies carry the space before
  them.

  Raises:
    UserError: there is no gap, one is not closed or not written so, or their lengths combine in too
      many ways.
  """
  *parts, last = _GAP.split(template)
  for text in [*parts[::2], last]:
    for mark in ("{{", "}}"):
      if mark in text:
        raise UserError(
          f"{mark} without its other half in {text[-40:]!r}; gaps are {{{{8}}}} or {{{{3-6}}}}"
        )
  texts, gaps = [text.rstrip() for text in parts[::2]] + [last], []
  for gap in parts[1::2]:
    match = _SIZE.fullmatch(gap)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
      raise UserError(
        f"the gap {{{{{gap}}}}} must be {{{{n}}}} or {{{{a-b}}}} tokens, such as {{{{8}}}} or "
        f"{{{{3-6}}}}"
      )
    gaps.append(range(low, high + 1))
  if not gaps:
    raise UserError(f"{template[:40]!r} has no gap; write one as {{{{8}}}}, for eight tokens")
  ways = math.prod(map(len, gaps))
  if ways > MOST_CANDIDATES:
    raise UserError(
      f"the gaps' lengths combine in {ways} ways, more than {MOST_CANDIDATES}; narrow some"
    )
  return Template(texts, gaps)
