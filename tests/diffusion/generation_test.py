"""The decoding loop: against a slow twin, with an oracle, and what it may never touch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from diffjax.diffusion import generation, vocabulary
from diffjax.diffusion.generation import Canvas, Side
from diffjax.diffusion.strategies import parse
from diffjax.diffusion.strategies.reparam import masked_counts
from diffjax.types import Denoiser, Head

V, MASK, PADDING_ROWS = 24, 20, 3  # ids 21, 22, 23 are padding rows of the table
ROWS, LENGTH, SLOTS = 12, 40, 16
UNCOND = "reparam-uncond-deterministic-cosine"


def head():
  """Hidden states are logits; the rows that are not allowed would win if they were."""
  rows = np.arange(V)
  allowed = (rows < V - PADDING_ROWS) & (rows != MASK)
  bias = np.where(allowed, 0, 100).astype(np.float32)
  return Head(lambda params, hidden: hidden, {}, np.eye(V, dtype=np.float32), bias, allowed)


def table(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(0, 1.5, shape), jnp.float32)


def chaotic_denoiser(mixing=6):
  """Logits that depend on the token, the position and everything else in the row."""

  def trunk(xt, t):
    assert t is None
    mixed = table(1, V, V)[xt].mean(1, keepdims=True) * mixing
    return table(2, V, V)[xt] + table(3, LENGTH, V) + jnp.roll(table(4, V, V)[xt], 1, 1) + mixed

  return Denoiser(trunk, head())


def make_rows(seed=0):
  """Rows whose prompts hold mask ids, canvases of every size and place, gaps included."""
  random = np.random.default_rng(seed)
  tokens = random.integers(0, V - PADDING_ROWS, (ROWS, LENGTH)).astype(np.int32)
  tokens[:, ::5] = MASK
  sizes = [0, 1, 2, SLOTS, *random.integers(1, SLOTS + 1, ROWS - 4)]
  canvas = np.zeros((ROWS, SLOTS), np.int32)
  for row, size in enumerate(sizes):
    canvas[row, :size] = np.sort(random.choice(LENGTH, size, replace=False))
  return tokens, canvas, np.arange(SLOTS) < np.asarray(sizes)[:, None]


TOKENS, CANVAS, CANVAS_MASK = make_rows()
KEYS = jax.random.split(jax.random.key(7), ROWS)
compiled_count = 0


@jax.jit
def decode(strategy, draw, tokens, canvas, canvas_mask, keys):
  global compiled_count
  compiled_count += 1
  side = Side(chaotic_denoiser(), tokens, Canvas(canvas, canvas_mask))
  return generation.generate(
    [side], keys, strategy, draw, mask_id=MASK, chunk=64, keep_trace=True
  )  # fmt: skip


def run(name, num_steps=10, temperature=0.0):
  strategy = parse(name, num_steps=num_steps, canvas_size=SLOTS)
  draw = vocabulary.draw(temperature=temperature)
  return jax.device_get(decode(strategy, draw, TOKENS, CANVAS, CANVAS_MASK, KEYS))


@jax.jit
def network(xt):
  return chaotic_denoiser().trunk(xt, None)


@jax.jit
def sample(logits, keys, draw):
  return vocabulary.predict(head(), logits, chunk=64, keys=keys, draw=draw)


@jax.jit
def noise_of(rows, step, positions):
  """The noise of some positions, by the rule as written: row, then step, then position."""

  def one(row, position):
    key = jax.random.fold_in(jax.random.fold_in(KEYS[row], step), position)
    return jax.random.fold_in(key, 0), jax.random.gumbel(jax.random.fold_in(key, 1))

  return jax.vmap(one)(rows, positions)


def slow_decode(name, steps, temperature):
  """The paper's decoder, position by position, which asks the network in every step.

  Returns (rows, scores, steps of each row, in how many of them the row was not as in the one
  before).
  """
  _, condition, noise, schedule = name.split("-")
  scale = float(noise.removeprefix("stochastic")) if noise != "deterministic" else 0.0
  counts = masked_counts(schedule, steps, SLOTS)
  rows = TOKENS.copy()
  slots = [(b, int(n)) for b in range(ROWS) for n in CANVAS[b][CANVAS_MASK[b]]]
  masked, stored = dict.fromkeys(slots, True), dict.fromkeys(slots, 0.0)
  taken, calls, shown = [0] * ROWS, [0] * ROWS, [None] * ROWS
  owners, places = (np.asarray(x) for x in zip(*slots, strict=True))
  for s in range(1, steps + 1):
    for slot in slots:
      if masked[slot]:
        rows[slot] = MASK
    logits = np.asarray(network(rows))[owners, places]
    keys, gumbels = noise_of(owners, s - 1, places)
    if temperature > 0:
      said = sample(logits, keys, vocabulary.draw(temperature=temperature))
      words, scores = np.asarray(said.tokens), np.asarray(said.scores)
    else:
      legal = logits.copy()
      legal[:, [MASK, *range(V - PADDING_ROWS, V)]] = -np.inf
      words = legal.argmax(-1)
      scores = legal.max(-1) - np.log(np.exp(legal - legal.max(-1, keepdims=True)).sum(-1))
      scores -= legal.max(-1)
    said = dict(zip(slots, zip(words, scores, strict=True), strict=True))
    rate = 1 - s / steps if schedule == "linear" else math.cos(math.pi * s / (2 * steps))
    sure = {
      slot: said[slot][1] + scale * rate * float(gumbel)
      for slot, gumbel in zip(slots, gumbels, strict=True)
    }
    for b in range(ROWS):
      mine = [slot for slot in slots if slot[0] == b]
      if not mine or (taken[b] and counts[taken[b] - 1, len(mine)] == 0):
        continue
      taken[b] = s
      calls[b] += rows[b].tolist() != shown[b]
      shown[b] = rows[b].tolist()
      lowest = sorted(mine, key=lambda slot: (sure[slot], slot))[: counts[s - 1, len(mine)]]
      for slot in mine:
        word, score = said[slot]
        if masked[slot] and slot not in lowest:
          rows[slot], masked[slot], stored[slot] = word, False, score
          continue
        worse = word == rows[slot] and score < stored[slot]
        if not masked[slot] and slot in lowest and (worse or condition == "uncond"):
          masked[slot] = True
  return rows, stored, taken, calls


@pytest.mark.parametrize(
  ("name", "steps", "temperature"),
  [
    (UNCOND, 10, 0.0),
    (UNCOND, 3, 0.0),
    ("reparam-uncond-deterministic-linear", 16, 0.0),
    ("reparam-cond-deterministic-cosine", 10, 0.0),
    ("reparam-cond-deterministic-linear", 7, 0.0),
    ("reparam-uncond-stochastic2.0-cosine", 10, 0.8),
    ("reparam-uncond-stochastic0.5-linear", 5, 0.8),
  ],
)
def test_loop_equals_the_slow_decoder(name, steps, temperature):
  fast = run(name, steps, temperature)
  rows, stored, taken, calls = slow_decode(name, steps, temperature)
  assert fast.trace.active.sum(0).tolist() == taken
  assert fast.calls.tolist() == calls
  assert max(calls) <= fast.network_calls <= max(taken)
  for b in range(ROWS):
    places = CANVAS[b][CANVAS_MASK[b]]
    assert fast.tokens[b][CANVAS_MASK[b]].tolist() == rows[b, places].tolist()
    expected = [stored[b, n] for n in places]
    np.testing.assert_allclose(fast.scores[b][CANVAS_MASK[b]], expected, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_nothing_illegal_is_ever_written(temperature):
  name = UNCOND if temperature == 0 else "reparam-uncond-stochastic2.0-cosine"
  decoded = run(name, 10, temperature)
  shown = decoded.trace.tokens[:10][~decoded.trace.masked[:10] & CANVAS_MASK]
  for seen in (decoded.tokens[CANVAS_MASK], shown):
    assert len(seen) > 50
    assert (seen != MASK).all()
    assert (seen < V - PADDING_ROWS).all()


def test_the_network_sees_the_canvas_changed_and_nothing_else():
  seen = []

  def trunk(xt, t):
    jax.debug.callback(lambda xt: seen.append(np.asarray(xt)), xt, ordered=True)
    return chaotic_denoiser().trunk(xt, t)

  @jax.jit
  def watched(strategy):
    side = Side(Denoiser(trunk, head()), TOKENS, Canvas(CANVAS, CANVAS_MASK))
    return generation.generate([side], KEYS, strategy, vocabulary.draw(), mask_id=MASK, chunk=64)

  decoded = watched(parse(UNCOND, num_steps=10, canvas_size=SLOTS))
  jax.effects_barrier()
  assert decoded.network_calls == len(seen)
  on_canvas = np.zeros((ROWS, LENGTH), bool)
  for b in range(ROWS):
    on_canvas[b, CANVAS[b, CANVAS_MASK[b]]] = True
  assert (TOKENS[~on_canvas] == MASK).sum() > 20
  assert (seen[0][on_canvas] == MASK).all()
  for rows in seen:
    assert (rows == TOKENS)[~on_canvas].all()


def test_the_loop_ends_when_every_row_is_final():
  decoded = run(UNCOND, 10)
  sizes = CANVAS_MASK.sum(-1)
  counts = masked_counts("cosine", 10, SLOTS)
  for size, steps in zip(sizes, decoded.trace.active.sum(0), strict=True):
    assert steps == (0 if size == 0 else 1 + np.argmin(counts[:, size] > 0))
  assert (decoded.calls[sizes == 1] == 1).all()
  assert (decoded.calls[sizes == 0] == 0).all()
  # A batch of one-token canvases costs one call, however many steps are asked for.
  small = CANVAS_MASK & (np.arange(SLOTS) < 1)
  for steps in (1, 10, 16):
    strategy = parse(UNCOND, num_steps=steps, canvas_size=SLOTS)
    assert decode(strategy, vocabulary.draw(), TOKENS, CANVAS, small, KEYS).network_calls == 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_skipped_call_changes_no_bit(monkeypatch, temperature):
  """The same program twice, once made to ask in every step."""
  few = CANVAS_MASK & (np.arange(SLOTS) < 3)  # in most of 16 steps nothing changes
  strategy = parse("reparam-cond-deterministic-cosine", num_steps=16, canvas_size=SLOTS)
  cond, asked = jax.lax.cond, []

  def trunk(xt, t):
    jax.debug.callback(lambda: asked.append(1))
    return chaotic_denoiser(mixing=1).trunk(xt, t)

  @jax.jit
  def decode_asking(always):
    monkeypatch.setattr(jax.lax, "cond", lambda p, look, keep: cond(p | always, look, keep))
    side = Side(Denoiser(trunk, head()), TOKENS, Canvas(CANVAS, few))
    decoded = generation.generate(
      [side], KEYS, strategy, vocabulary.draw(temperature=temperature),
      mask_id=MASK, chunk=64, keep_trace=True,
    )  # fmt: skip
    monkeypatch.undo()
    return decoded

  results, made = [], []
  for always in (True, False):
    results.append(jax.device_get(decode_asking(always)))
    jax.effects_barrier()
    made.append(len(asked))
    asked.clear()
  asking, skipping = results
  assert made == [skipping.trace.active.any(-1).sum(), skipping.network_calls]
  assert made[1] < made[0]
  assert skipping.calls.sum() < skipping.trace.active.sum() / 2  # each row alone would save more
  assert (skipping.calls <= skipping.network_calls).all()
  jax.tree.map(np.testing.assert_array_equal, asking, skipping)


def test_on_step_gets_every_step_in_order():
  steps = []
  keep = lambda step: steps.append(jax.tree.map(np.asarray, step))

  @jax.jit
  def watched(strategy):
    side = Side(chaotic_denoiser(), TOKENS, Canvas(CANVAS, CANVAS_MASK))
    return generation.generate(
      [side], KEYS, strategy, vocabulary.draw(), mask_id=MASK, chunk=64,
      keep_trace=True, on_step=lambda step: io_callback(keep, None, step, ordered=True),
    )  # fmt: skip

  decoded = watched(parse(UNCOND, num_steps=10, canvas_size=SLOTS))
  jax.effects_barrier()
  assert len(steps) == decoded.trace.active.any(-1).sum() > 3
  for number, step in enumerate(steps):
    kept = jax.tree.map(lambda all_: all_[number], decoded.trace)  # noqa: B023 (used at once)
    jax.tree.map(np.testing.assert_array_equal, step, kept)


def test_a_revealed_end_cuts_its_row():
  """A network that always says the end at canvas slot 3, more surely than anything else."""
  end = 7
  places = np.tile(np.arange(10, 10 + SLOTS, dtype=np.int32), (ROWS, 1))
  sizes = np.arange(ROWS) + 1
  real = np.arange(SLOTS) < sizes[:, None]
  said = jnp.zeros((LENGTH, V)).at[:, 5].set(4).at[13].set(jnp.eye(V)[end] * 9)

  @jax.jit
  def ending(strategy):
    side = Side(
      Denoiser(lambda xt, t: jnp.broadcast_to(said, (*xt.shape, V)), head()),
      TOKENS, Canvas(places, real),
    )  # fmt: skip
    return generation.generate(
      [side], KEYS, strategy, vocabulary.draw(), mask_id=MASK, chunk=64, end_id=end
    )

  for name in (UNCOND, "left_to_right"):
    decoded = jax.device_get(ending(parse(name, num_steps=SLOTS, canvas_size=SLOTS)))
    for b, size in enumerate(sizes):
      want = [5, 5, 5, end, *[end] * (size - 4)][:size]
      assert decoded.tokens[b, :size].tolist() == want, name
      assert (decoded.scores[b, 4:size] == 0).all()
      assert (decoded.scores[b, : min(size, 4)] < 0).all()
  assert decoded.calls.max() <= 5


def test_trace_ends_in_the_result_and_holds_every_step():
  decoded = run(UNCOND, 10)
  counts = masked_counts("cosine", 10, SLOTS)
  for b, size in enumerate(CANVAS_MASK.sum(-1)):
    steps = decoded.trace.active[:, b].sum()
    masked = decoded.trace.masked[:steps, b, :size]
    assert masked.sum(-1).tolist() == counts[:steps, size].tolist()
    if size:
      final = decoded.trace.tokens[steps - 1, b, :size]
      assert (final == decoded.tokens[b, :size]).all()


def test_numbers_of_steps_and_temperatures_share_a_program():
  run(UNCOND, 10)
  run("reparam-uncond-stochastic2.0-cosine", 10, temperature=0.8)
  before = compiled_count
  run(UNCOND, 4), run(UNCOND, 16), run("reparam-uncond-deterministic-linear", 9)
  run("reparam-uncond-stochastic0.1-linear", 12, temperature=0.3)
  assert compiled_count == before
  run(UNCOND, 17)
  assert compiled_count == before + 1


def test_noise_does_not_depend_on_row_number_or_on_padding():
  name, temperature = "reparam-uncond-stochastic2.0-cosine", 0.8
  whole = run(name, 10, temperature)
  order = np.random.default_rng(0).permutation(ROWS)
  strategy = parse(name, num_steps=10, canvas_size=SLOTS)
  draw = vocabulary.draw(temperature=temperature)
  moved = decode(strategy, draw, TOKENS[order], CANVAS[order], CANVAS_MASK[order], KEYS[order])
  assert (np.asarray(moved.tokens) == whole.tokens[order]).all()
  assert (np.asarray(moved.scores) == whole.scores[order]).all()
  wide = lambda x: np.pad(x, ((0, 4), (0, 5)))
  more = parse(name, num_steps=10, canvas_size=SLOTS + 5)
  keys = jax.random.split(jax.random.key(99), ROWS + 4).at[:ROWS].set(KEYS)
  tokens = np.pad(TOKENS, ((0, 4), (0, 0)))
  padded = decode(more, draw, tokens, wide(CANVAS), wide(CANVAS_MASK), keys)
  assert (np.asarray(padded.tokens)[:ROWS, :SLOTS] == whole.tokens).all()


def test_oracle_gives_gold_whatever_the_order():
  gold = np.where(TOKENS == MASK, 5, TOKENS)
  noise = table(5, ROWS, LENGTH)  # confidence differs, the argmax does not

  def trunk(xt, t):
    return jax.nn.one_hot(gold, V) * (40 + noise[..., None])

  @jax.jit
  def oracle(strategy):
    side = Side(Denoiser(trunk, head()), TOKENS, Canvas(CANVAS, CANVAS_MASK))
    return generation.generate([side], KEYS, strategy, vocabulary.draw(), mask_id=MASK, chunk=50)

  for scale, schedule, steps in ((0, "cosine", 1), (0, "linear", 5), (9, "cosine", 16)):
    name = f"reparam-uncond-stochastic{scale}-{schedule}"
    decoded = oracle(parse(name, num_steps=steps, canvas_size=SLOTS))
    assert decoded.trace is None
    for b in range(ROWS):
      places = CANVAS[b][CANVAS_MASK[b]]
      assert (decoded.tokens[b, CANVAS_MASK[b]] == gold[b, places]).all()
