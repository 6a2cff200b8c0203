"""Traces as one HTML page that plays the canvas step by step, with nothing to load from elsewhere.

The page holds its style and its script (its longest parts, which is why this file is long), and the
script holds no logic of the trace: what happened to which position is decided in frames.py, here.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from string import Template
from typing import TYPE_CHECKING, Any

from diffjax.cli.frames import Cell, frames

if TYPE_CHECKING:
  from diffjax.sampling import Generation

# One letter each, as the page's data have them; the values are CSS classes too.
_KINDS = {"masked": "m", "remasked": "r", "new": "n", "replaced": "c", "kept": "k"}
_SPECIAL = "∎"  # a special token, such as </s>


def page(answers: Sequence["Generation"], prompts: Sequence[str], *, caption: str = "") -> str:
  """The page as text, to be saved as UTF-8; about 15 bytes per position and step.

  Args:
    answers: made with return_trace=True; all candidates of each are shown.
    prompts: of each answer.
    caption: a line below the title, such as the model and the strategy.

  Raises:
    ValueError: an answer has no trace.
  """
  pieces: dict[str, int] = {}
  shown = [
    {
      "prompt": _readable(prompt),
      "variants": [_variant(one, pieces) for one in answer.candidates or [answer]],
    }
    for prompt, answer in zip(prompts, answers, strict=True)
  ]
  data = json.dumps({"pieces": list(pieces), "answers": shown}, separators=(",", ":"))
  for character in "<>&":  # nothing in the data may end the element that it stands in
    data = data.replace(character, f"\\u{ord(character):04x}")
  digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
  return Template(_PAGE).substitute(
    style=_STYLE,
    script=_SCRIPT,
    script_hash=f"sha256-{digest}",
    caption=_escaped(caption),
    data=data,
    last=_last_steps(prompts, answers),
  )


def _variant(answer: "Generation", pieces: dict[str, int]) -> dict[str, Any]:
  """One candidate: per step a letter, a piece (-1: none) and a percentage for each position."""
  if answer.trace is None:
    raise ValueError("an answer has no trace; generate with return_trace=True")
  steps = list(frames(answer.trace))
  last = steps[-1] if steps else []
  number = lambda cell: (
    -1 if cell.kind == "masked" else pieces.setdefault(_glyph(cell), len(pieces))
  )
  return {
    "text": _readable(answer.text),
    "score": f"{answer.score:.3f}",
    "calls": answer.network_calls,
    "before": "".join(" " if n and c.token.startswith(" ") else "." for n, c in enumerate(last)),
    "after": "".join("n" if "\n" in cell.token else "." for cell in last),
    "steps": [
      {
        "kinds": "".join(_KINDS[cell.kind] for cell in cells),
        "pieces": [number(cell) for cell in cells],
        "percent": [round(100 * cell.probability) for cell in cells],
        "since": [cell.step for cell in cells],
      }
      for cells in steps
    ],
  }


def _last_steps(prompts: Sequence[str], answers: Sequence["Generation"]) -> str:
  """What is read without a script: the prompts, and their canvases as they were in the end."""
  parts = []
  for prompt, answer in zip(prompts, answers, strict=True):
    cells = list(frames(answer.trace))[-1:] or [[]]
    canvas = "".join(map(_still, cells[0])).removeprefix(" ")
    parts.append(
      f'<section><p class="prompt">{_escaped(prompt)}</p>\n<p class="canvas">{canvas}</p></section>'
    )
  return "\n".join(parts)


def _still(cell: Cell) -> str:
  space = " " if cell.token.startswith(" ") else ""
  line = "\n" if "\n" in cell.token else ""
  if cell.kind in ("masked", "remasked"):
    return '<span class="cell m"><i class="on">░</i></span>'
  percent = round(100 * cell.probability)
  return (
    f'{space}<span class="cell k" style="--p:{percent}%" title="{percent} %">'
    f'<i class="on">{_escaped(_glyph(cell))}</i></span>{line}'
  )


def _glyph(cell: Cell) -> str:
  return _readable(cell.token.removeprefix(" ").replace("\n", "↵")) or (
    "␣" if cell.token else _SPECIAL
  )


def _readable(text: str) -> str:
  """The text without what HTML cannot hold or show: control characters and lone surrogates."""
  text = text.encode("utf-8", "replace").decode()
  return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


def _escaped(text: str) -> str:
  return html.escape(_readable(text))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src '$script_hash'">
<title>Denoising trace</title>
<style>$style</style>
</head>
<body>
<main>
<header><h1>Denoising trace</h1><p class="quiet">$caption</p></header>
<div id="still">
$last
</div>
<div id="player" hidden>
<div class="choices">
<label id="answers">Prompt <select id="answer"></select></label>
<label id="variants">Candidate <select id="variant"></select></label>
</div>
<p class="prompt" id="prompt"></p>
<p class="canvas" id="canvas"></p>
<p class="quiet" id="detail" aria-live="polite"></p>
<div class="controls">
<button id="play" type="button">Play</button>
<input id="step" type="range" min="0" value="0" aria-label="Step">
<output id="count"></output>
<label>Speed <select id="speed">
<option value="0.5">&frac12;&times;</option><option value="1" selected>1&times;</option>
<option value="2">2&times;</option><option value="4">4&times;</option>
</select></label>
</div>
<dl>
<dt>Answer</dt><dd id="text"></dd>
<dt>Score</dt><dd id="score"></dd>
</dl>
</div>
<footer class="quiet">
<p class="legend"><span>unsure</span><span class="scale" role="img"
  aria-label="colour from unsure to sure"></span><span>sure</span>
<span>(the probability that the model gave a token when it was revealed)</span></p>
<p class="legend">
<span><span class="cell m"><i class="on">░</i></span> masked</span>
<span><span class="cell n" style="--p:90%"><i class="on">word</i></span> new</span>
<span><span class="cell c" style="--p:90%"><i class="on">word</i></span> replaced</span>
<span><span class="cell r"><i class="on">word</i></span> masked again</span>
<span><span class="cell k" style="--p:90%"><i class="on">∎</i></span> special token</span>
</p>
<p id="keys" hidden>Keys: Space plays, ← and → step, Home and End jump.</p>
</footer>
</main>
<script type="application/json" id="data">$data</script>
<script>$script</script>
</body>
</html>
"""

