"""Decoding against PyTorch: 8 rows of 64 given and 32 canvas tokens, 20 steps, 6 layers x 256.

  python benchmarks/decoding.py --toy
  python benchmarks/decoding.py --weights8000-full=runs/decoding_8000-full \\
    --weights8000-prefix=runs/decoding_8000-prefix ... (64000 likewise; any may be left out)

The weights come from configs/decoding_benchmark.py, whose head says how; --toy takes random ones of
toy size and needs seconds. Needs torch.

`torch` is a plain loop over the same weights, as the reference implementation of 2308.12219 works:
whole rows in every step, log-softmax over the vocabulary at every position, the routing in Python
between two calls. The others are the compiled loop of diffjax. All take turns, repetition by
repetition; times are medians. Calls are those made for the batch; GFLOP/s counts the matrix
products that a method needs, those of the vocabulary at the positions it asks about; its share is
of the best rate that either library reaches on large square matrices, measured between the
repetitions. PyTorch's threads wait for each other by spinning: beside other work on the same cores
its times are many times too long, so the load average of the machine is printed, and should be near
the number of its cores. Scores are of test examples of the run, by `threshold` and by 50 steps of
routing.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import diffjax
from diffjax.config import Contract, ModelConfig, load_config
from diffjax.data import sources, world
from diffjax.diffusion import generation, strategies, vocabulary
from diffjax.evaluation import tasks
from diffjax.model import CONFIG_FILE, checkpoint_of, resolve
from diffjax.models import transformer
from diffjax.sampling import layout, programs

ROUTING = "reparam-uncond-deterministic-cosine"
THRESHOLDS = ("threshold0.9", "threshold0.6")
ROWS = 8

# ---- Data: facts in any order, and the report that they make -------------------------------------

_PIECES = {
  "day": world.DAYS, "name": world.NAMES, "job": world.JOBS, "town": world.TOWNS,
  "occasion": world.OCCASIONS, "animal": world.ANIMALS, "adjective": tuple(world.ADJECTIVES),
  "place": tuple(world.PLACES), "tool": world.TOOLS, "fruit": world.FRUITS,
}  # fmt: skip
_FACTS = (  # 62 tokens of the shipped tokenizer
  "it happened on {day} .",
  "{name} was there .",
  "the job of {name} is {job} .",
  "the town is {town} .",
  "there was a {occasion} .",
  "the {animal} was {adjective} .",
  "the pet was in the {place} .",
  "one thing was the {tool} .",
  "people like to eat the {fruit} .",
  "people said it was good .",
  "many came to watch .",
)
_REPORT = (  # 32 tokens
  "on {day} {name} the {job} came to {town} for the {occasion} and saw a {adjective} "
  "{animal} in the {place} . so {name} sold the {tool} and bought a {fruit} early today ."
)


def write_data(folder: Path) -> None:
  """Writes train.jsonl, validation.jsonl and test.jsonl, which share no example but by chance."""
  folder.mkdir(parents=True, exist_ok=True)
  for split, size in (("train", 20_000), ("validation", 64), ("test", 200)):
    rng = random.Random(split)
    with open(folder / f"{split}.jsonl", "w") as file:
      for _ in range(size):
        values = {name: rng.choice(words) for name, words in _PIECES.items()}
        facts = rng.sample(_FACTS, len(_FACTS))
        example = {
          "inputs": " ".join(facts).format(**values), "targets": _REPORT.format(**values)
        }  # fmt: skip
        file.write(json.dumps(example) + "\n")


# ---- The rows that are decoded -------------------------------------------------------------------


class Sizes(NamedTuple):
  """What is decoded: `given` tokens with <s> and </s> a row, `canvas` tokens, in `steps` steps."""

  given: int
  canvas: int
  steps: int


def read_rows(run: str, model: diffjax.Model, sizes: Sizes) -> layout.Rows:
  """The first test examples of a run whose prompts have the right length; their answers hidden."""
  source = test_source(run)
  prompts = (model.tokenizer.encode(source[number].inputs) for number in range(len(source)))
  fitting = [prompt for prompt in prompts if len(prompt) == sizes.given - 2]
  return make_rows(fitting[:ROWS], model.contract, sizes)


def test_source(run: str) -> sources.Source:
  """The test examples of a run's config."""
  return sources.open_source(
    load_config(checkpoint_of(resolve(run)).workdir / CONFIG_FILE).data.test
  )


def make_rows(prompts: list[list[int]], contract: Contract, sizes: Sizes) -> layout.Rows:
  """Rows of `<s> prompt canvas </s>` without padding."""
  requests = [
    layout.Request(*layout.framed(prompt, sizes.canvas, contract), np.zeros(4, np.uint32), True)
    for prompt in prompts
  ]
  shape = layout.Shape(len(prompts), sizes.given + sizes.canvas, sizes.canvas)
  return layout.lay_out(requests, shape, pad_id=contract.pad_id)


