"""`diffjax plan` as it is typed: tables, JSON, and one line for a mistake."""

import json
import sys
from pathlib import Path

import pytest

from diffjax.cli import main
from diffjax.planning import compilation

CONFIG = f"{Path(__file__).parents[2]}/configs/instruct_flan2022.py"


def run(monkeypatch, *words: str) -> int:
  monkeypatch.setattr(sys, "argv", ["diffjax", "plan", *words])
  try:
    main.main()
  except SystemExit as stop:
    return stop.code
  return 0


def test_a_gpu_plan_in_tables_and_json(monkeypatch, capsys, tmp_path):
  file = tmp_path / "plans" / "base.json"
  words = f"--config={CONFIG}:base --topology=h100:8 --model=xlmr-base --json={file}".split()
  assert run(monkeypatch, *words) == 0
  told = capsys.readouterr().out
  for part in ("8 chips, 1 hosts", "by formula alone", "activations", "fits", "MFU", "checkpoint"):
    assert part in told
  plan = json.loads(file.read_text())
  assert plan["fits"]
  assert plan["parameters"] == pytest.approx(278e6, rel=0.01)
  assert plan["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}


def test_without_libtpu_a_tpu_is_planned_by_formula(monkeypatch, capsys):
  monkeypatch.setattr(compilation, "is_available", lambda: False)
  words = f"--config={CONFIG}:xxl --topology=v5p-128 --model=xlmr-xxl --largest-batch".split()
  assert run(monkeypatch, *words, "--config.training.microbatches=4") == 0
  told = capsys.readouterr().out
  assert "v5p:4x4x4, v5p-128: 64 chips, 16 hosts" in told
  assert "libtpu is not installed" in told
  assert "largest batch that fits" in told


def test_a_sampler_is_planned_by_the_evaluation_section(monkeypatch, capsys):
  words = f"--config={CONFIG}:base --topology=h100:1 --model=xlmr-base --sampler".split()
  assert run(monkeypatch, *words, "--config.evaluation.num_steps=7") == 0
  told = capsys.readouterr().out
  assert "decoding, 7 steps" in told
  assert "64 rows of 512" in told


@pytest.mark.parametrize(
  ("words", "told"),
  [
    ("--topology=v5p:3x3x3 --model=xlmr-base", "is no slice of v5p; nearest are"),
    ("--topology=v5e-8", "weights/xlm-roberta-base does not exist"),
    ("--topology=v5e-8 --model=xlmr-bas", "did you mean 'xlmr-base'?"),
    ("--topology=v5e-8 --model=xlmr-base --config.mesh.data=5", "needs 5 devices, there are 8"),
    ("--topology=v5e-8 --model=xlmr-base --hbm=-1", "--hbm=-1.0"),
    ("--topology=v5e-8 --model=xlmr-base --sampler --largest-batch", "--largest-batch is for"),
    ("--topology=v5e-8 --model=xlmr-base --answers=0", "--answers=0.0 is a share"),
    ("--topologie=v5e-8", "did you mean --topology?"),
  ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, words, told):
  assert run(monkeypatch, f"--config={CONFIG}:base", *words.split()) != 0
  errors = capsys.readouterr().err
  assert told in errors
  assert errors.count("\n") == 1
