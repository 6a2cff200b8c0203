"""launch/slurm with fake sbatch, srun, scontrol: what is asked for, when a job comes back."""

import shlex
import subprocess

import pytest

RUN = (
  'echo "$DIFFJAX_PROCESS/$DIFFJAX_PROCESSES $DIFFJAX_COORDINATOR'
  ' ${DIFFJAX_LOCAL_DEVICES-all} <$1>"; exit '
)


def job(room, code: str, *, expect: int, restart: int = 0, per: str = "gpu") -> str:
  """Runs the batch script as Slurm would, of two nodes with two tasks each."""
  script = room.repository / "launch" / "slurm" / "train.sbatch"
  spooled = room.cloud / "slurm_script"  # Slurm runs a copy that lies elsewhere
  spooled.write_text(script.read_text())
  argv = [
    "bash", spooled, f"--launch={script.parents[1]}", f"--per={per}", "--", "bash", "-c",
    RUN + code, "_", "a b;$(c)", f"--workdir={room.workdir}",
  ]  # fmt: skip
  slurm = {
    "SLURM_JOB_ID": "7012345", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "4",
    "SLURM_CPUS_PER_TASK": "3", "SLURM_RESTART_COUNT": str(restart),
  }  # fmt: skip
  environment = {**room.environment, **slurm}
  ended = subprocess.run(
    argv, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )
  assert ended.returncode == expect, ended.stdout
  return ended.stdout


def test_what_is_submitted(room):
  room.run(
    "slurm/submit.sh", "--nodes=2", "--gpus=8", "--per=gpu", "--", "diffjax", "train",
    "--workdir=/shared/run", "a b;$(c)",
  )  # fmt: skip
  (argv,) = map(shlex.split, room.noted())
  assert argv[:4] == ["sbatch", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"]
  assert argv[-5:] == ["--", "diffjax", "train", "--workdir=/shared/run", "a b;$(c)"]


def test_the_job_may_be_requeued_and_is_warned_before_its_time_is_over(room):
  text = (room.repository / "launch" / "slurm" / "train.sbatch").read_text()
  asked = {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SB")}
  # Without B: the signal goes to the processes; with it, to the script alone.
  assert {"--requeue", "--signal=TERM@300", "--open-mode=append"} <= asked
  assert "--kill-on-bad-exit=1" in text


def test_every_process_knows_its_place_and_one_port_is_one_jobs(room):
  said = job(room, "0", expect=0)
  for task in range(4):
    assert f"{task}/4 node1:22345 {task % 2} <a b;$(c)>" in said
  assert "all <" in job(room, "0", expect=0, per="node")
  # srun does not take it from the job.
  assert "--cpus-per-task=3" in (room.cloud / "srun.log").read_text()
  assert not room.noted()


@pytest.mark.parametrize(("code", "back"), [(75, True), (137, True), (65, False), (76, False)])
def test_it_comes_back_where_that_helps(room, code, back):
  job(room, str(code), expect=code)
  assert room.noted() == ["scontrol requeue 7012345"] * back


def test_the_cause_counts_not_the_largest_code(room):
  """One process finds a bad config; srun kills the others, and reports 137."""
  job(room, "$((DIFFJAX_PROCESS == 2 ? 64 : 137))", expect=64)
  assert not room.noted()


def test_without_progress_it_does_not_come_back_for_ever(room):
  for restart in range(6):
    job(room, "137", expect=137, restart=restart)
  assert len(room.noted()) == 5  # restarts 1 to 5, all in vain
  (room.workdir / "checkpoints" / "10").mkdir(parents=True)
  job(room, "137", expect=137, restart=6)
  assert len(room.noted()) == 6


def test_a_stopped_job_does_not_come_back(room):
  room.run("slurm/stop.sh", "--job=7012345", f"--workdir={room.workdir}")
  assert room.noted() == ["scancel --signal=TERM 7012345"]
  job(room, "75", expect=75)
  assert len(room.noted()) == 1
  assert not room.workdir.exists()  # its records are beside it
