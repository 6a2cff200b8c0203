"""Text in, text out: prompts are laid out, grouped into few shapes, decoded in compiled loops.

A little over the usual length, because all that decides whether a row's result depends on its batch
(checks, shapes, keys) is to be read in one place.
"""

import dataclasses
import functools
import hashlib
import itertools
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from diffjax import model as models
from diffjax.config import EvaluationConfig
from diffjax.diffusion import generation, strategies, vocabulary
from diffjax.types import GENERATOR, Array, Denoiser, Params, UserError

MASK_MARK = "░"  # a masked position in a traced step

_DEFAULTS = EvaluationConfig()
_SHORTEST_ROW, _SHORTEST_CANVAS = 32, 8  # smallest buckets


@dataclasses.dataclass(frozen=True)
class Generation:
  """One answer. `ids` and `scores` cover the whole canvas, special tokens included."""

  text: str  # without special tokens; empty from a model without a tokenizer
  ids: list[int]
  scores: list[float]  # log-probability of each token at the step that revealed it
  score: float  # mean of them over the tokens that are text
  network_calls: int  # until this row was final
  trace: list[str] | None  # the canvas after every one of these calls


class Shape(NamedTuple):
  """What a compiled program is keyed by, next to the kind of strategy."""

  rows: int
  length: int
  canvas: int


class _Rows(NamedTuple):
  """A batch as the compiled program takes it."""

  tokens: np.ndarray  # int32[B, L]
  segments: np.ndarray  # int32[B, L]
  canvas: np.ndarray  # int32[B, C]
  canvas_mask: np.ndarray  # bool[B, C]
  key_words: np.ndarray  # uint32[B, 4]  folded into the seed, one after the other


