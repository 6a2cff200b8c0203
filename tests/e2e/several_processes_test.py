"""Real processes of one run on this machine: they train, stop, resume and evaluate as one does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from diffjax import hosts
from diffjax import model as models
from diffjax.config import load_config
from diffjax.environment import HEARTBEAT
from diffjax.exits import Exit
from diffjax.tokenizers import train_sentencepiece
from diffjax.training.loop import train as in_one_process

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from diffjax.cli.main import main; main()"]
DEVICES, STEPS = 8, 30


@pytest.fixture(scope="module")
def room(tmp_path_factory):
  """A little data, a tokenizer, and the config of a run on a mesh of eight devices."""
  room = tmp_path_factory.mktemp("several")
  words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
  random = np.random.default_rng(0)
  with (room / "data.jsonl").open("w") as file:
    for _ in range(32):
      inputs = " ".join(random.choice(words, random.integers(2, 5)))
      file.write(json.dumps({"inputs": inputs, "targets": inputs[::-1]}) + "\n")
  lines = [*words, *(word[::-1] for word in words)] * 5
  train_sentencepiece(lines, vocab_size=40, path=room / "sp.model", kind="bpe")
  source = {"kind": "jsonl", "path": str(room / "data.jsonl")}
  config = {
    "model": {
      "width": 16, "layers": 1, "heads": 2, "ffn_width": 32, "max_positions": 64, "norm": "pre",
      "norm_kind": "rms", "attention_bias": "none", "dense_bias": False, "head": "linear",
      "head_bias": False, "embedding_norm": False, "token_types": 0,
    },
    "mesh": {"data": 2, "fsdp": 4},
    "data": {
      "tokenizer": str(room / "sp.model"), "train": source, "test": {**source, "limit": 6},
      "max_length": 64, "buckets": (), "batch_size": 8,
    },
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
    "training": {"steps": STEPS, "log_every": 1, "checkpoint_every": 1000},
    "evaluation": {"batch_size": 8},
  }  # fmt: skip
  (room / "config.json").write_text(json.dumps(config))
  config["data"]["validation"] = {**source, "limit": 8}  # its program takes as long to compile
  (room / "validated.json").write_text(json.dumps(config))
  return room


@pytest.fixture(autouse=True)
def fresh(room):
  """What processes say belongs to one test."""
  for file in (*room.glob("*.out"), *room.glob("*.err")):
    file.unlink()


def start(*arguments, count, room, first=0, devices=DEVICES, **variables):
  """So many processes of one command, with `devices` together; counted from `first`."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  children = []
  for number in range(first, first + count):
    environment = {
      **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices // count),
      "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
      "PYTHONUNBUFFERED": "1", **variables,
    }  # fmt: skip
    if count > 1:
      environment |= {
        hosts.COORDINATOR: address, hosts.PROCESSES: str(count), hosts.PROCESS: str(number)
      }  # fmt: skip
    child = subprocess.Popen(
      [*COMMAND, *map(str, arguments)], cwd=room, env=environment, text=True,
      stdout=(room / f"{number}.out").open("a+"), stderr=(room / f"{number}.err").open("a+"),
    )  # fmt: skip
    children.append(child)
  return children


def finish(children, seconds=240):
  """Their exit codes; none is left behind."""
  deadline = time.monotonic() + seconds
  try:
    return [child.wait(max(1.0, deadline - time.monotonic())) for child in children]
  finally:
    for child in children:
      child.kill()


def train(room, workdir, *more, config="config.json"):
  return ("train", f"--config={room / config}", f"--workdir={workdir}", *more)


