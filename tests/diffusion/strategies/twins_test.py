"""Every strategy against a twin that decides slot by slot, from the rule as it is published."""

import math
import re

import numpy as np
import pytest

from diffjax.diffusion.strategies import NAMES
from diffjax.diffusion.vocabulary import Prediction


def put(slot, said):
  slot.update(token=int(said["tokens"]), masked=False, score=said["scores"])


def mask(slot):
  slot.update(token=None, masked=True, score=-math.inf)


def masked_share(schedule, step, steps):
  """After step 1 .. S."""
  if step == steps:
    return 0.0
  return 1 - step / steps if schedule == "linear" else math.cos(math.pi * step / (2 * steps))


def masked_count(schedule, size, step, steps):
  if schedule == "linear":
    return size * (steps - step) // steps
  return math.floor(size * masked_share(schedule, step, steps) + 1e-12)


def lowest(values, count):
  return sorted(range(len(values)), key=lambda n: (values[n], n))[:count]


def reparam(name, steps):
  _, condition, noise, schedule = name.split("-")
  scale = float(noise.removeprefix("stochastic")) if noise != "deterministic" else 0.0

  def rule(row, said, number, noise):
    s = number + 1
    left = masked_count(schedule, len(row), s, steps)
    scale_now = np.float32(scale) * np.float32(masked_share(schedule, s, steps))
    sure = [
      np.float32(w["scores"]) + scale_now * n["gumbel"] for w, n in zip(said, noise, strict=True)
    ]
    low = lowest(sure, left)
    for n, slot in enumerate(row):
      if slot["masked"] and n not in low:
        put(slot, said[n])
      elif not slot["masked"] and n in low:
        worse = said[n]["tokens"] == slot["token"] and said[n]["scores"] < slot["score"]
        if worse or condition == "uncond":
          mask(slot)
    return left == 0

  return rule