def random_model(config: ModelConfig, attention: str) -> diffjax.Model:
  """Random weights without a tokenizer."""
  contract = Contract(bos_id=0, pad_id=1, eos_id=2, mask_id=4, attention=attention)
  params = transformer.init(jax.random.key(0), config)
  return diffjax.Model(config=config, contract=contract, params=params, tokenizer=None)


# ---- The loop in PyTorch -------------------------------------------------------------------------


class TorchDecoder:
  """Whole rows, the whole vocabulary and log-softmax at every position, in every step."""

  def __init__(self, model: diffjax.Model, rows: layout.Rows):
    """Copies the weights, once and in the layout that PyTorch likes."""
    config, contract = model.config, model.contract
    as_torch = lambda x: torch.tensor(np.asarray(x, np.float32))
    params = jax.tree.map(as_torch, dict(model.params))
    flat = lambda kernel, inner: kernel.reshape(inner, -1).T.contiguous()  # [out, in], as F.linear

    def layer(number: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
      block = jax.tree.map(lambda x: x[number], params["layers"])
      parts = {
        name: (flat(part["kernel"], math.prod(part["kernel"].shape) // part["bias"].numel()),
               part["bias"].flatten())
        for name, part in (block["attention"] | block["ffn"]).items()
      }  # fmt: skip
      norms = {name: (block[name]["scale"], block[name]["bias"])
               for name in ("attention_norm", "ffn_norm")}  # fmt: skip
      return parts | norms

    self._layers = [layer(number) for number in range(config.layers)]
    embedding, head = params["embedding"], params["head"]
    self._table = embedding["tokens"]
    offset = config.position_offset
    self._added = embedding["types"][0] + embedding["positions"][offset:][: rows.tokens.shape[1]]
    self._norm = embedding["norm"]["scale"], embedding["norm"]["bias"]
    self._dense = flat(head["dense"]["kernel"], config.width), head["dense"]["bias"]
    self._head_norm = head["norm"]["scale"], head["norm"]["bias"]
    self._bias = head["bias"]
    self._forbidden = ~as_torch(transformer.allowed_rows(config, contract)).bool()
    self._visible = None
    if contract.attention == "prefix":
      order = torch.tensor(rows.answer).int()
      self._visible = (order[:, :, None] >= order[:, None, :])[:, None]  # [B, 1, L, L]
    self._heads, self._epsilon = config.heads, config.norm_epsilon
    self._mask_id = contract.mask_id
    self._tokens = torch.tensor(rows.tokens, dtype=torch.long)
    self._canvas = torch.zeros(rows.tokens.shape, dtype=torch.bool)
    self._canvas[torch.arange(len(rows.places))[:, None], torch.tensor(rows.places).long()] = True

  def _normed(self, x: torch.Tensor, scale_bias: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], *scale_bias, eps=self._epsilon)

  def log_probs(self, tokens: torch.Tensor) -> torch.Tensor:
    """int64[B, L] -> float32[B, L, V]."""
    x = self._normed(self._table[tokens] + self._added, self._norm)
    rows, length, width = x.shape
    split = lambda y: y.view(rows, length, self._heads, -1).transpose(1, 2)
    for parts in self._layers:
      query, key, value = (split(F.linear(x, *parts[n])) for n in ("query", "key", "value"))
      mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self._visible)
      mixed = mixed.transpose(1, 2).reshape(rows, length, width)
      x = self._normed(x + F.linear(mixed, *parts["output"]), parts["attention_norm"])
      inner = F.gelu(F.linear(x, *parts["up"]))
      x = self._normed(x + F.linear(inner, *parts["down"]), parts["ffn_norm"])
    features = self._normed(F.gelu(F.linear(x, *self._dense)), self._head_norm)
    logits = F.linear(features, self._table, self._bias).masked_fill(self._forbidden, -torch.inf)
    return torch.log_softmax(logits, dim=-1)

  @torch.inference_mode()
  def decode(self, steps: int) -> np.ndarray:
    """The canvases int64[B, C] after so many steps of ROUTING."""
    tokens, canvas = self._tokens.masked_fill(self._canvas, self._mask_id), self._canvas
    masked, size = canvas.clone(), canvas.sum(-1, keepdim=True)
    for step in range(1, steps + 1):
      best, said = self.log_probs(tokens).max(-1)
      rate = 0.0 if step == steps else math.cos(math.pi * step / (2 * steps))
      left = torch.floor(size * rate)
      confidence = best.masked_fill(~canvas, 1000)
      rank = confidence.argsort(dim=-1, stable=True).argsort(dim=-1)
      lowest = (rank < left) & canvas
      tokens = torch.where(masked & ~lowest, said, tokens).masked_fill(lowest, self._mask_id)
      masked = lowest
    return tokens[canvas].view(len(tokens), -1).numpy()


