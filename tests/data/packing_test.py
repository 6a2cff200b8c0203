"""Rows of several examples: which share a row, and that none of them notices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.config import ComputeConfig, Contract, DataConfig, ModelConfig
from diffjax.data import features, packing, plan
from diffjax.diffusion import objectives, schedules, vocabulary
from diffjax.models import transformer
from diffjax.training import step
from diffjax.types import Batch

# ---- Which examples share a row


def best_fit_decreasing(lengths, capacity):
  """The obvious way: every item, the longest first, into the fullest row that holds it."""
  rows = []
  for length in sorted(lengths.tolist(), reverse=True):
    fitting = [row for row in rows if sum(row) + length <= capacity]
    if not fitting:
      rows.append(fitting := [])
      fitting = [fitting]
    max(fitting, key=sum).append(length)
  return sorted(map(sum, rows))


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_as_full_as_those_of_best_fit_decreasing(seed):
  random = np.random.default_rng(seed)
  capacity = int(random.integers(5, 60))
  lengths = random.integers(1, capacity + 1, random.integers(1, 80))
  lengths = lengths if seed % 2 else np.minimum(lengths, 1 + capacity // 4)
  rows = packing.assign_rows(lengths, capacity)
  assert set(rows.tolist()) == set(range(rows.max() + 1))
  filled = np.bincount(rows, lengths).astype(int)  # rows that are as full are as good as another
  assert sorted(filled) == best_fit_decreasing(lengths, capacity)


def test_rows_are_split_only_as_far_as_needed():
  bounds = np.array([0, 3, 4, 6])
  np.testing.assert_array_equal(packing.split_rows(bounds, 2), bounds)
  np.testing.assert_array_equal(packing.split_rows(bounds, 4), [0, 1, 3, 4, 6])
  np.testing.assert_array_equal(packing.split_rows(bounds, 6), np.arange(7))


LENGTHS = np.clip(np.random.default_rng(0).lognormal(3.6, 0.7, 4000), 4, 128).astype(np.int32)
LENGTHS[::50] = plan.DROPPED
INDEX = plan.LengthIndex(LENGTHS, abs(LENGTHS), abs(LENGTHS) // 2)
SECTION = DataConfig(max_length=128, batch_size=16, packing=True)


def test_an_epoch_of_packed_rows_has_every_example_once_and_few_padding():
  chosen = plan.Plan(INDEX, SECTION, 3)
  seen, used = [], 0
  for number in range(chosen.batches_per_epoch):
    examples, length, prompted, rows = chosen.batch(number)
    assert length == 128
    assert len(prompted) == len(examples) == len(rows)
    assert set(rows.tolist()) == set(range(16))
    assert (np.diff(rows) >= 0).all()
    filled = np.bincount(rows, LENGTHS[examples])
    assert filled.max() <= 128
    seen += examples.tolist()
    used += filled.sum()
  assert len(seen) == len(set(seen))
  # What does not fill the last batch waits: fewer than 16 rows, of few examples each.
  rows_left = 1 - len(seen) / len(INDEX.kept)
  assert rows_left < 16 / (chosen.batches_per_epoch * 16) * 3
  padding = 1 - used / (chosen.batches_per_epoch * 16 * 128)
  assert padding < 0.05
  assert abs(padding - chosen.counts.padding) < 0.01
  assert chosen.counts.packed == pytest.approx(len(seen) / (chosen.batches_per_epoch * 16), 0.02)


def test_every_epoch_packs_anew():
  chosen = plan.Plan(INDEX, SECTION, 3)

  def neighbours(epoch):
    pairs = set()
    for place in range(chosen.batches_per_epoch):
      examples, _, _, rows = chosen.batch(epoch * chosen.batches_per_epoch + place)
      together = rows[1:] == rows[:-1]
      pairs |= set(zip(examples[:-1][together], examples[1:][together], strict=True))
    return pairs

  first, second = neighbours(0), neighbours(1)
  assert len(first & second) < 0.02 * len(first)


def test_prompts_are_dropped_example_by_example():
  chosen = plan.Plan(INDEX, dataclasses.replace(SECTION, prompt_dropout=0.25), 3)
  batches = [chosen.batch(number) for number in range(40)]
  prompted = np.concatenate([batch.prompted for batch in batches])
  assert abs(prompted.mean() - 0.75) < 5 * (0.25 * 0.75 / len(prompted)) ** 0.5
  mixed = sum(
    len(set(batch.prompted[batch.rows == row])) == 2 for batch in batches for row in range(16)
  )
  assert mixed > 40  # rows in which some examples have a prompt and others none


def test_layout_of_packed_rows():
  row = lambda *ids, start: features.Row(np.array(ids, np.int32), start)
  rows = [[row(0, 5, 6, 2, start=2), row(0, 7, 2, start=1)], [], [row(0, 8, 2, start=1)]]
  tokens, segments, canvas = features.pack(rows, length=8, pad_id=1)
  np.testing.assert_array_equal(tokens[0], [0, 5, 6, 2, 0, 7, 2, 1])
  np.testing.assert_array_equal(segments, [[1, 1, 1, 1, 2, 2, 2, 0], [0] * 8, [1] * 3 + [0] * 5])
  np.testing.assert_array_equal(canvas[0], [0, 0, 1, 1, 0, 1, 1, 0])
  assert not canvas[1].any()


# ---- That none of them notices

CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=59)
MODEL = ModelConfig(
  vocab_size=60, width=16, layers=2, heads=2, ffn_width=32, max_positions=32, dropout=0.0
)
ROTARY = dataclasses.replace(
  MODEL, positions="rotary", norm="pre", norm_kind="rms", window=3, global_every=2,
  zero_mask_embedding=True, embedding_norm=False,
)  # fmt: skip
SIZES = ((3, 5), (2, 4), (4, 3))  # prompt with <s>, and canvas with </s>, of the examples of a row
PATTERNS = {
  "full": (MODEL, CONTRACT),
  "rotary, local": (ROTARY, CONTRACT),
  "blocks": (
    MODEL,
    dataclasses.replace(CONTRACT, attention="blocks", block_size=2, end="predicted", end_padding=2),
  ),
  "prefix": (MODEL, dataclasses.replace(CONTRACT, attention="prefix")),
  "causal, shifted": (MODEL, dataclasses.replace(CONTRACT, attention="causal", output_shift=1)),
}


def example_rows():
  """Examples whose ids are all their own: of example n those from 3 + 15 n on."""
  rows = []
  for number, (prompt, canvas) in enumerate(SIZES):
    ids = 3 + 15 * number + np.arange(prompt + canvas)
    rows.append(features.Row(ids.astype(np.int32), prompt))
  return rows


def batch_of(rows, length):
  arrays = features.pack(rows, length=length, pad_id=CONTRACT.pad_id)
  return Batch(*map(jnp.asarray, arrays), jnp.arange(len(rows)))


@functools.cache
def params_of(model):
  """Any will do; drawing them here compiles nothing."""
  draw = np.random.default_rng(0).normal
  shapes = jax.eval_shape(functools.partial(transformer.init, config=model), jax.random.key(0))
  return jax.tree.map(lambda leaf: draw(0, 0.3, leaf.shape).astype(leaf.dtype), shapes)


PACKED = batch_of([example_rows()], 24)
ALONE = batch_of([[row] for row in example_rows()], 24)


@pytest.mark.parametrize(("model", "contract"), PATTERNS.values(), ids=PATTERNS)
def test_nothing_leaks_from_one_example_of_a_row_into_another(model, contract):
  """Other ids in one example change nothing in the others; its first id is seen all through it."""
  ids, segments = (np.asarray(x[0]) for x in (PACKED.tokens, PACKED.segments))
  rows, firsts = [ids], []
  for segment in (1, 2, 3):
    own = segments == segment
    firsts.append(np.where(np.arange(24) == np.argmax(own), 59 - ids, ids))
    rows.append(np.where(own, 59 - ids, ids))
  tokens = np.stack([*rows, *firsts])
  repeated = lambda x: jnp.repeat(x, len(tokens), axis=0)

  @jax.jit
  def hidden(params, tokens):
    denoiser = transformer.bind(
      params, repeated(PACKED.segments), config=model, contract=contract, compute=ComputeConfig(),
      canvas=repeated(PACKED.canvas),
    )  # fmt: skip
    return denoiser.trunk(tokens, None)

  base, *others = np.asarray(hidden(params_of(model), tokens))
  for number, other in enumerate(others):
    changed = abs(other - base).max(-1)
    own = segments == 1 + number % 3
    assert changed[own].min() > 1e-4
    assert changed[~own].max() < 1e-6


def objective(**changes):
  return objectives.Objective(
    schedule=schedules.make("linear", power=1.0),
    **{
      "num_timesteps": 0, "weight": "elbo", "normalizer": "canvas", "times": "stratified",
      "mask_ratio": 0.0, "coupled": False, "label_smoothing": 0.0, "seed": 3, **changes,
    },
  )  # fmt: skip


def test_the_loss_of_a_packed_row_is_that_of_its_examples_alone():
  """The row's own noise, cut out example by example and read in rows of their own."""
  section = objective()
  bind = functools.partial(
    transformer.bind, config=MODEL, contract=CONTRACT, compute=ComputeConfig()
  )

  @jax.jit
  def packed(params):
    noised = objectives.noised(PACKED, 4, objective=section, rows=1, mask_id=CONTRACT.mask_id)
    loss, sums = step.loss_sums(
      params, {}, PACKED, jnp.int32(4), objective=section, rows=1, mask_id=CONTRACT.mask_id,
      chunk=64, shards=None, train=False, bind=bind,
    )  # fmt: skip
    return loss, sums.weight, noised

  @jax.jit
  def apart(params, xt, t, scored):
    w = objectives.weights(t, schedule=section.schedule, num_timesteps=0, kind="elbo")
    weights = objectives.score_weights(
      scored, ALONE.canvas, ALONE.segments, w, normalizer="canvas", label_smoothing=0.0
    )
    denoiser = bind(params, ALONE.segments, canvas=ALONE.canvas)
    head = denoiser.head
    features = head.transform(head.params, denoiser.trunk(xt, t))
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    loss, _ = vocabulary.cross_entropy(
      flat(features), head, flat(ALONE.tokens), flat(weights.nll), None, chunk=64, shards=None
    )
    return loss, weights.total

  def cut(values, fill):
    values = np.asarray(values)
    rows = np.full(ALONE.tokens.shape, fill, values.dtype)
    for number in range(3):
      own = values[0, np.asarray(PACKED.segments)[0] == number + 1]
      rows[number, : len(own)] = own
    return rows

  have, total, noised = packed(params_of(MODEL))
  assert 0 < noised.scored.sum() < PACKED.canvas.sum()
  want, of = apart(
    params_of(MODEL), cut(noised.xt, CONTRACT.pad_id), cut(noised.t, 1.0),
    cut(noised.scored, False),
  )  # fmt: skip
  np.testing.assert_allclose(have, want, rtol=1e-5)
  assert total == of == 3  # every example counts once, whatever its length


@pytest.mark.parametrize("times", ["stratified", "independent"])
def test_every_example_of_a_row_draws_its_own_noise_level(times):
  rows = 64
  batch = Batch(*(jnp.repeat(x, rows, axis=0) for x in PACKED[:3]), jnp.arange(rows))
  noise = functools.partial(
    objectives.noised, objective=objective(times=times), rows=rows, mask_id=CONTRACT.mask_id
  )
  noised = jax.jit(noise)(batch, 7)
  levels = np.asarray(noised.t).T[[0, 8, 14]]  # [3, rows], where the examples begin
  for number, level in enumerate(levels, 1):
    own = np.asarray(noised.t)[:, np.asarray(PACKED.segments)[0] == number]
    assert (own == level[:, None]).all()  # one level all through an example
    cells = np.floor(np.sort(1 - level) * rows)
    if times == "stratified":  # as evenly spread as the rows of a batch of one example each
      assert len(set(cells.tolist())) >= rows - 1
    assert level.min() < 0.1
    assert level.max() > 0.9
  for one, other in ((0, 1), (0, 2), (1, 2)):
    assert (abs(levels[one] - levels[other]) > 1e-4).all()
