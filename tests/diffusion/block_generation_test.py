"""Decoding over caches and block by block: the same results as computing whole rows anew."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from diffjax.config import ComputeConfig, Contract, ModelConfig
from diffjax.diffusion import generation, vocabulary
from diffjax.diffusion.generation import Canvas, Side
from diffjax.diffusion.strategies import parse
from diffjax.models import transformer
from diffjax.types import UserError

BOS, PAD, END, MASK = 0, 1, 2, 40
ROWS, SLOTS, LENGTH, BLOCK = 8, 8, 18, 4
PREFIX = Contract(bos_id=BOS, pad_id=PAD, eos_id=END, mask_id=MASK, attention="prefix")
OPEN_PREFIX = dataclasses.replace(PREFIX, end="predicted")
SHIFTED = dataclasses.replace(OPEN_PREFIX, attention="causal", output_shift=1)

POST = {}
GPT2 = dict(
  norm="pre", position_offset=0, token_types=0, embedding_norm=False, head="linear", tied=False
)
LLAMA = GPT2 | dict(
  norm_kind="rms", positions="rotary", kv_heads=2, query_key_norm=True, attention_bias="none",
  gated=True, activation="silu", dense_bias=False,
)  # fmt: skip
FORMS = {"post": POST, "gpt2": GPT2, "llama": LLAMA}
END_BIAS = {"post": 4.0, "gpt2": 1.0, "llama": 2.0}  # some rows end early, and some do not

STARTS = np.asarray([3, 8, 5, 4, 6, 2, 7, 9])  # of the canvases
SIZES = np.asarray([8, 6, 8, 0, 4, 8, 7, 8])
RANDOM = np.random.default_rng(0)
PROMPTS = RANDOM.integers(3, 40, (ROWS, LENGTH)).astype(np.int32)
KEYS = jax.random.split(jax.random.key(3), ROWS)
UNCOND = "reparam-uncond-deterministic-cosine"


def blocks_of(size: int) -> Contract:
  return dataclasses.replace(
    OPEN_PREFIX, attention="blocks", block_size=size, end_padding=size
  )  # fmt: skip


class Rows(NamedTuple):
  tokens: np.ndarray  # int32[B, L]  masks on the canvas
  segments: np.ndarray
  canvas: Canvas
  closing: np.ndarray | None

  @property
  def answer(self) -> np.ndarray:
    """bool[B, L]: the canvas, with the closing end."""
    places = np.arange(self.tokens.shape[1])
    written = np.zeros(self.tokens.shape, bool)
    for b in range(ROWS):
      written[b, self.canvas.places[b, self.canvas.real[b]]] = True
    return written if self.closing is None else written | (places == self.closing[:, None])


def make_rows(starts=STARTS, sizes=SIZES, length=LENGTH, closed=False) -> Rows:
  places, slots, ends = np.arange(length), np.arange(SLOTS), starts + sizes
  real = slots < sizes[:, None]
  on_canvas = (places >= starts[:, None]) & (places < ends[:, None])
  tokens = np.where(on_canvas, MASK, PROMPTS[:, :length])
  tokens[:, 0] = BOS
  tokens = np.where(places < ends[:, None], tokens, PAD)
  if closed:
    tokens = np.where(places == ends[:, None], END, tokens)
  segments = (places < (ends + closed)[:, None]).astype(np.int32)
  slots = np.where(real, starts[:, None] + slots, 0).astype(np.int32)
  closing = ends.astype(np.int32) if closed else None
  return Rows(tokens.astype(np.int32), segments, Canvas(slots, real), closing)


@functools.cache
def network(form: str):
  config = ModelConfig(
    vocab_size=41, width=16, layers=2, heads=4, ffn_width=24, max_positions=32, **FORMS[form]
  )
  random = np.random.default_rng(1)

  def draw(path, leaf):  # like trained ones: nothing is 0 or 1
    offset = 1.0 if path[-1].key == "scale" else 0.0
    return (offset + random.normal(0, 0.3, leaf.shape)).astype(np.float32)

  params = jax.tree_util.tree_map_with_path(draw, transformer.shapes(config))
  params["head"]["bias"][END] += END_BIAS[form]
  return config, params


def bind(form: str, contract: Contract, rows: Rows):
  config, params = network(form)
  params = jax.tree.map(jnp.asarray, params)
  return transformer.bind(
    params, rows.segments, config=config, contract=contract, compute=ComputeConfig(),
    canvas=rows.answer,
  )  # fmt: skip


def decode(form, contract, name, *, temperature=0.0, cached=True, block_size=0, **options):
  """Rows decoded in one program."""
  rows = make_rows()
  ends = END if contract.end == "predicted" else None

  @jax.jit
  def run(strategy, draw):
    denoiser = bind(form, contract, rows)
    prompt = (rows.segments > 0) & ~rows.answer
    return generation.generate(
      [Side(denoiser, rows.tokens, rows.canvas)], KEYS, strategy, draw, mask_id=MASK, chunk=16,
      stored=[prompt] if cached else None, block_size=block_size, end_id=ends, **options,
    )  # fmt: skip

  strategy = parse(name, num_steps=6, canvas_size=block_size or SLOTS)
  decoded = jax.device_get(run(strategy, vocabulary.draw(temperature=temperature)))
  jax.effects_barrier()
  return decoded


def assert_alike(one, other):
  """Equal tokens; scores but for rounding."""
  real = make_rows().canvas.real
  np.testing.assert_array_equal(one.tokens[real], other.tokens[real])
  np.testing.assert_allclose(one.scores[real], other.scores[real], atol=1e-5)


def lengths(decoded) -> list[int]:
  """Tokens before each row's end."""
  rows = [row[:size].tolist() for row, size in zip(decoded.tokens, SIZES, strict=True)]
  return [row.index(END) if END in row else len(row) for row in rows]


