"""Rates of revealing and masking again: marginals that must come out, and numbers of calls."""

import jax
import numpy as np
import pytest

from diffjax.diffusion.strategies import parse

GRIDS = {
  "linear": lambda u: 1 - u,
  "cosine": lambda u: np.cos(np.pi / 2 * u),
}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("grid", GRIDS)
def test_ancestral_masks_the_share_of_the_grid_after_every_step(grid, num_steps):
  reveals = parse(f"ancestral-{grid}", num_steps=num_steps, canvas_size=8).reveals
  left = np.cumprod(1 - reveals[:num_steps].astype(np.float64))
  expected = GRIDS[grid](np.arange(1, num_steps + 1) / num_steps)
  np.testing.assert_allclose(left, expected, atol=1e-6)
  assert (reveals[num_steps - 1 :] == 1).all()


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rule", ["cap0", "cap0.1", "cap1", "rescale0.3", "rescale1", "loop0.02"])
def test_remasking_keeps_the_marginals(rule, grid, num_steps):
  strategy = parse(f"remask-{rule}-{grid}", num_steps=num_steps, canvas_size=8)
  reveals, remasks = (
    x[:num_steps].astype(np.float64) for x in (strategy.reveals, strategy.remasks)
  )
  times = GRIDS[grid](np.arange(num_steps + 1) / num_steps)
  alphas = 1 - times
  if "loop" in rule:
    alphas = np.where(times > 0.55, 0.9 * (1 - times) / 0.45, np.maximum(0.9, 1 - 2 * times))
  clean = 0.0
  for reveal, again, alpha in zip(reveals, remasks, alphas[1:], strict=True):
    assert 0 <= again <= 1
    assert -1e-6 <= reveal <= 1
    clean = clean * (1 - again) + (1 - clean) * reveal
    assert abs(clean - alpha) < 1e-5
  assert remasks[-1] == 0
  # Three steps leave none for a loop between t = 0.55 and 0.05.
  assert num_steps < 10 or (remasks > 0).any() == (rule != "cap0")


def test_without_remasking_it_is_ancestral():
  ancestral = parse("ancestral-cosine", num_steps=50, canvas_size=8)
  remask = parse("remask-cap0-cosine", num_steps=50, canvas_size=8)
  np.testing.assert_allclose(remask.reveals, ancestral.reveals, atol=1e-6)


def test_transition_times_are_distinct_as_often_as_they_should_be():
  strategy = parse("dndm-linear", num_steps=50, canvas_size=20)
  rows, size = 4000, 20
  keys = jax.random.split(jax.random.key(0), (rows, size))
  times = np.asarray(jax.jit(strategy.init)(np.ones((rows, size), bool), keys).memory)
  assert times.min() == 0
  assert times.max() == 49
  calls = np.asarray([len(np.unique(row)) for row in times])
  expected = 50 * (1 - (1 - 1 / 50) ** size)  # 16.62
  assert abs(calls.mean() - expected) < 4 * calls.std() / np.sqrt(rows)


@pytest.mark.parametrize("num_steps", [2, 5, 16])
@pytest.mark.parametrize("name", ["dndm-linear", "dndm_topk-cosine", "ancestral-linear"])
def test_rows_wait_in_all_steps_without_a_transition(name, num_steps, run_on_words):
  run = run_on_words(name, num_steps)
  changed = run.states.masked != np.concatenate([run.canvas[None], run.states.masked[:-1]])
  assert (run.active >= changed.any(-1)).all()
  if "topk" not in name:
    assert (run.active == changed.any(-1)).all()
  assert (run.active.sum(0) <= np.minimum(run.canvas.sum(-1), num_steps)).all()
