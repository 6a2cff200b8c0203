"""A real training of two processes through launch/: taken away, brought back, bit-equal."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import diffjax

CHECKOUT = Path(__file__).parents[2]
STEPS = 24
CONFIG = {
  "model": {
    "width": 16, "layers": 1, "heads": 2, "ffn_width": 32, "max_positions": 64, "norm": "pre",
    "norm_kind": "rms", "attention_bias": "none", "dense_bias": False, "head": "linear",
    "head_bias": False, "embedding_norm": False, "token_types": 0,
  },
  "mesh": {"data": 1, "fsdp": 2},
  "data": {
    "tokenizer": str(CHECKOUT / "diffjax" / "assets" / "tiny_mlm"),
    "train": {"kind": "generator", "limit": 64}, "max_length": 64, "buckets": (), "batch_size": 8,
  },
  "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
  "training": {"steps": STEPS, "log_every": 1, "checkpoint_every": 4},
}  # fmt: skip
# What a worker of CPUs needs beside what a launcher gives it.
SETTINGS = {
  "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
  "XLA_FLAGS": "--xla_backend_optimization_level=0",
}  # fmt: skip

pytestmark = pytest.mark.slow


def prepare(room):
  """Gives a room a config, the command that trains with it, and this Python on its machines."""
  folder = room.workdir.parent
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(CONFIG))
  room.train = lambda workdir: [
    "diffjax", "train", f"--config={folder / 'config.json'}", f"--workdir={workdir}",
  ]  # fmt: skip
  path = f"{CHECKOUT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
  command = room.cloud / "bin" / "diffjax"  # where nothing is bootstrapped
  command.parent.mkdir()
  command.write_text(f"#!{sys.executable}\nfrom diffjax.cli.main import main\n\nmain()\n")
  command.chmod(0o755)
  room.environment |= SETTINGS | {
    "FAKE_PYTHON": sys.executable, "FAKE_CHECKOUT": str(CHECKOUT), "DIFFJAX_HEARTBEAT": "10",
    "PYTHONPATH": path, "PATH": f"{command.parent}:{room.environment['PATH']}",
  }  # fmt: skip
  return room


@pytest.fixture
def training(room):
  """A room that is prepared, with a workdir that no shell may read."""
  room.workdir = room.workdir.with_name("a run;$(touch ran)")
  return prepare(room)


@pytest.fixture(scope="module")
def whole(new_room):
  """The workdir of the same run, undisturbed, of two processes too."""
  room = prepare(new_room())
  words = ("--processes=2", "--heartbeat=10", "--", *room.train(room.workdir))
  room.run("local/processes.sh", *words)
  return room.workdir


def losses(workdir) -> dict[int, float]:
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


def committed(workdir) -> list[int]:
  folder = workdir / "checkpoints"
  names = os.listdir(folder) if folder.exists() else []
  return sorted(int(name) for name in names if name.isdigit())


def assert_same_run(workdir, other) -> None:
  have, want = losses(workdir), losses(other)
  assert len(want) == STEPS
  assert have == want
  params = [diffjax.load(folder / "checkpoints" / str(STEPS)).params for folder in (workdir, other)]
  jax.tree.map(np.testing.assert_array_equal, *params)


def wait_for(seen, child, seconds: float = 400) -> None:
  end = time.monotonic() + seconds
  while not seen():
    assert time.monotonic() < end
    assert child.poll() is None, child.communicate()[0]
    time.sleep(0.05)


def test_a_preempted_pod_comes_back_and_ends_as_an_undisturbed_run(training, whole):
  """create, bootstrap, run, taken away, created anew, bootstrapped, resumed, done."""
  room = training
  room.scenario(active_after=1, ssh_fails={"1": 2})
  argv = room.command(
    "tpu/supervise.sh", "--name=pod", "--zone=z", "--accelerator=v4-16", "--devices=2",
    "--spot", "--poll=1", "--grace=60", "--port=28476", "--", *room.train(room.workdir),
  )  # fmt: skip
  child = subprocess.Popen(
    argv, cwd=room.repository, env=room.environment, text=True, stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )  # fmt: skip
  wait_for(lambda: committed(room.workdir), child)
  room.preempt()
  stopped_at = committed(room.workdir)[-1]
  assert stopped_at < STEPS
  said = child.communicate(timeout=600)[0]
  assert child.returncode == 0, said
  assert "was taken away" in said
  assert "restart 1 after" in said
  calls = [call[4] for call in room.calls() if call[4] in ("create", "delete")]
  assert calls == ["create", "delete", "create"]
  assert room.printed("resuming")  # on the second TPU; the first one's logs went with it
  assert not [*room.workdir.parents[1].glob("**/ran")]
  assert_same_run(room.workdir, whole)


def test_a_stopped_run_is_saved_and_goes_on(training, whole):
  """stop.sh: all save at one step and end with 75; run.sh goes on from it."""
  room = training
  room.tpu("queue", "--accelerator=v4-16", "--poll=0")
  words = ("--devices=2", "--port=28477", f"--workdir={room.workdir}")
  said = room.tpu("bootstrap", *words)
  assert said.count("cpu") == 2
  start = ("--port=28477", "--", *room.train(room.workdir))
  room.tpu("run", *start)
  end = time.monotonic() + 400
  while not ((room.workdir / "metrics.jsonl").exists() and losses(room.workdir)):
    assert time.monotonic() < end
    assert room.running()
    time.sleep(0.05)
  assert "saved and stopped" in room.tpu("stop", "--seconds=120", code=75)
  (stopped_at,) = committed(room.workdir)[-1:]
  status = room.tpu("status", f"--workdir={room.workdir}")
  assert f"last_checkpoint {stopped_at}" in " ".join(status.split())
  assert "exit 75" in status
  room.tpu("run", *start)
  while room.running():
    time.sleep(0.2)
  assert "exit 0" in room.tpu("status")
  assert_same_run(room.workdir, whole)


def test_local_processes_lose_one_and_go_on(training, whole):
  """One of two is killed: the other notices, all is restarted, the end is the same."""
  room = training
  argv = room.command(
    "local/processes.sh", "--processes=2", "--heartbeat=10", "--grace=60", "--supervise", "--",
    *room.train(room.workdir),
  )  # fmt: skip
  child = subprocess.Popen(
    argv, env=room.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )
  wait_for(lambda: committed(room.workdir), child)
  os.kill(one_of(child.pid), signal.SIGKILL)
  said = child.communicate(timeout=600)[0]
  assert child.returncode == 0, said
  assert "restart 1 after" in said
  assert_same_run(room.workdir, whole)


def one_of(parent: int) -> int:
  """A training process that this one started."""
  for folder in Path("/proc").iterdir():
    if folder.name.isdigit():
      try:
        above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        if above == parent and b"train" in (folder / "cmdline").read_bytes().split(b"\0"):
          return int(folder.name)
      except (OSError, ValueError):
        pass
  raise AssertionError("no training process")
