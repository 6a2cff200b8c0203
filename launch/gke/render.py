#!/usr/bin/env python3
"""Prints the JobSet of a run on TPUs of GKE, from jobset.yaml.tmpl. Wants Python alone."""

import argparse
import itertools
import json
import math
import re
import sys
from pathlib import Path
from string import Template

FOLDER = Path(__file__).resolve().parent
# GKE's name of the accelerator, chips of one machine where a slice has several.
GENERATIONS = {
  "v4": ("tpu-v4-podslice", 4),
  "v5e": ("tpu-v5-lite-podslice", 4),
  "v5p": ("tpu-v5p-slice", 4),
  "v6e": ("tpu-v6e-slice", 4),
  "tpu7x": ("tpu7x", 4),
}
USAGE = 64


def fail(message: str) -> None:
  """Ends with the exit code of a mistake."""
  print(f"render.py: {message}", file=sys.stderr)
  sys.exit(USAGE)


def restartable() -> list[int]:
  """The codes after which launchers restart, from common.sh."""
  text = (FOLDER.parent / "common.sh").read_text()
  return [int(code) for code in re.search(r"^RESTARTABLE=\((.*)\)", text, re.M)[1].split()]


def machines(topology: str, chips_per_host: int) -> tuple[int, int]:
  """(machines of a slice, chips of each) of a topology such as 4x4x4."""
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
    fail(f"--topology={topology!r} is none; as in 2x4 (v5e, v6e) or 4x4x4 (v4, v5p, tpu7x)")
  chips = math.prod(int(side) for side in topology.split("x"))
  if chips < chips_per_host:
    return 1, chips
  if chips % chips_per_host:
    fail(f"--topology={topology}: {chips} chips do not divide by {chips_per_host} of a machine")
  return chips // chips_per_host, chips_per_host


def render(options: argparse.Namespace) -> str:
  """The manifest."""
  if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", options.name):
    fail(f"--name={options.name!r}: at most 40 small letters, digits and hyphens, a letter first")
  accelerator, chips_per_host = GENERATIONS[options.generation]
  hosts, chips = machines(options.topology, options.chips_per_host or chips_per_host)
  words = options.command[1:] if options.command[:1] == ["--"] else options.command
  if not words:
    fail("give the command after --")
  workdirs = [word.partition("=")[2] for word in words if word.startswith("--workdir=")]
  workdirs += [after for word, after in itertools.pairwise(words) if word == "--workdir"]
  workdir = workdirs[-1].rstrip("/") if workdirs else ""
  if not workdir.startswith(options.mount.rstrip("/") + "/"):
    fail(f"give the command a --workdir below --mount={options.mount}: the pods' disks are lost")
  if bool(options.claim) == bool(options.bucket):
    fail("give --claim (a PersistentVolumeClaim of many writers) or --bucket (by gcsfuse)")
  if options.claim:
    volume = {"name": "workdir", "persistentVolumeClaim": {"claimName": options.claim}}
  else:
    attributes = {"bucketName": options.bucket, "mountOptions": "implicit-dirs"}
    driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
    volume = {"name": "workdir", "csi": driver}
  env = [
    {"name": "DIFFJAX_ATTEMPT", "valueFrom": {"fieldRef": {
      "fieldPath": "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']"}}},
    {"name": "DIFFJAX_RUN", "valueFrom": {"fieldRef": {
      "fieldPath": "metadata.annotations['jobset.sigs.k8s.io/jobset-uid']"}}},
  ]  # fmt: skip
  for setting in options.env:
    name, equals, value = setting.partition("=")
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or not equals:
      fail(f"--env={setting!r} is not NAME=VALUE")
    env.append({"name": name, "value": value.replace("$", "$$")})
  # Kubernetes puts $(VARIABLE) of the container's env into words; a $ of the user's is doubled.
  user = [word.replace("$", "$$") for word in words]
  starts = workdir.replace("$", "$$") + ".launch/$(DIFFJAX_RUN)"
  task = [
    "bash", options.source + "/launch/task.sh", f"--starts={starts}",
    "--attempt=$(DIFFJAX_ATTEMPT)", "--", *user,
  ]  # fmt: skip
  values = {
    "name": options.name,
    "slices": options.slices,
    "hosts": hosts,
    "restartable": restartable(),
    "annotations": {"gke-gcsfuse/volumes": "true"} if options.bucket else {},
    "grace": options.grace,
    "service_account": options.service_account,
    "node_selector": {
      "cloud.google.com/gke-tpu-accelerator": accelerator,
      "cloud.google.com/gke-tpu-topology": options.topology,
    },
    "image": options.image,
    "command": task,
    "env": env,
    "chips_per_host": chips,
    "mount": options.mount,
    "volume": volume,
  }
  template = Template((FOLDER / "jobset.yaml.tmpl").read_text())
  return template.substitute({name: json.dumps(value) for name, value in values.items()})


def main() -> None:
  """Reads the options, prints the manifest."""
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.error = fail
  option = parser.add_argument
  option("--name", required=True, help="of the JobSet")
  option("--generation", required=True, choices=GENERATIONS, help="TPU7x and later run on GKE only")
  option("--topology", required=True, help="of one slice, as in 4x4x4")
  option("--slices", type=int, default=1, help="joined by the data centre network")
  option("--chips-per-host", type=int, help="4; 8 for single machines of v5e and v6e")
  option("--image", required=True, help="with this checkout and its Python packages")
  option("--source", default="/diffjax", help="the checkout in the image")
  option("--claim", default="", help="PersistentVolumeClaim (Filestore, Lustre) for the workdir")
  option("--bucket", default="", help="instead: Cloud Storage, mounted by gcsfuse")
  option("--mount", default="/runs", help="where it is mounted")
  option("--service-account", default="default", help="of the pods; gcsfuse needs one with access")
  option("--grace", type=int, default=900, help="seconds to save in: three times what a save takes")
  option("--env", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
  option("command", nargs=argparse.REMAINDER, help="after --")
  print(render(parser.parse_args()), end="")


if __name__ == "__main__":
  main()
