"""Which timestamps may be billed, and the text that is sent for them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_agent._event import (
    TIMESTAMP_FUTURE_SECONDS_MAX,
    TIMESTAMP_PAST_SECONDS_MAX,
    format_timestamp,
)
from meter_agent.exceptions import InvalidEventError
from tests.event.events import HUGE_INT, NOW, Exploding, ExplodingZone, encode, made, refusal


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (NOW, "2024-06-01T12:15:00.000Z"),
        (NOW + 0.123, "2024-06-01T12:15:00.123Z"),
        (NOW + 0.9996, "2024-06-01T12:15:00.999Z"),
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
    ],
)
def test_a_timestamp_is_rfc_3339_in_utc_with_milliseconds(seconds: float, text: str) -> None:
    assert format_timestamp(seconds) == text


@given(st.integers(0, 4_000_000_000_000))
def test_every_millisecond_survives_the_way_through_a_float(milliseconds: int) -> None:
    moment = datetime.fromisoformat(format_timestamp(milliseconds / 1000))
    assert moment == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, 1e12, 253_402_300_799.5])
def test_a_clock_outside_of_all_calendars_is_refused_by_name(seconds: float) -> None:
    with pytest.raises(InvalidEventError, match=r"^timestamp=.*Check the clock"):
        format_timestamp(seconds)


def test_the_default_timestamp_is_the_moment_of_recording() -> None:
    assert encode(recorded_at=NOW + 0.5)["timestamp"] == "2024-06-01T12:15:00.500Z"


@pytest.mark.parametrize(
    "timestamp",
    [
        int(NOW) - 90,
        NOW - 90.0,
        np.int64(NOW - 90),
        np.float64(NOW - 90),
        datetime(2024, 6, 1, 12, 13, 30, tzinfo=UTC),
        datetime(2024, 6, 1, 14, 13, 30, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_a_timestamp_may_be_seconds_or_an_aware_datetime(timestamp: object) -> None:
    assert encode(timestamp=timestamp)["timestamp"] == "2024-06-01T12:13:30.000Z"


@pytest.mark.parametrize(
    "timestamp", [NOW - TIMESTAMP_PAST_SECONDS_MAX, NOW + TIMESTAMP_FUTURE_SECONDS_MAX]
)
def test_a_timestamp_on_the_edge_of_what_stripe_takes_is_valid(timestamp: float) -> None:
    encode(timestamp=timestamp)


@pytest.mark.parametrize(
    "timestamp",
    [
        *(NOW - TIMESTAMP_PAST_SECONDS_MAX - 1, NOW + TIMESTAMP_FUTURE_SECONDS_MAX + 1, NOW * 1000),
        *(0, HUGE_INT, -HUGE_INT, math.nan, math.inf, datetime.max.replace(tzinfo=UTC)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_timestamp_that_stripe_would_not_bill_is_refused(timestamp: object) -> None:
    error = refusal(timestamp=timestamp)
    assert error.field == "timestamp"
    assert "within 35 days before and 5 minutes after" in error.rule


@pytest.mark.parametrize(
    "timestamp",
    [
        *(datetime(2024, 6, 1, 12), datetime(2024, 6, 1, tzinfo=ExplodingZone())),
        *(True, "2024-06-01T12:15:00Z", Decimal(1), Exploding),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_timestamp_without_a_clear_moment_is_refused(timestamp: object) -> None:
    error = refusal(timestamp=made(timestamp))
    assert error.field == "timestamp"
    assert error.rule.startswith("must be a datetime with a time zone")