# ---- The loop of diffjax -------------------------------------------------------------------------


def compiled(
  model: diffjax.Model, rows: layout.Rows, strategy: str, steps: int, *, cached: bool
) -> Callable[..., generation.Decoded]:
  """The program that Sampler runs, for these rows; with `keep_trace`, its twin with a trace."""
  decode = jax.jit(
    functools.partial(programs.decode, model=model, watch=lambda *_: None),
    static_argnames="pattern",
  )
  how = strategies.parse(strategy, num_steps=steps, canvas_size=rows.places.shape[1])
  draw = vocabulary.draw()

  def run(*, keep_trace: bool = False) -> generation.Decoded:
    pattern = programs.Pattern(cached=cached, keep_trace=keep_trace)
    others = np.uint32(0), how, draw, None, np.int32(0)
    return decode(model.params, (rows,), *others, pattern=pattern)

  return run


# ---- Measuring -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Method:
  """One way to decode, and what is seen of it."""

  name: str
  attention: str
  run: Callable[[], np.ndarray]  # the canvases [B, C]
  calls: int
  gflop: float  # of one batch
  seconds: list[float] = dataclasses.field(default_factory=list)

  def measure(self) -> None:
    """Decodes the batch once."""
    start = time.perf_counter()
    self.run()
    self.seconds.append(time.perf_counter() - start)

  @property
  def median(self) -> float:
    """Seconds."""
    return statistics.median(self.seconds)


def gflop(config: ModelConfig, *, positions: int, seen: int, projected: int) -> float:
  """Of the matrix products of calls.

  Args:
    config: the architecture, with one key head for each query head.
    positions: that the trunk computes.
    seen: positions that each of them attends to.
    projected: positions that go through the head and the vocabulary.
  """
  width = config.width
  layer = 4 * width**2 + 2 * width * config.ffn_width + 2 * width * seen
  head = width**2 + width * config.table_rows
  return 2e-9 * (positions * config.layers * layer + projected * head)


def methods_of(model: diffjax.Model, rows: layout.Rows, steps: int) -> list[Method]:
  """Every method for these weights, compiled and run once; the one in PyTorch first."""
  config, attention = model.config, model.contract.attention
  batch, length = rows.tokens.shape
  canvas = rows.places.shape[1]
  reference = TorchDecoder(model, rows)
  whole = functools.partial(gflop, config, seen=length)
  cost = steps * whole(positions=batch * length, projected=batch * length)
  torch_run = functools.partial(reference.decode, steps)
  found = [Method("torch", attention, torch_run, steps, cost)]

  def add(name: str, strategy: str, *, cached: bool) -> None:
    program = compiled(model, rows, strategy, steps, cached=cached)
    decoded = jax.device_get(program(keep_trace=True))
    calls = int(decoded.network_calls)
    looks = calls - cached  # the first call fills the cache
    # Routing asks about the whole canvas; threshold about what is masked before each of its steps.
    projected = looks * batch * canvas
    if strategy in THRESHOLDS:
      projected = batch * canvas + int(decoded.trace.masked[: looks - 1].sum())
    computed = canvas + 1 if cached else length  # </s> too
    cost = looks * whole(positions=batch * computed, projected=0) + whole(
      positions=batch * length if cached else 0, projected=projected
    )
    run = lambda: np.asarray(program().tokens)
    found.append(Method(name, attention, run, calls, cost))

  add("exact, whole rows", ROUTING, cached=False)
  if attention == "prefix":
    add("exact, prefix cache", ROUTING, cached=True)
    for strategy in THRESHOLDS:
      add(f"{strategy}, prefix cache", strategy, cached=True)
  for method in found:
    method.run()
  return found


def matmul_rates(size: int) -> dict[str, float]:
  """GFLOP/s of float32 matrix products [size, size] in either library."""
  a, b = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
  rates = {}
  x, y = torch.tensor(a), torch.tensor(b)
  u, v = jnp.asarray(a), jnp.asarray(b)
  for name, product in (
    ("torch", lambda: torch.matmul(x, y)),
    ("jax", lambda: _dot(u, v).block_until_ready()),
  ):
    product()
    start = time.perf_counter()
    product()
    rates[name] = 2e-9 * size**3 / (time.perf_counter() - start)
  return rates


_dot = jax.jit(jnp.dot)


