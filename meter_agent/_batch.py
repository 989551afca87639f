"""Events that left the buffer together, and how far each of them has come."""

from __future__ import annotations

from typing import Any

from meter_agent._event import MeterEvent
from meter_agent._ledger import Outcome

__all__ = ["Batch"]


class Batch:
    """Events that one sender holds, from `take()` until the last of them is settled."""

    __slots__ = (
        "abandoned",
        "attempted",
        "claim",
        "ending",
        "events",
        "floor",
        "oldest_timestamp",
        "open",
        "places",
        "position",
        "sent_at",
        "size",
    )

    def __init__(self, events: list[Any], *, position: int, floor: int) -> None:
        self.events: list[Any] | None = events
        """As recorded; None once frozen into *open*."""
        self.size = len(events)
        """Events not settled yet."""
        self.position = position
        """Which event of this buffer the first one is; identifiers derive from it."""
        self.floor: Any = floor
        """What tells these events from those that left the buffer before; the buffer's business."""
        self.open: list[MeterEvent] = []
        """The frozen events that are not settled yet."""
        self.oldest_timestamp = 0.0
        self.sent_at: dict[int, float] = {}
        """Wall seconds of the first request with each event (by `id`), whatever came of it."""
        self.attempted: dict[int, tuple[float, float]] = {}
        """Wall and monotonic seconds of the first request with each event (by `id`) that Stripe
        may have accepted. Replaced and never changed, so that an earlier state can be kept."""
        self.claim: tuple[int, Outcome] | None = None
        """How many events a sender is just settling, and as what."""
        self.places: Any = ()
        """Where the buffer keeps the events; its business."""
        self.ending: Any = ()
        """Where it keeps those that a sender is just settling."""
        self.abandoned = False
        """Accounted for by `close()`; what a late answer says changes nothing any more."""
