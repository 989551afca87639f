"""What goes wrong during the demo, and how often it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["FAULTS", "SESSION_SECONDS", "count_strikes"]

SESSION_SECONDS = 2.0
"""Short enough that several sessions run out during a replay; Stripe's last 15 minutes."""

FAULTS: tuple[Mapping[str, Any], ...] = (
    {"kind": "revoke", "probability": 0.05},
    {"kind": "reset", "when": "after", "probability": 0.1},
    {"kind": "status", "status": 503, "probability": 0.1},
    # One in 3 000 of all events, since every other one is of this meter. Only these carry an
    # identifier that is the same in each run, and the identifier is what poison is drawn from.
    {"kind": "poison", "match": {"event_name": "input_tokens"}, "every": 1500},
)


def count_strikes(requests: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return by name how often each kind of fault struck, from the sandbox's list of requests."""
    stream = [each for each in requests if each["path"].endswith("_stream")]
    return {
        "lost_acknowledgements": sum(each["cut"] == "after" for each in stream),
        "answered_503": sum(each["status"] == 503 for each in stream),
        "expired_sessions": sum(
            each["status"] == 401 and each["authorization_kind"] == "expired_session"
            for each in stream
        ),
        "refused_for_poison": sum(each["status"] == 400 for each in stream),
    }
