"""The training step of train_step.py in PyTorch, as one would write it with transformers' XLM-R.

Masked positions are drawn as in 2308.12219 (T = 50, linear schedule), their features gathered
before the vocabulary head, as the paper's code does, and their cross entropy weighted by
alpha_{t-1}. Attention is SDPA; with CUDA the trunk and the head are compiled (torch.compile) and
AdamW is fused. bfloat16 is autocast over float32 weights, as on our side.
"""

import argparse
import contextlib
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from diffjax.config import ModelConfig

NUM_TIMESTEPS = 50
WARMUP = 5  # steps before the clock starts: both parts compile, the head for shapes that vary
MASKED_LM = {
  "post": (transformers.XLMRobertaConfig, transformers.XLMRobertaForMaskedLM),
  "pre": (transformers.XLMRobertaXLConfig, transformers.XLMRobertaXLForMaskedLM),
}


class Measured(NamedTuple):
  """What a side measures."""

  seconds: float  # of a step
  scored: float  # positions of a step
  losses: list[float]
  bytes_used: int  # at most, on the device
  ceiling: float  # FLOP/s of large matrix products


def make_model(model: ModelConfig, *, length: int) -> torch.nn.Module:
  """transformers' masked LM of the same shape, with random weights."""
  config, kind = MASKED_LM[model.norm]
  return kind._from_config(
    config(
      vocab_size=model.vocab_size,
      hidden_size=model.width,
      num_hidden_layers=model.layers,
      num_attention_heads=model.heads,
      intermediate_size=model.ffn_width,
      max_position_embeddings=max(model.max_positions, length) + 2,
      type_vocab_size=1,
      layer_norm_eps=model.norm_epsilon,
      hidden_dropout_prob=model.dropout,
      attention_probs_dropout_prob=model.attention_dropout,
      pad_token_id=1,
    ),
    attn_implementation="sdpa",
  )


def measure(
  options: argparse.Namespace, model: ModelConfig, *, matmul: dict[str, tuple[int, int]]
) -> Measured:
  """Trains some steps on random ids, the second half of each row its canvas."""
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  torch.manual_seed(0)
  torch.set_float32_matmul_precision("high")
  with device:
    network = make_model(model, length=options.length)
  network.train()
  if options.torch_checkpointing:
    network.gradient_checkpointing_enable()
  trunk, head = network.roberta, _head_loss
  if device.type == "cuda":
    trunk, head = torch.compile(trunk), torch.compile(head, dynamic=True)
  optimizer = torch.optim.AdamW(
    _groups(network), lr=5e-5, betas=(0.9, 0.98), eps=1e-8, fused=device.type == "cuda"
  )
  shape = options.rows, options.length
  mask_id = min(model.vocab_size, 250_002) - 1
  tokens = torch.randint(4, mask_id, shape, device=device)
  canvas = (torch.arange(options.length, device=device) >= options.length // 2).expand(shape)
  losses, scored = [], []
  for number in range(WARMUP + options.steps):
    if number == WARMUP:
      _wait(device)
      start = time.perf_counter()
    xt, weights = _noise(tokens, canvas, mask_id)
    with _precision(device, options.dtype):
      loss = _loss(network, trunk, head, xt, tokens, weights)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.detach())
    scored.append((weights > 0).sum())
  _wait(device)
  seconds = (time.perf_counter() - start) / options.steps
  used = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
  return Measured(
    seconds,
    float(torch.stack(scored).float().mean()),
    [float(value) for value in losses],
    used,
    _matmul_ceiling(
      device, options.dtype, *matmul["cpu" if device.type == "cpu" else "accelerator"]
    ),
  )


def loss_of_weights(
  directory: Path, xt: np.ndarray, tokens: np.ndarray, weights: np.ndarray, *, mask_id: int
) -> float:
  """The loss of given weights and noise, to compare the two sides by.

  Args:
    directory: a masked LM in Hugging Face layout.
    xt: int32[B, L], noised ids.
    tokens: int32[B, L], clean ones.
    weights: float32[B, L] of the cross entropies; 0 where none is scored.
    mask_id: which our side never predicts, and this one does in `measure`; left out here.
  """
  transformers.utils.logging.disable_progress_bar()
  network = transformers.AutoModelForMaskedLM.from_pretrained(
    directory, attn_implementation="sdpa"
  ).eval()
  given = torch.tensor(xt).long(), torch.tensor(tokens).long(), torch.tensor(weights)
  with torch.no_grad():
    network.lm_head.decoder.bias[mask_id] = -1e9
    return float(_loss(network, network.roberta, _head_loss, *given))


def _loss(network, trunk, head, xt, tokens, weights):
  features = trunk(input_ids=xt)[0]
  scored = weights > 0
  return head(network.lm_head, features[scored], tokens[scored], weights[scored])


def _head_loss(lm_head, features, targets, weights):
  losses = F.cross_entropy(lm_head(features).float(), targets, reduction="none")
  return (losses * weights).sum()


def _noise(tokens, canvas, mask_id):
  """xt, and weights alpha_{t-1} / (canvas positions x rows) where masked."""
  rows = len(tokens)
  t = torch.randint(1, NUM_TIMESTEPS + 1, (rows, 1), device=tokens.device)
  masked = canvas & (torch.rand(tokens.shape, device=tokens.device) < t / NUM_TIMESTEPS)
  weights = (1 - (t - 1) / NUM_TIMESTEPS) / canvas.sum(1, keepdim=True) / rows
  return torch.where(masked, mask_id, tokens), torch.where(masked, weights, 0.0)


def _groups(network):
  """Decay on matrices and tables, as on our side."""
  split = {True: [], False: []}
  for parameter in network.parameters():
    split[parameter.ndim > 1].append(parameter)
  return [
    {"params": split[True], "weight_decay": 0.01},
    {"params": split[False], "weight_decay": 0.0},
  ]


def _precision(device, dtype):
  if dtype == "float32":
    return contextlib.nullcontext()
  return torch.autocast(device.type, dtype=getattr(torch, dtype))


def _matmul_ceiling(device, dtype, size, count):
  x = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
  w = torch.full_like(x, 1 / size)
  times = []
  for _ in range(4):  # the first one warms up
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
      x = x @ w
    _wait(device)
    times.append(time.perf_counter() - start)
  return 2 * size**3 * count / min(times[1:])


def _wait(device):
  if device.type == "cuda":
    torch.cuda.synchronize()
