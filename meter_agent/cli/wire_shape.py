"""Events of exports: those that were invalid have the same fields as the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meter_agent._event import PayloadKeys, format_timestamp

__all__ = ["Keys", "wire_shape"]

Keys = tuple[PayloadKeys, Mapping[str, PayloadKeys]]


def wire_shape(event: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Return *event* with the fields of a meter event of Stripe, which `import` reads.

    Args:
        event: In its wire form or, where it was invalid, as it was recorded. What is wrong with it
            stays wrong.
        keys: The payload keys of every event, and those of single event names.
    """
    if "customer_id" not in event:
        return dict(event)
    name, payload = event.get("event_name"), event.get("payload")
    usual, by_event = keys
    own = by_event.get(name, usual) if isinstance(name, str) else usual
    if not isinstance(payload, Mapping):
        payload = {} if payload is None else {"payload": payload}
    at = event.get("timestamp")
    return {
        "event_name": name,
        "identifier": event.get("identifier"),
        "timestamp": _rfc_3339(event.get("recorded_at") if at is None else at),
        "payload": {
            own.customer_key: event["customer_id"],
            own.value_key: event.get("value"),
            **payload,
        },
    }


def _rfc_3339(at: object) -> object:
    if isinstance(at, bool) or not isinstance(at, int | float):
        return at
    try:
        return format_timestamp(at)
    except (ValueError, OverflowError):
        return at
