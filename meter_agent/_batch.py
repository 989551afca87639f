"""Events that left the buffer together, and how far each of them has come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meter_agent._event import MeterEvent
from meter_agent._ledger import Outcome

__all__ = ["Batch"]


class Batch:
    """Events that one sender holds, from `take()` until the last of them is settled."""

    __slots__ = (
        "abandoned",
        "ambiguous",
        "attempted",
        "claim",
        "ending",
        "events",
        "floor",
        "held_until",
        "oldest_timestamp",
        "open",
        "places",
        "position",
        "releases_seen",
        "sent_at",
        "size",
        "times_held",
        "too_large",
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
        self.ambiguous: frozenset[int] = frozenset()
        """Those of *attempted* (by `id`) with a request that got no answer of Stripe about them: it
        was lost, a 5xx, or somebody else's. Such an event ends as delivered or uncertain, and never
        as refused. Not among them: events of a batch that Stripe refused as a whole."""
        self.too_large: frozenset[int] = frozenset()
        """Events (by `id`) that somebody other than Stripe finds too large, each of them alone."""
        self.held_until: float | None = None
        """When what is still open may be tried again, in monotonic seconds; None: at any time."""
        self.releases_seen = 0
        """How many releases of held batches there had been before it was last tried."""
        self.times_held = 0
        """How often it was held for *too_large*, one time after the other."""
        self.claim: tuple[int, Outcome] | None = None
        """How many events a sender is just settling, and as what."""
        self.places: Any = ()
        """Where the buffer keeps the events; its business."""
        self.ending: Any = ()
        """Where it keeps those that a sender is just settling."""
        self.abandoned = False
        """Accounted for by `close()`; what a late answer says changes nothing any more."""

    def begin_attempt(self, part: Sequence[MeterEvent], wall: float, monotonic: float) -> None:
        """Note that *part* leaves now. Until it is answered, Stripe may have it."""
        ids = list(map(id, part))
        self.sent_at = dict.fromkeys(ids, wall) | self.sent_at
        self.attempted = dict.fromkeys(ids, (wall, monotonic)) | self.attempted
        self.ambiguous |= frozenset(ids)

    def attempted_of(self, part: Sequence[MeterEvent]) -> list[MeterEvent]:
        """Return the events of *part* that Stripe may have."""
        return [event for event in part if id(event) in self.attempted]
