"""Names: what is legal, what a mistake is told, and which numbers do not recompile."""

import jax
import numpy as np
import pytest

from diffjax.diffusion.strategies import MAX_STEPS, NAMES, parse
from diffjax.types import UserError

UNCOND = "reparam-uncond-deterministic-cosine"


def make(name=UNCOND, *, num_steps=10, canvas_size=40):
  return parse(name, num_steps=num_steps, canvas_size=canvas_size)


def program(strategy):
  """What a compiled program depends on."""
  shapes = jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), strategy)
  return jax.tree.structure(strategy), jax.tree.leaves(shapes)


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_steps_does_not_recompile(name):
  assert (
    program(make(name)) == program(make(name, num_steps=16)) == program(make(name, num_steps=1))
  )
  assert make(name).step_bucket >= make(name).num_steps
  for leaf in jax.tree.leaves(make(name)):
    assert leaf.dtype in (np.int32, np.float32)  # no weak types, nothing of 64 bits


@pytest.mark.parametrize(
  ("one", "other"),
  [
    (UNCOND, "reparam-uncond-deterministic-linear"),
    ("reparam-cond-stochastic5-linear", "reparam-cond-stochastic0.5-cosine"),
    ("confidence", "confidence-block7"),
    ("margin-stochastic1-block3", "margin-stochastic2"),
    ("threshold0.5", "threshold0.9-block2"),
    ("factor1", "factor0.25-block2"),
    ("remask-cap0.1-linear", "remask-loop0.3-cosine"),
    ("remask-cap0.1-linear", "remask-rescale0.3-cosine"),
    ("dndm-linear", "dndm-cosine"),
  ],
)
def test_numbers_in_a_name_do_not_recompile(one, other):
  assert program(make(one)) == program(make(other))
  assert str(make(one)) != str(make(other))


def test_kinds_recompile():
  kinds = (
    UNCOND, "reparam-cond-deterministic-cosine", "reparam-uncond-stochastic1-cosine",
    "ancestral-linear", "mask_predict", "left_to_right", "confidence", "confidence-stochastic1",
    "entropy", "margin", "threshold0.9", "factor1.0", "remask-cap0.1-linear",
    "remask-confidence-linear", "dndm-linear", "dndm_topk-linear",
  )  # fmt: skip
  programs = [program(make(kind)) for kind in kinds]
  assert not any(p in programs[:n] for n, p in enumerate(programs))
  assert program(make(num_steps=17)) != program(make(num_steps=16))


@pytest.mark.parametrize("name", ["left_to_right", "threshold0.9", "factor1.0"])
def test_some_take_as_many_steps_as_the_canvas_needs(name):
  assert make(name, num_steps=3, canvas_size=100).num_steps == 100
  assert make(name, num_steps=3, canvas_size=100).step_bucket == 128
  assert make("confidence-block8", num_steps=3, canvas_size=100).num_steps == 13


def test_what_is_read_of_a_prediction_is_asked_for():
  asked = {name: make(name).needs for name in NAMES if make(name).needs}
  assert asked == {
    "entropy": {"entropy"}, "entropy-block8": {"entropy"}, "margin": {"margin"},
    "margin-stochastic0.5-block8": {"margin"},
  }  # fmt: skip


@pytest.mark.parametrize(
  ("name", "nearest"),
  [
    ("reparam-uncond-determinstic-cosine", UNCOND),
    ("reparam-cond-deterministic-cosin", "reparam-cond-deterministic-cosine"),
    ("reparam-uncond-stochastic-linear", "reparam-uncond-stochastic1.0-linear"),
    (UNCOND + "\n", UNCOND),
    ("mask-predict", "mask_predict"),
    ("left-to-right", "left_to_right"),
    ("entropie-block8", "entropy-block8"),
    ("treshold0.9", "threshold0.9"),
    ("threshold", "threshold0.9"),
    ("remask-confidence0.1-linear", "remask-confidence-linear"),
    ("ancestral", "ancestral-linear"),
    ("dndm-topk-linear", "dndm_topk-linear"),
    ("", ""),
  ],
)
def test_illegal_names_are_answered_with_the_nearest_and_the_forms(name, nearest):
  with pytest.raises(UserError) as error:
    make(name)
  message = str(error.value)
  assert repr(name) in message
  assert f"did you mean '{nearest}" in message
  assert "reparam-<cond|uncond>" in message
  assert "remask-<cap<eta>|" in message
  assert "\n" not in message


@pytest.mark.parametrize(
  ("name", "part"),
  [
    ("threshold0", "threshold has 0; it must be above 0 and at most 1"),
    ("threshold1.01-block8", "threshold has 1.01;"),
    ("factor0.0", "factor has 0.0;"),
    ("remask-cap1.5-linear", "remask-cap has 1.5; it must be at least 0 and at most 1"),
    ("entropy-block0", "block has 0; it must be at least 1"),
    ("reparam-cond-stochastic1001-linear", "stochastic has 1001;"),
  ],
)
def test_numbers_out_of_range_are_named(name, part):
  with pytest.raises(UserError, match=part):
    make(name)


@pytest.mark.parametrize("num_steps", [0, -1, MAX_STEPS + 1])
def test_illegal_numbers_of_steps_are_named(num_steps):
  with pytest.raises(UserError, match=f"num_steps = {num_steps} must be"):
    make(num_steps=num_steps)
