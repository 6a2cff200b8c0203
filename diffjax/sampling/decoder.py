"""Requests in, answers out: batches are laid out, run in compiled programs, and read back."""

import functools
import itertools
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.progress import track

from diffjax import sharding
from diffjax.diffusion import generation, likelihood, strategies, vocabulary
from diffjax.model import Model
from diffjax.sampling import layout, programs
from diffjax.sampling.layout import Request, Rows, Scored, Shape
from diffjax.sampling.results import Generation, Score, Step
from diffjax.sampling.settings import Settings
from diffjax.types import Array, Params, UserError

Sides = tuple[Request, ...]  # a request; under guidance also the one without its prompt


class Run(NamedTuple):
  """How requests are run: all that they have in common."""

  settings: Settings
  params: Params
  seed: int
  batch_size: int
  strict: bool = False
  trace: bool = False
  ends: bool = False  # whether a revealed </s> ends its row
  progress: str = ""
  mesh: Mesh | None = None  # of the devices that share a batch, see programs; None: one does all


class Decoder:
  """The compiled programs of a model, and what runs them; several threads may share it.

  Batches with a row for every local device are split over all of them; where the model lies on a
  mesh, all batches over that. Threads of several processes would not meet in the same order: there
  one does.
  """

  def __init__(self, model: Model):
    """Compiles nothing yet."""
    self._model = model
    self._watchers: dict[int, queue.SimpleQueue] = {}
    self._lock = threading.Lock()
    self._copies: Params | None = None  # the model's own parameters, on every device
    part, over = functools.partial, programs.over_devices
    decode = part(programs.decode, model=model, watch=self._watch)
    self._decode = jax.jit(
      over(decode, split=(1,), out_specs=programs.SPLIT_DECODED),
      static_argnames=("pattern", "mesh"),
    )
    self._predict_lengths = jax.jit(
      over(
        part(programs.predict_lengths, model=model),
        split=(1, 2, 3),
        out_specs=programs.SPLIT_LENGTHS,
      ),
      static_argnames=("beam", "mesh"),
    )
    self._score = jax.jit(
      over(part(programs.score, model=model), split=(1,), out_specs=programs.SPLIT_SCORES),
      static_argnames="mesh",
    )

  @property
  def programs(self) -> int:
    """How many decoding programs have been compiled so far."""
    return self._decode._cache_size()

  def plan(
    self, lengths: Sequence[int], canvases: Sequence[int], how: Run
  ) -> list[tuple[list[int], Shape]]:
    """layout.plan_batches for this model; all shapes have as many rows."""
    mesh = programs.mesh_of(how.params)
    return layout.plan_batches(
      lengths,
      canvases,
      batch_size=how.batch_size,
      max_positions=self._model.config.max_positions,
      strict=how.strict,
      multiple=max(1, self._model.contract.block_size),
      devices=len(programs.devices_for(how.params)),
      parts=1 if mesh is None else programs.row_parts(mesh),
    )

  def _spread(self, how: Run, batches: Sequence[tuple[list[int], Shape]]) -> Run:
    """With its parameters on all devices, if there are several and rows enough for all.

    Those of a model that lies on a mesh stay where they are.
    """
    mesh = programs.mesh_of(how.params)
    if mesh is not None:
      params = programs.laid_out_for_rows(how.params, mesh)
      return how._replace(params=params, mesh=sharding.without_sequence(mesh))
    devices = programs.devices_for(how.params)
    if len(devices) == 1 or not batches or batches[0][1].rows < len(devices):
      return how
    mesh = sharding.rows_mesh(devices)
    place = lambda: jax.device_put(how.params, sharding.replicated(mesh))
    if how.params is not self._model.params:  # of a step of training: not to be kept
      return how._replace(params=place(), mesh=mesh)
    with self._lock:
      if self._copies is None:
        self._copies = place()
      return how._replace(params=self._copies, mesh=mesh)

  def predict_lengths(
    self, prompts: Sequence[Sequence[int]], room: Sequence[int], how: Run
  ) -> list[list[int]]:
    """The length head's likeliest lengths for each prompt, best first, none above its room."""
    contract = self._model.contract
    beam = min(how.settings.length_beam, self._model.config.length_classes)
    ids = [[contract.bos_id, *prompt] for prompt in prompts]
    blank = lambda row: Request(row, np.arange(0), np.zeros(4, np.uint32), False)
    sizes: list[list[int]] = [[] for _ in prompts]
    batches = self.plan([len(row) for row in ids], [1] * len(ids), how)
    how = self._spread(how, batches)
    for members, shape in batches:
      rows = layout.lay_out([blank(ids[i]) for i in members], shape, pad_id=contract.pad_id)
      space = np.ones(shape.rows, np.int32)
      space[: len(members)] = [room[i] for i in members]
      asked = programs.place_rows((rows.tokens, rows.segments, space), how.mesh)
      found, counts = jax.device_get(
        self._predict_lengths(how.params, *asked, beam=beam, mesh=how.mesh)
      )
      for row, member in enumerate(members):
        sizes[member] = found[row, : counts[row]].tolist()
    return sizes

  def run(self, requests: Sequence[Sides], how: Run) -> list[Generation]:
    """Decodes requests in batches of few shapes; answers in their order."""
    results: list[Generation | None] = [None] * len(requests)
    batches = self.plan(
      [len(request.ids) for request, *_ in requests],
      [len(request.canvas) for request, *_ in requests],
      how,
    )
    how = self._spread(how, batches)
    for members, shape in _track(batches, how):
      sides = self._lay_out([requests[i] for i in members], shape)
      decoded = jax.device_get(self._call(sides, how))
      for row, member in enumerate(members):
        size = len(requests[member][0].canvas)
        results[member] = self._finish(decoded, row, size, ends=how.ends)
    return results

  def stream(self, request: Sides, how: Run) -> Iterator[Step]:
    """Every step of one request that could change it, as the compiled program decides it.

    Raises UserError where the model lies over several processes: one alone is called back.
    """
    mesh = programs.mesh_of(how.params)
    if mesh is not None and mesh.is_multi_process:
      raise UserError(
        "a stream is of one process and this model lies over several; use generate, with "
        "return_trace=True for its steps"
      )
    steps: queue.SimpleQueue = queue.SimpleQueue()
    with self._lock:
      watcher = max(self._watchers, default=0) + 1
      self._watchers[watcher] = steps

    def work() -> None:
      size = len(request[0].canvas)
      batches = self.plan([len(request[0].ids)], [size], how)  # of one row: on one device
      try:
        sides = self._lay_out([request], batches[0][1])
        placed = self._spread(how, batches)
        jax.block_until_ready(self._call(sides, placed, watcher=watcher))
        jax.effects_barrier()
        steps.put(None)
      except BaseException as error:  # raised again in the caller's thread
        steps.put(error)
      finally:  # whoever has left by then is not waited for
        with self._lock:
          del self._watchers[watcher]

    # No daemon: an interpreter that goes while a program calls back into it aborts.
    threading.Thread(target=work).start()
    size = len(request[0].canvas)
    while (item := steps.get()) is not None:
      if isinstance(item, BaseException):
        raise item
      if item.active[0]:
        yield self._step(item.tokens[0, :size], item.masked[0, :size], item.scores[0, :size])

  def score(self, requests: Sequence[Request], *, samples: int, how: Run) -> list[Score]:
    """How likely the canvas of each request is as it stands; rows of several share a batch."""
    contract = self._model.contract
    samples = samples if contract.denoises else 1
    plans = []
    for request in requests:
      target = np.isin(np.arange(len(request.ids)), request.canvas)
      if contract.denoises:
        plans.append(likelihood.plan(target, samples=samples, block_size=contract.block_size))
      else:
        plans.append(likelihood.Plan(target[None], 1, np.ones(1)))
    counts = [plan.count for plan in plans]
    owners = np.repeat(np.arange(len(plans)), counts)
    numbers = np.concatenate([np.arange(count) for count in [0, *counts]])
    batches = self.plan([len(requests[owner].ids) for owner in owners], [1] * len(owners), how)
    how = self._spread(how, batches)
    values = np.zeros(len(owners), np.float32)

    def read(members: list[int], found: Array) -> None:
      values[members] = jax.device_get(found)[: len(members)]

    running: tuple[list[int], Array] | None = None
    for members, shape in _track(batches, how):
      rows, row = layout.blank_scored(shape, pad_id=contract.pad_id), 0
      for owner, some in itertools.groupby(members, key=owners.__getitem__):
        own = numbers[list(some)]
        _write_scored(rows, slice(row, row + len(own)), requests[owner], plans[owner], own)
        row += len(own)
      rows = programs.place_rows(rows, how.mesh)
      found = self._score(how.params, rows, np.uint32(how.seed), mesh=how.mesh)
      if running:  # read while the next batch is computed, which was laid out meanwhile
        read(*running)
      running = members, found
    if running:
      read(*running)
    ends = np.cumsum(counts)
    return [
      Score(*likelihood.estimate(values[end - plan.count : end], plan), len(request.canvas))
      for request, plan, end in zip(requests, plans, ends, strict=True)
    ]

  def compile(self, request: Sides, shape: Shape, how: Run) -> None:
    """Compiles what requests of a shape need, and fills nothing."""
    how = self._spread(how, [([], shape)])
    sides = self._lay_out([request], shape)
    self._call(tuple(rows._replace(real=np.zeros_like(rows.real)) for rows in sides), how)

  def _lay_out(self, requests: Sequence[Sides], shape: Shape) -> tuple[Rows, ...]:
    pad_id = self._model.contract.pad_id
    return tuple(layout.lay_out(side, shape, pad_id=pad_id) for side in zip(*requests, strict=True))

  def _call(self, sides: tuple[Rows, ...], how: Run, *, watcher: int = 0) -> generation.Decoded:
    settings, contract = how.settings, self._model.contract
    cached = programs.can_store(how.params, sides[0], model=self._model)
    block_size = programs.block_size(contract, settings.strategy, cached=cached)
    strategy = strategies.parse(
      settings.strategy,
      num_steps=settings.num_steps,
      canvas_size=block_size or sides[0].places.shape[1],
    )
    draw = vocabulary.draw(
      temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k
    )
    pattern = programs.Pattern(
      ends=how.ends,
      cached=cached,
      block_size=block_size,
      keep_trace=how.trace,
      watched=watcher > 0,
    )
    guidance = np.float32(settings.guidance) if settings.guidance else None
    return self._decode(
      how.params, programs.place_rows(sides, how.mesh), np.uint32(how.seed), strategy, draw,
      guidance, np.int32(watcher), pattern=pattern, mesh=how.mesh,
    )  # fmt: skip

  def _watch(self, watcher: Array, step: generation.Trace) -> None:
    """Called by the compiled program, on a thread of its own."""
    self._watchers[int(watcher)].put(jax.tree.map(np.asarray, step))

  @property
  def special(self) -> tuple[int, ...]:
    """Ids that do not become text."""
    contract = self._model.contract
    return contract.bos_id, contract.pad_id, contract.eos_id

  def _finish(self, decoded: generation.Decoded, row: int, size: int, *, ends: bool) -> Generation:
    """One row's answer."""
    ids, scores = decoded.tokens[row, :size].tolist(), decoded.scores[row, :size].tolist()
    said = [scores[n] for n in self._said(ids, ends=ends)]
    total = sum(said) if said else float("-inf")
    trace = None
    if decoded.trace is not None:
      columns = [x[:, row, :size] for x in decoded.trace[:3]]
      trace = [
        self._step(*(x[n] for x in columns)) for n in np.flatnonzero(decoded.trace.active[:, row])
      ]
    return Generation(
      text=self.text(ids, ends=ends) if self._model.tokenizer else "",
      ids=ids,
      scores=scores,
      score=total / max(1, len(said)),
      total=total,
      network_calls=int(decoded.calls[row]),
      trace=trace,
      ended=not ends or self._model.contract.eos_id in ids,
    )

  def text(self, ids: Sequence[int], *, ends: bool) -> str:
    """What a canvas says."""
    return self._model.tokenizer.decode([ids[n] for n in self._said(ids, ends=ends)])

  def _said(self, ids: Sequence[int], *, ends: bool) -> list[int]:
    """The places on a canvas whose tokens become text."""
    end = self._model.contract.eos_id
    # A predicted end is where the text ends, whatever else stands on the canvas.
    kept = ids.index(end) if ends and end in ids else len(ids)
    return [n for n in range(kept) if ids[n] not in self.special]

  def _step(self, ids: np.ndarray, masked: np.ndarray, scores: np.ndarray) -> Step:
    special, piece = self.special, self._model.tokenizer.piece
    tokens = [
      "" if hidden or id_ in special else piece(id_)
      for id_, hidden in zip(ids.tolist(), masked.tolist(), strict=True)
    ]
    return Step(tokens, masked.tolist(), scores.tolist(), ids.tolist())


def _track(
  batches: Sequence[tuple[list[int], Shape]], how: Run
) -> Iterable[tuple[list[int], Shape]]:
  """The batches, with a progress bar where one was asked for."""
  return track(batches, how.progress, transient=True, disable=not how.progress)


def _write_scored(
  rows: Scored, at: slice, request: Request, plan: likelihood.Plan, numbers: np.ndarray
) -> None:
  """Rows of these numbers of a plan into some rows of a batch."""
  size = len(request.ids)
  scored, low, high = plan.rows(numbers)
  rows.tokens[at, :size] = request.ids
  rows.segments[at, :size] = 1
  rows.answer[at, request.canvas] = True
  rows.scored[at, :size] = scored
  rows.low[at], rows.high[at] = low, high
  rows.key_words[at] = request.key_words
  rows.key_words[at, 2] = numbers  # as layout.sample_words
