"""The whole path at toy size, as a user's shell runs it, on one device."""

import json
import os
import subprocess
import sys

import pytest

TOY = [
  "--config.training.steps=6", "--config.optimizer.warmup_steps=2", "--config.training.log_every=2",
  "--config.data.train.limit=400", "--config.data.test.limit=8", "--config.evaluation.examples=8",
  "--config.data.batch_size=8", "--config.data.buckets=()", "--config.evaluation.num_steps=3",
]  # fmt: skip


def diffjax(*arguments, room) -> str:
  code = "from diffjax.cli.main import main; main()"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
  return subprocess.run(
    [sys.executable, "-c", code, *arguments], cwd=room, env=environment, check=True,
    capture_output=True, text=True, timeout=400,
  ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory):
  room = tmp_path_factory.mktemp("shell")
  (room / "said").write_text(diffjax("quickstart", "--workdir=run", *TOY, room=room))
  return room


def test_it_trains_scores_shows_and_says_how_to_go_on(room):
  said = (room / "said").read_text()
  for expected in ("step 6/6", "ETA", "tokens/s", "before → after", "translation", "░"):
    assert expected in said
  for command in ("diffjax sample --model=run", "diffjax train --config=", "diffjax convert"):
    assert command in said
  assert (room / "run" / "checkpoints" / "6").is_dir()


def test_run_again_it_says_that_it_is_done(room):
  said = diffjax("quickstart", "--workdir=run", *TOY, room=room)
  assert "trained and evaluated already" in said
  assert "before → after" in said
  assert "step 2/6" not in said


def test_the_run_is_a_model_for_the_other_commands(room):
  said = diffjax(
    "sample", "--model=run", "--prompt=english : a cat sold 3 plums . orin :", "--length=6",
    "--num-steps=3", "--output=answers.jsonl", room=room,
  )  # fmt: skip
  del said
  answer = json.loads((room / "answers.jsonl").read_text())
  assert len(answer["ids"]) == len(answer["scores"]) == 6
  diffjax("convert", "--from=run", "--to=exported", "--export=huggingface", room=room)
  config = json.loads((room / "exported" / "config.json").read_text())
  assert config["model_type"] == "xlm-roberta"
  again = diffjax("sample", "--model=exported", "--prompt=a", "--length=2", room=room)
  assert again.strip() or again == "\n"
