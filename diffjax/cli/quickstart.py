"""`diffjax quickstart`: the whole path at toy size, then the commands that go on from there."""

import argparse
import json
from pathlib import Path

from diffjax.config import load_config

_CONFIG = Path(__file__).parents[2] / "configs" / "quickstart_instruct.py"
_SCORES = "quickstart.json"  # in the workdir: the table, for when the command is run again
_SHOWN = 4  # prompts that are shown denoising


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options."""
  parser.add_argument(
    "--workdir", type=Path, default=Path("runs/quickstart"), help="where it lives"
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="SECTION.FIELD=VALUE",
    help=f"override a field of configs/{_CONFIG.name}; also --config.SECTION.FIELD=VALUE",
  )


def run(arguments: argparse.Namespace) -> None:
  """Evaluates, trains, evaluates again, shows some prompts; run again, it resumes or is done."""
  config = load_config(_CONFIG, arguments.set)
  workdir = arguments.workdir

  from rich.console import Console

  from diffjax.cli.tables import show_scores
  from diffjax.cli.terminal_trace import print_trace
  from diffjax.data.sources import open_source
  from diffjax.evaluation.tasks import Report, evaluate
  from diffjax.model import load
  from diffjax.sampling import Sampler
  from diffjax.training.loop import train

  console = Console(highlight=False, soft_wrap=True)
  test = open_source(config.data.test)
  examples = [test[number] for number in range(len(test))]
  section = config.evaluation
  settings = {"num_steps": section.num_steps, "strategy": section.strategy, "progress": "decoding"}

  file = workdir / _SCORES
  reports = {}
  if file.is_file():
    train(config, workdir)  # nothing left to do, or a config that is not this run's
    reports = {name: Report(**values) for name, values in json.loads(file.read_text()).items()}
    console.print(f"{workdir} is trained and evaluated already; remove it to start over")
  else:
    console.print(
      f"1. {len(examples)} held-out examples in {len(set(e.task for e in examples))} tasks"
    )
    if config.init_from:
      console.print(f"   decoding them with {config.init_from} as it is, a masked LM ...")
      reports["before"] = evaluate(Sampler(load(config.init_from)), examples, **settings)
    console.print(f"2. training {config.training.steps} steps in {workdir}")
    train(config, workdir)
  sampler = Sampler.load(workdir)
  if "after" not in reports:
    console.print("3. decoding the held-out examples again ...")
    reports["after"] = evaluate(sampler, examples, **settings)
    file.write_text(json.dumps({name: vars(report) for name, report in reports.items()}))
  show_scores(f"held-out examples, {section.num_steps} decoding steps, gold length", reports)

  console.print("\nsome of them, step by step:")
  shown = examples[:_SHOWN]
  answers = sampler.generate(
    [example.inputs for example in shown],
    lengths=[len(sampler.model.tokenizer.encode(example.targets)) for example in shown],
    return_trace=True,
    **settings,
  )
  for example, answer in zip(shown, answers, strict=True):
    print_trace(console, example.inputs, answer)
  console.print(
    f"\nGo on from here:\n"
    f"  diffjax quickstart --workdir={workdir}     # again: resumes, or says that it is done\n"
    f"  diffjax sample --model={workdir} --length=9 --trace \\\n"
    f"    --prompt='{examples[0].inputs}'\n"
    f"  diffjax train --config=configs/quickstart_instruct.py --workdir=runs/longer "
    f"--config.training.steps=3000\n"
    f"  diffjax quickstart --workdir=runs/scratch --config.init_from=     # without the masked LM\n"
    f"  diffjax convert --from={workdir} --to=exported --export=huggingface"
  )
