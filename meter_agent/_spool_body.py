"""The body of a record: what `record()` was given, as JSON.

An event is an array, `[recorded_at, event_name, customer_id, value, timestamp, identifier,
payload]`, of which the last three may be missing. *recorded_at* is in nanoseconds of unix time;
*value* is an integer or a numeric string; *timestamp* is a number of unix seconds or null. An
event that breaks a rule is an object with the keys `recorded_at`, `event`, `rule`: a picture of it
for its dead letter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from meter_agent._event import (
    EventTuple,
    describe,
    format_value,
    label_text,
    name_text,
    timestamp_seconds,
)
from meter_agent.exceptions import InvalidEventError

__all__ = [
    "BODY_BYTES_MAX",
    "UNREADABLE",
    "InvalidRecord",
    "decode",
    "encode_anyhow",
    "recorded_at",
]

BODY_BYTES_MAX = 256 * 1024
"""More than any valid event needs: 50 payload keys of 100 and values of 500 characters."""

UNREADABLE = "its record in the spool cannot be understood"
"""The rule that a body breaks which no version of this package wrote."""

_NANOSECONDS = 1_000_000_000
# A third of the cost of `json.loads`, which guesses at the encoding and allows for blanks.
_read = json.JSONDecoder().raw_decode


class InvalidRecord(NamedTuple):
    """An event that `record()` took though it cannot be billed."""

    recorded_at: float
    """Unix seconds."""
    event: Any
    """What `describe()` made of it."""
    rule: str
    """Which rule it breaks."""


def encode_anyhow(
    recorded_at_ns: int, event: tuple[Any, ...], check: Callable[[EventTuple], None]
) -> bytes:
    """Return the body of any event at all; *check* raises for one that cannot be billed.

    Not for the hot path, which writes the plain kind (names, whole numbers) by itself.
    """
    recorded = cast("EventTuple", (recorded_at_ns / _NANOSECONDS, *event))
    try:
        check(recorded)
        body = _encode(recorded_at_ns, *recorded[1:])
        if len(body) <= BODY_BYTES_MAX:
            return body
        rule = f"its record is longer than {BODY_BYTES_MAX} bytes"
    except InvalidEventError as error:
        rule = str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - objects that misbehave
        rule = f"it cannot be read: {type(error).__name__}"
    picture = {"recorded_at": recorded_at_ns, "event": describe(recorded), "rule": rule}
    return json.dumps(picture).encode()


def _encode(  # noqa: PLR0917 - the fields of an event, in their order
    recorded_at_ns: int,
    name: Any,
    customer: Any,
    value: Any,
    timestamp: Any,
    identifier: Any,
    payload: Any,
) -> bytes:
    # All of it was checked. What is written is what memory would send: the texts of numbers, labels
    # and UUIDs do not change when they are read and formatted again.
    fields = [
        recorded_at_ns,
        name_text("event_name", name),
        name_text("customer_id", customer),
        format_value(value),
        None if timestamp is None else float(timestamp_seconds(timestamp)),
        None if identifier is None else name_text("identifier", identifier),
        None if payload is None else _texts(payload),
    ]
    while fields[-1] is None:
        fields.pop()
    return _dump(fields)


def _texts(payload: Any) -> dict[str, str]:
    return {str.__str__(key): label_text(label, key) for key, label in payload.items()}


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def decode(body: bytes) -> EventTuple | InvalidRecord:
    """Return what `record()` was given. Never raises: what cannot be read is an `InvalidRecord`."""
    try:
        text = body.decode()
        fields, end = _read(text)
        if end != len(text):
            raise ValueError  # noqa: TRY301 - one answer to all that is not ours
        if isinstance(fields, list) and 4 <= len(fields) <= 7:
            at, *rest = fields
            return cast("EventTuple", (at / _NANOSECONDS, *rest, *(None,) * (7 - len(fields))))
        at, event, rule = fields["recorded_at"], fields["event"], fields["rule"]
        if isinstance(event, dict) and isinstance(rule, str):
            return InvalidRecord(at / _NANOSECONDS, event, rule)
        raise ValueError  # noqa: TRY301
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        text = body[:200].decode("utf-8", "backslashreplace")
        return InvalidRecord(0.0, {"body": text}, UNREADABLE)


def recorded_at(body: bytes) -> float:
    """Return when it was recorded (unix seconds), without reading all of it; 0.0: unknown."""
    try:
        return int(body[1 : body.index(b",")]) / _NANOSECONDS
    except (ValueError, OverflowError):
        return decode(body)[0]
