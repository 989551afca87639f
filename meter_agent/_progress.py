"""Tells those who wait for something that it may have come about.

There is no lock in it. A signal handler of the application may wait here in the same thread that it
interrupted while that waited, and it may raise, as Ctrl-C and Celery's soft time limits do. A
`threading.Condition` that an exception strikes on its way in stays locked for ever, and one that it
strikes at the beginning of `wait()` ends with a `RuntimeError` of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from meter_agent._runtime import Doorbell, Runtime

__all__ = ["Progress"]


class Progress:
    """Wakes everybody who waits, so that they look again.

    Args:
        runtime: The clock and the bells.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        # A dict, because each of its operations used here is one step.
        self._bells: dict[Doorbell, None] = {}

    def tell(self) -> None:
        """Have all who wait look again."""
        for bell in list(self._bells):
            bell.ring()

    def wait_until(self, come: Callable[[], bool], deadline: float | None = None) -> bool:
        """Wait until *come* says so; False when *deadline* (monotonic seconds) comes first."""
        bell = self._runtime.doorbell()
        # The bell is hung up before the first look, so that what comes in between rings it.
        self._bells[bell] = None
        try:
            while not come():
                left = None if deadline is None else deadline - self._runtime.monotonic()
                if left is not None and left <= 0:
                    return False
                bell.wait(left)
            return True
        finally:
            self._bells.pop(bell, None)
