"""The rules for one meter event, and nothing that outlives it.

These rules are written from Stripe's contract and share no code with the agent's own validation: a
slip there must not be forgiven here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from meter_agent.sandbox._errors import StripeError

__all__ = ["MAX_EVENTS", "OTHERS", "MeterEvent", "PayloadKeys", "check_event", "events_of"]

MAX_EVENTS = 100
_MAX_CHARS = 100
_MAX_DIGITS = 15
_PAST_SECONDS = 35 * 86_400
_FUTURE_SECONDS = 5 * 60

_FIELDS = frozenset({"event_name", "payload", "identifier", "timestamp"})
_VALUE = re.compile(r"-?[0-9]+(\.[0-9]{1,12})?")
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})"
)


@dataclass(frozen=True, slots=True)
class PayloadKeys:
    """Where a meter finds customer and value in the payload."""

    customer_key: str = "stripe_customer_id"
    value_key: str = "value"


OTHERS = ""
"""In a mapping by event name: every other one. No event has this name."""


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """An event that keeps every rule."""

    event_name: str
    customer: str
    value: str
    payload: dict[str, str]
    identifier: str | None
    timestamp: str | None
    keys: PayloadKeys


def events_of(document: Any) -> list[Any]:
    """The `events` list of a stream request's body; its elements are not looked at."""
    if not isinstance(document, dict):
        raise StripeError.invalid("The request body must be a JSON object.")
    for name in document:
        if name != "events":
            raise StripeError.invalid(f"Unknown field: {name[:_MAX_CHARS]}.")
    events = document.get("events")
    if not isinstance(events, list):
        raise StripeError.invalid("events: must be a list.")
    if not 1 <= len(events) <= MAX_EVENTS:
        raise StripeError.invalid(f"events: must hold 1 to {MAX_EVENTS} events, not {len(events)}.")
    return events


def check_event(raw: Any, where: str, now: float, keys: Mapping[str, PayloadKeys]) -> MeterEvent:
    """The event in *raw*.

    Args:
        raw: One element of `events`, or the body that holds a single event.
        where: What it is called in the message.
        now: Unix seconds; the middle of the timestamp window.
        keys: Payload keys by event name, where they are not the usual ones; those of `OTHERS` are
            for names that are not there.

    Raises:
        StripeError: The first rule that it breaks. Rules that Stripe's stream checks only later
            carry an `async_code`.
    """
    if not isinstance(raw, dict):
        raise StripeError.invalid(f"{where}: must be an object.")
    if not raw.keys() <= _FIELDS:
        unknown = min(raw.keys() - _FIELDS)
        raise StripeError.invalid(f"{where}.{unknown[:_MAX_CHARS]}: unknown field.")
    event_name = _short_text(raw.get("event_name"), f"{where}.event_name")
    identifier = raw.get("identifier")
    if identifier is not None:
        _short_text(identifier, f"{where}.identifier")
    payload = _payload(raw.get("payload"), f"{where}.payload")
    timestamp = raw.get("timestamp")
    if timestamp is not None:
        _check_timestamp(timestamp, now, f"{where}.timestamp")
    meter = keys.get(event_name) or keys.get(OTHERS, _USUAL_KEYS)
    customer = _customer(payload, meter.customer_key, f"{where}.payload")
    value = _value(payload, meter.value_key, f"{where}.payload")
    return MeterEvent(event_name, customer, value, payload, identifier, timestamp, meter)


_USUAL_KEYS = PayloadKeys()


def _short_text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise StripeError.invalid(f"{where}: must be a string.")
    if not 1 <= len(text) <= _MAX_CHARS:
        raise StripeError.invalid(
            f"{where}: must have 1 to {_MAX_CHARS} characters, not {len(text)}."
        )
    return text


def _payload(payload: Any, where: str) -> dict[str, str]:
    if not isinstance(payload, dict):
        raise StripeError.invalid(f"{where}: must be an object.")
    if not payload:
        raise StripeError.invalid(f"{where}: must not be empty.")
    for key, value in payload.items():
        if not isinstance(value, str):
            raise StripeError.invalid(f"{where}.{key[:_MAX_CHARS]}: must be a string.")
    return payload


def _check_timestamp(timestamp: Any, now: float, where: str) -> None:
    if not isinstance(timestamp, str) or _TIMESTAMP.fullmatch(timestamp) is None:
        raise StripeError.invalid(f"{where}: must be an RFC 3339 date-time string.")
    try:
        age = now - datetime.fromisoformat(timestamp).timestamp()
    except ValueError as error:
        raise StripeError.invalid(f"{where}: no such moment ({error}).") from None
    if age > _PAST_SECONDS:
        raise StripeError(
            400,
            "timestamp_too_far_in_past",
            f"{where}: the event timestamp cannot be more than 35 days in past. Expected a "
            f"timestamp greater than or equal to {int(now) - _PAST_SECONDS}.",
            async_code="timestamp_too_far_in_past",
        )
    if -age > _FUTURE_SECONDS:
        raise StripeError(
            400,
            "timestamp_in_future",
            f"{where}: the event timestamp cannot be more than 5 minutes in the future.",
            async_code="timestamp_in_future",
        )


def _customer(payload: dict[str, str], key: str, where: str) -> str:
    customer = payload.get(key)
    if not customer:
        raise StripeError(
            400,
            "payload_no_customer_defined",
            f"{where}.{key}: the payload must have a reference to the customer.",
            async_code="meter_event_no_customer_defined",
        )
    return customer


def _value(payload: dict[str, str], key: str, where: str) -> str:
    value = payload.get(key)
    if value is None:
        raise StripeError(
            400,
            "payload_no_value_defined",
            f"{where}.{key}: the payload must have a value.",
            async_code="meter_event_value_not_found",
        )
    if _VALUE.fullmatch(value) is None:
        raise StripeError(
            400,
            "payload_invalid_value",
            f"{where}.{key}: the value must be a plain number with at most 12 decimals.",
            async_code="meter_event_invalid_value",
        )
    if len(value.replace(".", "").lstrip("-0")) > _MAX_DIGITS:
        raise StripeError(
            400,
            "payload_invalid_value",
            f"{where}.{key}: the value has more than {_MAX_DIGITS} significant digits.",
            async_code="meter_event_value_too_many_digits",
        )
    return value
