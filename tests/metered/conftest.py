from __future__ import annotations

from collections.abc import Iterator

import pytest

from meter_agent.testing import RecordedEvents, recording


@pytest.fixture
def events() -> Iterator[RecordedEvents]:
    with recording() as recorded:
        yield recorded


def billed(events: RecordedEvents) -> list[tuple[str, str, str]]:
    return [(event.event_name, event.customer, str(event.value)) for event in events.all]
