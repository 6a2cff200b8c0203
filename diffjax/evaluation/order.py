"""In which order the tokens of an answer were fixed, and whether what they depend on came first.

The causal-graph analysis of 2308.12219, section 4.5: the numbers of a worked answer depend on each
other (a result on its operands, an operand on the earlier result that it repeats, the answer on the
last result), and a model that reasons as it writes fixes them in a topological order of that
graph, whatever the order in which they are read.
"""

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffjax.sampling import Generation
from diffjax.types import UserError

_CHANCE_DRAWS = 200


class Order(NamedTuple):
  """When each token of one answer became what it is."""

  tokens: list[str]  # as they are spelt; special tokens are ""
  steps: np.ndarray  # int[C], from 1; 0: still masked at the end
  num_steps: int  # of the trace
  revised: int  # tokens that were masked again or replaced after they had first been revealed

  @property
  def text(self) -> str:
    """The tokens joined; character offsets of a Graph count in it."""
    return "".join(self.tokens)

  @property
  def left_to_right(self) -> float:
    """Kendall's tau between place and step: 1 reads as it was fixed, -1 backwards, 0 neither.

    Over the pairs of tokens that have text, a pair fixed in the same step counting 0; 1 where there
    is no pair.
    """
    said = [step for token, step in zip(self.tokens, self.steps, strict=True) if token and step]
    if len(said) < 2:
      return 1.0
    later = np.sign(np.subtract.outer(said, said)).T[np.triu_indices(len(said), k=1)]
    return float(later.mean())


class Span(NamedTuple):
  """A piece of a text, as character offsets."""

  start: int
  stop: int


class Graph(NamedTuple):
  """What depends on what in one text; without a cycle."""

  spans: tuple[Span, ...]
  edges: tuple[tuple[int, int], ...]  # (needed, what needs it), numbers of spans


class Verdict(NamedTuple):
  """Whether an order is a topological order of a graph."""

  edges: int
  violated: int  # edges whose end was fixed before their start
  tied: int  # edges whose two ends were fixed in the same step

  @property
  def follows(self) -> bool:
    """Nothing was fixed before what it depends on."""
    return not self.violated

  @property
  def follows_strictly(self) -> bool:
    """Everything was fixed after what it depends on."""
    return not self.violated and not self.tied


class Summary(NamedTuple):
  """Orders of many answers; shares in percent."""

  outputs: int
  judged: int  # of them, that have a dependency at all; the shares are of these
  follows: float  # in a topological order
  follows_strictly: float  # and without two dependent spans in one step
  by_chance: float  # what `follows` would be, were the same steps dealt to the tokens at random
  edges: float  # of the dependencies, those that were kept
  left_to_right: float  # mean Kendall's tau of all outputs; no percentage
  revised: float  # of all tokens, those that changed after they were first revealed


# ---- Orders --------------------------------------------------------------------------------------


def order_of(generation: Generation) -> Order:
  """The order in which an answer's tokens were fixed, from its trace.

  A token is fixed in the step from which on it is what it is in the end, so one that was masked
  again counts with its last reveal. Steps in which nothing of the row could change are not counted.

  Raises:
    UserError: the answer has no trace.
  """
  if not generation.trace:
    raise UserError("an answer without a trace has no order; generate with return_trace=True")
  masked = np.array([step.masked for step in generation.trace], bool)  # [S, C]
  ids = np.array([step.ids for step in generation.trace])
  final = ~masked & (ids == ids[-1]) & ~masked[-1]
  num_steps = len(final)
  unsettled = num_steps - np.argmin(final[::-1], axis=0)  # the last step that differs from the end
  steps = np.where(final.all(0), 1, np.where(masked[-1], 0, unsettled + 1))
  first = np.argmax(~masked, axis=0) + 1
  revised = int(np.sum(~masked[-1] & (first != steps)))
  return Order(list(generation.trace[-1].tokens), steps, num_steps, revised)


# ---- Graphs --------------------------------------------------------------------------------------

_LEXEME = re.compile(
  r"(?P<number>\d+(?:,\d{3})*(?:\.\d+)?)"
  r"|(?P<times>\bx\b)|(?P<word>[^\W\d_]+(?:[-'][^\W\d_]+)*)"
  r"|(?P<ignored>[\s()$€£%]+)|(?P<operator>[-+*/\u00d7\u00f7\u2212\u00b7])|(?P<equals>=)|(?P<other>.)",
  re.IGNORECASE | re.DOTALL,
)  # fmt: skip
_ANSWER = re.compile(
  r"(?:answer|antwort|答案|####)[\s:\uff1a]*(?:is|ist|是)?[\s:\uff1a$€£]*"
  r"(?P<number>-?\d+(?:,\d{3})*(?:\.\d+)?)",
  re.IGNORECASE,
)  # fmt: skip


