"""launch/tpu against a fake cloud: what is asked of it, what goes wrong, what is never done."""

import json
import re
import subprocess
import time

import pytest

QUOTA = "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV4PreemptiblePodPerProject' exceeded."
DENIED = "ERROR: (gcloud) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied."
V4 = ["--accelerator=v4-16", "--poll=0"]
# Runs until it gets SIGTERM, then says that it saved.
PATIENT = [
  "bash",
  "-c",
  "trap 'echo saved; exit 75' TERM; echo up; for ((;;)); do sleep 0.05; done",
]


def actions(room) -> list[str]:
  """The words that tell one gcloud from another: create, describe, ssh install, ..."""
  found = []
  for call in room.calls():
    command = next((word for word in call if word.startswith("--command=")), "")
    if "worker.sh" in command:
      found.append(f"ssh {command.split('worker.sh ')[1].split()[0]}")
    else:
      found.append(call[4])
  return found


def until(seen, seconds: float = 60) -> None:
  end = time.monotonic() + seconds
  while not seen():
    assert time.monotonic() < end, "it never came"
    time.sleep(0.05)


@pytest.fixture
def idle(ready):
  """The module's TPU, on which nothing runs; its tests leave it so."""
  yield ready
  ready.kill_processes()
  until(lambda: not ready.running())


class TestQueue:
  def test_it_waits_until_the_tpu_can_be_used(self, room):
    room.scenario(active_after=3)
    said = room.tpu("queue", *V4, "--spot", "--valid-until=6h", "--subnetwork=s")
    assert "PROVISIONING" in said
    assert "2 workers, 8 chips" in said
    (create,) = (call for call in room.calls() if "create" in call)
    for flag in (
      "--node-id=pod", "--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base",
      "--zone=z", "--spot", "--valid-until-duration=6h", "--subnetwork=s", "--async", "--quiet",
    ):  # fmt: skip
      assert flag in create

  def test_what_is_there_already_is_left_alone(self, room):
    room.tpu("queue", *V4)
    room.tpu("queue", *V4)
    assert actions(room).count("create") == 1

  def test_the_runtime_is_the_generations(self, room):
    for accelerator, runtime, chips in [
      ("v4-32", "tpu-ubuntu2204-base", 16), ("v5litepod-16", "v2-alpha-tpuv5-lite", 16),
      ("v5p-128", "v2-alpha-tpuv5", 64), ("v6e-8", "v2-alpha-tpuv6e", 8),
      ("v3-8", "tpu-ubuntu2204-base", 4),
    ]:  # fmt: skip
      said = room.tpu("queue", f"--accelerator={accelerator}", "--dry-run")
      assert f"--runtime-version={runtime} " in said
      assert f"({chips} chips)" in said

  @pytest.mark.parametrize(
    "state", [pytest.param("SUSPENDED", marks=pytest.mark.slow), "PREEMPTED"]
  )
  def test_a_preempted_one_is_deleted_before_it_is_asked_for_again(self, room, state):
    room.tpu("queue", *V4)
    room.preempt()
    if state == "PREEMPTED":  # the node is gone, the queued resource does not know yet
      file = room.cloud / "state.json"
      file.write_text(file.read_text().replace('"SUSPENDED"', '""'))
    room.tpu("queue", *V4)
    done = [action for action in actions(room) if action in ("create", "delete")]
    assert done == ["create", "delete", "create"]

  def test_nothing_is_deleted_that_is_somebody_elses_or_may_hold_a_disk(self, room):
    """A foreign one that was preempted; one stopped by hand; a warning beside the answer."""
    room.tpu("queue", *V4)
    file = room.cloud / "state.json"
    state = file.read_text()
    room.scenario(warning="WARNING: a new gcloud is there\nPREEMPTED")
    room.tpu("queue", *V4)
    foreign = state.replace("made_by=diffjax", "made_by=somebody")
    file.write_text(foreign.replace('"READY"', '"PREEMPTED"'))
    assert "was not made by" in room.tpu("queue", *V4, code=64)
    file.write_text(state.replace('"READY"', '"STOPPED"'))
    assert "tpu-vm start" in room.tpu("queue", *V4, code=64)
    assert "delete" not in actions(room)

  @pytest.mark.slow
  def test_it_gives_up_on_what_fails_again_and_again(self, room):
    room.scenario(states=["FAILED"])
    said = room.tpu("queue", *V4, code=69)
    assert "no capacity" in said
    assert actions(room).count("create") == 4  # the first one and three more

  @pytest.mark.slow
  def test_quota_is_tried_again_while_a_deleted_one_may_hold_it(self, room):
    room.scenario(create_errors=[QUOTA, QUOTA])
    room.tpu("queue", *V4)
    room.run("tpu/teardown.sh", "--name=pod", "--zone=z", "--yes", "--poll=0")
    room.scenario(create_errors=[QUOTA] * 99)
    assert "holds the quota" in room.tpu("queue", *V4, code=69)

  def test_without_permission_nothing_is_tried_again(self, room):
    room.scenario(create_errors=[DENIED])
    assert "ask for the role" in room.tpu("queue", *V4, code=64)
    assert actions(room).count("create") == 1
    room.scenario(describe_errors=[""] * 9 + [DENIED])
    room.tpu("queue", "--name=x", *V4)

  @pytest.mark.slow
  def test_one_that_somebody_else_asked_for_in_between_is_used(self, room):
    room.scenario(create_errors=["ERROR: (gcloud) ALREADY_EXISTS: Resource 'pod' already exists"])
    room.tpu("queue", *V4)
    assert actions(room).count("create") == 2

  @pytest.mark.slow
  def test_a_lost_answer_is_asked_for_again(self, room):
    room.scenario(describe_errors=["ERROR: (gcloud) UNAVAILABLE: try again"] * 3)
    room.tpu("queue", *V4)


