"""Figures as data, and as pictures: SVG that follows a page's colours, and PNG."""

import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

# (light, dark). In an SVG each light colour becomes the page's variable of that name, so all of
# them must differ.
COLORS = {
  "ink": ("#24221e", "#e9e7e1"),
  "quiet": ("#6b675e", "#a19d93"),
  "line": ("#dfdbd1", "#34363a"),
  "series-1": ("#2c6e66", "#79c7bb"),
  "series-2": ("#c4622d", "#f0a36b"),
  "series-3": ("#3a6ea5", "#8ab6e6"),
  "series-4": ("#7a4f9e", "#c3a1e3"),
  "series-5": ("#8a7a1f", "#d8c75a"),
  "series-6": ("#a33b2a", "#f08a76"),
  "series-7": ("#b04a7f", "#eea0c8"),
  "series-8": ("#56646b", "#a9b8c0"),
}
_SERIES = [light for name, (light, _) in COLORS.items() if name.startswith("series")]
_MARKERS = "osD^vPX*"
_WIDTH = 5.4  # inches
_ROW = 0.28  # height of one row of a chart of rows
_LEGEND_LINE = 0.2
# Ids that matplotlib numbers anew in every figure, and that nothing refers to.
_NUMBERED = re.compile(
  r' id="(?:figure|patch|axes|text|legend|line2d|xtick|ytick|matplotlib\.axis|\w+Collection)_\d+"'
)


@dataclasses.dataclass(frozen=True)
class Series:
  """Points of one colour, in ascending order of what they are drawn over."""

  label: str
  x: tuple[float, ...]
  y: tuple[float, ...]
  error: tuple[float | None, ...] = ()  # standard errors of the values; empty: none is known


@dataclasses.dataclass(frozen=True)
class Plot:
  """A line chart, values y over x; or, with `rows`, a chart of rows, values x in row number y."""

  name: str  # of its file
  title: str
  x_label: str
  y_label: str
  series: tuple[Series, ...]
  log_x: bool = False
  rows: tuple[str, ...] = ()  # labels, the first on top


def human(number: float) -> str:
  """A count in three digits: 950, 1.3k, 12.4M, 9.7B."""
  for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if abs(number) >= size * 0.9995:
      return f"{number / size:.3g}{suffix}"
  return f"{number:.3g}"


def readable(text: object) -> str:
  """Text without what no page and no picture can hold: control characters, lone surrogates."""
  text = str(text).encode("utf-8", "replace").decode()
  return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


def svg(plot: Plot) -> str:
  """The plot as an element to stand inside HTML: colours are variables, text is text."""
  with _drawn(plot) as figure:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
  text = buffer.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
  text = _NUMBERED.sub("", text)
  text = re.sub(r'<svg ([^>]*?)width="[^"]*" |height="[^"]*pt" ', r"<svg \1", text, count=1)
  for name, (light, _) in COLORS.items():
    text = text.replace(light, f"var(--{name})")
  return text


def save_png(plot: Plot, file: Path) -> None:
  """Writes the plot on white, 150 dots an inch."""
  with _drawn(plot, title=readable(plot.title)) as figure:
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=150, facecolor="white")