class _Number(NamedTuple):
  span: Span
  value: Decimal


def dependencies(text: str) -> Graph:
  """The graph of worked arithmetic: "3 + 4 = 7 . 7 - 2 = 5 . answer : 5".

  A result depends on the operands of its equation; an operand on the nearest earlier result of its
  value, if there is one; and the final answer (after "answer", "####", "Antwort" or "答案") on the
  last result before it. Words between numbers are passed over; punctuation ends an equation. A
  number that nothing depends on, and that depends on nothing, is left out; so a text without
  equations has an empty graph.
  """
  equations = _equations(text)
  edges: list[tuple[Span, Span]] = []
  results: list[_Number] = []
  for operands, result in equations:
    for operand in operands:
      same = [r for r in results if r.value == operand.value and r.span != operand.span]
      edges += [(same[-1].span, operand.span)] if same else []
      edges.append((operand.span, result.span))
    results.append(result)
  for answer in list(_ANSWER.finditer(text))[-1:]:
    span = Span(*answer.span("number"))
    before = [result.span for result in results if result.span.stop <= span.start]
    edges += [(before[-1], span)] if before else []
  spans = sorted({span for edge in edges for span in edge})
  number = {span: n for n, span in enumerate(spans)}
  return Graph(tuple(spans), tuple(dict.fromkeys((number[a], number[b]) for a, b in edges)))


def _equations(text: str) -> list[tuple[list[_Number], _Number]]:
  """Operands and result of every equation with at least two operands, in their order."""
  equations: list[tuple[list[_Number], _Number]] = []
  operands: list[_Number] = []
  before, minus = "", None  # the last lexeme that counts; where a sign stands before its number
  for lexeme in _LEXEME.finditer(text):
    kind = lexeme.lastgroup
    if kind in ("word", "ignored"):
      continue
    if kind == "number":
      start = lexeme.start() if minus is None else minus
      value = Decimal(lexeme[0].replace(",", "")) * (1 if minus is None else -1)
      number = _Number(Span(start, lexeme.end()), value)
      if before == "operator":
        operands = [*operands, number]
      else:
        if before == "equals" and len(operands) > 1:
          equations.append((operands, number))
        operands = [number]
      before, minus = "number", None
    elif kind in ("operator", "times"):
      if before == "equals" and lexeme[0] in "-\u2212":
        minus = lexeme.start()
      else:
        before, minus = "operator", None
    elif kind == "equals":
      before, minus = "equals", None
    else:
      operands, before, minus = [], "", None
  return equations


def read_graph(path: str | Path) -> Callable[[str], Graph]:
  """A graph given by the user, for answers of one form.

  The file is JSON: {"spans": {"sum": "= (\\\\d+)", "answer": "answer : (\\\\d+)"},
  "edges": [["sum", "answer"]]}. A span is a regular expression, of which the first match in the
  answer counts (its first group, if it has one), or a [start, stop] of characters; an edge leads
  from what is needed to what needs it.

  Returns:
    The graph of a text. Edges with an end that the text does not have are left out.

  Raises:
    UserError: the file cannot be read or says something else, or the edges run in a circle.
  """
  try:
    given = json.loads(Path(path).read_text())
    spans = {name: _finder(where) for name, where in given["spans"].items()}
    edges = [(before, after) for before, after in given["edges"]]
    unknown = [name for edge in edges for name in edge if name not in spans]
  except OSError as error:
    raise UserError(f"graph {path}: {error.strerror}; give a readable file") from None
  except (ValueError, KeyError, TypeError, AttributeError, re.error) as error:
    raise UserError(
      f'graph {path}: {type(error).__name__}: {error}; write {{"spans": {{"name": "regular '
      f'expression"}}, "edges": [["needed", "needs it"]]}}'
    ) from None
  if unknown:
    raise UserError(f"graph {path}: edge of {unknown[0]!r}; spans are {', '.join(spans)}")
  _check_acyclic(edges, path)

  def graph_of(text: str) -> Graph:
    found = {name: span for name, find in spans.items() if (span := find(text))}
    numbers = {name: number for number, name in enumerate(found)}
    kept = [edge for edge in edges if set(edge) <= set(found)]
    return Graph(tuple(found.values()), tuple((numbers[a], numbers[b]) for a, b in kept))

  return graph_of


