"""`record()` with the setting *strict*: a wrong event is the caller's to hear of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meter_agent._event import EventEncoder, Label, Name
from meter_agent._event_buffer import Record
from meter_agent._runtime import Runtime

__all__ = ["check_first"]


def check_first(record: Record, encoder: EventEncoder, runtime: Runtime) -> Record:
    """Return a *record* that raises `InvalidEventError` before it takes a wrong event."""

    def record_strictly(
        event_name: Name,
        customer_id: Name,
        value: Any = 1,
        *,
        timestamp: Any = None,
        identifier: Name | None = None,
        payload: Mapping[str, Label] | None = None,
    ) -> bool:
        encoder.check(
            (
                runtime.clock.time(),
                event_name,
                customer_id,
                value,
                timestamp,
                identifier,
                payload,
            )
        )
        return record(
            event_name,
            customer_id,
            value,
            timestamp=timestamp,
            identifier=identifier,
            payload=payload,
        )

    record_strictly.__qualname__ = "record"
    return record_strictly
