"""Whole runs at toy size: resuming is exact, what is written is what the config says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from diffjax import model as models
from diffjax.config import config_from_dict
from diffjax.data import pipeline, plan
from diffjax.exits import Exit
from diffjax.tokenizers import train_sentencepiece
from diffjax.training import goodput, metrics, programs, supervision, validation
from diffjax.training.loop import train
from diffjax.training.reporter import Reporter
from diffjax.training.start import check_workdir
from diffjax.training.supervision import alone_in
from diffjax.types import Diverged, Preempted, UserError

STEPS, STOP = 6, 3  # an epoch has 4 batches


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A JSONL file of 32 little pairs and a tokenizer for them."""
  room = tmp_path_factory.mktemp("data")
  words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
  random = np.random.default_rng(0)
  with (room / "train.jsonl").open("w") as file:
    for _ in range(32):
      inputs = " ".join(random.choice(words, random.integers(2, 5)))
      file.write(json.dumps({"inputs": inputs, "targets": inputs[::-1]}) + "\n")
  lines = [*words, *(word[::-1] for word in words)] * 5
  train_sentencepiece(lines, vocab_size=40, path=room / "sp.model", kind="bpe")
  return room


def experiment(data, **training):
  source = {"kind": "jsonl", "path": str(data / "train.jsonl")}
  return {
    "model": {  # few leaves: every array is compiled for, and written
      "width": 16, "layers": 1, "heads": 2, "ffn_width": 32, "max_positions": 64, "norm": "pre",
      "norm_kind": "rms", "attention_bias": "none", "dense_bias": False, "head": "linear",
      "head_bias": False, "embedding_norm": False, "token_types": 0,
    },
    "data": {
      "tokenizer": str(data / "sp.model"), "train": source, "validation": {**source, "limit": 8},
      "max_length": 64, "buckets": (32, 64), "batch_size": 8,
    },
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "ema_decay": 0.9},
    "training": {
      "steps": STEPS, "log_every": 4, "eval_every": 4, "checkpoint_every": 2, **training,
    },
    "evaluation": {"batch_size": 8},
  }  # fmt: skip


def saved_trees(workdir, step):
  """All that a checkpoint holds of the state: weights, average, both moments."""
  items = {name: ocp.args.StandardRestore() for name in ("params", "opt_state", "ema_params")}
  with ocp.CheckpointManager(workdir.absolute() / "checkpoints") as manager:
    restored = manager.restore(step, args=ocp.args.Composite(**items))
    return jax.device_get({name: restored[name] for name in items})


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  result = train(config_from_dict(experiment(data)), workdir)
  return workdir, result


def assert_same_state(workdir, uninterrupted):
  have, want = saved_trees(workdir, STEPS), saved_trees(uninterrupted[0], STEPS)
  assert len(jax.tree.leaves(want["params"])) > 8
  for item in ("params", "opt_state", "ema_params"):
    jax.tree.map(np.testing.assert_array_equal, have[item], want[item])


def test_resuming_is_bit_equal_to_never_having_stopped(data, uninterrupted, tmp_path):
  train(config_from_dict(experiment(data, steps=STOP)), tmp_path / "run")
  train(config_from_dict(experiment(data)), tmp_path / "run")
  assert_same_state(tmp_path / "run", uninterrupted)


class Died(BaseException):
  """Nothing catches it."""


