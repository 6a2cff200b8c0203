"""`diffjax train`: runs or resumes the experiment of a config file."""

import argparse
import shlex
import sys
from pathlib import Path

from diffjax.config import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument(
    "--config", required=True, help="FILE.py, FILE.py:ARGUMENT or a run's config.json"
  )
  parser.add_argument("--workdir", required=True, type=Path, help="where the run lives")
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="SECTION.FIELD=VALUE",
    help="override a field; also spelled --config.SECTION.FIELD=VALUE",
  )


def run(arguments: argparse.Namespace) -> None:
  """Trains, then prints what can be done with the run."""
  config = load_config(arguments.config, arguments.set)
  from diffjax import hosts
  from diffjax.cli.compilation import keep_programs
  from diffjax.training.loop import train  # after the config is known to be right

  hosts.start()
  workdir = arguments.workdir
  keep_programs(workdir)
  if hosts.is_first():
    print(shlex.join(["diffjax", *sys.argv[1:]]))
  step = train(config, workdir)["step"]
  if not hosts.is_first():
    return
  print(f"\ntrained: {workdir}, step {step}. Next:")
  print(f"  diffjax sample --model={workdir} --prompt='...' --length=12 --trace")
  if config.data.test.kind != "none":
    print(f"  diffjax evaluate --model={workdir} --split=test --num-steps=10,50")
  print(f"  diffjax convert --from={workdir} --to=exported --export=huggingface")
