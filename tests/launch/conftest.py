"""A fake cloud in a temporary folder, and the launch scripts in a small repository of their own."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]


class Room:
  """A folder with a repository that holds launch/, a fake cloud, and the fake commands on PATH."""

  def __init__(self, folder: Path):
    """Makes it."""
    self.cloud, self.repository = folder / "cloud", folder / "repository"
    self.workdir = folder / "runs" / "run"
    self.cloud.mkdir()
    shutil.copytree(CHECKOUT / "launch", self.repository / "launch")
    (self.repository / "untracked").touch()
    for words in (
      ["init", "--quiet"],
      ["add", "launch"],
      ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=all"],
    ):
      subprocess.run(["git", *words], cwd=self.repository, check=True)
    hidden = ("FAKE_", "SLURM_", "DIFFJAX_", "JAX_", "XLA_")
    self.environment = {
      name: value for name, value in os.environ.items() if not name.startswith(hidden)
    }
    self.environment |= {
      "PATH": f"{HERE / 'fake_bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
      "FAKE_CLOUD": str(self.cloud),
      "LAUNCH_PAUSE": "0",
      "HOME": str(folder),
    }

  def scenario(self, **what) -> None:
    """What goes wrong; see fake_bin/gcloud."""
    (self.cloud / "scenario.json").write_text(json.dumps(what))

  def command(self, script: str, *words) -> list[str]:
    """The argv of a script of launch/."""
    return ["bash", str(self.repository / "launch" / script), *map(str, words)]

  def run(self, script: str, *words, code: int = 0, **settings) -> str:
    """Runs a script to its end, checks its exit code, returns stdout and stderr together."""
    ended = subprocess.run(
      self.command(script, *words), cwd=self.repository, env={**self.environment, **settings},
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
      timeout=600,
    )  # fmt: skip
    assert ended.returncode == code, ended.stdout
    return ended.stdout

  def tpu(self, script: str, *words, code: int = 0, **settings) -> str:
    """As run, of launch/tpu, for the TPU `pod`."""
    return self.run(f"tpu/{script}.sh", "--name=pod", "--zone=z", *words, code=code, **settings)

  def calls(self) -> list[list[str]]:
    """The argv of every gcloud so far."""
    return [json.loads(line) for line in (self.cloud / "calls.jsonl").read_text().splitlines()]

  def noted(self) -> list[str]:
    """The other fake commands so far, as shell lines."""
    file = self.cloud / "calls.log"
    return file.read_text().splitlines() if file.exists() else []

  def preempt(self) -> None:
    """The TPU's machines go away, as a spot TPU's do."""
    state = json.loads((self.cloud / "state.json").read_text())
    tpu = state["tpus"]["pod"]
    self.kill_processes()
    tpu["node"], tpu["queue"] = "PREEMPTED", "SUSPENDED"
    (self.cloud / "state.json").write_text(json.dumps(state))

  def printed(self, text: str) -> int:
    """How many fake machines' logs hold the text."""
    return sum(text in file.read_text() for file in self.cloud.glob("**/diffjax-run/*/log"))

  def running(self) -> bool:
    """Whether something that was started on fake machines still lives."""
    for file in self.cloud.glob("**/diffjax-run/*/pid"):
      try:
        os.kill(int(file.read_text()), 0)
        return True
      except (ProcessLookupError, ValueError):
        pass
    return False

  def kill_processes(self) -> None:
    """Ends all that was started on fake machines."""
    for file in self.cloud.glob("**/diffjax-run/*/pid"):
      with contextlib.suppress(ValueError):
        subprocess.run(["pkill", "-KILL", "--session", str(int(file.read_text()))], check=False)


@pytest.fixture(scope="module")
def new_room(tmp_path_factory):
  """Makes rooms; what was started on their fake machines ends with the module at the latest."""
  rooms = []

  def make() -> Room:
    rooms.append(Room(tmp_path_factory.mktemp("room")))
    return rooms[-1]

  yield make
  for room in rooms:
    room.kill_processes()


@pytest.fixture
def room(new_room):
  """A fresh one, for one test."""
  room = new_room()
  yield room
  room.kill_processes()


@pytest.fixture(scope="module")
def ready(new_room):
  """One for a module, with a TPU of two workers on which its commit is installed."""
  room = new_room()
  room.tpu("queue", "--accelerator=v4-16", "--poll=0")
  # All workers' clocks differ from this machine's, not from each other.
  room.tpu("bootstrap", "--devices=2", f"--workdir={room.workdir}", FAKE_CLOCK="3600")
  return room