def test_the_prompts_cache_is_exact_and_one_block_is_prefix():
  plain = decode("post", OPEN_PREFIX, UNCOND, cached=False)
  cached = decode("post", OPEN_PREFIX, UNCOND)
  whole_block = decode("post", blocks_of(SLOTS), UNCOND, block_size=SLOTS)
  assert (np.asarray(lengths(plain)) < SIZES).any()
  for other in (cached, whole_block):
    assert_alike(other, plain)
    np.testing.assert_array_equal(other.calls, plain.calls + (SIZES > 0))  # and the prompt's
    assert other.network_calls == plain.network_calls + 1


@pytest.mark.parametrize(("form", "contract", "name"), [
  ("post", blocks_of(BLOCK), UNCOND),
  ("llama", SHIFTED, "threshold0.9"),
  ("llama", dataclasses.replace(blocks_of(BLOCK), output_shift=1), "dndm-linear"),
])  # fmt: skip
def test_blocks_equal_a_recomputation_of_the_clean_prefix(form, contract, name):
  steps, stores = [], []
  rows = make_rows()
  keep = lambda step: steps.append(jax.tree.map(np.asarray, step))

  @jax.jit
  def fill_block(tokens, canvas, strategy, draw):
    denoiser = bind(form, contract, rows)
    return generation.generate(
      [Side(denoiser, tokens, canvas)], KEYS, strategy, draw,
      mask_id=MASK, chunk=16, end_id=END,
    )  # fmt: skip

  fast = decode(
    form, contract, name, temperature=1.0, block_size=BLOCK, keep_trace=True,
    on_step=lambda step: io_callback(keep, None, step, ordered=True),
  )  # fmt: skip
  strategy = parse(name, num_steps=6, canvas_size=BLOCK)
  draw = vocabulary.draw(temperature=1.0)
  tokens, ended = rows.tokens.copy(), SIZES == 0
  calls = np.where(SIZES == 0, 0, 1)  # to store the prompt
  for first in range(0, SLOTS, BLOCK):
    places, real = (x[:, first : first + BLOCK] for x in rows.canvas)
    real = real & ~ended[:, None]
    block = jax.device_get(fill_block(tokens, Canvas(places, real), strategy, draw))
    np.testing.assert_array_equal(fast.tokens[:, first : first + BLOCK][real], block.tokens[real])
    np.testing.assert_allclose(
      fast.scores[:, first : first + BLOCK][real], block.scores[real], atol=1e-5
    )
    for b in range(ROWS):
      tokens[b, places[b, real[b]]] = block.tokens[b, real[b]]
    ended |= ((block.tokens == END) & real).any(-1) | (first + BLOCK >= SIZES)
    calls += block.calls + ~ended  # and one to store the finished block, where another follows
    stores.append(~ended)
  np.testing.assert_array_equal(fast.calls, calls)
  # A row that ended in the first block was written no more, and nothing was asked for it.
  assert 0 < stores[0].sum() < (SIZES > BLOCK).sum()
  early = ~stores[0] & (SIZES > BLOCK)
  assert (fast.tokens[early, BLOCK:] == END).all()
  assert (fast.scores[early, BLOCK:] == 0).all()
  assert (fast.calls[SIZES == 0] == 0).all()

  # Every step was handed out, as wide as the canvas, and they are those of the trace.
  changed = [step for step in steps if step.active.any()]  # in others all rows of dndm wait
  for step, number in zip(changed, np.flatnonzero(fast.trace.active.any(-1)), strict=True):
    kept = jax.tree.map(lambda all_: all_[number], fast.trace)  # noqa: B023 (used at once)
    jax.tree.map(np.testing.assert_array_equal, step, kept)
  assert (steps[0].masked[stores[0], BLOCK:] == rows.canvas.real[stores[0], BLOCK:]).all()
  written = rows.canvas.real & ~early[:, None]
  np.testing.assert_array_equal(steps[-1].tokens[written], fast.tokens[written])
  assert not steps[-1].masked.any()