def read(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {(line["split"], line["step"]): line["loss"] for line in lines}


def wait_for_step(workdir, step, children):
  deadline = time.monotonic() + 180
  while not (workdir / "metrics.jsonl").is_file() or ("train", step) not in read(workdir):
    assert all(child.poll() is None for child in children)
    assert time.monotonic() < deadline
    time.sleep(0.05)


def saved(workdir):
  return sorted(int(d.name) for d in (workdir / "checkpoints").iterdir() if d.name.isdigit())


def said(room, number):
  return (room / f"{number}.err").read_text().strip()


@pytest.fixture(scope="module")
def whole(room):
  """The run of one process, undisturbed."""
  in_one_process(load_config(room / "config.json"), room / "whole")
  return room / "whole"


def test_two_processes_stop_together_resume_and_end_as_one(room, whole):
  workdir, words = room / "two", train(room, "two")
  children = start(*words, count=2, room=room)
  wait_for_step(workdir, 3, children)
  children[1].send_signal(signal.SIGTERM)
  time.sleep(0.1)  # a terminal or a job's end reaches all, and so may a launcher
  for child in children:
    child.send_signal(signal.SIGINT)
  assert finish(children) == [Exit.PREEMPTED] * 2
  (stopped,) = saved(workdir)
  assert 3 <= stopped < STEPS
  for number in range(2):
    assert said(room, number).splitlines()[-1].startswith(f"diffjax: stopped at step {stopped} of")
  assert json.loads((workdir / "status.json").read_text())["exit"] == Exit.PREEMPTED
  assert finish(start(*words, count=2, room=room)) == [0, 0]
  have, want = read(workdir), read(whole)
  assert have.keys() == want.keys()
  np.testing.assert_allclose(list(have.values()), list(want.values()), rtol=1e-6)
  first, second = ((room / f"{number}.out").read_text() for number in range(2))
  for text in ("loss", "Next:", "resuming"):
    assert text in first
    assert text not in second


@pytest.mark.slow
@pytest.mark.parametrize(
  ("count", "mesh"),
  [(2, {"data": 2, "fsdp": 4}), (4, {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2})],
)
def test_a_stop_changes_nothing(room, count, mesh):
  """With four processes here, two of them hold the same rows."""
  options = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
  quiet, stopped = f"quiet{count}", f"stopped{count}"
  words = lambda workdir: train(room, workdir, *options, config="validated.json")
  assert finish(start(*words(quiet), count=count, room=room)) == [0] * count
  children = start(*words(stopped), count=count, room=room)
  wait_for_step(room / stopped, 5, children)
  children[0].send_signal(signal.SIGINT)
  assert finish(children) == [Exit.PREEMPTED] * count
  assert finish(start(*words(stopped), count=count, room=room)) == [0] * count
  assert read(room / stopped) == read(room / quiet)
  have, want = (models.load(room / run).params for run in (stopped, quiet))  # in this process alone
  jax.tree.map(np.testing.assert_array_equal, have, want)
  in_one_process(
    load_config(room / "validated.json", [option[2:] for option in options]), room / f"one{count}"
  )
  have, want = read(room / quiet), read(room / f"one{count}")
  np.testing.assert_allclose(list(have.values()), list(want.values()), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 0])
def test_a_dead_process_is_named_by_the_others(room, lost):
  children = start(
    *train(room, f"lost{lost}", "--config.training.steps=100000"), count=2, room=room,
    **{HEARTBEAT: "10"},
  )  # fmt: skip
  wait_for_step(room / f"lost{lost}", 5, children)
  children[lost].kill()
  began = time.monotonic()
  code = children[1 - lost].wait(60)
  took = time.monotonic() - began
  finish(children)
  assert took <= 15
  assert code == Exit.DEVICE
  last = said(room, 1 - lost).splitlines()[-1]
  assert last.startswith(f"diffjax: process {lost} is gone")
  if lost == 1:
    assert json.loads((room / "lost1" / "status.json").read_text())["exit"] == Exit.DEVICE


@pytest.mark.slow
def test_a_stuck_process_stops_all(room):
  """It is alive, so that nothing but the watchdogs can tell."""
  options = ["--config.training.steps=100000", "--config.training.stall_seconds=8"]
  children = start(*train(room, "stuck", *options), count=2, room=room, DIFFJAX_HEARTBEAT="60")
  wait_for_step(room / "stuck", 20, children)
  children[1].send_signal(signal.SIGSTOP)
  assert children[0].wait(60) == Exit.STALLED
  children[1].send_signal(signal.SIGCONT)
  assert finish(children)[1] in (Exit.STALLED, Exit.DEVICE, Exit.ABORTED, -signal.SIGABRT)
  lines = said(room, 0).splitlines()
  assert "diffjax: stalled: no step for " in lines[-1]
  assert any("Thread 0x" in line for line in lines)


@pytest.mark.slow
def test_what_one_process_fails_of_all_end_with(room):
  """The data is not there on one of the hosts."""
  children = []
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  for number in range(2):
    place = {hosts.COORDINATOR: address, hosts.PROCESSES: "2", hosts.PROCESS: str(number)}
    words = train(room, "uneven2", *["--config.data.test.path=nothing"] * number)
    children += start(*words, count=1, room=room, first=number, devices=4, **place)
  assert finish(children) == [Exit.INPUT] * 2
  assert said(room, 0).splitlines()[-1].startswith("diffjax: process 1 ended: nothing: No such")
  assert not (room / "uneven2" / "checkpoints").exists()


@pytest.mark.slow
def test_evaluating_together_gives_the_report_of_one(room, whole):
  words = ("evaluate", f"--model={whole}", "--num-steps=2,4", "--batch-size=2")
  reports = []
  for count in (1, 2):
    out = room / f"report{count}"
    assert finish(start(*words, f"--out={out}", count=count, room=room)) == [0] * count
    assert not list(out.glob("predictions/*-of-*"))
    reports.append(json.loads((out / "report.json").read_text())["results"])
  one, two = ([(r["scores"], r["examples"], r["network_calls"]) for r in rs] for rs in reports)
  assert one == two
  assert len(one) == 2
  assert "wrote " in (room / "0.out").read_text()
