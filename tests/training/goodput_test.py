"""Where the time of made-up histories went: by hand, and by a clock that is watched."""

import json
import sys
import time

import pytest

from diffjax.training import goodput


class Watched:
  """Compiling, as a test says it went."""

  seconds, count = 0.0, 0


def record(life, start, seconds, reached, /, **spent):
  return {"life": life, "start": start, "seconds": seconds, "step": reached, "spent": spent}


HISTORY = [
  record(0, 1000.0, 1.0, None, init=1.0),
  record(0, 1000.0, 11.0, 0, init=1.0, compile=10.0),
  record(0, 1000.0, 31.0, 10, init=1.0, compile=10.0, step=20.0),
  record(0, 1000.0, 51.0, 20, init=1.0, compile=10.0, step=38.0, save=2.0),  # killed after it
  record(1, 1081.0, 4.0, None, init=1.0, restore=3.0),  # died while it restored
  record(2, 1090.0, 10.0, 15, init=2.0, compile=8.0),
  record(2, 1090.0, 20.0, 20, init=2.0, compile=8.0, step=9.0, input_wait=1.0),
  {**record(2, 1090.0, 21.0, 20, init=2.0, compile=8.0, step=9.0, input_wait=1.0, save=0.5),
   "exit": 75, "reason": "SIGTERM"},
]  # fmt: skip


def test_a_history_by_hand():
  lives = goodput.lives(HISTORY)
  assert [(life.first, life.step, life.exit) for life in lives] == [
    (0, 20, None), (None, None, None), (15, 20, 75),
  ]  # fmt: skip
  table = goodput.table(lives)
  assert table["lost"] == pytest.approx(18.0 / 2)  # steps 16 .. 20 of the window 11 .. 20
  assert table["step"] == pytest.approx(38.0 - 9.0 + 9.0)
  assert table["down"] == pytest.approx((1081.0 - 1051.0) + (1090.0 - 1085.0))
  assert (table["init"], table["compile"], table["restore"]) == (4.0, 18.0, 3.0)
  assert (table["save"], table["input_wait"], table["other"]) == (2.5, 1.0, 0.5)
  assert sum(table.values()) == pytest.approx(1090.0 + 21.0 - 1000.0)
  assert goodput.share(table) == pytest.approx(100 * 38.0 / 111.0)


def test_a_step_made_thrice_counts_once():
  """Two crashes: what the second start made anew, the third one makes again from further back."""
  lives = goodput.lives(
    record(life, 100.0 * life, seconds, step, step=seconds)
    for life, first in ((0, 0), (1, 6), (2, 3))
    for seconds, step in ((0.0, first), (10.0 - first, 10))
  )
  table = goodput.table(lives)
  assert table["step"] == pytest.approx(3 + 0 + 7)  # a second a step
  assert table["lost"] == pytest.approx(7 + 4)


def test_a_clock_that_jumps_back_makes_no_time_negative():
  lives = goodput.lives([record(0, 1000.0, 9.0, 0, step=9.0), record(1, 500.0, 1.0, 0, init=1.0)])
  assert goodput.table(lives)["down"] == 0


def test_bucket_names_of_other_versions_count_as_other():
  table = goodput.table(goodput.lives([record(0, 0.0, 3.0, 0, dreaming=2.0)]))
  assert table["other"] == pytest.approx(3.0)


def test_every_second_is_in_one_bucket():
  watched = Watched()
  clock = goodput.Clock(watched)
  time.sleep(0.02)
  clock.enter("step")
  with clock.inside("validation"):
    time.sleep(0.02)
    watched.seconds, watched.count = 0.01, 3
  with clock.inside("input_wait"):
    time.sleep(0.02)
  watched.seconds = 1e9  # more than there was time: only that time is taken
  spent = clock.spent()
  assert sum(spent.values()) == pytest.approx(clock.seconds, rel=0.05)
  assert spent["init"] >= 0.02
  assert spent["input_wait"] >= 0.02
  assert 0.01 <= spent["validation"] < clock.seconds - 0.05
  assert spent["compile"] >= 0.01
  assert clock.phase[0] == "step"
  assert clock.programs["validation"] == 3
  assert clock.programs["input_wait"] == 0


def test_a_second_counts_once_whenever_another_thread_asks():
  """Asked at every line of entering a bucket."""
  clock = goodput.Clock(Watched())
  times = []

  def ask(frame, event, argument):
    if frame.f_code is goodput.Clock.enter.__code__:
      times.append((sum(clock.spent().values()), clock.seconds))
      return ask
    return None

  time.sleep(0.02)
  sys.settrace(ask)
  clock.enter("step")
  sys.settrace(None)
  assert len(times) > 3
  for spent, seconds in times:
    assert spent == pytest.approx(seconds, rel=0.2)


def test_unfinished_lines_are_left_out(tmp_path):
  clock = goodput.Clock(Watched())
  goodput.append(tmp_path, life=0, clock=clock, step=3)
  with (tmp_path / goodput.FILE).open("a") as file:
    file.write('\n{"life": 0, "start": 12')  # the process was killed here
  goodput.append(tmp_path, life=1, clock=clock, step=3, exit=0, reason="done")
  lives = goodput.lives(goodput.read(tmp_path))
  assert [(life.number, life.exit, life.reason) for life in lives] == [
    (0, None, ""),
    (1, 0, "done"),
  ]
  json.loads((tmp_path / goodput.FILE).read_text().splitlines()[-1])


def test_no_file_is_no_history(tmp_path):
  assert goodput.read(tmp_path) == []
  assert goodput.share(goodput.table([])) == 0


def test_only_a_whole_checkpoint_is_one(tmp_path):
  assert goodput.last_checkpoint(tmp_path) is None
  for name in ("2", "10", "12.orbax-checkpoint-tmp"):
    (tmp_path / goodput.CHECKPOINTS / name).mkdir(parents=True)
  step, written = goodput.last_checkpoint(tmp_path)
  assert step == 10
  assert written == pytest.approx(time.time(), abs=60)
