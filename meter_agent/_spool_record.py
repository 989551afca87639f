"""The `record()` of a spool: an event becomes a record, and the record is appended to a segment.

The event is encoded and appended to mapped memory in one C call that does not give the interpreter
lock away: no lock, no system call, and nothing that an interrupt could find half done.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring as _quote
from typing import Any
from zlib import crc32

from meter_agent import _spool_format as form
from meter_agent._event import EventTuple, Label, Name
from meter_agent._event_buffer import Record, copied
from meter_agent._runtime import Clock
from meter_agent._spool_body import encode_anyhow
from meter_agent._written_line import Gate

__all__ = ["recorder"]

_NAME_CHARACTERS_MAX = 100
_RECORD_HEAD = form.RECORD_HEAD.pack


def recorder(  # noqa: C901 - each further function would cost every event a call
    clock: Clock,
    *,
    door: mmap.mmap | bytearray,
    gate: Gate,
    check: Callable[[EventTuple], None],
    look_up: Callable[[], None],
    enter: Callable[[bytes], bool],
    cannot_hold: Callable[[], bool],
) -> Record:
    """Return a `record()`: a closure, since attributes cost 4 ns each.

    Args:
        clock: The wall clock.
        door: Its first byte is 1 while events are let in, and wiped in a child of `fork`.
        gate: The last segment that this process writes.
        check: Raises `InvalidEventError` for an event that cannot be billed.
        look_up: Called when so many wait that a sender wants to hear of it.
        enter: Takes a record for which there was no room, or no door.
        cannot_hold: Counts an event for which there is no memory.
    """

    def encode(now: int, *event: Any) -> bytes:
        if event[-1] is not None:
            event = (*event[:-1], copied(event[-1]))
        return encode_anyhow(now, event, check)

    def record(
        event_name: Name,
        customer_id: Name,
        value: Any = 1,
        *,
        timestamp: Any = None,
        identifier: Name | None = None,
        payload: Mapping[str, Label] | None = None,
    ) -> bool:
        try:
            now = clock.time_ns()
            try:
                if (
                    type(value) is int
                    and timestamp is None
                    and identifier is None
                    and payload is None
                    and type(event_name) is str
                    and type(customer_id) is str
                    and len(event_name) <= _NAME_CHARACTERS_MAX
                    and len(customer_id) <= _NAME_CHARACTERS_MAX
                ):
                    text = f"[{now},{_quote(event_name)},{_quote(customer_id)},{value}]"
                    body = text.encode()
                else:
                    body = encode(
                        now, event_name, customer_id, value, timestamp, identifier, payload
                    )
            except ValueError:  # half of a surrogate pair, or a number of thousands of digits
                body = encode(now, event_name, customer_id, value, timestamp, identifier, payload)
            record = _RECORD_HEAD(form.RECORD_MAGIC, len(body), 0, crc32(body)) + body
            try:
                # One line, between whose steps no other thread and no signal handler runs: a child
                # that is forked in here finds the door shut, and not its parent's segment.
                written = door[0] and gate.write(record)
            except ValueError:
                written = 0
            if not written:
                return enter(record)
        except Exception:  # noqa: BLE001 - no memory, no descriptor, or the stack ends
            return cannot_hold()
        try:
            if gate.tell() < gate.alarm:
                return True
        except ValueError:
            pass  # held up here, by a profiler perhaps, until the segment had been delivered
        try:
            look_up()
        except Exception:  # noqa: BLE001 - the stack ends; it is held, and the next call looks up
            return True
        return True

    # What Python says when it is called wrongly names the function by this.
    record.__qualname__ = "record"
    return record