def test_a_run_that_died_while_writing_resumes_bit_equal(
  data, uninterrupted, tmp_path, monkeypatch
):
  whole, checkpoints = pipeline.batches, tmp_path / "run" / "checkpoints"

  def dying(*args, **kwargs):
    for number, batch in enumerate(whole(*args, **kwargs)):
      if number == STOP:
        raise Died
      yield batch

  monkeypatch.setattr(pipeline, "batches", dying)
  with pytest.raises(Died):
    train(config_from_dict(experiment(data)), tmp_path / "run")
  monkeypatch.undo()
  assert [d.name for d in checkpoints.iterdir() if d.name.isdigit()] == ["2"]
  half = checkpoints / "4.orbax-checkpoint-tmp"  # as Orbax leaves it
  shutil.copytree(checkpoints / "2" / "params", half / "params.orbax-checkpoint-tmp")
  train(config_from_dict(experiment(data)), tmp_path / "run")
  assert not half.exists()
  assert_same_state(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_a_run_killed_without_warning_resumes_bit_equal(data, uninterrupted, tmp_path):
  workdir, file = tmp_path / "run", tmp_path / "config.json"
  file.write_text(json.dumps(experiment(data)))
  script = (
    "import jax; jax.config.update('jax_num_cpu_devices', 8)\n"
    "from diffjax import load_config, train\n"
    "from diffjax.data import pipeline\n"
    "import time\n"
    "whole = pipeline.batches\n"
    "def slow(*args, **kwargs):\n"
    "  for batch in whole(*args, **kwargs): time.sleep(0.5); yield batch\n"
    "pipeline.batches = slow\n"  # so that the kill comes in the middle
    f"train(load_config({str(file)!r}), {str(workdir)!r})\n"
  )
  process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
  checkpoints, deadline = workdir / "checkpoints", time.monotonic() + 120
  while not (checkpoints.is_dir() and any(d.name.isdigit() for d in checkpoints.iterdir())):
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.05)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  assert not (checkpoints / str(STEPS)).exists()
  train(config_from_dict(experiment(data)), workdir)
  assert_same_state(workdir, uninterrupted)


def test_an_interrupt_finishes_the_step_and_saves(data, uninterrupted, tmp_path, monkeypatch):
  whole = pipeline.batches

  def interrupted(*args, **kwargs):
    for number, batch in enumerate(whole(*args, **kwargs)):
      if number == STOP - 1:
        signal.raise_signal(signal.SIGINT)
      yield batch

  monkeypatch.setattr(pipeline, "batches", interrupted)
  before = signal.getsignal(signal.SIGINT)
  with pytest.raises(Preempted, match=f"stopped at step {STOP} of {STEPS}, saved"):
    train(config_from_dict(experiment(data)), tmp_path / "run")
  status = json.loads((tmp_path / "run" / "status.json").read_text())
  assert status["exit"] == Exit.PREEMPTED
  assert "the same command resumes" in status["reason"]
  assert signal.getsignal(signal.SIGINT) is before
  monkeypatch.undo()
  train(config_from_dict(experiment(data)), tmp_path / "run")
  assert_same_state(tmp_path / "run", uninterrupted)