def test_blocks_of_one_are_left_to_right_under_the_same_order():
  singles = blocks_of(1)
  plain = decode("post", singles, "left_to_right", cached=False)
  cached = decode("post", singles, "left_to_right", block_size=1)
  assert_alike(cached, plain)
  # Each token one look, and each that another follows one call more, which stores it.
  said = np.minimum(np.asarray(lengths(plain)) + 1, SIZES)
  np.testing.assert_array_equal(plain.calls, said)
  np.testing.assert_array_equal(cached.calls, 2 * said)


@pytest.mark.parametrize("form", ["gpt2", "llama"])
def test_causal_weights_decode_greedily_as_they_always_did(form):
  rows = make_rows()

  @jax.jit
  def logits(tokens):
    causal = dataclasses.replace(SHIFTED, output_shift=0)
    return transformer.logits(bind(form, causal, rows), tokens)

  want = rows.tokens.copy()
  for b, (start, size) in enumerate(zip(STARTS, SIZES, strict=True)):
    for place in range(start, start + size):
      said = np.asarray(logits(want))[b, place - 1]  # output n - 1 predicts token n
      want[b, place] = np.argmax(np.where(np.arange(len(said)) < MASK, said, -np.inf))
      if want[b, place] == END:
        break
  fast = decode(form, SHIFTED, "left_to_right", block_size=1)
  said = np.minimum(np.asarray(lengths(fast)) + 1, SIZES)
  for b, count in enumerate(said):
    start = STARTS[b]
    assert fast.tokens[b, :count].tolist() == want[b, start : start + count].tolist()
  # The prompt's cache predicts the first token; each further one takes one call.
  np.testing.assert_array_equal(fast.calls, said)
  assert fast.network_calls == fast.calls.max()


def guided_sides(contract):
  """Rows with and without their prompt, and what of each may be stored."""
  closed = contract.end == "given"
  without = make_rows(starts=np.ones(ROWS, int), length=SLOTS + 2, closed=closed)
  both = make_rows(closed=closed), without
  sides = [Side(bind("post", contract, r), r.tokens, r.canvas, r.closing) for r in both]
  return sides, [(rows.segments > 0) & ~rows.answer for rows in both]


def test_guidance_and_a_closing_end_over_caches():
  def run(weight, cached):
    sides, stored = guided_sides(PREFIX)
    return generation.generate(
      sides, KEYS, parse(UNCOND, num_steps=6, canvas_size=SLOTS), vocabulary.draw(),
      mask_id=MASK, chunk=16, guidance=weight, stored=stored if cached else None,
    )  # fmt: skip

  run = jax.jit(run, static_argnames="cached")
  plain, guided = (
    [jax.device_get(run(np.float32(weight), cached=cached)) for cached in (False, True)]
    for weight in (0, 1.5)
  )
  for whole, cached in (plain, guided):
    assert_alike(cached, whole)
    np.testing.assert_array_equal(cached.calls, whole.calls + (SIZES > 0))
  assert (plain[0].tokens != guided[0].tokens).any()


def test_guided_blocks_of_one_are_guided_left_to_right():
  def run(weight, block_size):
    sides, stored = guided_sides(blocks_of(1))
    return generation.generate(
      sides, KEYS, parse("left_to_right", num_steps=6, canvas_size=block_size or SLOTS),
      vocabulary.draw(), mask_id=MASK, chunk=16, guidance=weight, end_id=END,
      stored=stored if block_size else None, block_size=block_size,
    )  # fmt: skip

  run = jax.jit(run, static_argnames="block_size")
  plain, blocks = (jax.device_get(run(np.float32(1.5), block_size=size)) for size in (0, 1))
  assert_alike(blocks, plain)
  unguided = jax.device_get(run(np.float32(0), block_size=1))
  assert (unguided.tokens != blocks.tokens).any()


def test_a_cache_is_refused_where_nothing_can_be_kept():
  rows = make_rows()
  full = bind("post", dataclasses.replace(PREFIX, attention="full"), rows)
  with pytest.raises(UserError, match="leave stored out") as error:
    generation.generate(
      [Side(full, rows.tokens, rows.canvas)], KEYS, parse(UNCOND, num_steps=6, canvas_size=SLOTS),
      vocabulary.draw(), mask_id=MASK, chunk=16, stored=[rows.segments > 0],
    )  # fmt: skip
  assert "\n" not in str(error.value)
