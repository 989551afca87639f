"""`spool verify`: every byte is read, and what is not as it was written is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from meter_agent import _spool_format as form
from meter_agent._spool_body import UNREADABLE, InvalidRecord, decode
from meter_agent._spool_header import HEADER_BYTES
from meter_agent._spool_reader import SegmentReading
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.printing import counted, print_json, say
from meter_agent.cli.spool.segments import Segments, destination_of

__all__ = ["verify_segments"]


class Problem(NamedTuple):
    """Something in a segment that is not as it was written."""

    offset: int
    end: int
    problem: str


def verify_segments(segments: Segments, *, as_json: bool) -> ExitCode:
    """Print what is damaged in each of *segments*."""
    files = events = damaged = 0
    for segment in segments:
        problems = list(_problems(segment))
        files += 1
        events += len(segment.records)
        damaged += len(problems)
        if as_json:
            print_json(
                {
                    "segment": segment.name,
                    "destination": destination_of(segment),
                    "events": len(segment.records),
                    "problems": [problem._asdict() for problem in problems],
                }
            )
        else:
            for problem in problems:
                where = f"{segment.name}: bytes {problem.offset} to {problem.end}"
                say(f"{where}: {problem.problem}")
        _tell_unfinished(segment)
    pieces = segments.quarantined()
    say(
        f"{counted(files, 'segment')}, {counted(events, 'event')}, {damaged or 'no'} damage"
        + (f"; {counted(pieces, 'damaged piece')} in quarantine" if pieces else ""),
        err=True,
    )
    if damaged:
        return ExitCode.BAD
    return ExitCode.PARTLY if segments.unread else ExitCode.OK


def _problems(segment: SegmentReading) -> Iterator[Problem]:
    if segment.header is None and segment.file_bytes >= HEADER_BYTES:
        yield Problem(0, HEADER_BYTES, "the header is damaged: nobody knows whose events these are")
    for damage in segment.damages:
        yield Problem(damage.offset, damage.end, "no intact record")
    for record in segment.records:
        yield from _problems_of(record)
    # Cut off. A file that is just being made, or whose process died at that, holds no events.
    if segment.bytes_missing and segment.file_bytes and segment.owner is None:
        end = segment.file_bytes + segment.bytes_missing
        yield Problem(segment.file_bytes, end, "the file ends too early")


def _problems_of(record: form.Record) -> Iterator[Problem]:
    if record.mark != form.SETTLED and form.read_mark(record.mark) == 0.0:
        mark_at = record.offset + form.MARK_AT
        yield Problem(mark_at, mark_at + 8, "the mark is damaged: Stripe may have this event")
    event = decode(record.body)
    if isinstance(event, InvalidRecord) and event.rule == UNREADABLE:
        yield Problem(record.offset, record.end, "the record cannot be understood")


def _tell_unfinished(segment: SegmentReading) -> None:
    if segment.unfinished is not None:
        offset, end = segment.unfinished
        say(
            f"{segment.name}: bytes {offset} to {end} are being written, or damaged: look again",
            err=True,
        )
