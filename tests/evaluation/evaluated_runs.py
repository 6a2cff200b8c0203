"""Directories of evaluated runs as the tests need them, without training or decoding anything."""

import json
from pathlib import Path

SETTINGS = {"strategy": "reparam-uncond-deterministic-cosine", "temperature": 0.0}


def result(task="mmlu", *, shots=0, metric="exact_match", value=30.0, num_steps=10, **rest):
  """One entry of report.json."""
  return {
    "task": task, "shots": shots, "metric": metric,
    "settings": SETTINGS | {"num_steps": num_steps}, "length": "gold", "num_steps": num_steps,
    "examples": 200, "truncated": 3, "left_out": 1, "network_calls": 8.5, "seconds": 12.25,
    "scores": {metric: {"value": value, "error": 1.5, "signature": "v1"}},
    "groups": {}, "macro": {}, "predictions": f"predictions/{task}.jsonl",
  } | rest  # fmt: skip


def prediction(**changes):
  """One line of a predictions file."""
  return {
    "prompt": "Q: why?", "prediction": "(A)", "reference": "(B)", "group": "law",
    "scores": {"exact_match": 0.0}, "log_probability": -1.25, "network_calls": 3,
  } | changes  # fmt: skip


def write_evaluation(directory: Path, results, *, predictions=None, **model):
  """A directory as `diffjax evaluate --out` leaves it."""
  (directory / "predictions").mkdir(parents=True, exist_ok=True)
  about = {
    "path": str(directory.parent), "parameters": 12_000_000, "width": 64, "layers": 2,
    "process": "absorbing", "init_from": "", "training_steps": 100, "mixture": ["sums"],
  } | model  # fmt: skip
  report = {
    "command": "diffjax evaluate --model=runs/one --tasks=mmlu",
    "versions": {"python": "3.11.2", "diffjax": "0.1.0"}, "device": "cpu",
    "model": about, "results": results,
  }  # fmt: skip
  (directory / "report.json").write_text(json.dumps(report))
  for name, lines in (predictions or {}).items():
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "predictions" / name).write_text(text)
  return directory


def write_run(directory: Path, results=None, *, config=None, **model):
  """A run with a validation of its loss; evaluated where there are results."""
  directory.mkdir(parents=True)
  values = {
    "init_from": model.get("init_from", ""),
    "model": {"width": model.get("width", 64), "layers": 2, "heads": 2, "ffn_width": 64},
    "data": {"tokenizer": "tiny_mlm", "train": {"kind": "generator", "limit": 9}},
  } | (config or {})
  (directory / "config.json").write_text(json.dumps(values))
  lines = [
    {"step": 50, "split": "validation", "nll": 3.5, "nll_0.1": 2.75, "nll_0.9": 4.25},
    {"step": 100, "split": "train", "nll": 9.5},
    {"step": 100, "split": "validation", "nll": 2.5, "nll_0.1": 1.75, "nll_0.9": 3.25},
  ]
  (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  if results is not None:
    write_evaluation(directory / "evaluation", results, **model)
  return directory
