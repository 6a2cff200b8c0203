"""Signals, the watchdog and the lock, each without a run around it."""

import errno
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from diffjax.exits import Exit
from diffjax.training import supervision
from diffjax.training.step import Updates
from diffjax.types import Diverged, Preempted, Unavailable, UserError


def run(script, *, timeout=60):
  """What a process of its own says on stderr, and its exit code."""
  code = "import signal, time\nfrom diffjax.training.supervision import *\n" + script
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False
  )
  return done.stderr, done.returncode


def test_the_first_signal_asks_and_the_handlers_come_back():
  before = signal.getsignal(signal.SIGTERM)
  with supervision.Stop() as stop:
    assert not stop.due()
    signal.raise_signal(signal.SIGTERM)
    assert stop.due()
    signal.raise_signal(signal.SIGINT)  # of a terminal and of a launcher: the same one
    stop._since -= 4
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGTERM) is before


def test_before_the_first_step_it_leaves_at_once():
  with (
    pytest.raises(Preempted, match="stopped by SIGINT before the first step"),
    supervision.Stop(),
  ):
    signal.raise_signal(signal.SIGINT)


def test_asking_whether_to_stop_costs_next_to_nothing():
  with supervision.Stop() as stop:
    began = time.perf_counter()
    for _ in range(1000):
      stop.due()
    assert (time.perf_counter() - began) / 1000 < 1e-4


def test_a_second_sigterm_ends_the_process_with_its_cause():
  said, code = run(
    "with Stop(lambda code, cause: print(code, cause, file=sys.stderr)) as stop:\n"
    "  stop.due()\n"
    "  for _ in range(2): signal.raise_signal(signal.SIGTERM)\n"
    "  print('once', file=sys.stderr)\n"
    "  time.sleep(3.1); signal.raise_signal(signal.SIGTERM)\n"
    "  time.sleep(60)"
  )
  assert code == Exit.TERMINATED
  once, told, last = said.splitlines()
  assert once == "once"
  assert told.startswith("143 ")
  assert last.startswith("diffjax: SIGTERM again")


def test_all_stop_at_the_place_that_they_agree_on():
  """Two processes, one a batch ahead, without the service that carries their words."""
  stops = [supervision.Stop(), supervision.Stop()]
  for stop, passed in zip(stops, (4, 5), strict=True):
    stop._several = True
    assert not any([stop.due() for _ in range(passed)])
    stop._peers.exchange = lambda name, word: ["3", "4"]
    stop._hear({1: ["stop"]})
  assert [[stop.due() for _ in range(2)] for stop in stops] == [[False, True], [True, True]]


def test_the_signal_that_is_sent_on_agreement_is_no_second_one(monkeypatch):
  """It may come late, when the first step has just begun."""
  monkeypatch.setattr(supervision.hosts, "leave", lambda *_: pytest.fail("left"))
  stop = supervision.Stop()
  stop._several, stop._asked = True, "SIGTERM"
  stop._peers.exchange = lambda name, word: ["-1", "-1"]
  monkeypatch.setattr(supervision._thread, "interrupt_main", lambda number: None)
  stop._hear({0: ["stop"]})
  assert stop.due()
  stop._ask(signal.SIGTERM, None)


def test_a_stalled_step_ends_the_process_with_its_stacks():
  said, code = run(
    "def stuck(): time.sleep(60)\n"
    "with Watchdog(0.5, lambda code, cause: print('told', code, file=sys.stderr)) as watchdog:\n"
    "  for _ in range(8): watchdog.step(compiles=False); time.sleep(0.05)\n"
    "  stuck()"
  )
  assert code == Exit.STALLED
  lines = said.splitlines()
  assert any("in stuck" in line for line in lines)
  assert "told 124" in lines
  assert lines[-1].startswith("diffjax: stalled: no step for ")
  assert "(usual 0.05" in lines[-1]
  assert "stall_seconds" in lines[-1]


def test_what_is_no_step_may_take_longer():
  """Compiling, saving and restoring are waited for as long as patience lasts, and no longer."""
  with supervision.Watchdog(0.2, lambda *_: pytest.fail("barked")) as watchdog:
    with watchdog.inside("restoring"):
      time.sleep(0.5)
    watchdog.step(compiles=True)
    time.sleep(0.5)
    watchdog.step(compiles=False)  # others may still compile
    time.sleep(0.5)
    watchdog.step(compiles=False)
    with watchdog.inside("saving"):
      time.sleep(0.5)
    time.sleep(0.1)


def test_saving_that_does_not_end_is_named():
  said, code = run(
    "with Watchdog(0.2, patience=0.5) as watchdog:\n"
    "  with watchdog.inside('saving'): time.sleep(60)"
  )
  assert code == Exit.STALLED
  assert said.splitlines()[-1].startswith("diffjax: stalled: saving for ")


def test_what_goes_on_or_is_large_may_take_long():
  with supervision.Watchdog(0.2, lambda *_: pytest.fail("barked"), patience=0.3) as watchdog:
    with watchdog.inside("validating"):
      for _ in range(4):
        time.sleep(0.15)
        watchdog.beat()
    with watchdog.inside("saving", size=20_000_000):
      time.sleep(0.6)


def test_the_limit_follows_usual_steps():
  watchdog = supervision.Watchdog()
  assert watchdog._step_limit() == 900  # nothing is usual yet
  watchdog._usual.append(0.1)
  assert watchdog._step_limit() == 120
  watchdog._usual.extend([10.0, 10.0, 10.0, 500.0])
  assert watchdog._step_limit() == 300


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (1.0, np.inf)])
def test_numbers_that_are_not_finite_are_an_end(loss, norm):
  sums = type("Sums", (), {"loss": jax.numpy.float32(loss)})
  updates = Updates(sums, None, jax.numpy.float32(norm), jax.numpy.float32(0))
  with pytest.raises(Diverged, match=r"step 7.*checkpoint 5 is good"):
    supervision.check_finite(7, updates, 5)
  fine = updates._replace(
    sums=type("Sums", (), {"loss": np.float32(1)}), gradient_norm=np.float32(1)
  )
  supervision.check_finite(7, fine, None)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, capsys, number):
  def flock(file, how):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(supervision.fcntl, "flock", flock)
  with supervision.alone_in(tmp_path):
    assert "cannot be locked" in capsys.readouterr().err


def test_another_host_may_be_gone_without_its_lock(tmp_path, monkeypatch):
  with supervision.alone_in(tmp_path):
    monkeypatch.setattr(supervision.socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(Unavailable, match="in use"), supervision.alone_in(tmp_path):
      pass


def test_one_run_a_workdir(tmp_path):
  with (
    supervision.alone_in(tmp_path / "run"),
    pytest.raises(UserError, match=r"in use: process \d+ on .* trains there"),
    supervision.alone_in(tmp_path / "run"),
  ):
    pass
  with supervision.alone_in(tmp_path / "run"):
    pass
