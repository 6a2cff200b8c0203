"""The public API: a Sampler around a model.

Its methods check, ask for lengths, and hand on; they are long only by what they say of arguments.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jax.sharding import Mesh

from diffjax import model as models
from diffjax.config import MeshConfig
from diffjax.data import features
from diffjax.sampling import checks, infilling, layout, requests, selection
from diffjax.sampling.decoder import Decoder, Run
from diffjax.sampling.results import Generation, Score, Step
from diffjax.sampling.settings import Settings, settings_of
from diffjax.types import Example, Params, UserError

_BATCH_SIZE = 32
_NUMBERS = 1 << 20  # more than there are questions: what a repeat adds to the number in a key


class Sampler:
  """Answers prompts with a model. Programs are compiled when they are first needed, and kept.

  There is one for each

  - shape (rows, row length, canvas size), each rounded up to a bucket: rows to a power of two up to
    `batch_size`, or to `batch_size` itself if there is more than one batch; row lengths to 32, 64,
    128, ... and the model's longest; canvases to 8, 16, 32, ... (whole blocks, where the model has
    blocks);
  - kind of strategy, and most steps that it may take: up to 16, 32, 64, ...;
  - way of drawing: the argmax, sampled, or sampled from a truncated distribution;
  - guided or not; and traced, streamed, or neither.

  Other numbers (steps within a bucket, temperature, thresholds, weights, seed) compile nothing. So
  a service that always decodes in the same way, with batches of 32, prompts up to 512 tokens and
  canvases up to 64, compiles 6 x 6 x 4 programs at most (rows 1 ... 32, row lengths 32 ... 1024,
  canvases 8 ... 64), and with `strict` 6 x 4.

  Batches with a row for every local device are split over all of them; a number of devices counts
  as part of the shape. A model that lies on a mesh is computed on all of it, its rows split over
  data, fsdp and sequence. Where that spans processes, all of them make the same calls in the same
  order, each from one thread, and nothing streams. Otherwise several threads may use it at once.
  """

  def __init__(self, model: models.Model):
    """Wraps a model; nothing is compiled yet.

    A causal model without a mask is decoded from left to right, which is the autoregressive
    control: its output n - 1 predicts token n.

    Raises:
      UserError: the model neither denoises nor is causal, or cannot be decoded as it was trained.
    """
    contract = model.contract
    if not contract.denoises:
      if contract.attention != "causal":
        raise UserError("this model has no mask and is not causal, so it generates nothing")
      contract = dataclasses.replace(contract, output_shift=1, end="predicted")
      model = dataclasses.replace(model, contract=contract)
    if contract.attention == "blocks" and model.config.zero_mask_embedding:
      raise UserError(
        "attention 'blocks' needs a cache, and the embeddings of this model depend on the whole row"
      )
    self.model = model
    self._decoder = Decoder(model)

  @classmethod
  def load(
    cls,
    path: str | Path,
    *,
    mesh: MeshConfig | Mesh | None = None,
    dtype: models.ParameterDtype = "float32",
  ) -> Self:
    """From any directory that `diffjax.load` understands.

    Args:
      path: of the model.
      mesh: over all devices, or one made of some, for a model that does not fit one; each has its
        shards of it.
      dtype: that parameters are held in, and computed with.

    Raises:
      UserError: nothing there, or not readable; or the model does not divide over the mesh.
    """
    return cls(models.load(path, mesh=mesh, dtype=dtype))

  @property
  def programs(self) -> int:
    """How many decoding programs have been compiled so far."""
    return self._decoder.programs

  def settings(self, preset: str = "", **changes: Any) -> Settings:
    """The settings of a preset with some changed, as every method here takes them.

    A causal model without a mask has but one strategy, `left_to_right`, which is its default.

    Raises:
      UserError: an unknown preset or setting, an illegal value, or one that the model cannot do.
    """
    denoises = self.model.contract.denoises
    if not denoises:
      changes = {"strategy": "left_to_right"} | changes
    settings = settings_of(preset, **changes)
    if not denoises and settings.strategy != "left_to_right":
      raise UserError(
        f"strategy = {settings.strategy!r}: this is a causal model without a mask, which "
        f"decodes by 'left_to_right' alone; to denoise, train it with section config.adaptation"
      )
    if settings.guidance and not denoises and settings.unconditional == "masked":
      raise UserError("unconditional = 'masked': this model has no mask; choose 'absent'")
    return settings

  def generate(
    self,
    prompts: str | Sequence[str],
    *,
    lengths: int | Sequence[int] | None = None,
    preset: str = "",
    seed: int = 0,
    return_trace: bool = False,
    strict: bool = False,
    progress: str = "",
    batch_size: int = _BATCH_SIZE,
    repeats: Sequence[int] | None = None,
    **changes: Any,
  ) -> list[Generation]:
    """Answers prompts, in their order. A single string is a list of one.

    Args:
      prompts: texts, none of them empty.
      lengths: tokens of the canvas, for all prompts or for each. None: what the model's length head
        predicts; or, of a model that predicts its end, as far as that.
      preset: settings to start from, of PRESETS.
      seed: with a prompt's tokens, the sample's number and the number of earlier equal prompts, it
        decides the noise.
      return_trace: whether the steps are returned.
      strict: bit-equal answers whatever else is in the list: every row is computed in the shape
        that its own length and canvas ask for, with `batch_size` rows. Otherwise rows may share a
        larger shape, which changes scores by float rounding.
      progress: what a progress bar with ETA is labelled; empty shows none.
      batch_size: rows computed at a time, on all devices together, rounded up to a multiple of
        these; every candidate of a prompt is a row.
      repeats: of each prompt, how many equal ones came in earlier calls that this one continues;
        they are counted with those in the list.
      **changes: fields of Settings, such as num_steps=20 or temperature=0.7.

    Raises:
      UserError: for an empty or undecodable prompt, an illegal length, a prompt that does not fit
        the model with its answer, no way to know the length, or illegal settings.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    tokenizer = self._tokenizer()
    for number, text in enumerate(texts, 1):
      checks.check_text(text, f"prompt {number}")
    return self.generate_ids(
      [features.prompt_ids(text, tokenizer, self.model.contract) for text in texts],
      lengths=lengths,
      preset=preset,
      seed=seed,
      return_trace=return_trace,
      strict=strict,
      progress=progress,
      batch_size=batch_size,
      repeats=repeats,
      **changes,
    )

  def generate_ids(
    self,
    prompts: Sequence[Sequence[int]],
    *,
    lengths: int | Sequence[int] | None = None,
    preset: str = "",
    seed: int = 0,
    return_trace: bool = False,
    strict: bool = False,
    progress: str = "",
    batch_size: int = _BATCH_SIZE,
    repeats: Sequence[int] | None = None,
    params: Params | None = None,
    **changes: Any,
  ) -> list[Generation]:
    """`generate` for prompts that are already ids, without <s> and </s>.

    Args:
      prompts: ids of each prompt.
      params: other parameters for the same network, as between two steps of training; nothing is
        compiled again for them.
      lengths, preset, seed, return_trace, strict, progress, batch_size, repeats, **changes: as in
        `generate`.

    Raises:
      UserError: as `generate`, or for an id that the vocabulary does not have.
    """
    checks.check_ids(prompts, self.model.config.vocab_size)
    self._check_beam(changes, given=lengths is not None)
    how = self._run(
      self.settings(preset, **changes), params=params, seed=seed, trace=return_trace,
      strict=strict, progress=progress, batch_size=batch_size,
    )  # fmt: skip
    words = layout.key_words(prompts, checks.check_repeats(repeats, len(prompts)))
    asked, owners = [], []
    for owner, sizes in enumerate(self._sizes(prompts, lengths, how)):
      for size, sample in itertools.product(sizes, range(how.settings.num_samples)):
        sample_words = layout.sample_words(words[owner], sample)
        asked.append(self._sides(prompts[owner], size, sample_words, how.settings))
        owners.append(owner)
    candidates: list[list[Generation]] = [[] for _ in prompts]
    for owner, candidate in zip(owners, self._decoder.run(asked, how), strict=True):
      candidates[owner].append(candidate)
    return [selection.best_of(some, how.settings.select) for some in candidates]

  def stream(
    self,
    prompt: str,
    *,
    lengths: int | None = None,
    preset: str = "",
    seed: int = 0,
    **changes: Any,
  ) -> Iterator[Step]:
    """Yields every step of one answer as it is decided; the last one is what `generate` returns.

    Steps may be left before the last: the answer is then computed to its end in the background,
    and the interpreter does not exit before that.

    Args:
      prompt, lengths, preset, seed, **changes: as in `generate`; one candidate only.

    Raises:
      UserError: as `generate`, or for settings with several candidates, or a model that lies over
        several processes. Raised at the first step.
    """
    settings = self.settings(preset, **changes)
    self._check_beam(changes, given=lengths is not None)
    checks.check_text(prompt, "the prompt")
    ids = features.prompt_ids(prompt, self._tokenizer(), self.model.contract)
    how = self._run(settings, seed=seed)
    (sizes,) = self._sizes([ids], lengths, how)
    if len(sizes) * settings.num_samples > 1:
      raise UserError("a stream shows one answer: set length_beam and num_samples to 1")
    words = layout.key_words([ids])[0]
    yield from self._decoder.stream(self._sides(ids, sizes[0], words, settings), how)

  def text(self, step: Step) -> str:
    """The text of an answer whose last step this is. Raises UserError without a tokenizer."""
    self._tokenizer()
    return self._decoder.text(step.ids, ends=self._ends)

  def infill(
    self,
    template: str,
    *,
    preset: str = "",
    seed: int = 0,
    return_trace: bool = False,
    batch_size: int = _BATCH_SIZE,
    **changes: Any,
  ) -> Generation:
    """Fills the gaps of a text: {{8}} has eight tokens, {{3-6}} three to six, by the best score.

    Args:
      template: "The {{8}} sat on the {{3-6}}."; every combination of lengths is a candidate.
      preset, seed, return_trace, batch_size, **changes: as in `generate`.

    Returns:
      The best candidate; its `text` is the whole text, its ids and scores those of the gaps.

    Raises:
      UserError: no gap or an illegal one, a text that does not fit the model, attention that only
        writes on from a prompt, or illegal settings.
    """
    settings = self.settings(preset, **changes)
    self._check_beam(changes, given=True)
    contract = self.model.contract
    if contract.attention in ("blocks", "causal"):
      raise UserError(
        f"a model of attention {contract.attention!r} only writes on from a prompt; infilling "
        f"needs 'full' or 'prefix'"
      )
    if settings.guidance:
      raise UserError(f"guidance = {settings.guidance}: a template has no prompt; set it to 0")
    how = self._run(settings, seed=seed, trace=return_trace, batch_size=batch_size)
    parsed = infilling.parse(template)
    pieces = [self._tokenizer().encode(text) if text else [] for text in parsed.texts]
    words = layout.key_words([[*itertools.chain(*pieces)]])[0]
    asked = [
      requests.gapped(pieces, sizes, layout.sample_words(words, sample), contract)
      for sizes, sample in itertools.product(parsed.sizes, range(settings.num_samples))
    ]
    for request in asked:
      checks.check_fits(len(request.ids), self.model.config.max_positions, "the text")
    # A </s> in a gap says nothing about the text behind it.
    candidates = self._decoder.run([(request,) for request in asked], how._replace(ends=False))
    whole = [
      dataclasses.replace(candidate, text=self._fill_in(request, candidate.ids))
      for request, candidate in zip(asked, candidates, strict=True)
    ]
    return selection.best_of(whole, settings.select)

  def score(
    self,
    prompt: str,
    target: str,
    *,
    samples: int = 128,
    seed: int = 0,
    batch_size: int = _BATCH_SIZE,
  ) -> Score:
    """How likely a target is after a prompt: a lower bound of log p, with its standard error.

    See diffusion/likelihood.py: exact-count masking (2502.09992), stratified; all masks of a short
    target. Exact for a target of one token, and for a causal model without a mask.

    Args:
      prompt: may be empty.
      target: not empty; with its </s>, as training had it.
      samples: network passes, of one row each.
      seed: decides the masks.
      batch_size: rows computed at a time.

    Raises:
      UserError: an empty target, or one that does not fit the model with its prompt.
    """
    (score,) = self.score_many(
      [prompt], [target], samples=samples, seed=seed, batch_size=batch_size
    )
    return score

  def score_many(
    self,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    samples: int = 128,
    seed: int = 0,
    batch_size: int = _BATCH_SIZE,
    progress: str = "",
    too_long: features.TooLong = "drop",
  ) -> list[Score]:
    """`score` of many pairs, whose rows share batches; each is bit-equal to its score alone.

    Where a pair occurs again its masks are others, so that errors of all are independent.

    Args:
      prompts, targets: one of each for every pair.
      samples, seed, batch_size: as in `score`; a pair's masks depend on the seed, its own ids, and
        how many equal pairs come before it.
      progress: what a progress bar with ETA is labelled; empty shows none.
      too_long: what is kept of a prompt that does not fit (see features.encode); with "drop" it is
        an error.

    Raises:
      UserError: as `score`, or not as many targets as prompts.
    """
    tokenizer, longest = self._tokenizer(), self.model.config.max_positions
    if len(prompts) != len(targets):
      raise UserError(f"{len(prompts)} prompts and {len(targets)} targets; give one for each")
    rows = []
    for number, (prompt, target) in enumerate(zip(prompts, targets, strict=True), 1):
      checks.check_text(target, f"target {number}")
      row = features.encode(
        Example(prompt, target), tokenizer, self.model.contract, max_length=longest,
        too_long=too_long,
      )  # fmt: skip
      if row is None:
        raise UserError(
          f"prompt and target {number} have more tokens than the model has positions, {longest}; "
          f"shorten either"
        )
      rows.append(row)
    return self.score_rows(
      rows, samples=samples, seed=seed, batch_size=batch_size, progress=progress
    )

  def score_rows(
    self,
    rows: Sequence[features.Row],
    *,
    samples: int = 128,
    seed: int = 0,
    batch_size: int = _BATCH_SIZE,
    progress: str = "",
    numbers: Sequence[int] | None = None,
  ) -> list[Score]:
    """`score_many` of pairs that are already ids: each row `<s> prompt target </s>`.

    Args:
      rows: everything from its `canvas_start` on is the target.
      samples, seed, batch_size, progress: as in `score_many`.
      numbers: of what each row is a part, such as a question's: equal rows of different numbers
        have different masks, in whatever calls they are scored. Default: all 0.

    Raises:
      UserError: a row is longer than the model, or has an id that its vocabulary does not have.
    """
    checks.check_count("samples", samples)
    how = self._run(
      self.settings(), seed=seed, batch_size=batch_size, strict=True, progress=progress
    )
    ids = [row.tokens.tolist() for row in rows]
    checks.check_ids(ids, self.model.config.vocab_size)
    asked, seen = [], Counter()
    numbers = [0] * len(ids) if numbers is None else numbers
    for row, tokens, number in zip(rows, ids, numbers, strict=True):
      checks.check_fits(len(tokens), self.model.config.max_positions, "a row")
      canvas, words = np.arange(row.canvas_start, len(tokens)), layout.key_words([tokens])[0]
      again = number, row.canvas_start, *tokens
      words[3] = number + seen[again] * _NUMBERS & 0xFFFFFFFF
      seen[again] += 1
      asked.append(layout.Request(tokens, canvas, words, closed=False))
    return self._decoder.score(asked, samples=samples, how=how)

  def warm_up(
    self,
    *,
    prompt_tokens: Sequence[int],
    lengths: Sequence[int],
    batch_size: int = _BATCH_SIZE,
    preset: str = "",
    return_trace: bool = False,
    **changes: Any,
  ) -> list[layout.Shape]:
    """Compiles what `generate` needs for prompts and canvases of these sizes, before they come.

    Programs of `batch_size` rows: exactly what `strict` calls of these sizes use. Other calls also
    have fewer rows, and the longest row of a batch need not be the one with the largest canvas.
    Where the model has a length head, its program is compiled too.

    Args:
      prompt_tokens: tokens of a prompt, for example (30, 60, 120).
      lengths: tokens of a canvas; combined with each of prompt_tokens as far as both fit.
      batch_size, preset, return_trace, **changes: as in the calls to come.

    Returns:
      The shapes that are compiled now.

    Raises:
      UserError: illegal settings.
    """
    how = self._run(self.settings(preset, **changes), trace=return_trace, batch_size=batch_size)
    contract, longest = self.model.contract, self.model.config.max_positions
    canvases = [requests.rounded(length, contract) for length in lengths]
    pairs = [(n + c + requests.frame(contract), c) for n in prompt_tokens for c in canvases]
    pairs = [pair for pair in pairs if pair[0] <= longest]
    if not pairs:
      return []
    how = how._replace(strict=True)
    planned = self._decoder.plan(*zip(*pairs, strict=True), how)
    shapes = list(dict.fromkeys(shape for _, shape in planned))
    blank = self._sides([], 1, np.zeros(4, np.uint32), how.settings)
    for shape in shapes:
      self._decoder.compile(blank, shape, how)
    if self.model.config.length_classes:
      fitting = [[contract.bos_id] * n for n in prompt_tokens if n < longest]
      self._decoder.predict_lengths(fitting, [1] * len(fitting), how)
    return shapes

  # How a batch is made and run.

  @property
  def _ends(self) -> bool:
    return self.model.contract.end == "predicted"

  def _tokenizer(self) -> Any:
    if self.model.tokenizer is None:
      raise UserError("this model has no tokenizer, so it takes no text; use generate_ids")
    return self.model.tokenizer

  def _run(
    self,
    settings: Settings,
    *,
    params: Params | None = None,
    seed: int = 0,
    batch_size: int = 1,
    strict: bool = False,
    trace: bool = False,
    progress: str = "",
  ) -> Run:
    """The common part of a call, checked. Raises UserError."""
    checks.check_batch(batch_size)
    checks.check_seed(seed)
    if trace:
      self._tokenizer()
    params = self.model.params if params is None else params
    return Run(settings, params, seed, batch_size, strict, trace, self._ends, progress)

  def _check_beam(self, changes: dict[str, Any], *, given: bool) -> None:
    """A beam that was asked for changes nothing where no length is predicted. Raises UserError."""
    beam = changes.get("length_beam", 1)
    if beam != 1 and (given or not self.model.config.length_classes):
      why = "the length is given" if given else "this model has no length head"
      raise UserError(f"length_beam = {beam} tries predicted lengths, and {why}; leave it out")

  def _sizes(
    self, prompts: Sequence[Sequence[int]], lengths: int | Sequence[int] | None, how: Run
  ) -> list[list[int]]:
    """The canvas sizes to try for each prompt. Raises UserError."""
    config, contract = self.model.config, self.model.contract
    frame = requests.frame(contract)
    room = [config.max_positions - len(prompt) - frame for prompt in prompts]
    if lengths is not None:
      given = checks.check_lengths(lengths, len(prompts))
      sizes = [
        min(requests.rounded(size, contract), max(size, space))
        for size, space in zip(given, room, strict=True)
      ]
    elif config.length_classes:
      checks.check_room(prompts, [1] * len(prompts), frame, config.max_positions)
      predicted = self._decoder.predict_lengths(prompts, room, how)
      return [
        requests.around_lengths(beam, space, contract)
        for beam, space in zip(predicted, room, strict=True)
      ]
    elif self._ends:
      sizes = [max(1, min(requests.open_size(contract), space)) for space in room]
    else:
      raise UserError(
        "how long are the answers? give lengths (--length); this model has no length head "
        "(configs/length_head.py trains one) and predicts no end (config.data.end_padding)"
      )
    checks.check_room(prompts, sizes, frame, config.max_positions)
    return [[size] for size in sizes]

  def _sides(
    self, prompt: Sequence[int], size: int, words: np.ndarray, settings: Settings
  ) -> tuple[layout.Request, ...]:
    return requests.sides(prompt, size, words, settings, self.model.contract)

  def _fill_in(self, request: layout.Request, ids: Sequence[int]) -> str:
    """The text of a whole row with its canvas filled."""
    row = np.asarray(request.ids)
    row[request.canvas] = ids
    return self._tokenizer().decode(
      [id_ for id_ in row.tolist() if id_ not in self._decoder.special]
    )
