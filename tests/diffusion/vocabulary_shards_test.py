"""The streamed loss and projection where positions and vocabulary are split over a mesh."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax import sharding
from diffjax.config import MeshConfig
from diffjax.diffusion import vocabulary
from diffjax.types import GENERATOR, Head

ROWS, LENGTH, WIDTH, VOCABULARY = 8, 6, 8, 64
MESHES = [(8, 1, 1, 1), (2, 4, 1, 1), (2, 2, 2, 1), (1, 8, 1, 1), (4, 1, 2, 1), (1, 2, 2, 2)]


def shards_of(sizes):
  return sharding.shards(
    sharding.make_mesh(MeshConfig(**dict(zip(sharding.AXES, sizes, strict=True))))
  )


def make_head(rows: int = VOCABULARY) -> Head:
  random = np.random.default_rng(0)
  allowed = np.arange(rows) < rows - 9  # none of the last shard of 8
  allowed[5] = False
  return Head(
    transform=lambda params, hidden: hidden,
    params={},
    table=random.normal(size=(rows, WIDTH)).astype(np.float32),
    bias=random.normal(size=rows).astype(np.float32),
    allowed=allowed,
  )


def make_data(scored):
  """Features, targets and both weights; scored bool[ROWS, LENGTH] are those that count."""
  random = np.random.default_rng(1)
  features = random.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
  targets = random.integers(6, VOCABULARY - 9, size=(ROWS, LENGTH)).astype(np.int32)
  weight = lambda: np.where(scored, random.random((ROWS, LENGTH)), 0).astype(np.float32)
  return features, targets, weight(), weight()


def naive(features, table, bias, allowed, targets, nll, smooth):
  log_p = jax.nn.log_softmax(jnp.where(allowed, features @ table.T + bias, -jnp.inf))
  minus = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  mean = -jnp.where(allowed, log_p, 0).sum(-1) / allowed.sum()
  return jnp.sum(nll * minus + smooth * mean), jnp.where((nll != 0) | (smooth != 0), minus, 0)


def with_gradients(loss):
  return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)


@functools.cache
def streamed(sizes, chunk=2):
  """(features, table, bias, targets, nll, smooth) -> loss, nll and gradients, placed on a mesh."""
  shards = shards_of(sizes) if sizes else None

  def loss(features, table, bias, *weights):
    head = make_head()._replace(table=table, bias=bias)
    return vocabulary.cross_entropy(features, head, *weights, chunk=chunk, shards=shards)

  if not shards:
    return jax.jit(with_gradients(loss))
  rows, table = (NamedSharding(shards.mesh, P(x)) for x in (shards.rows, shards.vocabulary))
  layout = (rows, table, table, rows, rows, rows)
  return jax.jit(with_gradients(loss), in_shardings=layout)


@functools.cache
def twin():
  """The same by the naive loss, on one device."""
  allowed = make_head().allowed
  return jax.jit(with_gradients(lambda f, t, b, *weights: naive(f, t, b, allowed, *weights)))


def arguments(scored):
  head, (features, *weights) = make_head(), make_data(scored)
  return features, head.table, head.bias, *weights


def by_row(*counts):
  """bool[ROWS, LENGTH]: how many positions of each row count."""
  return np.arange(LENGTH) >= LENGTH - np.asarray(counts)[:, None]


SCORED = [by_row(1, 6, 0, 3, 0, 0, 5, 2), by_row(*[6] * 8), by_row(*[0] * 7, 1)]


def assert_close(have, want, tolerance=1e-5):
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
  jax.tree.map(close, jax.device_get(have), jax.device_get(want))


@pytest.mark.parametrize("sizes", MESHES)
def test_loss_and_gradients_equal_those_of_one_device_and_the_naive_ones(sizes):
  exact = twin()
  for scored in SCORED:
    have = streamed(sizes)(*arguments(scored))
    one = streamed(None)(*arguments(scored))
    assert_close(have, one)
    assert_close(have, exact(*arguments(scored)))
    assert float(have[0][0]) == pytest.approx(float(one[0][0]), rel=1e-5)
    again = streamed(sizes)(*arguments(scored))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(have))


def test_nothing_counts_nothing_moves():
  (loss, nll), gradients = streamed((2, 4, 1, 1))(*arguments(by_row(*[0] * 8)))
  assert loss == 0
  assert not np.any(nll)
  assert all(not np.any(x) for x in gradients)


def collectives(compiled: str) -> list[tuple[str, tuple[int, ...]]]:
  """The kind and the shape of every result of a collective."""
  found = []
  line = (
    r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
  )
  for results, kind in re.findall(line, compiled):
    for shape in re.findall(r"\w+\[([\d,]*)\]", results):
      found.append((kind, tuple(int(size) for size in shape.split(",") if size)))
  return found


@pytest.mark.parametrize("sizes", [(2, 4, 1, 1), (1, 2, 2, 2)])
def test_no_collective_moves_the_table_or_whole_logits(sizes):
  compiled = streamed(sizes).lower(*arguments(SCORED[0])).compile().as_text()
  moved = collectives(compiled)
  assert {"all-reduce", "reduce-scatter"} <= {kind for kind, _ in moved}
  assert all(VOCABULARY not in shape for _, shape in moved)
  # Of the table's size there is each device's own gradient alone, added over what shares no table.
  parts = sizes[1] * sizes[2]
  assert ("all-reduce", (VOCABULARY // parts, WIDTH)) in moved


def test_a_visit_takes_the_memory_of_chunk_logits_and_matmuls_stay_large():
  size = lambda parts, rows, width, positions: vocabulary._visit_size(
    256, positions, np.zeros((rows, width), bool), vocabulary._Axes(parts=parts, sharing=parts)
  )
  assert size(1, 250_112, 4, 10**6) == 256
  assert size(64, 3908, 4, 10**6) == 256 * 64
  # Features of D > V / parts take no more memory either: so many fewer positions.
  wide = size(256, 977, 4096, 10**6)
  assert wide % 256 == 0
  assert abs(wide * 4096 - 256 * 250_112) < 256 * 4096
  assert size(8, 100, 4, 3) == 24  # no more than there are
  assert size(8, 1, 4, 1) == 8


DEADLOCK = """
import sys
sys.path.insert(0, sys.argv[1])
import conftest
import numpy as np
import vocabulary_shards_test as test