def mask_predict(name, steps):
  def rule(row, said, number, noise):
    left = 0 if number + 1 == steps else max(1, len(row) * (steps - number - 1) // steps)
    for slot, word in zip(row, said, strict=True):
      if slot["masked"]:
        put(slot, word)
    for n in lowest([slot["score"] for slot in row], left):
      mask(row[n])
    return left == 0

  return rule


def ordered(name, steps):
  measure = name.split("-")[0]
  scale = float((re.findall(r"stochastic([\d.]+)", name) or ["0"])[0])
  block = int((re.findall(r"block(\d+)", name) or ["10000"])[0])

  def plan(size):
    """(first slot of the block, how many) for every step."""
    blocks = math.ceil(size / block)
    of_block = size if measure == "left_to_right" else max(1, steps // blocks)
    for first in range(0, size, block):
      here = min(block, size - first)
      counts = [here // of_block + (n < here % of_block) for n in range(of_block)]
      yield from ((first, count) for count in counts if count)

  def sureness(n, word, noise):
    sure = {"confidence": "scores", "margin": "margin"}.get(measure)
    value = -n if measure == "left_to_right" else word[sure] if sure else -word["entropy"]
    return np.float32(value) + np.float32(scale) * noise["gumbel"]

  def rule(row, said, number, noise):
    first, count = list(plan(len(row)))[number]
    inside = [n for n in range(len(row)) if first <= n < first + block and row[n]["masked"]]
    least_sure_first = [-sureness(n, said[n], noise[n]) for n in inside]
    for n in lowest(least_sure_first, count):
      put(row[inside[n]], said[inside[n]])
    return not any(slot["masked"] for slot in row)

  return rule


def parallel(name, steps):
  kind, bound = re.match(r"(threshold|factor)([\d.]+)", name).groups()
  block = int((re.findall(r"block(\d+)", name) or ["10000"])[0])

  def rule(row, said, number, noise):
    first = min(n for n, slot in enumerate(row) if slot["masked"]) // block * block
    inside = [n for n in range(len(row)) if first <= n < first + block and row[n]["masked"]]
    inside.sort(key=lambda n: (-said[n]["scores"], n))
    sure = [math.exp(said[n]["scores"]) for n in inside]
    if kind == "threshold":
      count = sum(c >= float(bound) for c in sure)
    else:
      count = max((n for n, c in enumerate(sure, 1) if (n + 1) * (1 - c) < float(bound)), default=0)
    for n in inside[: max(1, count)]:
      put(row[n], said[n])
    return not any(slot["masked"] for slot in row)

  return rule


def ancestral(name, steps):
  grid = name.split("-")[1]

  def rule(row, said, number, noise):
    t, s = (masked_share(grid, n, steps) for n in (number, number + 1))
    for slot, word, draw in zip(row, said, noise, strict=True):
      if slot["masked"] and draw["uniform"] < (t - s) / t:
        put(slot, word)
    return not any(slot["masked"] for slot in row)

  return rule


def remask(name, steps):
  _, kind, grid = name.split("-")
  kind, eta = re.match(r"([a-z]+)([\d.]*)", kind).groups()

  def alpha(t):
    if kind != "loop":
      return 1 - t
    if t > 0.55:
      return 0.9 * (1 - t) / (1 - 0.55)
    return 0.9 if t >= 0.05 else 1 - t * (1 - 0.9) / 0.05

  def rule(row, said, number, noise):
    t, s = (masked_share(grid, n, steps) for n in (number, number + 1))
    most = min(1, (1 - alpha(s)) / alpha(t)) if alpha(t) else 1
    odds = [0 if slot["masked"] else math.exp(-math.exp(slot["score"])) for slot in row]
    for n, slot in enumerate(row):
      if kind == "confidence":
        sigma = 0 if slot["masked"] else most * odds[n] / sum(odds)
      elif kind == "loop":
        sigma = min(float(eta), most) if s >= 0.05 and t <= 0.55 else 0
      else:
        sigma = min(float(eta), most) if kind == "cap" else float(eta) * most
      draw = noise[n]["uniform"]
      if not slot["masked"]:
        if draw < sigma:
          mask(slot)
      elif draw < (alpha(s) - (1 - sigma) * alpha(t)) / (1 - alpha(t)):
        put(slot, said[n])
    return number + 1 == steps

  return rule


def dndm(name, steps):
  kind, grid = name.split("-")

  def rule(row, said, number, noise):
    passed = [1 - masked_share(grid, n + 1, steps) for n in range(steps)]
    times = [next(n for n, p in enumerate(passed) if draw["first"] < p) for draw in noise]
    if kind == "dndm":
      for slot, word, time in zip(row, said, times, strict=True):
        if time == number:
          put(slot, word)
    elif number in times:
      low = lowest([word["scores"] for word in said], sum(time > number for time in times))
      for n, slot in enumerate(row):
        if n in low:
          mask(slot)
        elif slot["masked"]:
          put(slot, said[n])
    return max(times) <= number

  return rule


TWINS = {
  "reparam": reparam, "ancestral": ancestral, "mask_predict": mask_predict,
  "left_to_right": ordered, "confidence": ordered, "entropy": ordered, "margin": ordered,
  "threshold": parallel, "factor": parallel, "remask": remask, "dndm": dndm, "dndm_topk": dndm,
}  # fmt: skip
OTHERS = (
  "reparam-cond-stochastic1.5-cosine", "reparam-uncond-deterministic-linear",
  "confidence-stochastic2-block3", "entropy-block5", "margin-block1", "threshold0.3",
  "threshold0.99-block3", "factor0.2", "factor3-block5", "remask-cap0.3-linear",
  "remask-rescale0.4-cosine", "remask-confidence-linear", "remask-loop0.5-cosine",
  "dndm_topk-linear",
)  # fmt: skip


@pytest.mark.parametrize("num_steps", [1, 7, 16])
@pytest.mark.parametrize("name", NAMES + OTHERS)
def test_steps_equal_the_slow_twin(name, num_steps, run_on_words):
  run = run_on_words(name, num_steps)
  rule = TWINS[re.match("[a-z_]+", name)[0]](name, num_steps)
  for b, real in enumerate(run.canvas):
    places = np.flatnonzero(real)
    row = [{"token": None, "masked": True, "score": -math.inf} for _ in places]
    done = not row
    for s in range(len(run.waits)):
      if not done:
        words = [
          {f: float(getattr(run.words, f)[s, b, n]) for f in Prediction._fields} for n in places
        ]
        draws = {"uniform": run.uniforms[s, b], "gumbel": run.gumbels[s, b],
                 "first": run.first_uniforms[b]}  # fmt: skip
        noise = [{kind: values[n] for kind, values in draws.items()} for n in places]
        before = [dict(slot) for slot in row]
        done = rule(row, words, s, noise)
        assert run.active[s, b] or row == before
      tokens, masked, scores, now_done = (x[s, b] for x in run.states[:4])
      assert now_done == done or s + 1 >= num_steps  # where the loop ends anyway
      assert masked[places].tolist() == [slot["masked"] for slot in row]
      assert scores[places].tolist() == [slot["score"] for slot in row]
      for n, slot in zip(places, row, strict=True):
        assert slot["masked"] or tokens[n] == slot["token"]
      assert not masked[~real].any()
      assert (scores[~real] == 0).all()
    assert done
    assert not any(slot["masked"] for slot in row)
  # A row waits only in steps that would have left it as it was, whatever the words.
  assert not run.idle_changes.any()
  # The loop may keep what it predicted at the positions that were read.
  assert not run.stuck.any()
