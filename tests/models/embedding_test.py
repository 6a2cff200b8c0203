"""The lookup on a mesh, whose devices each hold some rows of the table."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax import sharding
from diffjax.config import MeshConfig, ModelConfig
from diffjax.models import embedding, transformer

ROWS, LENGTH, WIDTH, VOCABULARY = 8, 6, 4, 56
MESHES = [(8, 1, 1, 1), (2, 4, 1, 1), (2, 2, 2, 1), (1, 8, 1, 1), (4, 1, 2, 1), (1, 2, 2, 2)]


def shards_of(sizes):
  sizes = dict(zip(sharding.AXES, sizes, strict=True))
  return sharding.shards(sharding.make_mesh(MeshConfig(**sizes)))


def make_data():
  random = np.random.default_rng(0)
  table = random.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
  tokens = random.integers(VOCABULARY, size=(ROWS, LENGTH)).astype(np.int32)
  tokens[:, :2] = 0, VOCABULARY - 1  # many of one row of the first and of the last shard
  weights = random.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
  return table, tokens, weights


def looked_up(sizes, dtype="float32"):
  """(table, tokens, weights) -> the rows, and the table's gradient of their weighted sum."""
  shards = shards_of(sizes)

  def run(table, tokens, weights):
    look_up = functools.partial(embedding.look_up, tokens=tokens, dtype=dtype, shards=shards)
    x, transposed = jax.vjp(look_up, table)
    return x, transposed(weights.astype(x.dtype))[0]

  rows, table = (NamedSharding(shards.mesh, P(x)) for x in (shards.rows, shards.vocabulary))
  placed = (table, rows, rows)
  return jax.jit(run, in_shardings=placed).lower(*make_data()).compile(), placed


@pytest.mark.parametrize(
  ("sizes", "exchanged"), [*((sizes, 4) for sizes in MESHES), ((2, 2, 2, 1), 10**6)]
)
def test_rows_and_gradient_equal_those_of_one_device(sizes, exchanged, monkeypatch):
  monkeypatch.setattr(embedding, "_EXCHANGED", exchanged)
  compiled, placed = looked_up(sizes)
  table, tokens, weights = make_data()
  x, gradient = compiled(*jax.device_put((table, tokens, weights), placed))
  np.testing.assert_array_equal(x, table[tokens])
  want = np.zeros((VOCABULARY, WIDTH))
  np.add.at(want, tokens, weights)
  np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-6)
  text = compiled.as_text()
  shape = lambda kind: re.findall(rf"= (.*) {kind}(?:-start)?\(", text)
  moved = [*shape("all-gather"), *shape("all-reduce"), *shape("reduce-scatter")]
  assert moved
  if sizes[1] * sizes[2] > 1:
    assert not any(f"[{VOCABULARY}," in result for result in moved)


def test_pieces_keep_memory_from_growing_with_the_mesh(monkeypatch):
  shards = shards_of((1, 8, 1, 1))
  place = lambda axes: NamedSharding(shards.mesh, P(axes))
  table = jax.ShapeDtypeStruct((VOCABULARY, 64), jnp.float32, sharding=place(shards.vocabulary))
  tokens = jax.ShapeDtypeStruct((ROWS, 512), jnp.int32, sharding=place(shards.rows))

  def temporary_bytes(exchanged):
    monkeypatch.setattr(embedding, "_EXCHANGED", exchanged)
    look_up = functools.partial(embedding.look_up, dtype="float32", shards=shards)
    compiled = jax.jit(lambda table, tokens: look_up(table, tokens)).lower(table, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  result = ROWS * 512 // 8 * 64 * 4
  assert temporary_bytes(0) < 5 * result
  assert temporary_bytes(2**24) > 8 * result


def test_bfloat16_rows_are_exchanged_as_such_and_their_gradient_is_added_in_float32():
  compiled, placed = looked_up((2, 4, 1, 1), "bfloat16")
  table, tokens, weights = make_data()
  x, gradient = compiled(*jax.device_put((table, tokens, weights), placed))
  assert x.dtype == jnp.bfloat16
  assert gradient.dtype == jnp.float32
  np.testing.assert_array_equal(x, jnp.asarray(table)[tokens].astype(jnp.bfloat16))
  want = np.zeros((VOCABULARY, WIDTH), np.float32)
  np.add.at(want, tokens, np.asarray(weights.astype(jnp.bfloat16), np.float32))
  np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-6)


def test_an_embedding_with_all_its_parts_is_the_same_on_a_mesh_and_spreads_no_row():
  config = ModelConfig(
    vocab_size=VOCABULARY, width=WIDTH, layers=1, heads=1, ffn_width=8, max_positions=LENGTH,
    zero_mask_embedding=True, dropout=0.3,
  )  # fmt: skip
  config = dataclasses.replace(config, vocab_size=config.table_rows)
  random = np.random.default_rng(1)
  tokens = random.integers(config.table_rows, size=(ROWS, LENGTH)).astype(np.int32)
  layout = transformer.make_layout(np.ones_like(tokens))
  keys = jax.random.split(jax.random.key(1), ROWS)
  params = jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape).astype(np.float32),
    dict(transformer.shapes(config)["embedding"]),
  )

  def compiled(shards):
    module = embedding.Embedding(config, jnp.dtype("float32"), 0, shards)

    def loss(params, tokens, layout, keys):
      return jnp.sum(module.apply({"params": params}, tokens, layout, keys) ** 2)

    step, inputs = jax.value_and_grad(loss), (params, tokens, layout, keys)
    if not shards:
      return jax.jit(step).lower(*inputs).compile()(*inputs), ""
    rows = sharding.rows(shards.mesh)
    placed = (sharding.shardings({"embedding": params}, shards.mesh)["embedding"], rows, rows, rows)
    step = jax.jit(step, in_shardings=placed).lower(*inputs).compile()
    return step(*jax.device_put(inputs, placed)), step.as_text()

  want, _ = compiled(None)
  have, text = compiled(shards_of((1, 2, 2, 2)))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, jax.device_get(have), jax.device_get(want))
  moved = re.findall(r"= (.*) (?:all-gather|all-reduce|collective-permute)(?:-start)?\(", text)
  assert moved
  assert not any(re.search(r"f32\[\d+,\d+,\d+\]", result) for result in moved)