class TestBootstrap:
  def test_a_worker_that_cannot_be_reached_twice_is_tried_alone(self, room):
    room.tpu("queue", *V4)
    room.scenario(ssh_fails={"1": 2})
    assert "try 3 of 5 follows" in room.tpu("bootstrap", "--devices=2", f"--workdir={room.workdir}")
    room.scenario(ssh_fails={"1": 4})  # two times more
    assert "no answer from worker 1 of pod" in room.tpu("run", "--", "true")
    asked = [word for call in room.calls() for word in call if word.startswith("--worker=")]
    assert "--worker=1" in asked

  def test_the_commit_is_installed_and_nothing_else(self, ready):
    for home in (ready.cloud / "tpu-1").iterdir():
      source = home / "diffjax-current" / "source"
      assert (source / "launch" / "common.sh").exists()
      assert not (source / "untracked").exists()
      assert not (source / ".git").exists()
      assert re.search(r"-e .*source\[tpu\]", (home / "pip.log").read_text())
    assert not [*ready.workdir.parent.glob(".diffjax-probe*")]
    assert not ready.workdir.exists()  # a first run wants it empty

  def test_uncommitted_changes_are_refused(self, ready):
    file = ready.repository / "launch" / "README.md"
    file.write_text("changed")
    words = ("--devices=2", f"--workdir={ready.workdir}")
    assert "commit them" in ready.tpu("bootstrap", *words, code=64)
    ready.tpu("bootstrap", *words, "--allow-dirty")
    there = ready.cloud / "tpu-1" / "w0" / "diffjax-current" / "source" / "launch" / "README.md"
    assert there.read_text() == file.read_text() == "changed"  # and the change is still here
    subprocess.run(["git", "checkout", "--quiet", "--", "."], cwd=ready.repository, check=True)

  @pytest.mark.parametrize(
    ("settings", "said"),
    [
      ({"FAKE_DEVICES": "4"}, "sees 4 devices, not 2"),
      pytest.param({"FAKE_DRIFT": "60"}, "its clock is", marks=pytest.mark.slow),
      pytest.param({"FAKE_DEVICES": "0"}, "does not start", marks=pytest.mark.slow),
    ],
  )
  def test_a_worker_that_differs_stops_it(self, room, settings, said):
    room.tpu("queue", *V4)
    words = ("--devices=2", f"--workdir={room.workdir}")
    assert said in room.tpu("bootstrap", *words, code=69, **settings)

  @pytest.mark.slow
  def test_a_workdir_that_is_not_shared_stops_it(self, room):
    room.tpu("queue", *V4)
    # In the self-test's shell a path below the home is another folder on every worker.
    file = room.repository / "launch" / "worker.sh"
    text = file.read_text().replace("local workdir=$1 token", "local workdir=$HOME$1 token", 1)
    file.write_text(text.replace('found=("$folder', 'folder=$HOME$folder found=("$HOME$folder'))
    words = ("--devices=2", f"--workdir={room.workdir}", "--allow-dirty")
    assert "one shared folder" in room.tpu("bootstrap", *words, code=69)


