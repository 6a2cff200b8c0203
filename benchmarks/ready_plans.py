"""The ready plans of docs/planning.md: XLM-R of four sizes on TPU slices, trained and sampled.

  python benchmarks/ready_plans.py [--only=xxl] [--out=plans]

Runs `diffjax plan` for every row, one after the other (libtpu runs once at a time on a machine),
and prints the table of docs/planning.md; --out keeps every plan's JSON and what was printed. Needs
`pip install -e '.[tpu]'` and no TPU; without libtpu the rows are estimates, and say so.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_CONFIG = "--config=configs/instruct_flan2022.py"
_WHOLE = "--config.mesh.data=1 --config.mesh.fsdp=-1"
PLANS = [
  f"{_CONFIG}:base --topology=v5e-8 --model=xlmr-base",
  f"{_CONFIG}:large --topology=v5e-16 --model=xlmr-large",
  f"{_CONFIG}:xl --topology=v5p-16 --model=xlmr-xl",
  f"{_CONFIG}:xl --topology=v4-32 --model=xlmr-xl",
  f"{_CONFIG}:xxl --topology=v5p-128 --model=xlmr-xxl",
  f"{_CONFIG}:xxl --topology=v5e-256 --model=xlmr-xxl {_WHOLE}",
  f"{_CONFIG}:xxl --topology=v5e-8 --model=xlmr-xxl --sampler {_WHOLE}",
  f"{_CONFIG}:xxl --topology=v5p-8 --model=xlmr-xxl --sampler {_WHOLE}",
]
_HEAD = (
  "size, work", "slice", "chips", "mesh", "HBM GiB needed", "there", "arithmetic s", "HBM s",
  "links s", "step s", "tokens/s a chip", "MFU", "compiled in s",
)  # fmt: skip


def name(words: str) -> str:
  """A file name for a row."""
  options = dict(word.split("=", 1) for word in words.split() if "=" in word)
  size = options["--config"].rpartition(":")[2]
  return f"{size}-{options['--topology']}{'-sampler' if '--sampler' in words else ''}"


def row(plan: dict) -> list[str]:
  """The cells of a plan's row, after its name."""
  mesh = " ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
  memory = [f"{plan[part] / 2**30:.1f}" for part in ("needed", "available")]
  cells = [f"{plan['accelerator_type']} ({plan['topology']})", str(plan["chips"]), mesh, *memory]
  floors = plan["floors"]
  if not floors:
    return [*cells, *["does not fit"] * 6, ""]
  limits = [f"{floors[part]:.2f}" for part in ("arithmetic", "hbm", "interconnect", "step")]
  rate = plan["tokens"] / floors["step"] / plan["chips"]
  seconds = f"{plan['compile_seconds']:.0f}" if plan["compiled"] else "by formula"
  return [*cells, *limits, f"{rate:.0f}", f"{plan['mfu']:.0%}", seconds]


def main() -> None:
  """Plans and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default="", help="rows whose name holds this, such as xxl-v5p")
  parser.add_argument("--out", type=Path, help="folder for NAME.json and NAME.txt")
  arguments = parser.parse_args()
  out = arguments.out or Path(tempfile.mkdtemp(prefix="diffjax-plans-"))
  out.mkdir(parents=True, exist_ok=True)
  out = out.resolve()
  print(f"| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}")
  for words in PLANS:
    if arguments.only not in name(words):
      continue
    file = out / f"{name(words)}.json"
    if not file.exists():
      command = [sys.executable, "-c", "from diffjax.cli.main import main; main()", "plan"]
      told = subprocess.run(
        [*command, *shlex.split(words), f"--json={file}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
      )
      file.with_suffix(".txt").write_text(told.stdout)
    work = "sampling" if "--sampler" in words else "training"
    cells = [f"{name(words).partition('-')[0]}, {work}", *row(json.loads(file.read_text()))]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  main()