def _finder(where: Any) -> Callable[[str], Span | None]:
  if isinstance(where, str):
    pattern = re.compile(where)
    group = min(1, pattern.groups)

    def find(text: str) -> Span | None:
      match = pattern.search(text)
      return Span(*match.span(group)) if match and match.start(group) >= 0 else None

    return find
  start, stop = where
  if not (type(start) is type(stop) is int and 0 <= start < stop):
    raise ValueError(f"{where} is no [start, stop]")
  return lambda text: Span(start, stop) if stop <= len(text) else None


def _check_acyclic(edges: Sequence[tuple[str, str]], path: str | Path) -> None:
  left = set(edges)
  while left:
    free = {before for before, _ in left} - {after for _, after in left}
    if not free:
      raise UserError(f"graph {path}: {sorted(left)[0][0]!r} depends on itself; mend the edges")
    left = {edge for edge in left if edge[0] not in free}


# ---- Orders against graphs -----------------------------------------------------------------------


def judge(order: Order, graph: Graph) -> Verdict:
  """Compares an order with a graph over its text.

  A span is fixed in the step that fixes the last of the tokens that it touches; one that was never
  written counts as fixed after all others.
  """
  return _judge(tokens_of(order, graph), order.steps, graph)


def tokens_of(order: Order, graph: Graph) -> list[np.ndarray]:
  """The tokens that each span touches."""
  stops = np.cumsum([len(token) for token in order.tokens])
  starts = stops - [len(token) for token in order.tokens]
  return [np.flatnonzero((starts < span.stop) & (stops > span.start)) for span in graph.spans]


def _judge(tokens: Sequence[np.ndarray], steps: np.ndarray, graph: Graph) -> Verdict:
  known = np.where(steps, steps, np.iinfo(steps.dtype).max)
  fixed = [known[places].max(initial=0) for places in tokens]
  violated = sum(fixed[before] > fixed[after] for before, after in graph.edges)
  tied = sum(fixed[before] == fixed[after] for before, after in graph.edges)
  return Verdict(len(graph.edges), int(violated), int(tied))


def summarise(
  orders: Sequence[Order], graph_of: Callable[[str], Graph] = dependencies, *, seed: int = 0
) -> Summary:
  """How often answers were fixed in a topological order of their graphs.

  Args:
    orders: of many answers.
    graph_of: the graph of an answer's text; see `dependencies` and `read_graph`.
    seed: of the random orders that `by_chance` is estimated with.

  Raises:
    UserError: there are no orders.
  """
  if not orders:
    raise UserError("no answers to judge the order of; give some")
  graphs = [graph_of(order.text) for order in orders]
  pairs = [(o, g) for o, g in zip(orders, graphs, strict=True) if g.edges]
  verdicts = [judge(order, graph) for order, graph in pairs]
  said = sum(np.count_nonzero(order.steps) for order in orders)
  return Summary(
    outputs=len(orders),
    judged=len(pairs),
    follows=_percent(sum(v.follows for v in verdicts), len(pairs)),
    follows_strictly=_percent(sum(v.follows_strictly for v in verdicts), len(pairs)),
    by_chance=_percent(
      sum(_chance(*pair, (seed, number)) for number, pair in enumerate(pairs)), len(pairs)
    ),
    edges=_percent(sum(v.edges - v.violated for v in verdicts), sum(v.edges for v in verdicts)),
    left_to_right=float(np.mean([order.left_to_right for order in orders])),
    revised=_percent(sum(order.revised for order in orders), int(said)),
  )


def _percent(part: float, whole: int) -> float:
  return 100 * part / whole if whole else 0.0


def _chance(order: Order, graph: Graph, seed: tuple[int, int]) -> float:
  """The share of random orders, the same steps dealt to the tokens with text, that follow."""
  generator = np.random.default_rng(seed)
  tokens = tokens_of(order, graph)
  said = np.flatnonzero([bool(token) for token in order.tokens])
  follows = 0
  for _ in range(_CHANCE_DRAWS):
    steps = order.steps.copy()
    steps[said] = generator.permutation(steps[said])
    follows += _judge(tokens, steps, graph).follows
  return follows / _CHANCE_DRAWS
