"""Sender threads that died of an error, and the rest that is due when they do so again and again.

One death is mended at once; when the next one follows soon, there is a pattern to it.
"""

from __future__ import annotations

from meter_agent._runtime import Runtime

__all__ = ["REST_SECONDS", "Deaths"]

REST_SECONDS = 1.0
_APART_SECONDS = 10.0


class Deaths:
    """Counts them, and lets the next sender rest.

    Args:
        runtime: The clock and the bell that ends a rest.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._rest_until = 0.0
        self._no_rest = runtime.doorbell()
        self._last_at = self._pattern_until = float("-inf")
        self.total = 0

    @property
    def form_a_pattern(self) -> bool:
        """Whether senders die one after the other."""
        return self._runtime.monotonic() < self._pattern_until

    def add(self) -> None:
        """One more, just now."""
        now = self._runtime.monotonic()
        self.total += 1
        if now < self._last_at + _APART_SECONDS:
            self._rest_until = now + REST_SECONDS
            self._pattern_until = now + _APART_SECONDS
        self._last_at = now

    def rest(self, seconds_max: float) -> None:
        """Wait for as long as is due before a sender begins, unless somebody is in a hurry."""
        left = self._rest_until - self._runtime.monotonic()
        if left > 0:
            self._no_rest.wait(min(left, seconds_max))

    def end_rest(self) -> None:
        """Wake the sender that rests. Takes no lock: the garbage collector calls this."""
        self._no_rest.ring()

    def forgive(self) -> None:
        """Let the next sender begin at once: somebody is in a hurry."""
        self._rest_until = 0.0
        self.end_rest()
