"""`diffjax convert`: a model from any directory we understand, written into a new one."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument(
    "--from", dest="source", required=True, type=Path, help="weights, model or run"
  )
  parser.add_argument("--to", dest="target", required=True, type=Path, help="a new directory")
  parser.add_argument("--export", choices=("diffjax", "huggingface"), default="diffjax")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def run(arguments: argparse.Namespace) -> None:
  """Converts, then prints the next command."""
  from diffjax.model import convert

  convert(arguments.source, arguments.target, export=arguments.export, dtype=arguments.dtype)
  print(f"wrote {arguments.target} ({arguments.export}, {arguments.dtype}). Next:")
  print(f"  diffjax sample --model={arguments.target} --prompt='...' --length=12 --trace")
