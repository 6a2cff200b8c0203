"""The dry runs that goldens/ records. `python tests/launch/flows.py` writes them anew."""

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
ODD = "--config.data.train.path=a b;$(touch ran)'\"&|>x"
TPU = ["--name=pod", "--zone=us-east5-a", "--project=lab"]
TRAIN = ["--", "diffjax", "train", "--config=configs/quickstart_instruct.py"]
ON_TPU = [*TRAIN, "--workdir=/mnt/my runs/xxl", ODD]
SHARED = [*TRAIN, "--workdir=/shared/runs/xxl", ODD]
SUPERVISED = [
  "--accelerator=v5p-128", "--spot", "--network=net", "--env=LIBTPU_INIT_ARGS=--a=1 --b=2",
  "--allow-dirty",
]  # fmt: skip
GKE = ["--name=xxl", "--generation=tpu7x", "--topology=4x4x4", "--image=host/diffjax:1"]
FLOWS = {
  "tpu_queue": ["tpu/queue.sh", *TPU, "--accelerator=v5litepod-16", "--reserved"],
  "tpu_bootstrap": [
    "tpu/bootstrap.sh", *TPU, "--accelerator=v4-32", "--workdir=/mnt/my runs/xxl", "--allow-dirty",
  ],
  "tpu_run": ["tpu/run.sh", *TPU, "--env=NAME=a b;$(c)", *ON_TPU],
  "tpu_logs": ["tpu/logs.sh", *TPU, "--all"],
  "tpu_first_error": ["tpu/logs.sh", *TPU, "--first-error", "--internal-ip"],
  "tpu_status": ["tpu/status.sh", *TPU, "--workdir=/mnt/my runs/xxl"],
  "tpu_supervise": ["tpu/supervise.sh", *TPU, *SUPERVISED, *ON_TPU],
  "tpu_stop": ["tpu/stop.sh", *TPU],
  "tpu_teardown": ["tpu/teardown.sh", *TPU],
  "gke_apply": ["gke/jobset.sh", "apply", "--context=c", *GKE, "--claim=runs", *TRAIN,
                "--workdir=/runs/xxl", ODD],
  "gke_bucket": ["gke/jobset.sh", "apply", *GKE[:1], "--generation=v5e", "--topology=16x16",
                 "--slices=2", "--image=i", "--bucket=b", "--service-account=writer", *TRAIN,
                 "--workdir=/runs/xxl"],
  "gke_others": ["gke/jobset.sh", "delete", "--name=xxl", "--namespace=n"],
  "slurm_submit": ["slurm/submit.sh", "--nodes=4", "--gpus=8", "--per=gpu", "--time=24:00:00",
                   "--partition=a b", *SHARED],
  "slurm_stop": ["slurm/stop.sh", "--job=12", "--workdir=/shared/runs/my xxl"],
  "gpu_start": ["gpu/multihost.sh", "start", "--hosts=a,me@b", "--source=/shared/my code",
                "--per=gpu", "--gpus=8", "--env=PATH=/venv/bin:/bin", *SHARED],
  "gpu_stop": ["gpu/multihost.sh", "stop", "--hosts=a,b", "--source=/shared/code"],
  "local_processes": ["local/processes.sh", "--processes=2", "--devices=4", *SHARED],
}  # fmt: skip


def dry_run(name: str) -> str:
  """What the flow prints to stdout, with the checkout's place taken out."""
  script, *words = FLOWS[name]
  words.insert(1 if script in ("gke/jobset.sh", "gpu/multihost.sh") else 0, "--dry-run")
  # No gcloud, ssh or kubectl is on this PATH that would do anything.
  environment = {**os.environ, "LAUNCH_PAUSE": "0", "FAKE_CLOUD": "/nonexistent"}
  ended = subprocess.run(
    ["bash", str(CHECKOUT / "launch" / script), *words], env=environment, cwd=CHECKOUT,
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  if ended.returncode:
    raise RuntimeError(f"{name}: {ended.stderr}")
  return ended.stdout.replace(str(CHECKOUT), "CHECKOUT")


if __name__ == "__main__":
  for flow in FLOWS:
    (HERE / "goldens" / f"{flow}.txt").write_text(dry_run(flow))
