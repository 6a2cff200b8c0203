"""`diffjax data`: what a config's sources hold, told on one screen each."""

import json
import sys

import pytest

from diffjax.cli import main

CONFIG = """
def get_config():
  part = lambda name, weight: dict(kind="jsonl", path={folder!r} + name, weight=weight)
  return dict(
    init_from="tiny_mlm",
    data=dict(
      train=dict(kind="mixture", parts=(part("/many.jsonl", 1.0), part("/few.jsonl", 3.0))),
      validation=dict(kind="generator", split="validation", limit=5),
      max_length=24, batch_size=4, packing=True, too_long="keep_ends", on_bad_record="skip",
    ),
    training=dict(steps=20),
  )
"""


@pytest.fixture
def config(tmp_path):
  for name, count, words in (("many", 60, 6), ("few", 12, 30)):
    record = {"inputs": "say : " + "dog " * words, "targets": f"a {'dog' if words > 6 else 'cat'}"}
    (tmp_path / f"{name}.jsonl").write_text("\n".join([json.dumps(record)] * count))
  file = tmp_path / "config.py"
  file.write_text(CONFIG.format(folder=str(tmp_path)))
  return file


def call(monkeypatch, capsys, *arguments):
  monkeypatch.setattr(sys, "argv", ["diffjax", "data", *map(str, arguments)])
  status = 0
  try:
    main.main()
  except SystemExit as error:
    status = error.code
  return status, *capsys.readouterr()


def test_tells_parts_shares_lengths_padding_and_examples(monkeypatch, capsys, config, tmp_path):
  workdir = tmp_path / "run"
  arguments = (f"--config={config}", f"--workdir={workdir}", "--examples=2")
  status, told, errors = call(monkeypatch, capsys, *arguments)
  assert (status, errors) == (0, "")
  rows = {line.split()[0]: line.split() for line in told.splitlines() if line.strip()}
  assert rows["many"][1] == "60"
  assert rows["few"][1] == "12"
  assert rows["few"][4] == "12"  # all of them are cut
  assert rows["few"][5] == "75.0%"
  assert "data.validation" in told
  assert "72 examples: 0 too long, 12 cut" in told
  assert "examples a row" in told
  canvases = [line for line in told.splitlines() if line.startswith("canvas ")]
  assert len(canvases) == 4  # two of each source
  assert canvases[0].removeprefix("canvas ").strip() in ("a dog</s>", "a cat</s>")
  assert f"next: diffjax train --config={config} --workdir={workdir}" in told
  kept = sorted(workdir.glob("cache/lengths-*.npy"))
  assert len(kept) == 2
  before = [file.stat().st_mtime_ns for file in kept]
  assert call(monkeypatch, capsys, *arguments)[1] == told
  assert [file.stat().st_mtime_ns for file in kept] == before


def test_a_config_that_fills_no_batch_is_shown_and_then_refused(monkeypatch, capsys, config):
  status, told, errors = call(
    monkeypatch, capsys, f"--config={config}", "--config.data.batch_size=500", "--examples=0"
  )
  assert status == 64
  assert "data.train" in told
  assert "next:" not in told
  assert errors.startswith("diffjax: no length bucket fills a batch")


def test_a_mixture_without_a_single_row_is_shown_and_then_refused(monkeypatch, capsys, config):
  status, told, errors = call(monkeypatch, capsys, f"--config={config}", "--set=data.max_length=3")
  assert status == 64
  rows = {line.split()[0]: line.split() for line in told.splitlines() if line.strip()}
  assert rows["many"][1] == rows["many"][4] == "60"
  assert "none of its 60 examples has a row (60 too long)" in errors


def test_the_next_command_has_the_overrides(monkeypatch, capsys, config):
  arguments = [f"--config={config}", "--config.data.batch_size=3", "--set", "data.packing=False"]
  arguments.append("--config.data.train.name=my data")
  status, told, _ = call(monkeypatch, capsys, *arguments, "--examples=0")
  assert status == 0
  (line,) = (line for line in told.splitlines() if line.startswith("next: "))
  assert line == (
    f"next: diffjax train --config={config} --workdir=DIR --config.data.batch_size=3 "
    "--config.data.packing=False '--config.data.train.name=my data'"
  )


def test_a_negative_number_of_examples_is_refused(monkeypatch, capsys, config):
  status, _, errors = call(monkeypatch, capsys, f"--config={config}", "--examples=-1")
  assert (status, errors) == (64, "diffjax: --examples -1 must be >= 0\n")
