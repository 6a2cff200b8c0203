"""The page of a trace: what its cells say, that it loads nothing, that its script plays."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from diffjax.cli import trace_page
from diffjax.cli.frames import frames
from diffjax.sampling import Generation, Step

NO = -math.inf
STEPS = [
  Step([" a", "", ""], [False, True, True], [-0.1, NO, NO]),
  Step([" a", "b\n", ""], [False, False, True], [-0.1, -2.0, NO]),
  Step(["", " c", ""], [True, False, True], [NO, -0.5, NO]),
  Step([" d", " c", ""], [False, False, False], [0.0, -0.5, -1.0]),
]
HOSTILE = "</script><script>alert(1)</script><!-- &amp; \x00\x1b \udcff \u2028"


def answer(text="d c", steps=STEPS, candidates=()):
  return Generation(
    text=text, ids=[4, 5, 2], scores=[0.0, -0.5, -1.0], score=-0.25, total=-0.5, network_calls=4,
    trace=steps, candidates=list(candidates),
  )  # fmt: skip


class Page(HTMLParser):
  """The elements of a page, with their attributes and the text right inside them."""

  def __init__(self, text):
    super().__init__()
    self.elements = []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.elements.append([tag, dict(attributes), ""])

  def handle_data(self, data):
    if self.elements:
      self.elements[-1][2] += data

  def all(self, tag):
    return [element for element in self.elements if element[0] == tag]

  @property
  def data(self):
    (text,) = [text for _, attributes, text in self.all("script") if attributes]
    return json.loads(text)


def test_frames_tell_what_happened_to_each_position():
  kinds = [[cell.kind for cell in cells] for cells in frames(STEPS)]
  assert kinds == [
    ["new", "masked", "masked"],
    ["kept", "new", "masked"],
    ["remasked", "replaced", "masked"],
    ["new", "kept", "new"],
  ]
  lost, replaced, hidden = list(frames(STEPS))[2]
  assert lost.token == " a"  # what was lost, to be shown struck out
  assert (hidden.token, hidden.probability, hidden.step) == ("", 0, 0)
  assert (replaced.probability, replaced.step) == (math.exp(-0.5), 3)
  kept = list(frames(STEPS))[3][1]
  assert kept.step == 3  # since when


def test_what_stays_masked_is_not_masked_again():
  gone = [STEPS[0], Step([""] * 3, [True] * 3, [NO] * 3), Step([""] * 3, [True] * 3, [NO] * 3)]
  assert [cells[0].kind for cells in frames(gone)] == ["new", "remasked", "masked"]


def test_the_data_are_the_trace():
  text = trace_page.page([answer()], ["p"])
  data = Page(text).data
  (variant,) = data["answers"][0]["variants"]
  shown = [
    [data["pieces"][piece] if piece >= 0 else None for piece in step["pieces"]]
    for step in variant["steps"]
  ]
  assert shown == [["a", None, None], ["a", "b↵", None], ["a", "c", None], ["d", "c", "∎"]]
  assert [step["kinds"] for step in variant["steps"]] == ["nmm", "knm", "rcm", "nkn"]
  assert variant["steps"][3]["percent"] == [100, 61, 37]
  assert variant["before"] == ". ."  # the first cell's space is none


def test_every_candidate_and_prompt_can_be_chosen():
  best, second = answer("one"), answer("two")
  data = Page(trace_page.page([answer(candidates=[best, second]), best], ["p", "q"])).data
  texts = [[one["text"] for one in shown["variants"]] for shown in data["answers"]]
  assert texts == [["one", "two"], ["one"]]
  assert [shown["prompt"] for shown in data["answers"]] == ["p", "q"]


def test_hostile_text_stays_text_and_nothing_is_loaded():
  steps = [Step([HOSTILE, " c", ""], [False] * 3, [0.0] * 3)]
  text = trace_page.page([answer(HOSTILE, steps)], [HOSTILE], caption=HOSTILE)
  text.encode("utf-8")  # no lone surrogate
  page = Page(text)
  assert len(page.all("script")) == 2
  assert not re.search(r"[\x00-\x08\x0b-\x1f\u2028]", text)
  assert "alert(1)" in page.data["answers"][0]["prompt"]
  for tag, attributes, _ in page.elements:
    assert not {"src", "href", "srcset", "action", "onload", "onerror"} & set(attributes), tag
  assert "url(" not in text
  assert "@import" not in text
  (policy,) = [a["content"] for _, a, _ in page.all("meta") if "http-equiv" in a]
  assert "default-src 'none'" in policy


def test_without_a_script_the_last_step_is_there():
  text = trace_page.page([answer()], ["say <it>"])
  still = text[text.index('<div id="still">') : text.index('<div id="player"')]
  cells = re.findall(r'class="cell (\w)".*?<i class="on">(.*?)</i>', still)
  assert cells == [("k", "d"), ("k", "c"), ("k", "∎")]
  assert "say &lt;it&gt;" in still


def test_an_answer_without_a_trace_is_refused():
  with pytest.raises(ValueError, match="return_trace"):
    trace_page.page([answer(steps=None)], ["p"])


# As much of a browser as the script needs: elements by id, children, classes, listeners.
BROWSER = r"""
class Element {
  constructor(tag) {
    Object.assign(this, {tagName: tag.toUpperCase(), children: [], listeners: {}, dataset: {},
      hidden: false, value: "0", textContent: "", className: "", styles: {}});
    this.style = {setProperty: (name, value) => { this.styles[name] = value; }};
  }
  append(...nodes) { this.children.push(...nodes); }
  replaceChildren(...nodes) { this.children = nodes; this.value = "0"; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  fire(name, event = {}) { this.listeners[name]({target: this, preventDefault() {}, ...event}); }
}
const elements = {};
const document = new Element("document");
document.getElementById = (id) => elements[id] ??= new Element("div");
document.createElement = (tag) => new Element(tag);
function Option(label, value) { return {label, value: String(value)}; }
let pending = [];
const setTimeout = (work, delay) => pending.push({work, delay});
const clearTimeout = () => { pending = []; };
const tick = () => pending.shift().work();
const at = (id) => document.getElementById(id);
at("speed").value = "1";
const canvas = () => at("canvas").children.filter((node) => node instanceof Element)
  .map((cell) => [cell.className, cell.children.filter((t) => t.className === "on")
    .map((t) => t.textContent).join("+")]);
const press = (key, tagName = "BODY") => document.fire("keydown", {key, target: {tagName}});
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_plays_the_trace():
  page = Page(trace_page.page([answer(), answer("x", STEPS[:2])], ["p", "q"]))
  (script,) = [text for _, attributes, text in page.all("script") if not attributes]
  program = (
    BROWSER
    + f"at('data').textContent = {json.dumps(json.dumps(page.data))};\n{script}\n"
    + r"""
    const log = {};
    log.start = [+at("step").value, canvas(), at("player").hidden, at("still").hidden];
    press("Home"); log.home = canvas();
    press("ArrowRight"); press("ArrowRight"); press("ArrowRight");
    log.third = [+at("step").value, canvas()];
    press("ArrowLeft", "INPUT"); log.slider = +at("step").value;  // the slider's own key
    press("End"); press("ArrowRight"); log.end = +at("step").value;
    at("play").fire("click"); log.playing = [+at("step").value, at("play").textContent];
    at("speed").value = "2"; tick(); log.faster = [+at("step").value, pending[0].delay];
    press(" "); log.paused = [at("play").textContent, pending.length];
    press(" "); while (pending.length) tick();
    log.played = [+at("step").value, at("play").textContent];
    at("answer").value = "1"; at("answer").fire("change");
    log.other = [at("prompt").textContent, +at("step").max, canvas(), at("variants").hidden];
    console.log(JSON.stringify(log));
    """
  )
  done = subprocess.run(
    ["node", "-e", program], capture_output=True, text=True, timeout=60, check=False
  )
  assert done.returncode == 0, done.stderr
  log = json.loads(done.stdout)
  last = [["cell n", "d"], ["cell k", "c"], ["cell n", "∎"]]
  assert log["start"] == [4, last, False, True]
  assert log["home"] == [["cell m", "░"]] * 3
  assert log["third"] == [3, [["cell r", "a"], ["cell c", "c"], ["cell m", "░"]]]
  assert (log["slider"], log["end"]) == (3, 4)
  assert log["playing"] == [0, "Pause"]
  assert log["faster"] == [1, 225]
  assert log["paused"] == ["Play", 0]
  assert log["played"] == [4, "Play"]
  second = [["cell k", "a"], ["cell n", "b↵"], ["cell m", "░"]]
  assert log["other"] == ["q", 2, second, True]
