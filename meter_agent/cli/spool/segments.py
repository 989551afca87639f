"""All segments of a directory, one after the other; what cannot be read is told on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from meter_agent import _spool_format as form
from meter_agent._event import format_timestamp
from meter_agent._segment_name import ForeignSegmentError
from meter_agent._spool_reader import SegmentReading, SpoolReader
from meter_agent.cli.printing import say

__all__ = [
    "Segments",
    "attempted_at",
    "destination_of",
    "open_events",
    "owner_of",
    "shown_destination",
    "state_of",
    "when",
]

NEVER_SENT, MAYBE_ACCEPTED, ENDED = "never sent", "maybe accepted", "ended"


class Segments:
    """Iterates over what can be read in a spool directory.

    Args:
        directory: Where to look.
    """

    def __init__(self, directory: Path) -> None:
        self._reader = SpoolReader(directory)
        self.unread = 0
        """How many files could not be read, or are not ours."""
        self.damaged = 0
        """How many damaged pieces were in those that could be read."""

    def names(self) -> list[str]:
        """Return the names of all segments, oldest first."""
        try:
            return self._reader.names()
        except OSError as error:
            raise click.UsageError(f"{self._reader.path}: {error.strerror}") from None

    def quarantined(self) -> int:
        """Return how many damaged pieces have been set aside."""
        return self._reader.quarantined()

    def look(self, name: str) -> SegmentReading | None:
        """Return what is in a segment; None: nothing any more, or it was told why not."""
        try:
            segment = self._reader.look(name)
        except (OSError, ForeignSegmentError) as error:
            reason = getattr(error, "strerror", None) or error
            say(f"{name}: left alone: {reason}", err=True)
            self.unread += 1
            return None
        if segment is not None:
            self.damaged += len(segment.damages)
        return segment

    def __iter__(self) -> Iterator[SegmentReading]:
        for name in self.names():
            segment = self.look(name)
            if segment is not None:
                yield segment


def state_of(record: form.Record) -> str:
    """Return how far an event has come."""
    if record.mark == form.SETTLED:
        return ENDED
    return NEVER_SENT if record.mark == form.NEVER_ATTEMPTED else MAYBE_ACCEPTED


def open_events(segment: SegmentReading) -> list[form.Record]:
    """Return the events of *segment* that have not ended."""
    return [record for record in segment.records if record.mark != form.SETTLED]


def attempted_at(record: form.Record) -> str | None:
    """Return when an event was first sent; None: never, or nobody knows."""
    if record.mark == form.SETTLED:
        return None
    return when(form.read_mark(record.mark) or None)


def when(unix_seconds: float | None) -> str | None:
    """Return RFC 3339, or None for what is no moment."""
    if unix_seconds is None:
        return None
    try:
        return format_timestamp(unix_seconds)
    except ValueError:
        return None


def destination_of(segment: SegmentReading) -> dict[str, str] | None:
    """Return for whom the events of *segment* are, for JSON; None: it does not say it."""
    destination = None if segment.header is None else segment.header.destination
    return None if destination is None else destination.to_document()


def shown_destination(segment: SegmentReading) -> str:
    """Return for whom the events of *segment* are, for people."""
    if segment.header is None:
        return "not known: the header is damaged"
    return str(segment.header.destination or "not said: version 1")


def owner_of(segment: SegmentReading) -> dict[str, Any]:
    """Return who owns *segment*, for JSON."""
    live = segment.owner is not None
    return {"state": "live" if live else "orphan", "owner": segment.owner or None}
