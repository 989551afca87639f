"""What a process that was killed leaves in its files, compared with what it knew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meter_agent import _spool_format as form
from meter_agent._batch import Batch
from meter_agent._segment import Segment
from meter_agent._spool import SpoolBuffer
from meter_agent._spool_header import HEADER_BYTES
from tests.simulation.disk import Found, number_in
from tests.simulation.scheduler import BrokenPromiseError

__all__ = ["ending", "in_memory", "inspect"]

Key = tuple[str, int]


def in_memory(buffer: SpoolBuffer) -> set[int]:
    """Events that die with the process, because no file could be had."""
    return {
        number_in(record.body)
        for segment in buffer._own.segments
        if segment.path is None
        for record in form.scan(segment._data, HEADER_BYTES, segment.written_through())
        if isinstance(record, form.Record) and record.mark != form.SETTLED
    }


def ending(buffer: SpoolBuffer) -> set[int]:
    """Events whose letters a sender is just writing."""
    return {number_in(place.body) for batch in buffer._in_flight for place in batch.ending}


def inspect(buffer: SpoolBuffer, records: Iterable[Found]) -> None:
    """Compare the marks in the files with the books of *buffer*, unless it was just writing them.

    Raises:
        BrokenPromiseError: They differ.
    """
    if buffer._lock.owner is not None:  # type: ignore[attr-defined]
        return
    by_key = {(found.file, found.offset): found for found in records}
    for segment in (*buffer._own.segments, *buffer._adopted.segments):
        if segment.path is not None:
            _count(segment, [f for f in by_key.values() if f.file == segment.path.name])
    in_flight: set[Key] = set()
    for batch in buffer._in_flight:
        in_flight |= _compare(batch, by_key)
    own = {segment.path.name for segment in buffer._own.segments if segment.path is not None}
    for key, found in by_key.items():
        waits = found.file in own and key not in in_flight and not found.settled
        if waits and found.mark != form.NEVER_ATTEMPTED:
            raise BrokenPromiseError(f"event {found.number} waits and is marked as sent")


def _count(segment: Segment, records: list[Found]) -> None:
    unsettled = sum(not found.settled for found in records)
    uncounted = sum(found.offset >= segment._counted[0] for found in records)
    if unsettled != segment.open + uncounted:
        raise BrokenPromiseError(
            f"{segment.path}: {unsettled} events have not ended, and "
            f"{segment.open} + {uncounted} in the books"
        )


def _compare(batch: Batch, by_key: dict[Key, Found]) -> set[Key]:
    places: Any = batch.places
    if batch.events is not None:
        return {_key(place) for place in places if place.segment.path is not None}
    for event in batch.open:
        place = places[id(event)]
        if place.segment.path is None:
            continue
        mark = by_key[_key(place)].mark
        first = batch.attempted.get(id(event))
        expected = None if first is None else float(int(first[0]))
        found = form.read_mark(mark)
        # Earlier than its mark where a life before this one had a clock that ran ahead.
        is_early = found is not None and expected is not None and expected < found
        if mark == form.SETTLED or not (found == expected or is_early):
            raise BrokenPromiseError(
                f"event {number_in(place.body)} was first sent at {expected} and its mark says "
                f"{form.read_mark(mark)}"
            )
    held = [*places.values(), *batch.ending]
    return {_key(place) for place in held if place.segment.path is not None}


def _key(place: Any) -> Key:
    return place.segment.path.name, place.offset
