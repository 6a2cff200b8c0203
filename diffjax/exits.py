"""The one table of exit codes: what a command says to whoever started it, and whether to restart.

`python -m diffjax.exits` prints it. The numbers are those of sysexits.h where it has them; of a
process killed by signal n it is 128 + n, as shells say it.
"""

import enum
import errno
import re

from diffjax.types import Ended, UserError


class Exit(enum.IntEnum):
  """Why a command ended. `text` says it in words."""

  DONE = 0, "done"
  USAGE = 64, "a mistake in the command, the config or the workdir"
  DATA = 65, "a record of the data cannot be read"
  INPUT = 66, "a file, weights or a checkpoint is missing or damaged"
  DEVICE = 69, "a device, a backend or another process of the run is not there"
  BUG = 70, "a fault of the program; a traceback precedes the last line"
  CREATE = 73, "a file or folder cannot be created"
  DISK = 74, "the disk is full or fails"
  PREEMPTED = 75, "stopped by a signal; what was trained is saved"
  DIVERGED = 76, "the loss or the gradient is not finite; the last good checkpoint is kept"
  STALLED = 124, "no step within the time limit; the stacks of all threads precede the last line"
  INTERRUPTED = 130, "interrupted at once (Ctrl-C; in training the second one)"
  ABORTED = 134, "aborted, as JAX does when a process of the run is lost"
  KILLED = 137, "killed, by the system when memory ran out"
  CRASHED = 139, "crashed in native code"
  TERMINATED = 143, "terminated at once (in training by the second signal)"

  text: str

  def __new__(cls, number: int, text: str) -> "Exit":
    """A number that carries its words."""
    member = int.__new__(cls, number)
    member._value_ = number
    member.text = text
    return member


# A start from the newest checkpoint may do better. After all others it would end the same way.
RESTARTABLE = frozenset(
  {
    Exit.DEVICE, Exit.PREEMPTED, Exit.STALLED, Exit.ABORTED, Exit.KILLED, Exit.CRASHED,
    Exit.TERMINATED,
  }
)  # fmt: skip

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
# How the libraries that write checkpoints say that a disk is full (their errors are ValueErrors).
_FULL_IN_WORDS = ("No space left on device", "File too large", "Disk quota exceeded")

# How JAX says that memory of a device is short, and that a device or another process is lost.
_NO_MEMORY = re.compile(r"RESOURCE_EXHAUSTED.*(memory|allocat|hbm)|CUDA_ERROR_OUT_OF_MEMORY", re.I)
_DEVICE_IN_WORDS = re.compile(
  r"Unable to initialize backend|\b(UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED)\b|NCCL|CUDA_ERROR"
  r"|device halted|Failed to start RPC server"
)


def explain(error: BaseException) -> tuple[Exit, str]:
  """The exit code of an error and its cause, one line. Of `Exit.BUG`, print a traceback before."""
  if isinstance(error, UserError | Ended):
    return Exit(error.exit), str(error)
  if isinstance(error, KeyboardInterrupt):
    return Exit.INTERRUPTED, "interrupted"
  said = " ".join(str(error).split())
  if isinstance(error, OSError):
    if error.errno in _FULL:
      return Exit.DISK, f"{error.filename or 'writing'}: {error.strerror}; make room, then go on"
    where = error.filename
    if where is not None and error.errno in _REFUSED:
      return Exit.CREATE, f"{where}: {error.strerror}; give a path that can be written"
    if where is not None and error.errno in _NOT_THERE:
      return Exit.INPUT, f"{where}: {error.strerror}; give a path that exists and can be used"
    if where is not None:
      return Exit.CREATE, f"{where}: {error.strerror}; give a path that can be used"
  if any(words in said for words in _FULL_IN_WORDS):
    return Exit.DISK, f"{said[:300]}; make room, then go on"
  if isinstance(error, RuntimeError) and _NO_MEMORY.search(said):
    return Exit.USAGE, (
      f"a device is out of memory: {said[:200]}; raise training.microbatches or choose "
      f"compute.remat or a larger mesh; diffjax plan says what fits"
    )
  if isinstance(error, RuntimeError) and _DEVICE_IN_WORDS.search(said):
    return Exit.DEVICE, said[:300]
  return Exit.BUG, f"{type(error).__name__}: {said[:300]} (a fault of the program)"


def main() -> None:
  """Prints the table, and which codes are worth a restart."""
  for code in Exit:
    print(f"{code:>3}  {'restart' if code in RESTARTABLE else '':<7}  {code.text}")


if __name__ == "__main__":
  main()