class Sampler:
  """Generates answers of given lengths. Programs are compiled once per shape and kept.

  A shape is (rows, row length, canvas size), each rounded up to a bucket: rows to a power of two
  up to `batch_size`, or to `batch_size` itself if there is more than one batch; row lengths to 32,
  64, 128, ... and the model's longest; canvases to 8, 16, 32, ...
  """

  def __init__(self, model: models.Model):
    """Wraps a model; nothing is compiled yet. Raises UserError for one that does not denoise."""
    if not model.contract.denoises:
      raise UserError(
        "this is a causal model without a mask, so it denoises nothing; turn it into a diffusion "
        "model first: diffjax train with config.init_from and the section config.adaptation"
      )
    self.model = model
    self._decode = jax.jit(
      functools.partial(
        _decode,
        bind=model.denoiser,
        mask_id=model.contract.mask_id,
        chunk=model.compute.vocabulary_chunk,
      ),
      static_argnames="keep_trace",
    )

  @classmethod
  def load(cls, path: str | Path) -> Self:
    """From any directory that `diffjax.load` understands. Raises UserError."""
    return cls(models.load(path))

  def generate(
    self,
    prompts: str | Sequence[str],
    *,
    lengths: int | Sequence[int],
    num_steps: int = _DEFAULTS.num_steps,
    strategy: str = _DEFAULTS.strategy,
    temperature: float = _DEFAULTS.temperature,
    seed: int = 0,
    return_trace: bool = False,
    strict: bool = False,
    progress: str = "",
    batch_size: int = _DEFAULTS.batch_size,
  ) -> list[Generation]:
    """Answers prompts, in their order. A single string is a list of one.

    Args:
      prompts: texts, none of them empty.
      lengths: tokens to generate, for all prompts or for each.
      num_steps: S; rows that are final earlier cost no further network calls.
      strategy: see strategies.parse.
      temperature: 0 takes the argmax.
      seed: with a prompt's tokens, and the number of earlier equal prompts, it decides the noise.
      return_trace: whether every step is returned as a string, MASK_MARK for a masked position.
      strict: bit-equal answers whatever else is in the list: every prompt is computed in the
        shape that its own length and canvas ask for, with `batch_size` rows. Otherwise prompts
        may share a larger shape, which changes scores by float rounding.
      progress: what a progress bar with ETA is labelled; empty shows none.
      batch_size: rows computed at a time.

    Raises:
      UserError: for an empty or undecodable prompt, an illegal length, a prompt that does not fit
        the model with its answer, or an illegal strategy, seed, temperature or number of steps.
    """
    tokenizer = self.model.tokenizer
    if tokenizer is None:
      raise UserError("this model has no tokenizer, so it takes no text; use generate_ids")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    for number, text in enumerate(texts, 1):
      _check_text(text, number)
    return self.generate_ids(
      [tokenizer.encode(text) for text in texts],
      lengths=lengths,
      num_steps=num_steps,
      strategy=strategy,
      temperature=temperature,
      seed=seed,
      return_trace=return_trace,
      strict=strict,
      progress=progress,
      batch_size=batch_size,
    )

  def generate_ids(
    self,
    prompts: Sequence[Sequence[int]],
    *,
    lengths: int | Sequence[int],
    num_steps: int = _DEFAULTS.num_steps,
    strategy: str = _DEFAULTS.strategy,
    temperature: float = _DEFAULTS.temperature,
    seed: int = 0,
    return_trace: bool = False,
    strict: bool = False,
    progress: str = "",
    batch_size: int = _DEFAULTS.batch_size,
    params: Params | None = None,
  ) -> list[Generation]:
    """`generate` for prompts that are already ids, without <s> and </s>.

    Args:
      prompts: ids of each prompt.
      params: other parameters for the same network, as between two steps of training; nothing is
        compiled again for them.
      lengths, num_steps, strategy, temperature, seed, return_trace, strict, progress: as in
        `generate`.
      batch_size: as in `generate`.

    Raises:
      UserError: as `generate`.
    """
    if batch_size < 1:
      raise UserError(f"batch_size = {batch_size} must be >= 1")
    if not 0 <= seed < 2**32:
      raise UserError(f"seed = {seed} must be between 0 and 2**32 - 1")
    if return_trace and self.model.tokenizer is None:
      raise UserError("this model has no tokenizer, so it shows no trace; set return_trace=False")
    make_strategy = functools.partial(strategies.parse, strategy, num_steps=num_steps)
    draw = vocabulary.draw(temperature=temperature)
    make_strategy(canvas_size=1)  # for its checks, before any work
    frame = 2 if self.model.contract.end == "given" else 1  # <s>, and </s> where it is given
    canvases = _check_lengths(
      prompts, lengths, frame=frame, max_positions=self.model.config.max_positions
    )
    key_words = _key_words(prompts)
    results: list[Generation | None] = [None] * len(prompts)
    batches = plan_batches(
      [len(prompt) + canvas + frame for prompt, canvas in zip(prompts, canvases, strict=True)],
      canvases,
      batch_size=batch_size,
      max_positions=self.model.config.max_positions,
      strict=strict,
    )
    for members, shape in track(batches, progress, transient=True, disable=not progress):
      rows = self._lay_out(
        [prompts[i] for i in members], [canvases[i] for i in members], key_words[members], shape
      )
      decoded = self._decode(
        self.model.params if params is None else params,
        rows,
        jax.random.key(seed, impl=GENERATOR),
        make_strategy(canvas_size=shape.canvas),
        draw,
        keep_trace=return_trace,
      )
      decoded = jax.device_get(decoded)
      ids = decoded.tokens
      for row, member in enumerate(members):
        results[member] = self._finish(ids[row], decoded, row, canvases[member])
    return results

  @property
  def programs(self) -> int:
    """How many programs have been compiled so far."""
    return self._decode._cache_size()

  def _lay_out(
    self,
    prompts: Sequence[Sequence[int]],
    canvases: Sequence[int],
    key_words: np.ndarray,
    shape: Shape,
  ) -> _Rows:
    """`<s> prompt <mask>* </s>`; without </s> where the model predicts the end by itself."""
    contract = self.model.contract
    rows = _Rows(
      tokens=np.full((shape.rows, shape.length), contract.pad_id, np.int32),
      segments=np.zeros((shape.rows, shape.length), np.int32),
      canvas=np.zeros((shape.rows, shape.canvas), np.int32),
      canvas_mask=np.zeros((shape.rows, shape.canvas), bool),
      key_words=np.zeros((shape.rows, key_words.shape[1]), np.uint32),
    )
    rows.key_words[: len(prompts)] = key_words
    for row, (prompt, canvas) in enumerate(zip(prompts, canvases, strict=True)):
      end = [contract.eos_id] if contract.end == "given" else []
      ids = [contract.bos_id, *prompt, *[contract.mask_id] * canvas, *end]
      rows.tokens[row, : len(ids)] = ids
      rows.segments[row, : len(ids)] = 1
      rows.canvas[row, :canvas] = np.arange(1 + len(prompt), 1 + len(prompt) + canvas)
      rows.canvas_mask[row, :canvas] = True
    return rows

  def _finish(
    self, ids: np.ndarray, decoded: generation.Decoded, row: int, canvas: int
  ) -> Generation:
    contract, tokenizer = self.model.contract, self.model.tokenizer
    special = (contract.bos_id, contract.pad_id, contract.eos_id)
    ids = ids[:canvas].tolist()
    scores = decoded.scores[row, :canvas].tolist()
    calls = int(decoded.calls[row])
    trace = None
    if decoded.trace is not None:
      trace = [
        "".join(
          f" {MASK_MARK}" if hidden else "" if id_ in special else tokenizer.piece(id_)
          for id_, hidden in zip(step_ids.tolist(), masked, strict=True)
        ).removeprefix(" ")
        for step_ids, masked in zip(
          decoded.trace.tokens[:calls, row, :canvas],
          decoded.trace.masked[:calls, row, :canvas],
          strict=True,
        )
      ]
    # A predicted end is where the text ends, whatever else stands on the canvas.
    ends = contract.end == "predicted" and contract.eos_id in ids
    kept = ids.index(contract.eos_id) if ends else len(ids)
    said = [id_ for id_ in ids[:kept] if id_ not in special]
    return Generation(
      text=tokenizer.decode(said) if tokenizer else "",
      ids=ids,
      scores=scores,
      score=generation.candidate_score(ids[:kept], scores[:kept], special),
      network_calls=calls,
      trace=trace,
    )


