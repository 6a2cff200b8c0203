"""Batches over eight devices say what one device says."""

import jax
import pytest
from letter_models import make_model, random_prompts

from diffjax import sharding
from diffjax.sampling import Sampler, layout, programs

LENGTHS = [1 + n % 8 for n in range(12)]


@pytest.fixture(scope="module")
def model():
  return make_model()


def on_one_device(model, monkeypatch):
  monkeypatch.setattr(programs, "devices_for", lambda params: jax.local_devices()[:1])
  return Sampler(model)


def values(answers):
  return [(a.ids, a.scores, a.network_calls, a.trace) for a in answers]


def test_answers_are_bit_equal_where_a_device_computes_as_many_rows(model, monkeypatch):
  prompts = random_prompts(12)
  options = {
    "lengths": LENGTHS, "num_steps": 4, "strict": True, "strategy": "ancestral-linear",
    "temperature": 1.0, "guidance": 0.5, "return_trace": True,
  }  # fmt: skip
  many = Sampler(model).generate(prompts, batch_size=16, **options)
  one = on_one_device(model, monkeypatch).generate(prompts, batch_size=2, **options)
  assert values(many) == values(one)


def test_scores_are_bit_equal_too(model, monkeypatch):
  prompts, targets = random_prompts(3), random_prompts(3, seed=1)
  many = Sampler(model).score_many(prompts, targets, samples=6, batch_size=8)
  one = on_one_device(model, monkeypatch)
  assert many == one.score_many(prompts, targets, samples=6, batch_size=1)


def test_rows_lie_on_all_devices_and_parameters_are_copied_there_once(model, monkeypatch):
  sampler, placed = Sampler(model), []
  decode = sampler._decoder._decode

  def watched(params, *arguments, **static):
    decoded = decode(params, *arguments, **static)
    placed.append((params, decoded.tokens.sharding))
    return decoded

  monkeypatch.setattr(sampler._decoder, "_decode", watched)
  for prompts in (random_prompts(12), random_prompts(12, seed=1)):
    sampler.generate(prompts, lengths=4, num_steps=2, batch_size=16)
  (first, rows), (second, _) = placed
  assert first is second
  assert len(rows.device_set) == 8
  assert not rows.is_fully_replicated
  sampler.generate("abc", lengths=4, num_steps=2)  # fewer rows than devices
  assert placed[-1][0] is model.params
  assert len(placed[-1][1].device_set) == 1


def test_parameters_that_lie_on_several_devices_stay_there(model):
  spread = jax.device_put(
    model.params,
    sharding.replicated(sharding.rows_mesh(jax.local_devices())),
  )
  assert len(programs.devices_for(spread)) == 1
  assert len(programs.devices_for(model.params)) == 8


def test_rows_are_a_multiple_of_the_devices_where_each_has_one():
  def rows(count, batch_size):
    batches = layout.plan_batches(
      [5] * count, [3] * count, batch_size=batch_size, max_positions=48, strict=False, devices=8
    )
    assert sum(len(members) for members, _ in batches) == count
    return [shape.rows for _, shape in batches]

  assert rows(3, 32) == [4]
  assert rows(11, 32) == [16]
  assert rows(25, 10) == [16, 16, 16]
