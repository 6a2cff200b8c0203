"""How often a run compiles and how long that takes, as JAX tells its listeners."""

import threading
import time
from typing import Any

from jax import monitoring

_BUILT = "/jax/core/compile/backend_compile_duration"  # loading from the cache, too
_PARTS = (
  _BUILT,
  "/jax/core/compile/jaxpr_trace_duration",
  "/jax/core/compile/jaxpr_to_mlir_module_duration",
)
_FOUND = "/jax/compilation_cache/cache_hits"
_MADE = "/jax/compilation_cache/cache_misses"


class Compiles:
  """Counts what the thread that made it compiles, between entering and leaving.

  Attributes:
    count: programs, those of the persistent cache included.
    seconds: for tracing, lowering and compiling them.
    found, made: programs that the persistent cache had, and that it was given; 0 where it is off.
  """

  def __init__(self):
    """All at 0."""
    self.count, self.seconds, self.found, self.made = 0, 0.0, 0, 0
    self._thread = threading.get_ident()
    self._spans: list[tuple[float, float]] = []  # apart from one another: (start, seconds)

  def __enter__(self) -> "Compiles":
    monitoring.register_event_duration_secs_listener(self._lasted)
    monitoring.register_event_listener(self._happened)
    return self

  def __exit__(self, *_) -> None:
    monitoring.unregister_event_duration_listener(self._lasted)
    monitoring.unregister_event_listener(self._happened)

  def _lasted(self, event: str, seconds: float, **_: Any) -> None:
    if event not in _PARTS or threading.get_ident() != self._thread:
      return
    self.count += event == _BUILT
    # A function is traced inside the tracing of another: only the outer one's time counts.
    start = time.monotonic() - seconds
    while self._spans and self._spans[-1][0] >= start:
      self.seconds -= self._spans.pop()[1]
    self._spans.append((start, seconds))
    self.seconds += seconds

  def _happened(self, event: str, **_: Any) -> None:
    if threading.get_ident() == self._thread:
      self.found += event == _FOUND
      self.made += event == _MADE
