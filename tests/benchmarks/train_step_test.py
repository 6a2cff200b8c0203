"""The benchmark's two sides compute the same thing, and its figures follow from one another."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import train_step


def options(**more):
  given = {
    "rows": 4, "length": 16, "layers": 1, "width": 32, "vocabulary": 64, "chunk": 16, "steps": 2,
    "dropout": 0.0, "dtype": "float32", "preset": "", "remat": "none", "attention": "auto",
    "torch_checkpointing": False,
  }  # fmt: skip
  return argparse.Namespace(**given | more)


@pytest.mark.parity
@pytest.mark.parametrize("preset", ["", "xlmr-base", "xlmr-xl"])
def test_both_sides_have_the_same_loss(preset):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  assert train_step.agreement(options(preset=preset)) < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_torch_step_trains(dtype):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  import train_step_torch

  given = options(steps=6, dtype=dtype)
  model = train_step.model_of(given)
  found = train_step_torch.measure(given, model, matmul={"cpu": (32, 2)})
  assert np.isfinite(found.losses).all()
  # Of 4 x 8 canvas positions a share of (T + 1) / 2T is masked.
  assert 4 <= found.scored <= 28
  assert found.seconds > 0


def test_what_is_told_follows_from_the_time():
  row = train_step.results(
    options(), train_step.model_of(options()), 0.5, twins=2, scored=8, bytes_used=2e9
  )
  assert row["tokens_per_second"] == 4 * 16 / 0.5
  assert row["ms_per_step"] == 500
  assert row["peak_gigabytes"] == 2
  trunk = 12 * 32 * 32
  pairs, tokens = 2 * 4 * 16**2, 2 * 4 * 16
  flops = 6 * trunk * tokens + 12 * 32 * pairs + 6 * (32 * 32 + 64 * 32) * 8
  assert row["flops_per_second"] == pytest.approx(flops / 0.5)


@pytest.mark.parametrize("losses", [[6.0, float("nan"), 5.0], [6.0, 7.0, 9.5, 9.5, 9.5]])
def test_a_side_that_does_not_learn_is_no_measure(losses):
  with pytest.raises(SystemExit, match="does not learn"):
    train_step.check_losses(losses)