def test_a_signal_while_validating_gives_up_the_scores_and_saves(
  data, uninterrupted, tmp_path, monkeypatch
):
  whole, introduce = validation.Validation.run, Reporter.introduce

  def introduced(self, model, **how):
    introduce(self, model, **how)
    self._peak = 1e12  # as if the chip were known
    self._meter = metrics.Meter(chips=8, peak=self._peak)

  monkeypatch.setattr(Reporter, "introduce", introduced)

  def interrupted(self, *args):
    signal.raise_signal(signal.SIGTERM)
    return whole(self, *args)

  monkeypatch.setattr(validation.Validation, "run", interrupted)
  with pytest.raises(Preempted, match=f"step 4 of {STEPS}, saved without its validation"):
    train(config_from_dict(experiment(data)), tmp_path / "run")
  (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert 0 < json.loads(line)["mfu"] < 100
  monkeypatch.undo()
  train(config_from_dict(experiment(data)), tmp_path / "run")
  assert_same_state(tmp_path / "run", uninterrupted)


def test_threads_may_write_the_status_at_once_and_nothing_follows_the_end(data, tmp_path):
  failed = []
  with Reporter(tmp_path, config_from_dict(experiment(data))) as report:

    def write():
      try:
        for _ in range(200):
          report._write_status()
          report._beat()
          json.loads((tmp_path / "status.json").read_text())
      except Exception as error:
        failed.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
      thread.start()
    time.sleep(0.05)
    report.ended(Exit.STALLED, "no step")
    for thread in threads:
      thread.join()
  assert not failed
  assert json.loads((tmp_path / "status.json").read_text())["exit"] == Exit.STALLED
  lines = goodput.read(tmp_path)
  assert lines[-1]["exit"] == Exit.STALLED
  assert sum("exit" in line for line in lines) == 1


def test_a_signal_before_the_first_step_saves_nothing(data, tmp_path, monkeypatch):
  def measured(*args, **kwargs):
    signal.raise_signal(signal.SIGTERM)
    time.sleep(60)

  monkeypatch.setattr(plan, "length_index", measured)
  with pytest.raises(Preempted, match="stopped by SIGTERM before the first step"):
    train(config_from_dict(experiment(data)), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_numbers_that_are_not_finite_end_the_run_unsaved(data, tmp_path, monkeypatch):
  values = experiment(data, steps=5)
  values["data"]["validation"] = {"kind": "none"}
  whole = programs.build

  def build(*args):
    program = whole(*args)
    poison = jax.jit(lambda state: jax.tree.map(lambda x: x * np.float32("nan"), state.params))

    def train_step(state, frozen, batch):
      if int(state.step) == 3:
        state = state.replace(params=poison(state))
      return program.train_step(state, frozen, batch)

    return program._replace(train_step=train_step)

  monkeypatch.setattr(programs, "build", build)
  with pytest.raises(Diverged, match=r"step 4: the loss sums to nan .* checkpoint 2 is good"):
    train(config_from_dict(values), tmp_path / "run")
  kept = [d.name for d in (tmp_path / "run" / "checkpoints").iterdir() if d.name.isdigit()]
  assert kept == ["2"]
  assert json.loads((tmp_path / "run" / "status.json").read_text())["exit"] == Exit.DIVERGED


def test_a_second_run_in_a_live_workdir_is_refused(data, tmp_path):
  with alone_in(tmp_path / "run"), pytest.raises(UserError, match=r"in use: process \d+ on "):
    train(config_from_dict(experiment(data)), tmp_path / "run")
  assert {entry.name for entry in (tmp_path / "run").iterdir()} <= {"cache", "lock"}


def test_what_a_run_writes(uninterrupted):
  workdir, result = uninterrupted
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if line["split"] == "train"] == [4, 6]
  assert [line["step"] for line in lines if line["split"] == "validation"] == [4, 6]
  assert lines[-1]["loss"] == result["loss"]
  assert {"nll", "gradient_norm", "learning_rate", "tokens_per_second"} <= set(lines[0])
  assert 0 <= lines[0]["input_wait"] <= 100
  kept = sorted(int(d.name) for d in (workdir / "checkpoints").iterdir() if d.name.isdigit())
  assert kept == [4, 6]
  loaded = models.load(workdir)
  assert loaded.tokenizer.sha256
  assert json.loads((workdir / "config.json").read_text())["training"]["steps"] == STEPS


def test_training_again_is_already_done(data, uninterrupted):
  assert train(config_from_dict(experiment(data)), uninterrupted[0])["step"] == STEPS


def test_another_experiment_in_the_same_workdir_is_refused(data, uninterrupted):
  other = experiment(data)
  other["optimizer"]["learning_rate"] = 0.5
  with pytest.raises(UserError, match=r"optimizer.learning_rate = 0.01, not 0.5"):
    train(config_from_dict(other), uninterrupted[0])


def test_a_foreign_folder_is_not_written_into(data, tmp_path):
  (tmp_path / "precious.txt").write_text("x")
  with pytest.raises(UserError, match="not empty"):
    train(config_from_dict(experiment(data)), tmp_path)
  assert [entry.name for entry in tmp_path.iterdir()] == ["precious.txt"]


def changed(values, changes):
  for name, value in changes.items():
    *sections, field = name.split(".")
    owner = values
    for section in sections:
      owner = owner[section]
    owner[field] = value
  return values


REFUSED = [
  ({"init_from": "nowhere"}, "nowhere does not exist"),
  ({"mesh": {"data": 3}}, "devices"),
  ({"init_from": "tiny_mlm", "data.tokenizer": ""}, "config.model.width = 16"),
  ({"model.vocab_size": 20}, "embedding 20 rows"),
  ({"data.batch_size": 800}, "no length bucket fills a batch"),
  ({"data.validation.path": "none"}, "none: No such file"),
  ({"data.test": {"kind": "text", "path": "none"}}, "none: No such file"),
  ({"evaluation.strategy": "reparam"}, "strategy = 'reparam'"),
  ({"evaluation.batch_size": 3}, "evaluation.batch_size = 3 rows must divide"),
  ({"data.batch_size": 12}, "12 rows must divide"),
  ({"lora": {"rank": 2}}, "lora.rank = 2: adapters need weights"),
  ({"adaptation": {"anneal_steps": 2}}, "config.adaptation is for causal weights"),
  ({"model.length_classes": 4}, "length_classes = 4: the head is a section of its own"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_mistakes_leave_no_run_behind(data, tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    train(config_from_dict(changed(experiment(data), changes)), tmp_path / "run")
  left = {entry.name for entry in tmp_path.glob("run/*")}
  assert left <= {"cache"}
  if left:  # what was measured of the data does not stand in the way of the right command
    check_workdir(tmp_path / "run", config_from_dict(experiment(data)))


def test_a_bad_line_leaves_no_run_behind(data, tmp_path):
  (tmp_path / "bad.jsonl").write_text('{"inputs": "one", "targets": "eno"}\n{"inputs": "two"}\n')
  values = changed(experiment(data), {"data.train.path": str(tmp_path / "bad.jsonl")})
  with pytest.raises(UserError, match=r"bad.jsonl:2: no targets"):
    train(config_from_dict(values), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.fixture
def copied_run(uninterrupted, tmp_path):
  shutil.copytree(uninterrupted[0], tmp_path / "run")
  return tmp_path / "run"


def test_a_resumed_run_keeps_its_own_tokenizer(data, copied_run, tmp_path):
  """The file that the config names may be gone, or another one by now."""
  before = (copied_run / "tokenizer" / "sentencepiece.bpe.model").read_bytes()
  values = experiment(data, steps=STEPS)
  hidden = data / "sp.model"
  kept = hidden.read_bytes()
  try:
    hidden.unlink()
    assert train(config_from_dict(values), copied_run)["step"] == STEPS
  finally:
    hidden.write_bytes(kept)
  assert (copied_run / "tokenizer" / "sentencepiece.bpe.model").read_bytes() == before


def test_a_resumed_run_refuses_changed_data(data, copied_run):
  file = data / "train.jsonl"
  kept = file.read_bytes()
  try:
    file.write_bytes(kept + b'{"inputs": "one", "targets": "two"}\n')
    with pytest.raises(UserError, match=r"changed since it began: file train\.jsonl changed;"):
      train(config_from_dict(experiment(data)), copied_run)
  finally:
    file.write_bytes(kept)


def test_training_data_may_move(data, copied_run, tmp_path):
  shutil.copy(data / "train.jsonl", tmp_path / "train.jsonl")
  values = experiment(data)
  values["data"]["train"] = {**values["data"]["train"], "path": str(tmp_path / "train.jsonl")}
  assert train(config_from_dict(values), copied_run)["step"] == STEPS


def test_of_a_mixture_the_part_is_named_that_differs(copied_run):
  values = json.loads((copied_run / "config.json").read_text())
  part = {"kind": "jsonl", "path": "a", "weight": 1.0}
  values["data"]["train"] = {"kind": "mixture", "parts": [part, part]}
  (copied_run / "config.json").write_text(json.dumps(values))
  values["data"]["train"]["parts"] = [part, part | {"weight": 2.0}]
  with pytest.raises(UserError, match=r"config.data.train.parts\[1\].weight = 1.0, not 2.0"):
    check_workdir(copied_run, config_from_dict(values))


def test_the_validation_metric_may_change_on_resume(data, copied_run, monkeypatch):
  beats = []
  monkeypatch.setattr(supervision.Watchdog, "beat", lambda self: beats.append(1))
  values = experiment(data, steps=STEPS + 1)
  values["evaluation"] |= {"metric": "exact_match", "num_steps": 2, "examples": 4}
  result = train(config_from_dict(values), copied_run)
  assert {"exact_match", "bleu", "rouge_l"} <= set(result)
  assert len(beats) == 1 + 4  # a batch and its decoded answers: no validation looks stalled
  models.load(copied_run)


def test_imported_weights_start_where_they_were(data, uninterrupted, tmp_path):
  source = tmp_path / "source"
  models.convert(uninterrupted[0], source)
  still = experiment(data, steps=1) | {"init_from": str(source), "model": {"dropout": 0.0}}
  still["data"] |= {"tokenizer": "", "validation": {"kind": "none"}}
  still["optimizer"] = {"learning_rate": 1e-20, "warmup_steps": 0, "weight_decay": 0.0}
  train(config_from_dict(still), tmp_path / "run")
  have, want = models.load(tmp_path / "run").params, models.load(source).params
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), have, want)
