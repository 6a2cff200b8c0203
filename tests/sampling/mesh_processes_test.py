"""A model that lies on the devices of two processes: both have the answers of one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from letter_models import make_model, random_prompts
from mesh_test import WIDE

from diffjax import hosts
from diffjax.sampling import Sampler

HERE = Path(__file__).parent
OPTIONS = {
  "lengths": 8, "num_steps": 4, "batch_size": 8, "strategy": "ancestral-linear", "temperature": 1.0
}  # fmt: skip
CHILD = """
import json, sys

from diffjax import hosts

hosts.start()

from letter_models import make_model, random_prompts
from mesh_test import WIDE, on_mesh

from diffjax.config import MeshConfig
from diffjax.sampling import Sampler
from diffjax.types import UserError

model = on_mesh(make_model(config=WIDE), MeshConfig(data=2, fsdp=2, sequence=2))
assert not model.params["embedding"]["tokens"].is_fully_addressable
sampler = Sampler(model)
prompts = random_prompts(8)
answers = sampler.generate(prompts, **json.loads(sys.argv[1]))
scores = sampler.score_many(prompts[:2], prompts[2:4], samples=4, batch_size=8)
try:
  next(sampler.stream(prompts[0], lengths=4))
except UserError as error:
  refused = str(error)
found = {"ids": [a.ids for a in answers], "scores": [s.log_likelihood for s in scores]}
print(json.dumps(found | {"refused": refused}))
"""


def run_both(*command, folder=None):
  """The outputs of two processes of four devices each, which must both end well."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  paths = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
  environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
  environment |= {"JAX_NUM_CPU_DEVICES": "4", hosts.COORDINATOR: address, hosts.PROCESSES: "2"}
  children = [
    subprocess.Popen(
      [sys.executable, *command], env=environment | {hosts.PROCESS: str(number)}, cwd=folder,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    for number in range(2)
  ]  # fmt: skip
  try:
    outputs = [child.communicate(timeout=300) for child in children]
  finally:
    for child in children:
      child.kill()
  assert [child.returncode for child in children] == [0, 0], outputs[0][1][-3000:]
  return [out for out, _ in outputs]


@pytest.mark.slow
def test_two_processes_answer_as_one_device_does():
  outputs = run_both("-c", CHILD, json.dumps(OPTIONS))
  first, second = (json.loads(out.splitlines()[-1]) for out in outputs)
  assert first == second
  assert "return_trace" in first["refused"]
  sampler, prompts = Sampler(make_model(config=WIDE)), random_prompts(8)
  assert first["ids"] == [answer.ids for answer in sampler.generate(prompts, **OPTIONS)]
  scores = sampler.score_many(prompts[:2], prompts[2:4], samples=4, batch_size=8)
  assert first["scores"] == pytest.approx([score.log_likelihood for score in scores], rel=1e-4)


@pytest.mark.slow
def test_a_command_of_two_processes_writes_once(tmp_path):
  prompts = [f"english : a cat carried {n} green pears ." for n in (2, 3, 4)]
  words = ["--model=tiny_mlm", "--length=5", "--batch-size=2", "--output=answers.jsonl"]
  words += [f"--prompt={prompt}" for prompt in prompts]
  command = ["-c", "from diffjax.cli.main import main; main()", "sample", *words]
  mesh = "--mesh=fsdp=2,tensor=4"
  run_both(*command[:-1], mesh, folder=tmp_path)  # two prompts; then it goes on to all
  first, second = run_both(*command, mesh, folder=tmp_path)
  assert "3 in all" in first
  assert "answers" not in second
  lines = (tmp_path / "answers.jsonl").read_text().splitlines()
  assert [json.loads(line)["prompt"] for line in lines] == prompts
