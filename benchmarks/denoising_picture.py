"""Draws how a prompt is answered: one row a step, one column a position of the canvas.

  python benchmarks/denoising_picture.py --model=runs/quickstart --output=docs/denoising.png

Grey is masked; a revealed token is the darker the surer the model was when it revealed it.
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from diffjax import Sampler
from diffjax.data import generator
from diffjax.sampling import MASK_MARK

NUM_STEPS = 8


def main() -> None:
  """Answers one held-out prompt of each task and draws the four."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="runs/quickstart")
  parser.add_argument("--output", default="docs/denoising.png")
  options = parser.parse_args()
  sampler = Sampler.load(options.model)
  encode = sampler.model.tokenizer.encode
  examples = []
  for task in generator.TASKS:
    candidates = (generator.task_example(n, split="test") for n in range(200))
    of_task = (e for e in candidates if e.task == task and len(e.inputs) < 120)
    examples.append(max(of_task, key=lambda e: len(e.targets)))
  answers = sampler.generate(
    [example.inputs for example in examples],
    lengths=[len(encode(example.targets)) for example in examples],
    num_steps=NUM_STEPS,
    return_trace=True,
  )
  figure, axes = plt.subplots(
    len(examples), 1, figsize=(9, 8.5), height_ratios=[len(a.trace) + 1.5 for a in answers]
  )
  for axis, example, answer in zip(axes, examples, answers, strict=True):
    draw(axis, example.inputs, answer)
  figure.tight_layout()
  figure.savefig(options.output, dpi=110)
  print(f"wrote {options.output}")


def draw(axis, prompt: str, answer) -> None:
  """One prompt; steps run down, the answer's pieces across."""
  steps, width = answer.trace, len(answer.ids)
  confidence = np.exp(np.asarray(answer.scores))
  shade = np.where([step.masked for step in steps], 0, 0.25 + 0.6 * confidence)
  axis.imshow(shade, cmap="Blues", vmin=0, vmax=1, aspect="auto")
  for row, column in np.ndindex(len(steps), width):
    masked = steps[row].masked[column]
    piece = MASK_MARK if masked else steps[row].tokens[column].strip()
    color = "0.7" if masked else "white" if shade[row, column] > 0.6 else "black"
    axis.text(column, row, piece, ha="center", va="center", color=color, fontsize=8)
  axis.set_title(prompt, fontsize=8, loc="left")
  axis.set_xticks([])
  axis.set_yticks(range(len(steps)), [f"step {n}" for n in range(1, len(steps) + 1)], fontsize=7)


if __name__ == "__main__":
  main()
