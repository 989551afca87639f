"""What may be billed: the checks of an event, and the exact bytes that Stripe gets for it.

Guarantees:

* An event that passes is sent as it was given. Nothing is cut or moved in time, and nothing but a
  float is rounded; see `_amount`.
* An event that does not pass raises `InvalidEventError` with field, value and rule, and nothing
  else, whatever object the application handed in. It costs no more than the check of a good one:
  `10**1_000_000` and a text of 10 MB are refused without being looked through.
* The bytes of an event are made once. Retries, splits and replays reuse them.

Nothing here does I/O. `EventEncoder.encode` runs once per event on a sender thread, so what repeats
from event to event (names, customers, the current second) is kept ready in bounded caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from functools import lru_cache, partial
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, SupportsIndex, TypeAlias

from meter_agent._amount import VALUE_DECIMALS_MAX, VALUE_DIGITS_MAX, as_whole, format_value
from meter_agent._printable import is_a, printable, safe_repr
from meter_agent._texts import (
    NAME_CHARACTERS_MAX,
    NAME_RULE,
    PAYLOAD_VALUE_CHARACTERS_MAX,
    is_name,
    label_text,
    name_fault,
    plain,
    text_of,
)
from meter_agent.exceptions import InvalidEventError

try:
    from _json import encode_basestring_ascii as _quote
except ImportError:  # where json is not written in C; there, the whole of it costs 3 ms
    from json.encoder import encode_basestring_ascii as _quote

if TYPE_CHECKING:
    from uuid import UUID

__all__ = [
    "NAME_CHARACTERS_MAX",
    "NAME_RULE",
    "PAYLOAD_KEYS_MAX",
    "PAYLOAD_VALUE_CHARACTERS_MAX",
    "TIMESTAMP_FUTURE_SECONDS_MAX",
    "TIMESTAMP_PAST_SECONDS_MAX",
    "VALUE_DECIMALS_MAX",
    "VALUE_DIGITS_MAX",
    "EventEncoder",
    "EventTuple",
    "Label",
    "MeterEvent",
    "Name",
    "PayloadKeys",
    "RecordedEvent",
    "Value",
    "describe",
    "format_timestamp",
    "format_value",
    "is_name",
    "label_text",
    "name_text",
    "timestamp_seconds",
]

TIMESTAMP_PAST_SECONDS_MAX: Final = 35 * 86_400
"""Stripe, API reference of meter events: not more than 35 days in the past."""

TIMESTAMP_FUTURE_SECONDS_MAX: Final = 300
"""Stripe, API reference of meter events: not more than 5 minutes in the future."""

PAYLOAD_KEYS_MAX: Final = 50
"""Our own bound, Stripe documents none: it keeps a batch of 100 events below a few megabytes."""

_TIMESTAMP_TYPE_RULE = (
    "must be a datetime with a time zone, or unix seconds as int or float;"
    " a naive datetime is a guess, for example use datetime.now(timezone.utc)"
)
_TIMESTAMP_RANGE_RULE = (
    "must lie within 35 days before and 5 minutes after the moment of recording, because Stripe"
    " bills nothing outside of it. Check that it is in seconds, and the clock it came from"
)
_CLOCK_RULE = "must be a moment between 1970 and 9999. Check the clock of this host"
_PAYLOAD_TYPE_RULE = "must be a mapping from str to plain scalars, for example {'region': 'eu'}"
_PAYLOAD_SIZE_RULE = f"must have at most {PAYLOAD_KEYS_MAX} keys. Leave out what is not billed by"
_RESERVED_KEY_RULE = (
    "must not be the customer or value key of this event."
    " Pass customer and value as arguments of record()"
)

_WHOLE_LIMIT = 10**VALUE_DIGITS_MAX
_YEAR_9999_END = 253_402_300_799

Name: TypeAlias = "str | UUID"
"""An event name, a customer or an identifier."""

Value: TypeAlias = "float | Decimal | str | SupportsIndex"
"""How much."""

Label: TypeAlias = "str | float | Decimal | UUID | SupportsIndex | None"
"""A payload value; see `_texts`."""


class RecordedEvent(NamedTuple):
    """What `record()` was given, unchecked. At run time a plain tuple in this order will do."""

    recorded_at: float
    """Unix seconds of the call."""
    event_name: str
    customer_id: str
    value: int | Decimal | str | float = 1
    timestamp: float | datetime | None = None
    identifier: str | None = None
    payload: Mapping[str, str] | None = None


EventTuple: TypeAlias = (
    "RecordedEvent | tuple[float, Name, Name, Value, float | datetime | None, Name | None,"
    " Mapping[str, Label] | None]"
)
"""A `RecordedEvent`, or the plain tuple that costs less to build."""


class MeterEvent(NamedTuple):
    """A checked event, ready to be sent."""

    identifier: str
    """What Stripe deduplicates by; the same on every attempt."""
    body: bytes
    """The JSON object of this event, exactly as it is sent."""
    timestamp: float
    """Unix seconds of the usage."""
    recorded_at: float
    """Unix seconds of the call of `record()`."""


# A third faster than to call the class.
_new_event: Callable[[tuple[str, bytes, float, float]], MeterEvent] = partial(
    tuple.__new__, MeterEvent
)


class PayloadKeys(NamedTuple):
    """The payload keys under which a meter looks for customer and value."""

    customer_key: str = "stripe_customer_id"
    value_key: str = "value"


class _Frame(NamedTuple):
    # The constant parts of every event of one name, between identifier, customer and value.
    head: str
    before_customer: str
    before_value: str
    keys: PayloadKeys


_DEFAULT_KEYS = PayloadKeys()
_NO_OVERRIDES: Mapping[str, PayloadKeys] = MappingProxyType({})


class EventEncoder:
    """Checks events and turns them into the bytes that Stripe gets.

    Args:
        default_keys:
            The payload keys of events that *keys_by_event* does not name.

        keys_by_event:
            The payload keys of single event names.
    """

    __slots__ = ("_frame",)

    def __init__(
        self,
        default_keys: PayloadKeys = _DEFAULT_KEYS,
        keys_by_event: Mapping[str, PayloadKeys] = _NO_OVERRIDES,
    ) -> None:
        frame = partial(_build_frame, default_keys, dict(keys_by_event))
        # Exceptions are not cached, so neither a flood of bad names nor a huge one stays in memory.
        self._frame: Callable[[str], _Frame] = lru_cache(maxsize=1024)(frame)

    def check(self, event: EventTuple) -> None:
        """Raise if *event* may not be billed as it is.

        Raises:
            InvalidEventError: Names the field, its value and the rule.
        """
        # Encoding is the check: two lists of rules would drift apart.
        self.encode(event, "")

    def encode(self, event: EventTuple, identifier: str) -> MeterEvent:
        """Check *event* and return its wire form.

        Args:
            event: What `record()` was given.
            identifier: Used when the event has none of its own. Trusted: the buffer minted it.

        Raises:
            InvalidEventError: Names the field, its value and the rule.
        """
        recorded_at, name, customer, value, timestamp, own_identifier, payload = event
        if type(name) is not str:
            name = name_text("event_name", name)
        head, before_customer, before_value, keys = self._frame(name)
        if type(customer) is not str:
            customer = name_text("customer_id", customer)
        in_quotes = identifier
        if own_identifier is not None:
            identifier = name_text("identifier", own_identifier)
            in_quotes = _quote_name("identifier", identifier)[1:-1]
        # Most values are ints that fit: spare them the call.
        is_short = type(value) is int and -_WHOLE_LIMIT < value < _WHOLE_LIMIT
        amount = value if is_short else format_value(value)
        seconds = recorded_at if timestamp is None else _unix_seconds(timestamp, recorded_at)
        extras = "" if payload is None else _format_payload(payload, keys)
        text = (
            f"{head}{in_quotes}{before_customer}{_quote_customer(customer)}{before_value}"
            f'{amount}"{extras}}},"timestamp":"{format_timestamp(seconds)}"}}'
        )
        return _new_event((identifier, text.encode(), seconds, recorded_at))


def format_timestamp(unix_seconds: float) -> str:
    """Return *unix_seconds* as RFC 3339 in UTC with milliseconds, `2024-06-01T12:15:00.000Z`.

    Later digits are cut, not rounded: an event of the last instant of a billing period stays in it.

    Raises:
        InvalidEventError: Not a moment between 1970 and 9999.
    """
    if not 0 <= unix_seconds < _YEAR_9999_END:
        raise _invalid("timestamp", unix_seconds, _CLOCK_RULE)
    # By way of microseconds, the resolution of a float of today: 0.123 s is stored as 0.12299990…
    return _format_millisecond(round(unix_seconds * 1_000_000) // 1000)


def describe(event: object) -> dict[str, Any]:
    """Return a JSON-safe picture of a raw event for the dead letters, valid or not.

    Never raises, whatever the objects in the event do when they are printed. Each field is cut to
    200 characters, so this is for people to read and not what is sent.
    """
    if not is_a(event, tuple) or tuple.__len__(event) != len(RecordedEvent._fields):
        return {"event": printable(event)}
    values = tuple.__iter__(event)
    return {
        field: printable(_plain(value))
        for field, value in zip(RecordedEvent._fields, values, strict=True)
    }


def _plain(value: object) -> object:
    # As it would have been sent, for who mends what was wrong and records it again.
    if not is_a(value, dict):
        return plain(value)
    pairs = islice(dict.items(value), PAYLOAD_KEYS_MAX)
    return {key: _plain_label(label) for key, label in pairs}


def _plain_label(label: object) -> object:
    try:
        return label_text(label, "")
    except InvalidEventError:
        return label


def _invalid(field: str, value: object, rule: str) -> InvalidEventError:
    return InvalidEventError(field, safe_repr(value), rule)


def name_text(field: str, value: object) -> str:
    """Return the text of a name, unchecked.

    Raises:
        InvalidEventError: It is no str and no UUID.
    """
    text = text_of(value)
    if text is None:
        raise _invalid(field, value, NAME_RULE)
    return text


def _quote_name(field: str, text: str) -> str:
    if not is_name(text):
        raise _invalid(field, text, f"{NAME_RULE}; {name_fault(text)}")
    return _quote(text)


_quote_customer: Callable[[str], str] = lru_cache(maxsize=4096)(partial(_quote_name, "customer_id"))
_quote_payload_key: Callable[[str], str] = lru_cache(maxsize=256)(
    partial(_quote_name, "payload key")
)


def _build_frame(
    default_keys: PayloadKeys, keys_by_event: Mapping[str, PayloadKeys], name: str
) -> _Frame:
    quoted_name = _quote_name("event_name", name)
    keys = keys_by_event.get(name, default_keys)
    return _Frame(
        f'{{"event_name":{quoted_name},"identifier":"',
        f'","payload":{{{_quote(keys.customer_key)}:',
        f',{_quote(keys.value_key)}:"',
        keys,
    )


def _unix_seconds(timestamp: object, recorded_at: float) -> float:
    moment = timestamp_seconds(timestamp)
    earliest = recorded_at - TIMESTAMP_PAST_SECONDS_MAX
    # Comparing is safe for huge ints, and false for NaN and infinities.
    if not earliest <= moment <= recorded_at + TIMESTAMP_FUTURE_SECONDS_MAX:
        raise _invalid("timestamp", timestamp, _TIMESTAMP_RANGE_RULE)
    return float(moment)


def timestamp_seconds(timestamp: object) -> float:
    """Return the unix seconds of *timestamp*, whenever that is.

    Raises:
        InvalidEventError: It is no moment.
    """
    if is_a(timestamp, float):
        return float.__float__(timestamp)
    if is_a(timestamp, datetime):
        return _read_datetime(timestamp)
    whole = as_whole(timestamp)
    if whole is None:
        raise _invalid("timestamp", timestamp, _TIMESTAMP_TYPE_RULE)
    return whole


def _read_datetime(timestamp: datetime) -> float:
    try:
        seconds = None if timestamp.utcoffset() is None else timestamp.timestamp()
    except Exception:  # noqa: BLE001  a tzinfo is code of the application
        seconds = None
    if seconds is None:
        raise _invalid("timestamp", timestamp, _TIMESTAMP_TYPE_RULE)
    return seconds


@lru_cache(maxsize=256)
def _format_millisecond(unix_milliseconds: int) -> str:
    seconds, milliseconds = divmod(unix_milliseconds, 1000)
    return f"{_format_second(seconds)}{milliseconds:03d}Z"


@lru_cache(maxsize=128)
def _format_second(unix_seconds: int) -> str:
    year, month, day, hour, minute, second = time.gmtime(unix_seconds)[:6]
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}."


def _format_payload(payload: object, keys: PayloadKeys) -> str:
    parts: list[str] = []
    for key, value in _payload_items(payload):
        # No UUID here: as text it might be a key that is there already.
        if not is_a(key, str):
            raise _invalid("payload key", key, NAME_RULE)
        name = str.__str__(key)
        if name in keys:
            raise _invalid("payload key", name, _RESERVED_KEY_RULE)
        parts.append(f",{_quote_payload_key(name)}:{_quote(label_text(value, name))}")
    return "".join(parts)


def _payload_items(payload: object) -> Iterable[tuple[object, object]]:
    try:
        if not isinstance(payload, Mapping):
            raise TypeError  # noqa: TRY301  one answer to all that is no mapping
        pairs = [(key, value) for key, value in islice(payload.items(), PAYLOAD_KEYS_MAX + 1)]
    except (Exception, SystemExit):  # noqa: BLE001  a mapping may be code of the application
        raise _invalid("payload", payload, _PAYLOAD_TYPE_RULE) from None
    if len(pairs) > PAYLOAD_KEYS_MAX:
        raise _invalid("payload", payload, _PAYLOAD_SIZE_RULE)
    return pairs
