"""The HTML that reports are made of: one file, no scripts, nothing to load from elsewhere."""

import html
import re
from collections.abc import Iterable, Sequence
from string import Template

from diffjax.evaluation import plots

_SHORT = 24  # characters of a cell that is not broken into lines


class Markup(str):
  """Text that is HTML already; any other text is escaped where it is put into a page."""


def escaped(text: object) -> Markup:
  """Text as a page can hold it; what is Markup already stays as it is."""
  return text if isinstance(text, Markup) else Markup(html.escape(plots.readable(text)))


def document(title: str, caption: str, *parts: str) -> str:
  """A page with its style in it; dark where the reader's system is."""
  colors = lambda side: " ".join(f"--{name}: {c[side]};" for name, c in plots.COLORS.items())
  style = Template(_STYLE).substitute(light=colors(0), dark=colors(1))
  body = "\n".join(parts)
  return Template(_PAGE).substitute(
    style=style, title=escaped(title), caption=escaped(caption), body=body
  )


def section(title: str, *parts: str) -> Markup:
  """A heading with what belongs under it; nothing at all where there are no parts."""
  body = "\n".join(filter(None, parts))
  return Markup(f"<section><h2>{escaped(title)}</h2>\n{body}</section>" if body else "")


def details(summary: str, *parts: str, of_class: str = "") -> Markup:
  """A part that is opened by a click, without a script."""
  opening = f'<details class="{of_class}">' if of_class else "<details>"
  return Markup(f"{opening}<summary>{escaped(summary)}</summary>\n{''.join(parts)}</details>")


def paragraph(text: str, *, quiet: bool = False) -> Markup:
  """A line of text."""
  return Markup(f"<p{' class=quiet' if quiet else ''}>{escaped(text)}</p>")


def items(lines: Iterable[str]) -> Markup:
  """A list; nothing where there are no lines. What stands in backquotes is code."""
  coded = [re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped(line)) for line in lines]
  rows = "".join(f"<li>{line}</li>" for line in coded)
  return Markup(f"<ul class=quiet>{rows}</ul>" if rows else "")


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
  """Names and values, one below the other."""
  rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in pairs)
  return Markup(f"<dl>{rows}</dl>")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
  """Rows under a head; cells that begin with a digit stand to the right, as numbers do.

  A column that no row has anything in is left out.
  """
  rows = [[escaped("" if cell is None else cell) for cell in row] for row in rows]
  used = [n for n in range(len(head)) if any(row[n] for row in rows)]
  top = "".join(f"<th>{escaped(head[n])}</th>" for n in used)
  body = "\n".join("<tr>" + "".join(_cell(row[n]) for n in used) + "</tr>" for row in rows)
  return Markup(
    f'<div class="wide"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'
  )


def _cell(cell: Markup) -> str:
  is_number = re.match(r"(<[^>]*>)?[-+]?\d[\d., ]*([%kMB]|\s|±|<|$)", cell)
  kind = " class=n" if is_number else " class=short" if len(cell) <= _SHORT else ""
  return f"<td{kind}>{cell}</td>"


def bar(value: float, shown: str) -> Markup:
  """A percentage as a cell with a bar behind its number."""
  return Markup(f'<span class="bar" style="--v:{min(max(value, 0), 100):.1f}%">{shown}</span>')


def figure(plot: plots.Plot, *notes: str) -> Markup:
  """A picture with its title above, its numbers and what to know of it below."""
  rows = [
    (series.label, plot.rows[int(y)] if plot.rows else f"{x:.10g}", value(x if plot.rows else y, e))
    for series in plot.series
    for x, y, e in zip(series.x, series.y, series.error or [None] * len(series.x), strict=True)
  ]
  names = ("", "row", plot.x_label) if plot.rows else ("", plot.x_label, plot.y_label)
  return Markup(
    f"<figure><figcaption>{escaped(plot.title)}</figcaption>\n{plots.svg(plot)}\n"
    f"{''.join(paragraph(note, quiet=True) for note in notes)}"
    f"{details('numbers', table(names, rows))}</figure>"
  )


def figures(made: Iterable[Markup]) -> Markup:
  """Pictures side by side where there is room."""
  return Markup(f'<div class="figures">{"".join(made)}</div>')


def value(number: float | None, error: float | None = None) -> str:
  """A score in the digits that mean something, with its standard error where one is known."""
  if number is None:
    return "-"
  digits = 1 if abs(number) >= 10 or number == 0 else 2
  return f"{number:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header><h1>$title</h1><p class="quiet">$caption</p></header>
$body
</main>
</body>
</html>
"""

_STYLE = """
:root { --paper: #fbfaf7; --track: #dcebe7; $light }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17181a; --track: #24413e; $dark }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.35rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; font-weight: 600; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
header p { margin: .1rem 0 0; overflow-wrap: anywhere; }
.quiet, dt, .sample h4 { color: var(--quiet); font-size: .875rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
ul { margin: .4rem 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th {
  text-align: left; font-weight: 500; color: var(--quiet); vertical-align: bottom;
  font-size: .8125rem; border-bottom: 1px solid var(--quiet);
}
th, td { padding: .3rem .9rem .3rem 0; }
td { border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, td.short { white-space: nowrap; }
td.n { text-align: right; }
.bar {
  display: block; min-width: 7rem; padding: 0 .35rem;
  background: linear-gradient(to right, var(--track) var(--v), transparent var(--v));
}
.figures {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr));
  gap: 1.5rem 2rem;
}
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; font-size: .9375rem; margin-bottom: .3rem; }
figure svg { display: block; width: 100%; height: auto; max-width: 34rem; }
details { margin: .4rem 0; }
summary { cursor: pointer; color: var(--series-1); font-size: .875rem; }
.result > summary { color: var(--ink); font-size: 1rem; font-weight: 600; }
.result { border-top: 1px solid var(--line); padding-top: .5rem; margin-top: .75rem; }
.sample { border-left: 3px solid var(--line); padding-left: 1rem; margin: 1rem 0 1.5rem; }
.sample h4 { margin: .4rem 0 0; font-weight: 500; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 14rem; overflow-y: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .875rem; margin: .4rem 0; }
dl { display: grid; grid-template-columns: auto 1fr; gap: .2rem 1rem; margin: .5rem 0; }
dt { line-height: 1.7; }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
@media (max-width: 30rem) { main { padding: 1.25rem 1rem 3rem; } }
"""