for sizes, *cases in test.VISITS:
  for visits in cases:
    arguments = test.arguments(test.by_visits(sizes, visits))
    have = test.streamed(sizes, chunk=1)(*arguments)
    test.assert_close(have, test.streamed(None)(*arguments))
sizes, visits = (2, 2, 2, 1), (4, 1)
for kind in ("argmax", "sampled"):
  test.check_predictions(sizes, test.VOCABULARY, kind, test.by_visits(sizes, visits), chunk=1)
print("done")
"""
# Meshes, and how often every group of shards that share a table visits it: one has nothing to
# wait for, or more to do than the next, and in each group the last shards have nothing.
VISITS = [
  ((1, 8, 1, 1), (4,), (3,)),
  ((2, 2, 2, 1), (1, 4), (3, 0)),
  ((2, 2, 1, 2), (1, 2, 3, 4), (0, 4, 0, 1)),
  ((1, 2, 2, 2), (0, 3), (2, 1)),
]


def by_visits(sizes, visits):
  """bool[ROWS, LENGTH]: with chunks of one position, each group visits so often, none in full."""
  data, fsdp, tensor, sequence = sizes
  parts = fsdp * tensor
  axes = vocabulary._Axes(parts=parts, sharing=fsdp)
  own = ROWS * LENGTH // (data * fsdp * sequence)
  size = vocabulary._visit_size(1, own, np.zeros((VOCABULARY // parts, WIDTH)), axes)
  counts = np.maximum(0, size * np.asarray(visits) - 1)
  assert size > 1
  assert (counts <= own * fsdp).all()
  scored = np.arange(own * fsdp) < counts[:, None]
  scored = scored.reshape(data, sequence, ROWS // data, LENGTH // sequence)
  return scored.swapaxes(1, 2).reshape(ROWS, LENGTH)


def test_groups_that_visit_their_table_up_to_four_times_or_never_wait_for_nobody():
  here = os.path.dirname(__file__)
  paths = [here, os.path.dirname(here), *sys.path]
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
  program = [sys.executable, "-c", DEADLOCK, os.path.dirname(here)]
  done = subprocess.run(program, env=environment, timeout=200, capture_output=True, text=True)
  assert done.stdout.endswith("done\n"), done.stderr


LARGE = 2 * vocabulary._CPU_TILE + 304  # shards end inside tiles
NEEDS = frozenset({"entropy", "margin"})
DRAWS = {
  "argmax": vocabulary.draw(),
  "sampled": vocabulary.draw(temperature=0.9),
  "truncated": vocabulary.draw(temperature=1.2, top_p=0.9, top_k=50),
}


def predict(sizes, rows, draw, hidden, wanted, chunk=4):
  head, shards = make_head(rows), shards_of(sizes) if sizes else None
  keys = jax.random.split(jax.random.key(3, impl=GENERATOR), (ROWS, LENGTH))
  head = head._replace(transform=lambda params, hidden: hidden * 0.5)

  def run(table, hidden, wanted, draw, keys):
    return vocabulary.predict(
      head._replace(table=table), hidden, chunk=chunk, draw=draw, needs=NEEDS, wanted=wanted,
      shards=shards, keys=keys if draw.sampled else None,
    )  # fmt: skip

  if not shards:
    return jax.device_get(jax.jit(run)(head.table, hidden, wanted, draw, keys))
  split, table = (NamedSharding(shards.mesh, P(x)) for x in (shards.rows, shards.vocabulary))
  compiled = (
    jax.jit(run, in_shardings=(table, split, split, None, split))
    .lower(head.table, hidden, wanted, draw, keys)
    .compile()
  )
  assert all(rows not in shape for kind, shape in collectives(compiled.as_text())), "whole table"
  placed = jax.device_put((head.table, hidden, wanted, keys), (table, split, split, split))
  return jax.device_get(
    compiled(*placed[:3], jax.device_put(draw, sharding.replicated(shards.mesh)), placed[3])
  )


@functools.cache
def on_one_device(rows, kind):
  hidden, *_ = make_data(SCORED[0])
  return predict(None, rows, DRAWS[kind], 2 * hidden, SCORED[1])


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize(
  ("sizes", "rows"), [((2, 2, 2, 1), VOCABULARY), ((1, 8, 1, 1), LARGE)], ids=["one tile", "three"]
)
def test_predictions_equal_those_of_one_device(sizes, rows, kind):
  check_predictions(sizes, rows, kind, SCORED[0])


def check_predictions(sizes, rows, kind, wanted, **options):
  hidden, *_ = make_data(SCORED[0])
  want = on_one_device(rows, kind)
  have = predict(sizes, rows, DRAWS[kind], 2 * hidden, wanted, **options)
  assert (have.tokens[~wanted] == 0).all()  # not visited
  np.testing.assert_array_equal(have.tokens[wanted], want.tokens[wanted])
  of_wanted = lambda prediction: [x[wanted] for x in prediction[1:]]
  assert_close(of_wanted(have), of_wanted(want))


def test_the_earliest_of_ties_is_taken_whatever_shard_it_lies_on():
  head = make_head()
  shards = shards_of((1, 8, 1, 1))
  head = head._replace(table=np.zeros_like(head.table), bias=np.zeros_like(head.bias))
  head = head._replace(allowed=np.arange(VOCABULARY) % 8 == 7)  # one row of each shard
  hidden, *_ = make_data(SCORED[0])
  have = jax.jit(
    lambda hidden: vocabulary.predict(
      head, hidden, chunk=64, draw=vocabulary.draw(), needs=NEEDS, shards=shards
    )
  )(hidden)
  assert (have.tokens == 7).all()
  assert_close(
    [have.margin, have.entropy], [np.zeros((ROWS, LENGTH)), np.full((ROWS, LENGTH), np.log(8))]
  )
