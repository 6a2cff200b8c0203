"""Orders of generation to be looked at: a table, and a picture with what depends on what."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffjax.evaluation.order import Graph, Order, dependencies, judge, tokens_of

_LINE_WIDTH = 96  # characters of a picture's or a table's line


def as_table(order: Order) -> str:
  """The tokens, and under each the step that fixed it."""
  lines = []
  for places in _lines(order):
    cells = [(order.tokens[n].strip(), str(order.steps[n])) for n in places]
    widths = [max(map(len, cell)) for cell in cells]
    for row in zip(*cells, strict=True):
      aligned = (text.rjust(width) for text, width in zip(row, widths, strict=True))
      lines.append(" ".join(aligned).rstrip())
  return "\n".join(lines)


def _lines(order: Order) -> list[list[int]]:
  """The places of the tokens that have text, broken into lines."""
  lines: list[list[int]] = [[]]
  used = 0
  for place, token in enumerate(order.tokens):
    if not (token and order.steps[place]):
      continue
    width = _width(token)
    if lines[-1] and used + width > _LINE_WIDTH:
      lines.append([])
      used = 0
    lines[-1].append(place)
    used += width
  return lines


def _width(token: str) -> int:
  return max(2, len(token.strip())) + 1


def picture(
  path: str | Path,
  orders: Sequence[Order],
  *,
  titles: Sequence[str],
  graph_of: Callable[[str], Graph] = dependencies,
) -> None:
  """Draws answers as coloured tokens, early steps dark and late ones bright, into a file.

  The step stands under each token. A line leads from each span to what depends on it: grey, or red
  and dashed where the order broke the dependency.

  Args:
    path: such as order.png.
    orders: the answers, from top to bottom; some.
    titles: one above each.
    graph_of: as in `order.summarise`.
  """
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  lines = [_lines(order) for order in orders]
  heights = [len(some) + 0.4 for some in lines]
  longest = max(
    sum(_width(order.tokens[place]) for place in line)
    for order, some in zip(orders, lines, strict=True)
    for line in some
  )
  figure, axes = pyplot.subplots(
    len(orders), 1, figsize=(max(7, longest / 8), 0.95 * sum(heights)), height_ratios=heights,
    squeeze=False,
  )  # fmt: skip
  for axis, order, title, some in zip(axes[:, 0], orders, titles, lines, strict=True):
    _draw(axis, order, graph_of(order.text), some)
    axis.set_xlim(0, max(1, longest))
    axis.set_title(title, fontsize=8, loc="left", wrap=True)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def _draw(axis: Any, order: Order, graph: Graph, lines: Sequence[Sequence[int]]) -> None:
  """One answer on its axis; x in characters, y in lines."""
  from matplotlib import colormaps

  colors = colormaps["viridis"]
  centres: dict[int, tuple[float, float]] = {}
  for row, places in enumerate(lines):
    x = 0.0
    for place in places:
      width = _width(order.tokens[place])
      centres[place] = (x + width / 2, -row)
      share = (order.steps[place] - 1) / max(1, order.num_steps - 1)
      axis.text(
        *centres[place], order.tokens[place].strip(), ha="center", va="center", fontsize=8,
        family="monospace", color="black" if share > 0.6 else "white",
        bbox={"boxstyle": "round,pad=0.3", "facecolor": colors(share), "edgecolor": "none"},
      )  # fmt: skip
      axis.text(
        centres[place][0], -row - 0.33, str(order.steps[place]), ha="center", va="center",
        fontsize=6, color="0.4",
      )  # fmt: skip
      x += width
  tokens = tokens_of(order, graph)
  for before, after in graph.edges:
    ends = [[place for place in tokens[n] if place in centres] for n in (before, after)]
    if not all(ends):
      continue
    broken = judge(order, Graph(graph.spans, ((before, after),))).violated
    (x0, y0), (x1, y1) = (centres[some[-1]] for some in ends)
    axis.annotate(
      "", (x1, y1 + 0.2), (x0, y0 + 0.2),
      arrowprops={
        "arrowstyle": "->", "connectionstyle": "arc3,rad=-0.25", "linewidth": 0.8,
        "color": "tab:red" if broken else "0.6", "linestyle": "--" if broken else "-",
      },
    )  # fmt: skip
  axis.set_ylim(0.5 - len(lines), 0.8)
  axis.axis("off")
