"""Where an event of the spool is kept, and what is known of it from a process before this one."""

from __future__ import annotations

from typing import NamedTuple

from meter_agent import _spool_format as form
from meter_agent._segment import Segment
from meter_agent._spool_body import recorded_at

__all__ = ["Line", "Place"]

_CLOCK_CORRECTION_SECONDS_MAX = 60.0


class Place(NamedTuple):
    """Where an event is kept, and how far a process before this one had come with it."""

    segment: Segment
    offset: int
    body: bytes
    mark: int

    def first_sent_at(self, now: float) -> float | None:
        """Return when it was first sent, in unix seconds and not after *now*; None: never.

        What a copy says of an event was true when the copy was made: the original may have sent it
        since, at the earliest when it was recorded.

        A mark may be of a time to come: a clock was set back between two lives. By a little, as
        clocks are corrected, it is taken for now. By more, nobody knows when that was: long ago, to
        be safe.
        """
        first = form.read_mark(self.mark)
        if first is None and self.segment.is_copy:
            first = recorded_at(self.body)
        if first is None:
            return None
        return min(first, now) if first <= now + _CLOCK_CORRECTION_SECONDS_MAX else 0.0


class Line(NamedTuple):
    """Up to where each segment had been written at one moment."""

    ends: tuple[tuple[Segment, int], ...]
