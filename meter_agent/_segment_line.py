"""Segments that stand in a line, oldest first, and the account of the events that came with them.

One line holds what this process writes (`_written_line.py`), another what it has adopted from dead
ones. Every method is called with the lock of the buffer held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from meter_agent._segment import Segment
from meter_agent._segment_supply import SegmentSupply
from meter_agent._spool_body import recorded_at

__all__ = ["SegmentLine"]


class _Account(NamedTuple):
    """Replaced as a whole: whoever is interrupted leaves the old account or the new one."""

    segments: tuple[Segment, ...] = ()
    gone: int = 0
    """Events of segments that have left the line."""
    evicted: int = 0
    """Those of them that were evicted."""


class SegmentLine:
    """A line of segments.

    Args:
        supply: Deletes those of which every event has ended.
    """

    def __init__(self, supply: SegmentSupply) -> None:
        self._supply = supply
        self._account = _Account()
        self.added = 0
        """How many segments have ever come into the line."""

    def __len__(self) -> int:
        return len(self._account.segments)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Oldest first."""
        return self._account.segments

    @property
    def counted(self) -> int:
        """Events that have ever stood in this line."""
        account = self._account
        return account.gone + sum(segment.counted for segment in account.segments)

    @property
    def evicted(self) -> int:
        """Events that had to make room for others."""
        return self._account.evicted

    @property
    def waiting(self) -> int:
        """Events that no sender has taken."""
        return sum(segment.waiting for segment in self.segments)

    def oldest_recorded_at(self) -> float | None:
        """Return the wall-clock seconds at which the oldest waiting event was recorded."""
        for segment in self.segments:
            if segment.waiting and (record := segment.oldest()) is not None:
                return recorded_at(record.body)
        return None

    def add(self, segment: Segment) -> None:
        """Put *segment* at the end."""
        self.added += 1
        account = self._account
        self._account = account._replace(segments=(*account.segments, segment))

    def clear_away(self) -> int:
        """Delete the files of which every event has ended; returns how many."""
        # All are counted, sealed ones as well: a signal handler may have interrupted the sealing.
        ended = []
        for segment in self.segments:
            segment.count()
            if segment.sealed and not segment.open:
                ended.append(segment)
        for segment in ended:
            self._leave(segment)
            self._supply.remove(segment)
        return len(ended)

    def evict(self, given_up: Callable[[Segment], object]) -> bool:
        """Make room by a whole file, the oldest of which nothing may have been sent. False: none.

        What was sent ends as delivered or uncertain, never as dropped. *given_up* may look at the
        segment before its events are gone.
        """
        for segment in self.segments:
            if segment.may_be_given_up:
                given_up(segment)
                self._leave(segment, evicted=segment.waiting)
                segment.give_up_waiting()
                self._supply.remove(segment)
                return True
        return False

    def _leave(self, segment: Segment, *, evicted: int = 0) -> None:
        account = self._account
        rest = tuple(other for other in account.segments if other is not segment)
        gone, before = account.gone + segment.counted, account.evicted
        self._account = _Account(rest, gone, before + evicted)

    def release(self) -> None:
        """Leave all files to whoever adopts them. What has been counted stays counted."""
        account = self._account
        for segment in account.segments:
            segment.release()
        self._account = _Account((), self.counted, account.evicted)

    def start_over(self) -> None:
        """Forget everything: in a child of `fork`, where the parent's locks are not touched."""
        for segment in self.segments:
            segment.release()
        self._account = _Account()
