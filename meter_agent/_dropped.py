"""Events that were dropped and wait to be handed over.

`record()` may neither call the application nor write a file, so what it refuses waits here for the
next sender, or for the thread that closes the agent. At most 1 000 events wait, and one more for
each thread that drops at this very moment; those that find no place are counted only.

An event is kept as it was recorded: a tuple, the body of a record of a spool, or the wire form.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from meter_agent._ledger import DropReason, Tally

__all__ = ["DROPPED_EVENTS_MAX", "Dropped", "DroppedEvents"]

DROPPED_EVENTS_MAX = 1000


class Dropped(NamedTuple):
    """One of them."""

    reason: DropReason
    event: Any
    identifier: str | None
    """The one that was minted for it, if that was done."""


class DroppedEvents:
    """Where they wait.

    Args:
        wanted: Whether anybody takes them. False: none is kept.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.wanted = wanted
        self._waiting: deque[Dropped] = deque()
        self._no_place = Tally()
        self._lost = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def places(self) -> int:
        """How many more would be kept."""
        return max(0, DROPPED_EVENTS_MAX - len(self._waiting)) if self.wanted else 0

    def keep(self, reason: DropReason, event: Any, identifier: str | None = None) -> None:
        """Keep a dropped event. Safe in any thread and signal handler; takes no lock."""
        if not self.wanted:
            return
        if len(self._waiting) < DROPPED_EVENTS_MAX:
            self._waiting.append(Dropped(reason, event, identifier))
        else:
            self._no_place.up()

    def lose(self, count: int) -> None:
        """Count events that are not kept. Callers hold the lock of the buffer."""
        if self.wanted:
            self._lost += count

    def read_not_kept(self) -> int:
        """Return how many found no place. Callers hold one common lock; see `Tally`."""
        return self._no_place.read() + self._lost

    def take(self, limit: int) -> list[Dropped]:
        """Return the oldest of them, at most *limit*."""
        taken: list[Dropped] = []
        try:
            while len(taken) < limit:
                taken.append(self._waiting.popleft())
        except IndexError:  # another thread has taken the rest
            pass
        return taken

    def start_over(self) -> None:
        """Forget them: in a child of `fork` they are the parent's."""
        self._waiting.clear()
        self._no_place, self._lost = Tally(), 0
