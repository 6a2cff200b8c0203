"""A real run tells where its time went, and what is watched changes no number."""

import dataclasses
import json
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import chips, sharding
from diffjax import model as models
from diffjax.config import Contract, config_from_dict
from diffjax.tokenizers import train_sentencepiece
from diffjax.training import console, goodput, loop, profiling, reporter
from diffjax.training.step import Sums, Updates
from diffjax.types import Batch

STEPS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Pairs of two lengths, so that batches come in two shapes, and a tokenizer for them."""
  room = tmp_path_factory.mktemp("data")
  lines = [
    {"inputs": "a" * (2 + 20 * (number % 2)), "targets": "b" * (number % 3 + 1)}
    for number in range(32)
  ]
  (room / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  text = ["a" * 22, "b" * 3, "ab"] * 20
  train_sentencepiece(text, vocab_size=12, path=room / "sp.model", kind="bpe")
  return room


def experiment(data, **training):
  source = {"kind": "jsonl", "path": str(data / "train.jsonl")}
  return config_from_dict({
    "model": {
      "width": 16, "layers": 1, "heads": 2, "ffn_width": 32, "max_positions": 64, "norm": "pre",
      "norm_kind": "rms", "attention_bias": "none", "dense_bias": False, "head": "linear",
      "head_bias": False, "embedding_norm": False, "token_types": 0,
    },
    "data": {
      "tokenizer": str(data / "sp.model"), "train": source, "validation": {**source, "limit": 8},
      "max_length": 32, "buckets": (16, 32), "batch_size": 8,
    },
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
    "training": {
      "steps": STEPS, "log_every": 2, "eval_every": 4, "checkpoint_every": 4, **training,
    },
    "evaluation": {"batch_size": 8},
  })  # fmt: skip


@pytest.fixture(scope="module")
def watched(data, tmp_path_factory):
  """A run with a profile: its folder, and what was traced."""
  traced = []
  workdir = tmp_path_factory.mktemp("runs") / "watched"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax.profiler, "start_trace", traced.append)
    patch.setattr(jax.profiler, "stop_trace", lambda: traced.append("stop"))
    loop.train(experiment(data, profile_start=3, profile_steps=2), workdir)
  return workdir, traced


def lines_of(workdir, split):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line for line in lines if line["split"] == split]


def test_it_attributes_its_wall_time(watched):
  workdir, _ = watched
  (life,) = goodput.lives(goodput.read(workdir))
  table = goodput.table([life])
  assert table["compile"] > 0
  assert table["step"] > 0
  assert table["validation"] > 0
  assert table["save"] > 0
  assert sum(table.values()) == pytest.approx(life.seconds, rel=1e-3)
  assert table["other"] <= 0.05 * life.seconds
  assert (life.first, life.step, life.exit) == (0, STEPS, 0)


def test_a_shape_compiles_once(watched):
  lines = lines_of(watched[0], "train")
  assert lines[-1]["compiles"] == lines[-2]["compiles"]  # and a validation lies between


def test_the_profile_was_taken(watched):
  folder = watched[0] / profiling.FOLDER / "step_3"
  assert watched[1] == [str(folder), "stop"]


def test_status_is_the_end(watched):
  status = json.loads((watched[0] / goodput.STATUS).read_text())
  assert time.time() - status.pop("time") < 600
  assert status.pop("step_seconds") > 0
  assert status == {
    "step": STEPS, "steps": STEPS, "eta_seconds": 0.0, "last_checkpoint": STEPS, "restarts": 0,
    "exit": 0, "reason": "done",
  }  # fmt: skip


def test_values_have_the_names_of_the_docs(watched):
  for line in lines_of(watched[0], "train"):
    assert line["tokens_per_second"] > 0
    assert line["tokens_per_second_per_chip"] == pytest.approx(
      line["tokens_per_second"] / jax.device_count()
    )
    assert 0 <= line["input_wait"] <= 100
    assert 0 < line["goodput"] < 100
    assert line["restarts"] == 0
    assert not {"mfu", "hbm_used_bytes"} & line.keys()  # of a CPU neither is known


def test_watching_and_stopping_change_no_loss(watched, data, tmp_path, capsys):
  """Without a profile, with other log lines, killed after step 4 and begun again."""
  options = {"log_every": 1}
  loop.train(experiment(data, steps=4, **options), tmp_path / "run")
  file = tmp_path / "run" / goodput.FILE
  torn = file.read_text().rpartition("\n")[0] + '\n{"life": 0, "sta'  # as kill -9 leaves it
  file.write_text(torn)
  with (tmp_path / "run" / "metrics.jsonl").open("a") as stream:
    stream.write('{"step": 5, "split": "train", "loss": 1}\n{"step": 5, "sp')
  loop.train(experiment(data, **options), tmp_path / "run")
  plain = {line["step"]: line for line in lines_of(tmp_path / "run", "train")}
  assert sorted(plain) == list(range(1, STEPS + 1))
  for line in lines_of(watched[0], "train"):
    for name in ("loss", "nll", "gradient_norm"):
      assert line[name] == plain[line["step"]][name]
  assert plain[STEPS]["restarts"] == 1
  assert 0 <= plain[5]["checkpoint_age_seconds"] < 600
  status = json.loads((tmp_path / "run" / goodput.STATUS).read_text())
  assert status["restarts"] == 1
  first, second = goodput.lives(goodput.read(tmp_path / "run"))
  assert (first.exit, second.exit, second.first) == (None, 0, 4)
  said = capsys.readouterr().out
  assert "warning" not in said
  assert f"resuming {tmp_path / 'run'} at step 4 of {STEPS}" in said
  assert "restarts 1" in said


def measured(**more):
  speed = {"tokens_per_second": 8000.0, "tokens_per_second_per_chip": 1000.0}
  times = {"step_seconds": 0.198, "step_seconds_p99": 0.24, "input_wait": 0.4}
  return {"loss": 3.4, "nll": 3.3, **speed, **times, **more}


def test_a_line_leaves_out_what_does_not_apply():
  line = console.describe(measured(restarts=0), checkpoint=None, eta=None, now=0.0)
  assert line == "loss 3.4000  nll 3.300  8,000 tokens/s  step 198 ms (p99 240)  ETA -"


def test_a_line_of_an_accelerator():
  now = time.mktime((2026, 1, 5, 10, 20, 0, 0, 0, -1))
  line = console.describe(
    measured(
      mfu=38.13, hbm_used_bytes=71, hbm_limit_bytes=100, checkpoint_age_seconds=8, restarts=2
    ),
    checkpoint=1150, eta=4 * 3600 + 12 * 60, now=now,
  )  # fmt: skip
  assert line == (
    "loss 3.4000  nll 3.300  1,000 tokens/s a chip  MFU 38.1 %  step 198 ms (p99 240)  HBM 71 %  "
    "checkpoint 1150 (8 s ago)  restarts 2  ETA 4 h 12 m, end 14:32"
  )


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(8.4, "8 s"), (59.9, "1 m 00 s"), (725, "12 m 05 s"), (15120, "4 h 12 m"), (273600, "3 d 4 h")],
)
def test_durations(seconds, text):
  assert console.duration(seconds) == text


def test_no_repository_no_commit(tmp_path):
  assert console.revision(tmp_path) == ""


def batches(shapes):
  zeros = np.zeros
  return iter([Batch(zeros(s), zeros(s), zeros(s, bool), zeros(s[0], int)) for s in shapes])


@pytest.fixture
def live(data, tmp_path):
  report = reporter.Reporter(tmp_path, experiment(data))
  with report:
    yield report


def test_a_program_that_is_built_again_is_told_once(live, capsys):
  live._start = live._step = 0
  live._peak = None
  live.enter("step")
  shapes = [(8, 16), (8, 32), (8, 16), (8, 16), (8, 16)]
  compiling = {0, 1, 3, 4}  # the first two are new shapes
  for number, _ in enumerate(live.waiting_for(batches(shapes))):
    live._compiles.count += number in compiling
  said = capsys.readouterr().out
  assert said.count("compiled again") == 1


def introduced(report, monkeypatch):
  """To a chip whose peak is known."""
  device = SimpleNamespace(device_kind="TPU v5 lite")
  of_device = chips.of_device
  monkeypatch.setattr(chips, "of_device", lambda _: of_device(device))
  contract = Contract(bos_id=1, pad_id=3, eos_id=2, mask_id=4)
  model = models.Model(report._config.model, contract, None, None)
  report.introduce(model, parameters=1, mesh=sharding.make_mesh(report._config.mesh))
  return report


def in_bfloat16(config):
  return dataclasses.replace(config, compute=dataclasses.replace(config.compute, dtype="bfloat16"))


def test_a_step_is_reported_without_another_program(data, tmp_path, monkeypatch):
  """One would wait for the step under way, and with several processes all would have to join."""
  number, counts = jnp.ones(()), jnp.ones(10)
  updates = Updates(Sums(number, number, counts, counts, number), None, number, number)
  monkeypatch.setattr(type(counts), "sum", lambda *_: pytest.fail("a program for a sum"))
  with reporter.Reporter(tmp_path, in_bfloat16(experiment(data))) as report:
    introduced(report, monkeypatch)
    report.begin(0)
    for step in (1, 2, 3):
      report.step(step, updates, write=step == 3)
  assert lines_of(tmp_path, "train")[0]["mfu"] > 0


def test_no_mfu_in_float32_as_the_peak_is_of_bfloat16(live, monkeypatch):
  assert introduced(live, monkeypatch)._peak is None


def test_why_a_run_ends_is_written_by_whoever_knows(live, tmp_path):
  live.ended(124, "no step for 120 s")
  status = json.loads((tmp_path / goodput.STATUS).read_text())
  assert (status["exit"], status["reason"]) == (124, "no step for 120 s")


def test_an_error_is_the_reason(data, tmp_path):
  with pytest.raises(OSError, match="full"), reporter.Reporter(tmp_path, experiment(data)):
    raise OSError(28, "disk full", "x")
  status = json.loads((tmp_path / goodput.STATUS).read_text())
  assert status["exit"] == 74
  assert "x" in status["reason"]