_STYLE = """
:root {
  --paper: #fbfaf7; --ink: #24221e; --quiet: #6b675e; --line: #dfdbd1; --mask: #e9e6de;
  --sure: #c5e0da; --unsure: #f8c79a; --accent: #2c6e66; --lost: #a33b2a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17181a; --ink: #e9e7e1; --quiet: #a19d93; --line: #34363a; --mask: #292b2f;
    --sure: #1f4f4b; --unsure: #874c14; --accent: #79c7bb; --lost: #f08a76;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.25rem; font-weight: 600; margin: 0; }
header p { margin: .1rem 0 0; overflow-wrap: anywhere; }
header { margin-bottom: 1.75rem; }
.quiet, dt { color: var(--quiet); font-size: .875rem; }
.choices { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; }
.choices label { display: flex; align-items: center; gap: .5rem; min-width: 0; max-width: 100%; }
.choices select { min-width: 0; max-width: 100%; text-overflow: ellipsis; }
[hidden] { display: none !important; }
.prompt {
  margin: 1rem 0; padding: .15rem 0 .15rem 1rem; border-left: 3px solid var(--line);
  color: var(--quiet); white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 12rem; overflow-y: auto;
}
.canvas { margin: 1.25rem 0 .75rem; font-size: 1.2rem; line-height: 1.9; white-space: pre-wrap; }
section + section { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1rem; }
.cell {
  display: inline-grid; max-width: 100%; min-width: .8em; margin: 0 1px; padding: 0 .18em;
  border-radius: .25em; line-height: 1.45; vertical-align: baseline; text-align: center;
  overflow-wrap: anywhere; transition: background-color .15s;
  background: var(--sure);
  background: color-mix(in oklab, var(--sure) var(--p, 100%), var(--unsure));
}
/* Every token that a position ever holds lies in one place, so the text never moves. */
.cell > i { grid-area: 1 / 1; font-style: normal; visibility: hidden; }
.cell > i.on { visibility: visible; }
.cell.m, .cell.r { background: var(--mask); }
.cell.m > i.on { color: transparent; }
.cell.n { box-shadow: 0 0 0 2px var(--accent); }
.cell.c { box-shadow: 0 2px 0 0 var(--accent); }
.cell.r { color: var(--lost); box-shadow: 0 0 0 1.5px var(--lost); text-decoration: line-through; }
#detail { min-height: 1.4em; margin: 0 0 1rem; }
.controls { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem .9rem; }
.controls input { flex: 1 1 10rem; min-width: 6rem; height: 2.25rem; accent-color: var(--accent); }
output { font-variant-numeric: tabular-nums; font-size: .875rem; color: var(--quiet); }
button, select {
  font: inherit; font-size: .9375rem; color: inherit; background: transparent;
  border: 1px solid var(--line); border-radius: .4rem; padding: .35rem .7rem; min-height: 2.25rem;
}
button {
  min-width: 5rem; background: var(--accent); border-color: var(--accent); color: var(--paper);
}
option { background: var(--paper); color: var(--ink); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
label { font-size: .875rem; color: var(--quiet); }
label select { color: var(--ink); }
dl { display: grid; grid-template-columns: auto 1fr; gap: .4rem 1rem; margin: 1.5rem 0 0; }
dt { line-height: 1.7; }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 2.25rem; padding-top: 1rem; border-top: 1px solid var(--line); }
footer p { margin: .4rem 0; }
.legend { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .7rem; }
.legend .cell { font-size: 1rem; color: var(--ink); margin-right: .2rem; }
.legend .cell.r { color: var(--lost); }
.scale {
  width: 7rem; height: .8rem; border-radius: .25rem;
  background: linear-gradient(to right, var(--unsure), var(--sure));
  background: linear-gradient(in oklab to right, var(--unsure), var(--sure));
}
@media (prefers-reduced-motion: reduce) { .cell { transition: none; } }
@media (hover: none) { #keys { display: none; } }
@media (max-width: 30rem) {
  main { padding: 1.25rem 1rem 3rem; }
  .controls input, .controls output { order: -1; flex-basis: 100%; }
  .controls label { margin-left: auto; }
}
"""