def scores_of(run: str, model: diffjax.Model, limit: int) -> dict[str, float]:
  """BLEU by each of THRESHOLDS, and by ROUTING in 50 steps, on test examples of the run."""
  sampler = diffjax.Sampler(model)
  source = test_source(run)
  examples = [source[number] for number in range(min(limit, len(source)))]
  bleu = lambda strategy: tasks.evaluate(
    sampler, examples, strategy=strategy, num_steps=50, progress=strategy
  ).mean["bleu"]
  return {**{name: bleu(name) for name in THRESHOLDS}, "50 steps": bleu(ROUTING)}


def compare(
  models: dict[str, tuple[diffjax.Model, layout.Rows]], *, steps: int, repetitions: int, square: int
) -> tuple[list[dict], dict[str, float]]:
  """Every method for every model, taking turns; the table's rows, and the machine's rates."""
  methods = {name: methods_of(model, rows, steps) for name, (model, rows) in models.items()}
  rates: dict[str, list[float]] = {}
  for _ in range(repetitions):
    for method in (method for some in methods.values() for method in some):
      method.measure()
    for name, rate in matmul_rates(square).items():
      rates.setdefault(name, []).append(rate)
  best = {name: statistics.median(some) for name, some in rates.items()}
  results = []
  for name, some in methods.items():
    reference, expected = some[0], some[0].run()
    for method in some:
      results.append({
        "V": models[name][0].config.vocab_size,
        "attention": method.attention,
        "method": method.name,
        "ms": 1e3 * method.median,
        "ratio": reference.median / method.median,
        "calls": method.calls,
        "equal_tokens": float((method.run() == expected).mean()),
        "gflop_per_second": method.gflop / method.median,
        "share": method.gflop / method.median / max(best.values()),
      })  # fmt: skip
  return results, best


def show(results: list[dict], rates: dict[str, float]) -> None:
  """Prints the table."""
  table = Table(title=", ".join(f"{name}: {rate:.0f} GFLOP/s" for name, rate in rates.items()))
  for name in ("V", "attention", "method", "ms", "ratio", "calls", "equal", "GFLOP/s", "share"):
    table.add_column(name, justify="left" if name in ("attention", "method") else "right")
  for row in results:
    table.add_row(
      str(row["V"]), row["attention"], row["method"], f"{row['ms']:.0f}", f"{row['ratio']:.1f}",
      str(row["calls"]), f"{row['equal_tokens']:.1%}", f"{row['gflop_per_second']:.0f}",
      f"{row['share']:.0%}",
    )  # fmt: skip
  Console(width=100).print(table)


def main() -> None:
  """Prints tables, and the same as JSON."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  cases = [f"{size}-{attention}" for size in (8000, 64000) for attention in ("full", "prefix")]
  for case in cases:
    parser.add_argument(f"--weights{case}", dest=case, metavar="RUN")
  parser.add_argument("--write-data", type=Path, metavar="FOLDER", help="only writes examples")
  parser.add_argument("--toy", action="store_true", help="random weights of toy size")
  parser.add_argument("--repetitions", type=int, default=7)
  parser.add_argument("--limit", type=int, default=200, help="test examples that are scored; 0: no")
  options = parser.parse_args()
  if options.write_data:
    write_data(options.write_data)
    return
  runs = {case: vars(options)[case] for case in cases if vars(options)[case]}
  if not runs and not options.toy:
    parser.error("give weights, or --toy")
  if options.toy:
    sizes, square = Sizes(given=12, canvas=8, steps=6), 128
    config = ModelConfig(
      vocab_size=300, width=32, layers=2, heads=2, ffn_width=64, max_positions=32
    )
    runs, models, rng = {}, {}, np.random.default_rng(0)
    for attention in ("full", "prefix"):
      model = random_model(config, attention)
      prompts = rng.integers(5, 300, size=(ROWS, sizes.given - 2)).tolist()
      models[f"toy-{attention}"] = model, make_rows(prompts, model.contract, sizes)
  else:
    sizes, square, models = Sizes(given=64, canvas=32, steps=20), 2048, {}
    for case, run in runs.items():
      model = diffjax.load(run)
      models[case] = model, read_rows(run, model, sizes)
  results, rates = compare(
    models, steps=sizes.steps, repetitions=options.repetitions, square=square
  )
  load = os.getloadavg()[0]
  show(results, rates)
  print(f"{os.cpu_count()} cores, load average {load:.1f}")
  scores = {}
  if options.limit:
    scores = {
      case: scores_of(run, models[case][0], options.limit)
      for case, run in runs.items()
      if case.endswith("prefix")
    }
  for case, by in scores.items():
    print(f"{case}, BLEU: " + ", ".join(f"{name} {score:.2f}" for name, score in by.items()))
  measured = {"results": results, "matmul_gflop_per_second": rates, "load": load, "bleu": scores}
  print(json.dumps(measured))


if __name__ == "__main__":
  main()
