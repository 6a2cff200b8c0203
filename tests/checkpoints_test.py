"""Checkpoints: what is kept, what a reader gets, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import sharding
from diffjax.checkpoints import Checkpoints
from diffjax.config import MeshConfig
from diffjax.types import UserError


def tree(value: float):
  return {"embedding": {"tokens": jnp.full((8, 4), value)}, "head": {"bias": jnp.full(8, value)}}


def target(mesh_config: MeshConfig):
  mesh = sharding.make_mesh(mesh_config)
  placed = sharding.shardings(tree(0.0), mesh)
  struct = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(struct, tree(0.0), placed)


def test_keeps_the_newest_and_the_best(tmp_path):
  with Checkpoints(tmp_path, keep=2, metric="bleu") as saved:
    for step, score in ((1, 5.0), (2, 9.0), (3, 7.0), (4, None), (5, None)):
      metrics = None if score is None else {"bleu": score}
      saved.save(step, {"params": tree(step)}, {"note": step}, metrics)
  with Checkpoints(tmp_path, metric="bleu", read_only=True) as saved:
    assert sorted(saved._manager.all_steps()) == [2, 4, 5]
    assert (saved.latest(), saved.best()) == (5, 2)
    assert saved.meta(2) == {"note": 2, "items": ["params"]}


@pytest.mark.parametrize("metric", ["loss", "length_loss"])
def test_the_lowest_loss_is_the_best(tmp_path, metric):
  with Checkpoints(tmp_path, keep=1, metric=metric) as saved:
    for step, loss in ((1, 0.5), (2, 0.4), (3, 0.6)):
      saved.save(step, {"params": tree(step)}, {}, {metric: loss})
    saved._manager.wait_until_finished()
    assert saved.best() == 2


def test_restores_onto_another_mesh_bit_equal(tmp_path):
  values = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape) / 7, tree(1.0))
  first = target(MeshConfig(data=2, fsdp=2, tensor=2))
  with Checkpoints(tmp_path) as saved:
    placed = jax.tree.map(lambda x, t: jax.device_put(x, t.sharding), values, first)
    saved.save(1, {"params": placed}, {})
  for mesh in (MeshConfig(data=1, fsdp=4, tensor=2), MeshConfig(data=8)):
    with Checkpoints(tmp_path, read_only=True) as saved:
      restored = saved.restore(1, {"params": target(mesh)})["params"]
    jax.tree.map(np.testing.assert_array_equal, restored, values)
    assert restored["embedding"]["tokens"].sharding == target(mesh)["embedding"]["tokens"].sharding


def test_another_shape_is_refused_in_one_line(tmp_path):
  with Checkpoints(tmp_path) as saved:
    saved.save(1, {"params": tree(1.0)}, {})
  wrong = target(MeshConfig())
  wrong["head"]["bias"] = jax.ShapeDtypeStruct((9,), jnp.float32)
  with (
    Checkpoints(tmp_path, read_only=True) as saved,
    pytest.raises(UserError, match="cannot be restored") as error,
  ):
    saved.restore(1, {"params": wrong})
  assert "\n" not in str(error.value)
