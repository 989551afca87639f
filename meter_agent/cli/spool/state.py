"""A spool directory in numbers: who lives on it, and what waits there."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meter_agent._spool_body import recorded_at
from meter_agent._spool_reader import SegmentReading
from meter_agent.cli.spool.segments import (
    MAYBE_ACCEPTED,
    NEVER_SENT,
    Segments,
    open_events,
    state_of,
)

__all__ = ["SpoolState"]


@dataclass(frozen=True)
class SpoolState:
    """What a directory of segments holds at one moment."""

    owners: tuple[int, ...]
    """Living processes that have a segment; 0 for one that cannot be seen from here. A process
    whose events have all ended has none."""
    segments: int
    orphans: int
    """Segments of dead processes in which events wait."""
    orphaned_events: int
    orphaned_seconds: float | None
    """How long the oldest of them waits."""
    never_sent: int
    maybe_accepted: int
    """Events that were sent, and whose end nobody has seen."""
    oldest_seconds: float | None
    """How long the oldest event waits."""
    damaged: int
    unread: int
    """Files that cannot be read, or are of a later version."""
    quarantined: int

    @classmethod
    def look(cls, directory: Path, now: float) -> SpoolState:
        """Look at *directory*, which must be there; takes no lock and changes nothing."""
        segments = Segments(directory)
        found = list(segments)
        states: Counter[str] = Counter()
        orphans = [each for each in found if each.owner is None and open_events(each)]
        for segment in found:
            states += Counter(map(state_of, segment.records))
        return cls(
            owners=tuple(sorted({each.owner for each in found if each.owner is not None})),
            segments=len(found),
            orphans=len(orphans),
            orphaned_events=sum(len(open_events(each)) for each in orphans),
            orphaned_seconds=_longest_wait(orphans, now),
            never_sent=states[NEVER_SENT],
            maybe_accepted=states[MAYBE_ACCEPTED],
            oldest_seconds=_longest_wait(found, now),
            damaged=segments.damaged,
            unread=segments.unread,
            quarantined=segments.quarantined(),
        )

    def to_document(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return dataclasses.asdict(self)


def _longest_wait(segments: list[SegmentReading], now: float) -> float | None:
    # Records stand in the order of recording, so the first that is open is the oldest.
    first = [recorded_at(records[0].body) for each in segments if (records := open_events(each))]
    return max((max(0.0, round(now - at, 3)) for at in first), default=None)
