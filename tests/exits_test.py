"""The table of exit codes, and which error has which."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from diffjax import exits, types
from diffjax.exits import RESTARTABLE, Exit

ROOT = Path(__file__).parents[1]


def kinds(base):
  return {base, *(kind for below in base.__subclasses__() for kind in kinds(below))}


def test_every_kind_of_error_has_a_code_of_the_table():
  known = {kind for base in (types.UserError, types.Ended) for kind in kinds(base)}
  assert {kind.exit for kind in known} <= set(Exit)
  assert len(known) > 6


def test_a_crash_loop_burns_no_pod():
  ours = {Exit.USAGE, Exit.DATA, Exit.INPUT, Exit.BUG, Exit.CREATE, Exit.DISK, Exit.DIVERGED}
  assert not RESTARTABLE & ours
  assert {69, 75, 124, 134, 137, 139, 143} == RESTARTABLE


def test_the_module_prints_the_table_that_the_docs_have():
  command = [sys.executable, "-m", "diffjax.exits"]
  printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
  told = {}
  for line in printed.splitlines():
    number, restart, text = re.fullmatch(r" *(\d+)  (restart|       )  (.*)", line).groups()
    told[int(number)] = (restart == "restart", text)
  assert told == {int(code): (code in RESTARTABLE, code.text) for code in Exit}
  page = (ROOT / "docs/running.md").read_text()
  rows = re.findall(r"^\| (\d+) \| (yes|no) \| (.*) \|$", page, re.MULTILINE)
  assert {int(number): (again == "yes", text) for number, again, text in rows} == told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_told_from_a_wrong_path(number):
  code, cause = exits.explain(OSError(number, "full", "run/checkpoints"))
  assert code == Exit.DISK
  assert "run/checkpoints: full" in cause
  assert exits.explain(OSError(errno.EACCES, "denied", "run"))[0] == Exit.CREATE
  assert exits.explain(OSError(errno.ENOENT, "gone", "run"))[0] == Exit.INPUT


SAID = {  # in the words of JAX and its libraries
  "INTERNAL: Accelerator device halted prematurely, perhaps due to an on-device check-failure": 69,
  "UNAVAILABLE: TPU device error": 69,
  "INTERNAL: NCCL operation ncclAllReduce failed: unhandled system error": 69,
  "DEADLINE_EXCEEDED: Barrier timed out. Id: x::0": 69,
  "UNKNOWN: Failed to start RPC server": 69,
  "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17G of 15.75G": 64,
  "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.": 64,
  "INVALID_ARGUMENT: Mismatched shapes": 70,
}


@pytest.mark.parametrize("said", SAID)
def test_a_lost_device_is_told_from_a_fault_of_ours(said):
  code, cause = exits.explain(jax.errors.JaxRuntimeError(said))
  assert code == SAID[said]
  assert ("diffjax plan" in cause) == (code == Exit.USAGE)


def test_causes_are_one_line():
  for error in (ValueError("a\nb"), RuntimeError("Unable to initialize backend 'x':\n y")):
    assert "\n" not in exits.explain(error)[1]
