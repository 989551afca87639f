"""A meter event as a user writes it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4


def document(event: tuple[str, str, int]) -> dict[str, Any]:
    """Return what Stripe's stream takes."""
    name, customer, value = event
    return {
        "event_name": name,
        "identifier": str(uuid4()),
        "payload": {"stripe_customer_id": customer, "value": str(value)},
        "timestamp": datetime.now(UTC).isoformat(),
    }
