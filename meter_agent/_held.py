"""Batches with events that may not be sent for a while: no sender has them, and all others go on.

They stay in flight in the buffer, which accounts for them when the agent closes as for everything
else that is not settled by then: a spool keeps them, and without one they are dropped or uncertain.
"""

from __future__ import annotations

from meter_agent._batch import Batch
from meter_agent._runtime import Runtime

__all__ = ["HeldBatches"]

_HELD_MAX = 1000


class HeldBatches:
    """Held batches, and when each may be tried again; shared by the senders.

    Args:
        runtime: Clocks and locks.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = runtime.reentrant_lock()
        self._batches: dict[Batch, None] = {}
        self.releases = 0
        """How often `release()` was called."""

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def has_room(self) -> bool:
        """Whether another batch may be held: a thousand is the limit."""
        return len(self._batches) < _HELD_MAX

    def put(self, batch: Batch) -> None:
        """Hold *batch* until its *held_until*; until now if there was a release meanwhile."""
        with self._lock:
            if batch.releases_seen != self.releases:
                batch.held_until = None
            self._batches[batch] = None

    def take(self) -> Batch | None:
        """Hand over a batch whose time has come."""
        if not self._batches:
            return None
        with self._lock:
            now = self._runtime.monotonic()
            for batch in self._batches:
                if batch.held_until is None or batch.held_until <= now:
                    del self._batches[batch]
                    return batch
            return None

    def due_in(self) -> float | None:
        """Return the seconds until `take()` has one; None: none is held."""
        if not self._batches:
            return None
        with self._lock:
            due = min((batch.held_until or 0.0 for batch in self._batches), default=0.0)
            return max(0.0, due - self._runtime.monotonic())

    def release(self) -> None:
        """Let every batch be tried now: what they were held for may be over."""
        with self._lock:
            self.releases += 1
            for batch in self._batches:
                batch.held_until = None
