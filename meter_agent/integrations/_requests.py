"""Which requests are billed, the same for every framework."""

from __future__ import annotations

from typing import Any

from meter_agent._choice import bill_chosen, chosen
from meter_agent._default import record

__all__ = ["bill_request"]

_FIRST_STATUS_NOT_BILLED = 400


def bill_request(request: Any, status: int, event_name: str, customer: Any, value: Any) -> None:
    """Bill *request*, answered with *status*, unless it failed or *customer* answers None."""
    if status >= _FIRST_STATUS_NOT_BILLED:
        return
    whose = chosen(customer, request)
    if whose is not None:
        bill_chosen(record, event_name, whose, chosen(value, request))
