"""`spool ls` and `spool show`: what is in the segments."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from meter_agent import _spool_format as form
from meter_agent._spool_body import InvalidRecord, decode
from meter_agent._spool_reader import SegmentReading
from meter_agent.cli.printing import Columns, ago, counted, print_json, printable, say
from meter_agent.cli.spool.segments import (
    ENDED,
    MAYBE_ACCEPTED,
    NEVER_SENT,
    Segments,
    attempted_at,
    destination_of,
    owner_of,
    shown_destination,
    state_of,
    when,
)

__all__ = ["list_segments", "show_segment"]


def list_segments(segments: Segments, *, as_json: bool) -> None:
    """Print a line for each segment."""
    table = Columns(
        segment=50,
        owner=12,
        never_sent=-10,
        maybe_accepted=-14,
        ended=-8,
        bytes=-8,
        age=-6,
        destination=1,
    )
    total: Counter[str] = Counter()
    found = 0
    for segment in segments:
        states = Counter(map(state_of, segment.records))
        total += states
        found += 1
        made_at = segment.made_at
        age = None if made_at is None else max(0.0, time.time() - made_at)
        counts = [states[state] for state in (NEVER_SENT, MAYBE_ACCEPTED, ENDED)]
        if as_json:
            names = ("never_sent", "maybe_accepted", "ended")
            print_json(
                {"segment": segment.name}
                | owner_of(segment)
                | dict(zip(names, counts, strict=True))
                | {"destination": destination_of(segment)}
                | {"damaged": len(segment.damages), "bytes": segment.file_bytes}
                | {"made_at": when(made_at), "age_seconds": None if age is None else round(age, 3)}
            )
        else:
            cells = segment.name, _owner(segment), *counts, segment.file_bytes, ago(age)
            table.row(*cells, shown_destination(segment))
    unended = total[NEVER_SENT] + total[MAYBE_ACCEPTED]
    say(
        f"{counted(found, 'segment')}, {counted(unended, 'event')} not ended",
        err=True,
    )


def show_segment(segment: SegmentReading, *, as_json: bool) -> None:
    """Print a line for each event of *segment*."""
    if not as_json:
        say(f"destination: {printable(shown_destination(segment))}")
    table = Columns(offset=-8, recorded_at=24, state=14, identifier=36, event=20, customer=20)
    for record in segment.records:
        event = event_of(segment, record)
        if as_json:
            print_json(event)
            continue
        what = event["event"]
        if event["rule"] is not None:
            cells = "-", f"invalid: {event['rule']}", ""
        else:
            name, customer = what["event_name"], what["customer_id"]
            cells = what["identifier"], name, f"{customer}  {what['value']}"
        table.row(record.offset, event["recorded_at"] or "?", event["state"], *cells)
    for damage in segment.damages:
        say(f"bytes {damage.offset} to {damage.end}: no intact record", err=True)


def event_of(segment: SegmentReading, record: form.Record) -> dict[str, Any]:
    """Return an event as it was recorded, and how far it has come, for JSON."""
    recorded = decode(record.body)
    event: Any
    if isinstance(recorded, InvalidRecord):
        at, event, rule = recorded.recorded_at, recorded.event, recorded.rule
    else:
        at, name, customer, value, timestamp, identifier, payload = recorded
        rule = None
        event = {
            "event_name": name,
            "customer_id": customer,
            "value": value,
            "timestamp": timestamp,
            "identifier": segment.identifier(record.offset) if identifier is None else identifier,
            "payload": payload,
        }
    return {
        "segment": segment.name,
        "destination": destination_of(segment),
        "offset": record.offset,
        "state": state_of(record).replace(" ", "_"),
        "recorded_at": when(at),
        "attempted_at": attempted_at(record),
        "event": event,
        "rule": rule,
    }


def _owner(segment: SegmentReading) -> str:
    if segment.owner is None:
        return "orphan"
    return f"alive {segment.owner}" if segment.owner else "alive"
