"""The length head against PyTorch's own encoder layer, and what it may not see."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import sharding
from diffjax.config import ComputeConfig, Contract, MeshConfig, ModelConfig
from diffjax.models import transformer
from diffjax.models.length_head import LengthHead

CLASSES = 7
CONFIG = ModelConfig(
  vocab_size=41, width=16, layers=1, heads=4, kv_heads=2, head_size=6, ffn_width=24,
  max_positions=16, norm="pre", norm_kind="rms", activation="silu", length_classes=CLASSES,
)  # fmt: skip
CONTRACT = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=40, attention="causal", output_shift=1)
LENGTHS = (9, 5)
SEGMENTS = np.asarray([[1] * n + [0] * (9 - n) for n in LENGTHS])


def random_params():
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    offset = 1.0 if path[-1].key == "scale" else 0.0
    return (offset + rng.normal(0, 0.3, leaf.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, transformer.shapes(CONFIG))


@functools.partial(jax.jit, static_argnames="dtype")
def run(params, tokens, segments, dtype="float32"):
  return transformer.length_logits(
    params, segments, tokens, config=CONFIG, contract=CONTRACT, compute=ComputeConfig(dtype=dtype)
  )


@jax.jit
def trunk_states(params, tokens):
  module = transformer.Transformer(CONFIG, ComputeConfig())
  layout = transformer._contract_layout(jnp.asarray(SEGMENTS), CONTRACT)
  return module.apply({"params": params}, tokens, layout, None, method="trunk")[0], layout


def twin(head, hidden):
  """Float64 classes of one prompt's hidden states [L, D]: one post-norm block with ReLU."""

  def norm(part, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * part["scale"] + part["bias"]

  linear = lambda part, x: x @ part["kernel"] + part["bias"]
  part, total = head["attention"], head["attention"]["output"]["bias"]
  for n in range(CONFIG.heads):
    query, key, value = (
      hidden @ part[name]["kernel"][:, n] + part[name]["bias"][n]
      for name in ("query", "key", "value")
    )
    weights = np.exp(query @ key.T / np.sqrt(CONFIG.width // CONFIG.heads))
    weights = weights / weights.sum(-1, keepdims=True)
    total = total + weights @ value @ part["output"]["kernel"][n]
  x = norm(head["attention_norm"], hidden + total)
  x = norm(
    head["ffn_norm"], x + linear(head["ffn"]["down"], np.maximum(linear(head["ffn"]["up"], x), 0))
  )
  return linear(head["classes"], np.tanh(linear(head["hidden"], x.mean(0))))


def test_classes_equal_the_twin_of_every_prompt_alone():
  params = random_params()
  tokens = np.random.default_rng(1).integers(3, 40, SEGMENTS.shape)
  got = run(params, tokens, SEGMENTS)
  assert got.shape == (2, CLASSES)
  assert got.dtype == jnp.float32
  hidden = np.asarray(trunk_states(params, tokens)[0], np.float64)
  head = jax.tree.map(lambda leaf: leaf.astype(np.float64), params["length_head"])
  for row, length in enumerate(LENGTHS):
    np.testing.assert_allclose(got[row], twin(head, hidden[row, :length]), atol=1e-4)
  rough = run(params, tokens, SEGMENTS, dtype="bfloat16")
  np.testing.assert_allclose(rough, got, atol=0.2)
  assert rough.dtype == jnp.float32


@pytest.mark.parity
def test_the_block_is_pytorchs_encoder_layer():
  torch = pytest.importorskip("torch")
  params = random_params()
  tokens = np.random.default_rng(1).integers(3, 40, SEGMENTS.shape)
  hidden, layout = trunk_states(params, tokens)
  head = params["length_head"]
  width, tensor = CONFIG.width, lambda x: torch.from_numpy(np.array(x))
  flat = {name: head["attention"][name] for name in ("query", "key", "value")}
  layer = torch.nn.TransformerEncoderLayer(width, CONFIG.heads, CONFIG.ffn_width, batch_first=True)
  state = {
    "self_attn.in_proj_weight": np.concatenate(
      [part["kernel"].reshape(width, width).T for part in flat.values()]
    ),
    "self_attn.in_proj_bias": np.concatenate([part["bias"].ravel() for part in flat.values()]),
    "self_attn.out_proj.weight": head["attention"]["output"]["kernel"].reshape(width, width).T,
    "self_attn.out_proj.bias": head["attention"]["output"]["bias"],
    "linear1.weight": head["ffn"]["up"]["kernel"].T,
    "linear1.bias": head["ffn"]["up"]["bias"],
    "linear2.weight": head["ffn"]["down"]["kernel"].T,
    "linear2.bias": head["ffn"]["down"]["bias"],
    "norm1.weight": head["attention_norm"]["scale"],
    "norm1.bias": head["attention_norm"]["bias"],
    "norm2.weight": head["ffn_norm"]["scale"],
    "norm2.bias": head["ffn_norm"]["bias"],
  }
  layer.load_state_dict({name: tensor(x) for name, x in state.items()})
  with torch.no_grad():
    block = layer.eval()(tensor(hidden), src_key_padding_mask=tensor(SEGMENTS == 0)).numpy()
  real = (SEGMENTS > 0)[..., None]
  mean = (block * real).sum(1) / real.sum(1)
  linear = lambda part, x: x @ part["kernel"] + part["bias"]
  want = linear(head["classes"], np.tanh(linear(head["hidden"], mean)))
  got = LengthHead(CONFIG, jnp.dtype("float32")).apply({"params": head}, hidden, layout)
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_padding_changes_nothing():
  params = random_params()
  tokens = np.random.default_rng(1).integers(3, 40, SEGMENTS.shape)
  other = np.where(SEGMENTS > 0, tokens, 7)
  np.testing.assert_allclose(run(params, other, SEGMENTS), run(params, tokens, SEGMENTS), atol=1e-5)


def test_the_block_has_the_trunks_kernel_and_its_place_on_a_mesh():
  config = dataclasses.replace(CONFIG, heads=2, head_size=8)
  shards = sharding.shards(sharding.make_mesh(MeshConfig(data=4, sequence=2)))
  segments = jnp.ones((4, 8), jnp.int32)
  run = lambda params: transformer.length_logits(
    params, segments, segments, config=config, contract=CONTRACT, shards=shards,
    compute=ComputeConfig(attention="splash"),
  )  # fmt: skip
  text = str(jax.make_jaxpr(run)(transformer.shapes(config)))
  assert text.count("pallas_call[") == 2
  assert text.count("all_gather_dimension=1") == 2 * 2  # keys and values, of the trunk and of it