class TestRun:
  def test_it_goes_on_without_ssh_and_is_stopped_on_all_workers(self, idle):
    idle.tpu("run", "--", *PATIENT)
    logs = lambda *words: idle.tpu("logs", "--no-follow", *words)
    until(lambda: idle.printed(" up\n") == 2)
    assert "a run is going on here" in idle.tpu("run", "--", "true", code=64)
    words = ("--devices=2", f"--workdir={idle.workdir}")
    assert "a run is going on" in idle.tpu("bootstrap", *words, code=64)
    assert len(re.findall("worker [01] .* running", idle.tpu("status"))) == 2
    assert "saved and stopped" in idle.tpu("stop", "--seconds=20", code=75)
    assert logs("--all").count(" saved") == 2
    assert re.search(r"worker 1 .* exit 75 stopped", idle.tpu("status"))

  def test_every_worker_knows_its_place(self, idle):
    words = ["bash", "-c", 'echo "$DIFFJAX_PROCESS/$DIFFJAX_PROCESSES $DIFFJAX_COORDINATOR $A"']
    idle.tpu("run", "--env=A=a b;$(c)", "--port=9", "--", *words)
    until(lambda: idle.printed("127.0.0.1:9 a b;$(c)\n") == 2)
    said = idle.tpu("logs", "--all", "--no-follow")
    for worker in (0, 1):
      assert re.search(rf"\[w{worker}\] \S+ {worker}/2 127.0.0.1:9 a b;\$\(c\)", said)

  def test_odd_words_arrive_as_they_are(self, idle):
    words = ["a b;$(touch ran)", "'\"\\", "*", "--workdir=/tmp/x y/$HOME"]
    idle.tpu("run", "--", "bash", "-c", 'printf "<%s>" "$@" > words', "_", *words)
    for home in (idle.cloud / "tpu-1").iterdir():
      file = home / "diffjax-current" / "source" / "words"
      until(lambda file=file: file.exists() and file.read_text().endswith("$HOME>"))
      assert file.read_text() == "".join(f"<{word}>" for word in words)
    assert not [*idle.cloud.glob("**/ran")]

  def test_an_answer_lost_on_its_way_does_not_start_it_twice(self, idle):
    """The worker started it, ssh broke, the same attempt is sent again."""
    idle.tpu("run", "--", "bash", "-c", "echo once >>count")
    (home, _) = sorted((idle.cloud / "tpu-1").iterdir())
    file = home / "diffjax-current" / "source" / "count"
    until(file.exists)
    attempt = next(home.glob("diffjax-run/*/attempt")).read_text().strip()
    worker = home / "diffjax-current" / "launch" / "worker.sh"
    environment = {**idle.environment, "HOME": str(home), "FAKE_WORKER": "0"}
    argv = ["bash", worker, "start", attempt, "2", "h:1", "--", "bash", "-c", "echo >>count"]
    again = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert attempt in again.stdout
    assert again.returncode == 0
    assert file.read_text() == "once\n"

  @pytest.mark.slow
  def test_one_that_ignores_the_signal_is_killed(self, idle):
    idle.tpu("run", "--", "bash", "-c", "trap '' TERM; for ((;;)); do sleep 0.05; done")
    assert "killed" in idle.tpu("stop", "--seconds=1", code=137)

  def test_the_earliest_error_is_found(self, idle):
    code = "sleep $((1 - DIFFJAX_PROCESS)); echo Traceback \\(most recent call last\\); echo $0"
    idle.tpu("run", "--", "bash", "-c", code + "; exit 70")
    until(lambda: not idle.running())
    said = idle.tpu("logs", "--first-error")
    assert "[w1]" in said
    assert "[w0]" not in said
    assert "Traceback" in said

  @pytest.mark.slow
  def test_a_lock_of_libtpu_that_nobody_holds_is_removed(self, idle):
    lock = idle.cloud / "lockfile"
    settings = {"LIBTPU_LOCKFILE": str(lock)}
    with lock.open("w"):
      idle.tpu("run", "--", "true", **settings)
      assert lock.exists()
    until(lambda: not idle.running())
    idle.tpu("run", "--", "true", **settings)
    assert not lock.exists()

  def test_the_status_is_read_from_the_workdir(self, idle):
    idle.workdir.mkdir(parents=True)
    status = {"step": 70, "steps": 100, "last_checkpoint": 60, "time": time.time() - 5,
              "exit": None, "reason": "", "restarts": 2}  # fmt: skip
    (idle.workdir / "status.json").write_text(json.dumps(status))
    said = idle.tpu("status", f"--workdir={idle.workdir}")
    for line in (
      "step +70",
      "last_checkpoint +60",
      "restarts +2",
      "exit +null",
      "written +[5-9] s",
    ):
      assert re.search(f"^{line}", said, re.MULTILINE), line


class TestTeardown:
  def test_it_deletes_and_looks_whether_it_is_gone(self, room):
    room.tpu("queue", *V4)
    room.workdir.mkdir(parents=True)
    assert "nothing was deleted" in room.tpu("teardown", code=64)  # nobody said yes
    assert "pod is gone" in room.tpu("teardown", "--yes", "--poll=0")
    assert "nothing to delete" in room.tpu("teardown", "--yes")
    assert room.workdir.exists()

  def test_what_it_did_not_make_is_refused(self, room):
    room.tpu("queue", *V4)
    file = room.cloud / "state.json"
    file.write_text(file.read_text().replace("made_by=diffjax", "made_by=somebody"))
    assert "was not made by" in room.tpu("teardown", "--yes", code=64)
    assert "delete" not in actions(room)
