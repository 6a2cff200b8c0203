"""How fast rows are read, tokenised and laid out: examples and tokens a second by reader processes.

  python benchmarks/input_pipeline.py [--workers 0,1,2] [--packing] [--seconds 10] [--toy]
    [--data data/multi30k]

On Multi30k (left out where its files are not there) and on the built-in generator, batches of 64
rows. Prints a table and one JSON line. --toy reads a few batches of few examples.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from diffjax.config import DataConfig, SourceConfig
from diffjax.data import pipeline, plan, sources
from diffjax.tokenizers import SentencePieceTokenizer, train_sentencepiece

BATCH, LENGTH = 64, 128


def measure(
  source: sources.Source,
  tokenizer: SentencePieceTokenizer,
  lengths: plan.LengthIndex,
  *,
  data: DataConfig,
  seconds: float,
) -> dict[str, float]:
  """Reads for so many seconds after the first batches, which wait for the processes to start."""
  chosen = plan.Plan(lengths, data, 0)
  batches = pipeline.batches(
    source, tokenizer, tokenizer.contract, chosen, data=data, start=0, stop=1_000_000
  )
  began = time.perf_counter()
  for _ in range(2 + 2 * data.workers):
    next(batches)
  first = time.perf_counter() - began
  examples = tokens = count = 0
  began = time.perf_counter()
  while (spent := time.perf_counter() - began) < seconds:
    segments = next(batches).segments
    examples += int(segments.max(1).sum())
    tokens += int((segments > 0).sum())
    count += 1
  return {
    "examples_per_second": examples / spent,
    "tokens_per_second": tokens / spent,
    "batches_per_second": count / spent,
    "seconds_to_start": first,
    "padding": chosen.counts.padding,
  }


def corpora(folder: Path, *, toy: bool) -> dict[str, SourceConfig]:
  """Name -> source."""
  limit = 400 if toy else 20_000
  found = {"generator": SourceConfig(kind="generator", limit=limit)}
  paths = [folder / f"train.{language}.gz" for language in ("de", "en")]
  if all(path.is_file() for path in paths):
    german, english = map(str, paths)
    found["multi30k"] = SourceConfig(
      kind="pairs", path=german, target_path=english, limit=limit if toy else 0
    )
  return found


def main() -> None:
  """Measures every corpus with every number of processes."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workers", default="0,1,2")
  parser.add_argument("--packing", action="store_true")
  parser.add_argument("--seconds", type=float, default=10.0)
  parser.add_argument("--toy", action="store_true")
  default = Path(os.environ.get("DIFFJAX_DATA", "data")) / "multi30k"
  parser.add_argument("--data", type=Path, default=default)
  options = parser.parse_args()
  results = []
  table = Table(title=f"{os.cpu_count()} CPUs, batches of {BATCH} rows, packing {options.packing}")
  for name in ("corpus", "workers", "examples/s", "tokens/s", "batches/s", "padding"):
    table.add_column(name, justify="left" if name == "corpus" else "right")
  with tempfile.TemporaryDirectory() as room:
    for name, section in corpora(options.data, toy=options.toy).items():
      source = sources.open_source(section)
      file = Path(room) / f"{name}.model"
      texts = [text for n in range(min(len(source), 5000)) for text in source[n][:2]]
      train_sentencepiece(texts, vocab_size=200 if options.toy else 600, path=file, kind="bpe")
      tokenizer = SentencePieceTokenizer.load(file)
      lengths = plan.length_index(
        source, tokenizer, tokenizer.contract, max_length=LENGTH, too_long="drop", cache_dir=None
      )
      data = DataConfig(max_length=LENGTH, batch_size=BATCH, packing=options.packing)
      for workers in map(int, options.workers.split(",")):
        seconds = 0.5 if options.toy else options.seconds
        row = measure(
          source, tokenizer, lengths, data=dataclasses.replace(data, workers=workers),
          seconds=seconds,
        )  # fmt: skip
        results.append({"corpus": name, "workers": workers, **row})
        table.add_row(
          name, str(workers), f"{row['examples_per_second']:,.0f}",
          f"{row['tokens_per_second']:,.0f}", f"{row['batches_per_second']:,.1f}",
          f"{row['padding']:.1%}",
        )  # fmt: skip
  Console().print(table)
  print(json.dumps({"packing": options.packing, "results": results}))


if __name__ == "__main__":
  main()
