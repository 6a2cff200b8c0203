"""`diffjax tokenizer`: trains a SentencePiece model on text files or on the built-in text."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--input", nargs="+", type=Path, help="text files, plain or .gz")
  source.add_argument("--generator", type=int, metavar="N", help="N built-in examples and passages")
  parser.add_argument("--vocab-size", type=int, required=True, help="ids, special ones included")
  parser.add_argument("--kind", choices=("unigram", "bpe"), default="unigram",
                      help="bpe for a text of few distinct words")  # fmt: skip
  parser.add_argument("--output", type=Path, required=True, help="the .model file to write")


def run(arguments: argparse.Namespace) -> None:
  """Trains, then says what a line of the text became."""
  from diffjax.data import generator
  from diffjax.data.sources import Lines
  from diffjax.tokenizers import SentencePieceTokenizer, train_sentencepiece

  lines: list[str] = []
  if arguments.generator:
    for number in range(arguments.generator):
      example = generator.task_example(number, split="train")
      passage = generator.passage(number, split="train")
      lines += [example.inputs, example.targets, passage]
  else:
    for path in arguments.input:
      file = Lines(path)
      lines += [file[number] for number in range(len(file))]
  train_sentencepiece(
    lines, vocab_size=arguments.vocab_size, path=arguments.output, kind=arguments.kind
  )
  tokenizer = SentencePieceTokenizer.load(arguments.output)
  pieces = "|".join(tokenizer.piece(id_) for id_ in tokenizer.encode(lines[0]))
  print(f"wrote {arguments.output}: {tokenizer.vocab_size} ids from {len(lines)} lines")
  print(f"  {lines[0]}\n  {pieces}")
  print(f"next: --config.data.tokenizer={arguments.output} in a training command")
