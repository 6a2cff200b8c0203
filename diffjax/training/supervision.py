"""What may interrupt a run from outside, and what the run does about it."""

import signal
from typing import Any


class Stop:
  """Turns the first SIGINT or SIGTERM into a request; the second one acts as it always did."""

  def __init__(self):
    """Nothing asked for yet; the handlers are set on entering."""
    self.asked = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> "Stop":
    for number in (signal.SIGINT, signal.SIGTERM):
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number: int, frame: Any) -> None:
    del frame
    self.asked = True
    signal.signal(number, self._before[number])
