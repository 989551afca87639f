"""`spool export`: the events that have not ended, as they would go over the wire."""

from __future__ import annotations

import json
from typing import IO, Any

from meter_agent import _spool_format as form
from meter_agent._event import EventEncoder, describe
from meter_agent._spool_body import InvalidRecord, decode
from meter_agent._spool_reader import SegmentReading
from meter_agent.cli.printing import json_line
from meter_agent.cli.spool.segments import Segments, attempted_at, destination_of, open_events, when
from meter_agent.cli.wire_shape import Keys, wire_shape
from meter_agent.exceptions import InvalidEventError

__all__ = ["export_events"]


def export_events(segments: Segments, keys: Keys, output: IO[str]) -> int:
    """Write a line for each event; returns how many."""
    written = 0
    encoder = EventEncoder(*keys)
    for segment in segments:
        for record in open_events(segment):
            output.write(json_line(_exported(segment, record, encoder, keys)) + "\n")
            written += 1
    return written


def _exported(
    segment: SegmentReading, record: form.Record, encoder: EventEncoder, keys: Keys
) -> dict[str, Any]:
    # The fields are those of a dead letter, as far as they are known by now.
    recorded = decode(record.body)
    event: Any
    message: str | None = None
    if isinstance(recorded, InvalidRecord):
        at, event, message = recorded
    else:
        at = recorded[0]
        try:
            wire = encoder.encode(recorded, segment.identifier(record.offset))
            event = json.loads(wire.body)
        except InvalidEventError as error:
            event, message = describe(recorded), str(error)
    return {
        "event": wire_shape(event, keys) if isinstance(event, dict) else event,
        "message": message,
        "recorded_at": when(at),
        "attempted_at": attempted_at(record),
        "uncertain": record.mark != form.NEVER_ATTEMPTED,
        "segment": segment.name,
        "destination": destination_of(segment),
        "offset": record.offset,
    }
