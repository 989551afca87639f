"""Events for tests, and objects that no application should record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest

from meter_agent._event import EventEncoder, RecordedEvent
from meter_agent.exceptions import InvalidEventError

NOW = 1_717_244_100.0  # 2024-06-01T12:15:00Z

HUGE_TEXT = "1" * 10_000_000

HUGE_INT = 10**1_000_000


class Exploding:
    """Raises whatever is done with it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __bool__ = __len__ = __hash__ = __eq__ = __iter__ = __repr__  # type: ignore[assignment]


def made(thing: object) -> object:
    """Explode only inside of the test: pytest looks at parameters with `isinstance`."""
    return Exploding() if thing is Exploding else thing


class ExplodingZone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        raise RuntimeError

    dst = tzname = utcoffset  # type: ignore[assignment]


class ExplodingMapping(Mapping[str, str]):
    def __getitem__(self, key: str) -> str:
        raise RuntimeError

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError


class StrSubclass(str):
    __slots__ = ()

    def __getitem__(self, _: Any) -> Any:
        raise RuntimeError

    __len__ = __str__ = __repr__ = __getitem__  # type: ignore[assignment]


def recorded(**fields: Any) -> RecordedEvent:
    defaults: dict[str, Any] = {
        "recorded_at": NOW,
        "event_name": "api_requests",
        "customer_id": "cus_123",
    }
    return RecordedEvent(**(defaults | fields))


def encode(**fields: Any) -> dict[str, Any]:
    document = json.loads(EventEncoder().encode(recorded(**fields), "uuid-1").body)
    assert isinstance(document, dict)
    return document


def refusal(**fields: Any) -> InvalidEventError:
    event = recorded(**fields)
    with pytest.raises(InvalidEventError) as checked:
        EventEncoder().check(event)
    with pytest.raises(InvalidEventError) as encoded:
        EventEncoder().encode(event, "uuid-1")
    assert checked.value.args == encoded.value.args
    return encoded.value