def plan_batches(
  lengths: Sequence[int],
  canvases: Sequence[int],
  *,
  batch_size: int,
  max_positions: int,
  strict: bool,
) -> list[tuple[list[int], Shape]]:
  """Groups rows of given lengths and canvas sizes into batches of few shapes.

  Args:
    lengths: tokens of each row, at most max_positions.
    canvases: canvas positions of each row.
    batch_size: rows of a batch at most.
    max_positions: the model's longest row.
    strict: whether a row keeps to its own buckets and every batch has batch_size rows, so that a
      row's shape depends on nothing but itself.

  Returns:
    The rows of each batch, as indices into `lengths`, and its shape. Every row occurs once.
  """
  buckets = [
    (min(_power_of_two(n, _SHORTEST_ROW), max_positions), _power_of_two(c, _SHORTEST_CANVAS))
    for n, c in zip(lengths, canvases, strict=True)
  ]
  order = sorted(range(len(buckets)), key=buckets.__getitem__)
  groups = [order]
  if strict:
    groups = [list(group) for _, group in itertools.groupby(order, key=buckets.__getitem__)]
  batches = []
  for group in groups:
    for start in range(0, len(group), batch_size):
      members = group[start : start + batch_size]
      # A last batch that is not full reuses the program of the others.
      full = strict or len(group) > batch_size
      rows = batch_size if full else min(batch_size, _power_of_two(len(members), 1))
      length, canvas = (max(buckets[i][axis] for i in members) for axis in (0, 1))
      batches.append((members, Shape(rows, length, canvas)))
  return batches


def _decode(
  params: Params,
  rows: _Rows,
  seed_key: Array,
  strategy: strategies.Strategy,
  draw: vocabulary.Draw,
  *,
  bind: Callable[..., Denoiser],
  mask_id: int,
  chunk: int,
  keep_trace: bool,
) -> generation.Decoded:
  """The compiled program: parameters and strategy are traced, so neither recompiles."""
  fold_all = lambda words: functools.reduce(jax.random.fold_in, words, seed_key)
  keys = jax.vmap(fold_all)(jnp.asarray(rows.key_words))
  side = generation.Side(
    bind(rows.segments, params=params),
    rows.tokens,
    generation.Canvas(rows.canvas, rows.canvas_mask),
  )
  return generation.generate(
    [side], keys, strategy, draw, mask_id=mask_id, chunk=chunk, keep_trace=keep_trace
  )


def _key_words(prompts: Sequence[Sequence[int]]) -> np.ndarray:
  """uint32[rows, 4]: two words of the prompt's hash, sample number, count of equal prompts before.

  There is one sample of each prompt; its number, 0, has its place, since it belongs to the rule
  by which a row's noise can be made again.
  """
  seen: Counter[bytes] = Counter()
  words = np.zeros((len(prompts), 4), np.uint32)
  for row, prompt in enumerate(prompts):
    data = np.asarray(prompt, "<i4").tobytes()
    words[row, :2] = np.frombuffer(hashlib.sha256(data).digest()[:8], "<u4")
    words[row, 3] = seen[data]
    seen[data] += 1
  return words


def _power_of_two(number: int, least: int) -> int:
  return max(least, 1 << (int(number) - 1).bit_length())


def _check_text(text: str, number: int) -> None:
  if not text.strip():
    raise UserError(f"prompt {number} is empty; give it some text")
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f"prompt {number} is not valid UTF-8: {text[error.start]!r} at character {error.start + 1}"
    ) from None


def _check_lengths(
  prompts: Sequence[Sequence[int]],
  lengths: int | Sequence[int],
  *,
  frame: int,
  max_positions: int,
) -> list[int]:
  """The canvas size of every prompt. Raises UserError."""
  given = list(lengths) if isinstance(lengths, Sequence | np.ndarray) else [lengths] * len(prompts)
  if len(given) != len(prompts):
    raise UserError(
      f"{len(given)} lengths for {len(prompts)} prompts; give one for each, or one number for all"
    )
  for number, (prompt, length) in enumerate(zip(prompts, given, strict=True), 1):
    if isinstance(length, bool | np.bool_) or not hasattr(length, "__index__") or length < 1:
      raise UserError(f"length {length!r} of prompt {number} must be a whole number >= 1")
    needed = len(prompt) + length + frame
    if needed > max_positions:
      raise UserError(
        f"prompt {number} has {len(prompt)} tokens; with {length} to generate, <s> and </s> that "
        f"is {needed}, and the model has {max_positions} positions; shorten either"
      )
  return [operator.index(length) for length in given]