_SCRIPT = r"""
"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
let variant, cells, timer = null;

function options(select, labels) {
  select.replaceChildren(...labels.map((label, n) => new Option(label, n)));
}

function chooseAnswer() {
  const answer = data.answers[$("answer").value];
  $("prompt").textContent = answer.prompt;
  options($("variant"), answer.variants.map((one, n) => `${n + 1}: ${one.text.slice(0, 40)}`));
  $("variants").hidden = answer.variants.length < 2;
  chooseVariant();
}

// Lays the canvas out once: one cell a position, in it every token that it will hold.
function chooseVariant() {
  pause();
  variant = data.answers[$("answer").value].variants[$("variant").value];
  const { steps, before, after } = variant;
  cells = Array.from(before, () => {
    const cell = document.createElement("span");
    const mask = document.createElement("i");
    mask.textContent = "░";
    cell.append(mask);
    return { cell, tokens: new Map([[-1, mask]]) };
  });
  steps.forEach((step) => step.pieces.forEach((piece, n) => {
    if (cells[n].tokens.has(piece)) return;
    const token = document.createElement("i");
    token.textContent = data.pieces[piece];
    cells[n].tokens.set(piece, token);
    cells[n].cell.append(token);
  }));
  $("canvas").replaceChildren(...cells.flatMap(({ cell }, n) =>
    [before[n] === " " ? " " : "", cell, after[n] === "n" ? "\n" : ""]));
  cells.forEach(({ cell }, n) => { cell.dataset.n = n; });
  $("text").textContent = variant.text || "(no text)";
  $("score").textContent = `${variant.score}, network calls: ${variant.calls}`;
  $("step").max = steps.length;
  show(steps.length);
}

// Step 0 is before the first one: everything masked.
function show(number) {
  const step = variant.steps[number - 1];
  let revealed = 0;
  cells.forEach(({ cell, tokens }, n) => {
    const kind = step ? step.kinds[n] : "m";
    const piece = step ? step.pieces[n] : -1;
    if (kind !== "m" && kind !== "r") revealed += 1;
    cell.className = `cell ${kind}`;
    cell.style.setProperty("--p", `${step ? step.percent[n] : 0}%`);
    tokens.forEach((token, key) => { token.className = key === piece ? "on" : ""; });
  });
  $("step").value = number;
  $("count").textContent =
    `step ${number} of ${variant.steps.length}, ${revealed} of ${cells.length} revealed`;
  $("detail").textContent = "Point at a token, or tap it, for its probability.";
}

function describe(target) {
  const cell = target.closest ? target.closest("[data-n]") : null;
  const step = variant.steps[$("step").value - 1];
  if (!cell || !step) return;
  const n = cell.dataset.n;
  const token = data.pieces[step.pieces[n]];
  $("detail").textContent = {
    m: `position ${+n + 1}: masked`,
    r: `position ${+n + 1}: “${token}” was masked again in this step`,
  }[step.kinds[n]] ||
    `position ${+n + 1}: “${token}”, ${step.percent[n]} %, since step ${step.since[n]}`;
}

function pause() {
  clearTimeout(timer);
  timer = null;
  $("play").textContent = "Play";
}

function advance() {
  const next = +$("step").value + 1;
  if (next > variant.steps.length) return pause();
  show(next);
  timer = setTimeout(advance, 450 / $("speed").value);
}

function toggle() {
  if (timer !== null) return pause();
  if (+$("step").value === variant.steps.length) show(0);
  $("play").textContent = "Pause";
  timer = setTimeout(advance, 450 / $("speed").value);
}

function go(number) {
  pause();
  show(Math.max(0, Math.min(variant.steps.length, number)));
}

$("answer").addEventListener("change", chooseAnswer);
$("variant").addEventListener("change", chooseVariant);
$("play").addEventListener("click", toggle);
$("step").addEventListener("input", () => go(+$("step").value));
$("canvas").addEventListener("pointerover", (event) => describe(event.target));
$("canvas").addEventListener("click", (event) => describe(event.target));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const tag = event.target.tagName;
  if (tag === "SELECT" || tag === "INPUT" && event.key !== " ") return;
  if (tag === "BUTTON" && event.key === " ") return;  // the button's own click
  const number = +$("step").value;
  const keys = {
    " ": toggle,
    ArrowLeft: () => go(number - 1),
    ArrowRight: () => go(number + 1),
    Home: () => go(0),
    End: () => go(variant.steps.length),
  };
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});

options($("answer"), data.answers.map(({ prompt }, n) => `${n + 1}: ${prompt.slice(0, 60)}`));
$("answers").hidden = data.answers.length < 2;
$("still").hidden = true;
$("player").hidden = false;
$("keys").hidden = false;
chooseAnswer();
"""