@contextmanager
def _drawn(plot: Plot, *, title: str = "") -> Iterator[Figure]:
  settings = {
    "svg.fonttype": "none", "svg.hashsalt": plot.name, "text.parse_math": False,
    "font.family": "sans-serif", "font.size": 9, "axes.edgecolor": COLORS["quiet"][0],
    "text.color": COLORS["ink"][0], "axes.labelcolor": COLORS["ink"][0],
    "xtick.color": COLORS["quiet"][0], "ytick.color": COLORS["quiet"][0],
  }  # fmt: skip
  with matplotlib.rc_context(settings):
    columns = _legend_columns(plot)
    lines = -(-len(plot.series) // columns) if columns else 0
    height = 0.8 + _ROW * len(plot.rows) if plot.rows else 2.9
    figure = Figure(
      figsize=(_WIDTH, height + _LEGEND_LINE * (lines + bool(title))), layout="constrained"
    )
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if plot.rows else "y", color=COLORS["line"][0], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(readable(plot.x_label))
    axes.set_ylabel(readable(plot.y_label))
    for number, series in enumerate(plot.series):
      _draw(axes, series, number, in_rows=bool(plot.rows))
    if plot.rows:
      axes.set_yticks(range(len(plot.rows)), [readable(row) for row in plot.rows])
      axes.set_ylim(len(plot.rows) - 0.5, -0.5)
    else:
      _set_x_axis(axes, plot)
    if columns:
      handles, labels = axes.get_legend_handles_labels()
      figure.legend(
        handles, labels, loc="outside upper left", ncols=columns, frameon=False, handletextpad=0.3,
        title=title or None, title_fontsize=10, alignment="left",
      )  # fmt: skip
    elif title:
      axes.set_title(title, loc="left", fontsize=10)
    yield figure


def _draw(axes: Axes, series: Series, number: int, *, in_rows: bool) -> None:
  color, label = _SERIES[number % len(_SERIES)], readable(series.label)
  x, y = np.asarray(series.x, float), np.asarray(series.y, float)
  if not in_rows:  # runs that differ in their seeds alone share an x: the line joins their means
    places = np.unique(x)
    means = [y[x == place].mean() for place in places]
    dashes = "-" if number < len(_SERIES) else "--"
    axes.plot(places, means, dashes, color=color, linewidth=1.6)
  error = np.asarray([e or 0 for e in series.error], float) if any(series.error) else None
  axes.errorbar(
    x, y, color=color, linestyle="none", capsize=2.5, elinewidth=1, markersize=5,
    marker=_MARKERS[number % len(_MARKERS)], **{"xerr" if in_rows else "yerr": error},
    # A leading underscore would leave a label out of the legend.
    label=f" {label}" if label.startswith("_") else label,
  )  # fmt: skip


def _set_x_axis(axes: Axes, plot: Plot) -> None:
  """Ticks where the points are, as far as their labels have room."""
  places = sorted({x for series in plot.series for x in series.x})
  along = np.log if plot.log_x else float
  if plot.log_x:
    axes.set_xscale("log")
  if len(places) == 1 and plot.log_x:
    axes.set_xlim(places[0] / 2, places[0] * 2)
  span = along(places[-1]) - along(places[0])
  shown = [places[-1]]
  for place in reversed(places[:-1]):
    if along(shown[-1]) - along(place) >= 0.09 * span:
      shown.append(place)
  axes.set_xticks(shown, [human(place) for place in shown])
  axes.xaxis.set_minor_locator(NullLocator())


def _legend_columns(plot: Plot) -> int:
  """0 where one series needs no legend."""
  longest = max(len(series.label) for series in plot.series)
  return 0 if len(plot.series) == 1 else max(1, min(len(plot.series), 72 // (longest + 6)))


def grouped(points: Sequence[tuple[str, float, float, float | None]]) -> tuple[Series, ...]:
  """Series from (label, x, y, standard error), in the order of the labels' first points."""
  by_label: dict[str, list[tuple[float, float, float | None]]] = {}
  for label, *point in points:
    by_label.setdefault(label, []).append(tuple(point))
  return tuple(
    Series(label, *(tuple(column) for column in zip(*sorted(of, key=lambda p: p[:2]), strict=True)))
    for label, of in by_label.items()
  )


def told_apart(facts: Sequence[Mapping[str, str]]) -> list[str]:
  """A label each: of all its facts those that are not the same everywhere, or else the first."""
  names = list(dict.fromkeys(name for each in facts for name in each))
  varying = [name for name in names if len({each.get(name, "") for each in facts}) > 1]
  return [
    ", ".join(filter(None, (each.get(name, "") for name in varying or names[:1]))) for each in facts
  ]
