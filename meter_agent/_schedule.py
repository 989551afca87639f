"""When the next batch should leave: because it is full, because an event is old, or in a hurry.

A watcher beside busy senders takes a full batch only when none of them has pulled for 5 ms: on a
fast network one thread does it all, on a slow one they all help.
"""

from __future__ import annotations

from typing import Any

from meter_agent._event_buffer import EventBuffer
from meter_agent._runtime import Runtime

__all__ = ["Schedule"]

_HELP_AFTER_SECONDS = 0.005


class Schedule:
    """Looks at what waits. Everything but `full` is called with the flusher's lock held.

    Args:
        runtime: Clocks.
        buffer: Where events wait.
        batch_size: Events of a full batch.
        flush_interval_seconds: How old the oldest waiting event may become.
    """

    def __init__(
        self,
        runtime: Runtime,
        buffer: EventBuffer,
        batch_size: int,
        flush_interval_seconds: float,
    ) -> None:
        self._runtime = runtime
        self._buffer = buffer
        self._batch_size = batch_size
        self._flush_interval_seconds = flush_interval_seconds
        self._last_pull_at = 0.0
        self._head_seen = -1, 0.0
        self._flush_line: Any = None

    @property
    def full(self) -> int:
        """How many waiting events make a full batch."""
        return min(self._batch_size, self._buffer.capacity)

    def hurry(self, line: Any) -> None:
        """Somebody flushes what was recorded before *line*."""
        self._flush_line = line

    def note_pull(self) -> None:
        """A sender has pulled a batch just now."""
        self._last_pull_at = self._runtime.monotonic()

    def due_in(self, *, eager: bool, busy: bool, ending: bool) -> float | None:
        """Return the seconds until a batch should leave; None while nothing waits.

        Args:
            eager: Who asks has just come back from sending.
            busy: Somebody is sending.
            ending: Nothing is to be waited for any more.
        """
        if self._buffer.has_returned_batches:
            return 0.0
        waiting = len(self._buffer)
        if not waiting:
            return None
        if ending or self._is_hurried():
            return 0.0
        if waiting < self.full:
            return self._until_old()
        if eager or not busy:
            return 0.0
        return max(0.0, self._last_pull_at + _HELP_AFTER_SECONDS - self._runtime.monotonic())

    def _is_hurried(self) -> bool:
        # Whether an event waits that somebody flushes.
        if self._flush_line is not None and self._buffer.is_taken(self._flush_line):
            self._flush_line = None
        return self._flush_line is not None

    def _until_old(self) -> float:
        now = self._runtime.monotonic()
        position = self._buffer.taken_through()
        if self._head_seen[0] != position:
            self._head_seen = position, now
        # The wall clock knows how old the event is, unless it was set; then, how long it has been
        # first in line.
        wall = self._runtime.clock.time()
        recorded_at = self._buffer.oldest_recorded_at
        age = max(0.0 if recorded_at is None else wall - recorded_at, now - self._head_seen[1])
        return max(0.0, self._flush_interval_seconds - age)
