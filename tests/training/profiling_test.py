"""Profiles: the right steps, never the one that compiles, and no number changes."""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from diffjax.training import profiling


class Report:
  """What the profiler tells a run."""

  def __init__(self):
    self.lines, self.phases = [], []

  def say(self, line):
    self.lines.append(line)

  @contextlib.contextmanager
  def inside(self, phase):
    self.phases.append(phase)
    yield


@pytest.fixture
def traces(monkeypatch):
  """The first step, then "stop", of every trace; JAX's own are slow to start and stop."""
  calls = []
  start = lambda folder: calls.append(folder.rpartition("step_")[2])
  monkeypatch.setattr(jax.profiler, "start_trace", start)
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
  return calls


@pytest.fixture(autouse=True)
def looks_always(monkeypatch):
  monkeypatch.setattr(profiling, "_ASK_SECONDS", 0.0)


def run(workdir, *, start=0, first=0, steps=3, until=10, touch_before=()):
  """The steps after which each profile began and ended, as (step, event)."""
  report = Report()
  profiler = profiling.Profiler(workdir, start=start, first=first, steps=steps, report=report)
  with profiler:
    for step in range(start + 1, until + 1):
      if step in touch_before:
        (workdir / profiling.REQUEST).touch()
      profiler.before(step, jnp.zeros(()))
  return report.lines


def test_the_window_of_the_config(tmp_path, traces):
  lines = run(tmp_path, first=4)
  assert traces == ["4", "stop"]
  assert "steps 4 to 6" in lines[0]
  assert str(tmp_path / "profiles" / "step_4") in lines[0]


def test_the_first_step_is_never_traced(tmp_path, traces):
  run(tmp_path, start=5, first=6)
  run(tmp_path, start=5, touch_before=(6,))
  assert traces == ["7", "stop"] * 2


def test_a_window_that_is_past_is_not_made_again(tmp_path, traces):
  assert run(tmp_path, start=5, first=4) == []
  assert traces == []


def test_on_demand_as_often_as_asked(tmp_path, traces):
  run(tmp_path, steps=2, touch_before=(3, 7))
  assert traces == ["3", "stop", "7", "stop"]
  assert not (tmp_path / profiling.REQUEST).exists()


def test_the_folder_is_looked_into_now_and_then(tmp_path, traces, monkeypatch):
  monkeypatch.setattr(profiling, "_ASK_SECONDS", 5.0)
  now, asked, exists = [0.0], [], Path.exists
  monkeypatch.setattr(profiling.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(Path, "exists", lambda path: (asked.append(path), exists(path))[1])
  monkeypatch.setattr(Path, "unlink", lambda *_, **__: pytest.fail("nothing asked for a profile"))
  profiler = profiling.Profiler(tmp_path, start=0, first=0, steps=3, report=Report())
  for step in range(1, 102):
    now[0] += 0.1
    profiler.before(step, None)
  assert len(asked) == 2  # of ten seconds


def test_a_window_that_the_run_ends_in_is_closed(tmp_path, traces):
  assert "profile of steps 9" in run(tmp_path, first=9)[0]
  assert traces == ["9", "stop"]


def test_other_processes_trace_nothing(tmp_path, traces, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  run(tmp_path, first=4, touch_before=(6,))
  assert traces == []
  assert (tmp_path / profiling.REQUEST).exists()  # it is the first one's
