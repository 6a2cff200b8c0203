"""Model FLOPs by formula against the dot products of the traced loss, and against 6 N D."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from diffjax import arithmetic
from diffjax.config import ComputeConfig, Contract, LoraConfig, ModelConfig
from diffjax.models import architectures, lora, transformer

ROWS, LENGTH = 2, 8
TOY = ModelConfig(
  vocab_size=256, width=16, layers=3, heads=4, ffn_width=40, max_positions=16, dropout=0.0
)
GATED = dataclasses.replace(
  TOY, kv_heads=2, gated=True, head="linear", tied=False, head_size=8, norm="pre"
)
CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=255)
ADAPTERS = LoraConfig(rank=2, targets=("query", "up"))


def dot_flops(jaxpr) -> float:
  """Of all dot products; those of a scan's body as often as it runs."""
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (summed, _), _ = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[n] for n in summed)
    times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      total += times * dot_flops(inner) if hasattr(inner, "eqns") else 0
  return total


def traced_flops(config: ModelConfig, adapters: LoraConfig = LoraConfig()) -> float:  # noqa: B008
  segments = jnp.ones((ROWS, LENGTH), jnp.int32)

  def loss(trained, frozen):
    denoiser = transformer.bind(
      lora.join(frozen, trained), segments,
      config=config, contract=CONTRACT, compute=ComputeConfig(), lora=adapters,
    )  # fmt: skip
    return jax.nn.log_softmax(transformer.logits(denoiser, segments)).sum()

  shapes = transformer.shapes(config, adapters)
  frozen, trained = lora.split(shapes, length_head=False) if adapters.rank else ({}, shapes)
  return dot_flops(jax.make_jaxpr(jax.grad(loss))(trained, frozen).jaxpr)


@pytest.mark.parametrize(
  ("config", "adapters"), [(TOY, LoraConfig()), (GATED, LoraConfig()), (TOY, ADAPTERS)]
)
def test_as_many_as_the_traced_loss_and_its_gradient(config, adapters):
  tokens = ROWS * LENGTH
  counted = arithmetic.step_flops(
    config, tokens=tokens, pairs=tokens * LENGTH, scored=tokens, lora=adapters
  )
  assert counted == traced_flops(config, adapters)


def test_six_flops_a_parameter_and_token_at_xxl():
  config = architectures.preset("xlmr-xxl")
  weights = arithmetic.trunk_weights(config)
  assert weights == pytest.approx(9.66e9, rel=1e-3)
  tokens = 2048 * 512
  trunk = arithmetic.step_flops(config, tokens=tokens, pairs=0, scored=0)
  assert trunk == 6 * weights * tokens
  whole = arithmetic.step_flops(config, tokens=tokens, pairs=tokens * 512, scored=tokens / 8)
  assert 1 < whole / trunk < 1.05


def test_the_forward_pass_is_a_third():
  arguments = dict(tokens=10.0, pairs=100.0, scored=3.0)
  forward = arithmetic.step_flops(TOY, **arguments, backward=False)
  assert 3 * forward == arithmetic.step_flops(TOY, **arguments)
