import functools

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffjax.diffusion import processes
from diffjax.models import transformer
from diffjax.types import Batch

MASK = 4


@functools.partial(jax.jit, static_argnames="length")
def row_uniform(key, index, length):
  return processes.row_uniform(key, index, length)


@jax.jit
def corrupt(uniform, batch, alpha):
  return processes.corrupt(uniform, batch.tokens, batch.canvas, alpha, mask_id=MASK)


def random_batch(rows, length, first=0):
  draws = np.random.default_rng(rows)
  return Batch(
    tokens=draws.integers(0, 9, (rows, length)).astype(np.int32),
    segments=np.ones((rows, length), np.int32),
    canvas=draws.random((rows, length)) < 0.6,
    index=np.arange(first, first + rows, dtype=np.int32),
  )


def test_only_canvas_is_masked_even_where_the_prompt_holds_the_mask_id():
  batch = random_batch(64, 20)  # tokens include MASK itself, in the canvas and outside
  uniform = np.asarray(row_uniform(jax.random.key(0), batch.index, 20))
  xt, corrupted, scored = jax.device_get(corrupt(uniform, batch, np.full((64, 20), 0.5)))
  assert not (corrupted & ~batch.canvas).any()
  assert (scored == corrupted).all()
  assert (xt == np.where(corrupted, MASK, batch.tokens)).all()
  assert ((xt == MASK) & ~corrupted).any()  # why the mask is explicit
  assert (corrupted == (batch.canvas & (uniform < 0.5))).all()


def test_the_ends_of_time_mask_nothing_and_everything():
  batch = random_batch(64, 20)
  uniform = np.array(row_uniform(jax.random.key(0), batch.index, 20))
  uniform[0, 0] = 0
  for alpha, expected in ((1.0, np.zeros_like(batch.canvas)), (0.0, batch.canvas)):
    _, corrupted, _ = corrupt(uniform, batch, np.full((64, 20), alpha))
    np.testing.assert_array_equal(corrupted, expected)


def test_a_rows_draws_depend_on_its_number_alone():
  key = jax.random.key(3)
  index = np.int32([5, 0, 17, 5])
  together = np.asarray(row_uniform(key, index, 16))
  alone = [row_uniform(key, index[row : row + 1], 16) for row in range(4)]
  np.testing.assert_array_equal(together, np.concatenate(alone))
  np.testing.assert_array_equal(together[0], together[3])
  assert len(np.unique(together[:3])) > 45  # the three numbers have draws of their own


def test_draws_are_uniform_and_uncorrelated_between_rows_and_positions():
  rows, length = 2000, 50
  draws = np.asarray(row_uniform(jax.random.key(1), np.arange(rows, dtype=np.int32), length))
  assert draws.min() >= 0
  assert draws.max() < 1
  counts = np.histogram(draws, 20, (0, 1))[0]
  share = rows * length / 20
  assert np.abs(counts - share).max() < 5 * np.sqrt(share * 0.95)
  centred = (draws - 0.5) * np.sqrt(12)
  for product in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
    assert abs(product.sum()) < 5 * np.sqrt(product.size)


def packed_rows(rows, length, examples):
  """Segments and canvas of rows of examples with contiguous answers, one without any."""
  draws = np.random.default_rng(3)
  segments, canvas = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
  for row in range(rows):
    bounds = np.sort(draws.choice(np.arange(1, length), examples, replace=False))
    for segment, (start, stop) in enumerate(zip([0, *bounds], bounds, strict=False), 1):
      segments[row, start:stop] = segment
      canvas[row, start + draws.integers(0, stop - start + 1) : stop] = True
  return segments, canvas


def test_one_block_is_what_attention_orders_as_one():
  rows, length, size = 200, 40, 3
  segments, canvas = packed_rows(rows, length, 3)
  order = jax.jit(functools.partial(transformer.answer_order, attention="blocks", block_size=size))(
    canvas, segments
  )
  of_example = np.random.default_rng(0).random((rows, 4)).astype(np.float32)
  of_example[::5] = np.float32(1 - 2**-24)  # the largest draw there is
  uniform = np.take_along_axis(of_example, segments, 1)
  narrow = jax.jit(processes.one_block, static_argnames="block_size")
  have = np.asarray(narrow(uniform, canvas, segments, block_size=size))
  counts = []
  for row in range(rows):
    for segment in (1, 2, 3):
      mine = (segments[row] == segment) & canvas[row]
      blocks = -(-mine.sum() // size)
      counts.append(blocks)
      drawn = 1 + int(np.float64(of_example[row, segment]) * blocks)
      np.testing.assert_array_equal(have[row] & mine, mine & (np.asarray(order[row]) == drawn))
      assert (have[row] & mine).any() == mine.any()
  assert not (have & ~canvas).any()
  assert {0, 1, 2, 5} <= set(counts)


def test_twins_are_neighbours_and_numbered():
  batch = random_batch(6, 5, first=10)
  doubled = jax.device_get(jax.jit(processes.twins)(batch))
  np.testing.assert_array_equal(doubled.index, np.arange(20, 32))
  for before, after in zip(batch[:3], doubled[:3], strict=True):
    assert after.dtype == before.dtype
    np.testing.assert_array_equal(after, np.repeat(before, 2, axis=0))


def test_twins_move_no_data_between_shards():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  compiled = jax.jit(processes.twins, in_shardings=rows).lower(random_batch(16, 5)).compile()
  text = compiled.as_text()
  for collective in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
    assert collective not in text
  doubled = compiled(jax.device_put(random_batch(16, 5), rows))
  assert all(leaf.sharding.is_equivalent_to(rows, leaf.ndim) for leaf in doubled)
