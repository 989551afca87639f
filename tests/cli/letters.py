"""Files of dead letters for tests, as an agent writes them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from meter_agent._dead_letters import DeadLetter, DeadLetterReason, letter_of
from meter_agent._event import EventEncoder, describe, format_timestamp

DAY = 86_400.0


def write(path: Path, *letters: DeadLetter) -> Path:
    """Append *letters* to a file."""
    with path.open("a") as file:
        file.writelines(letter.to_json() + "\n" for letter in letters)
    return path


def letter(
    identifier: str = "event-1",
    value: Any = 1,
    *,
    reason: str = "rejected",
    age_seconds: float = 60.0,
    attempted_seconds_ago: float | None = 30.0,
    name: str = "tokens",
    payload: dict[str, str] | None = None,
) -> DeadLetter:
    """The letter of an event that had its wire form."""
    now = time.time()
    at = now - age_seconds
    event = EventEncoder().encode((at, name, "cus_1", value, at, identifier, payload), "")
    return letter_of(
        event,
        DeadLetterReason(reason),
        message="HTTP 400 from meter-events.stripe.com (no_meter): No meter has this event name",
        attempted_at=None if attempted_seconds_ago is None else now - attempted_seconds_ago,
        settled_at=now,
        code="no_meter",
        request_id="req_1",
    )


def invalid() -> DeadLetter:
    """The letter of an event that breaks a rule."""
    now = time.time()
    return DeadLetter(
        event=describe((now, "tokens", "cus_1", "twelve", None, None, None)),
        reason="invalid",
        message="value='twelve' is invalid: must be a number",
        code=None,
        request_id=None,
        recorded_at=format_timestamp(now),
        attempted_at=None,
        settled_at=format_timestamp(now),
    )
