"""Checkpoints of a run, through Orbax: asynchronous, atomic, restored onto any mesh.

A checkpoint holds its trees (params, optimizer state, moving average) as separate items, so that
a sampler reads only what it needs, and `meta`, plain JSON.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from diffjax.types import MissingInput

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every file and default

META = "meta"
_MINIMISED = ("loss", "length_loss")  # of the metrics; all else is maximised


class Checkpoints:
  """The checkpoints in one directory. A context manager: leaving waits for writes to finish."""

  def __init__(
    self, directory: Path, *, keep: int = 1, metric: str = "loss", read_only: bool = False
  ):
    """Opens the directory; makes it unless read_only.

    Args:
      directory: holds one folder a step.
      keep: so many of the newest steps survive.
      metric: the step that is best by it survives too; losses are minimised, all else maximised.
      read_only: for a sampler, which leaves a running training's half-written steps alone.
    """
    self._directory = directory.absolute()
    minimised = metric in _MINIMISED
    worst = float("inf") if minimised else float("-inf")
    score = lambda metrics: metrics.get(metric, worst)  # a run may change its metric
    best = policies.BestN(
      get_metric_fn=score,
      reverse=minimised,
      n=1,
      keep_checkpoints_without_metrics=False,
    )
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        best_fn=score,  # without it no metrics are written
        best_mode="min" if minimised else "max",
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        cleanup_tmp_directories=not read_only,  # of a run that was killed while writing
        read_only=read_only,
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    try:
      self.wait()
    except Exception:
      if kind is None:  # else it would hide why the run ends
        raise
    finally:
      self._manager.close()

  def save(
    self,
    step: int,
    trees: Mapping[str, Any],
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Copies the trees off the devices and writes them in the background.

    Args:
      step: its number; saving a step twice is an error of the caller.
      trees: item name -> tree of arrays.
      meta: plain JSON values; the names of the items are added.
      metrics: of the validation at this step, if there was one.
    """
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    items[META] = ocp.args.JsonSave({**meta, "items": sorted(trees)})
    with self._writing():
      self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)

  def check(self) -> None:
    """Raises the error of a background write that failed: OSError where the disk is full."""
    with self._writing():
      self._manager.check_for_errors()

  def wait(self) -> None:
    """Waits for the background writes; raises as `check`."""
    with self._writing():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except ValueError as error:  # TensorStore's; the steps before this one are whole
      if not any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE")):
        raise
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory)) from error

  def latest(self) -> int | None:
    """The newest committed step."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """The step with the best validation metric; None when no step was validated."""
    return self._manager.best_step()

  def meta(self, step: int) -> dict[str, Any]:
    """The JSON saved with a step."""
    restore = ocp.args.Composite(**{META: ocp.args.JsonRestore()})
    return self._manager.restore(step, args=restore)[META]

  def restore(self, step: int, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Trees of a step, each leaf landing directly in the sharding of its target.

    Args:
      step: a committed step.
      targets: item name -> tree of ShapeDtypeStructs with shardings.

    Raises:
      MissingInput: the step's trees are damaged, or not those asked for.
    """
    items = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
    try:
      restored = self._manager.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError, FileNotFoundError) as error:
      reason = " ".join(str(error).split())[:200]
      raise MissingInput(
        f"checkpoint {self._directory / str(step)} cannot be restored ({reason}); it is "
        f"damaged, or another config made it: use that config, or another step"
      ) from error
    return {name: restored[name] for name in targets}
