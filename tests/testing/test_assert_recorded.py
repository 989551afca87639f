"""The list that tells what was recorded instead."""

from __future__ import annotations

from decimal import Decimal

import pytest

import meter_agent
from meter_agent import InvalidEventError
from meter_agent.testing import recording


def failure(*recorded: tuple[str, str, object], **expected: object) -> list[str]:
    with recording() as events:
        for name, customer, value in recorded:
            meter_agent.record(name, customer, value)  # type: ignore[arg-type]
        with pytest.raises(AssertionError) as caught:
            events.assert_recorded(**expected)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


def test_the_nearest_event_comes_first_with_what_is_different_about_it() -> None:
    recorded = [("calls", "cus_2", 1), ("tokens", "cus_12", "2.5"), ("tokens", "cus_1", 4)]
    assert failure(*recorded, event_name="tokens", customer="cus_1", value=5) == [
        "expected an event with event_name='tokens', customer='cus_1', value=5; found 0",
        "recorded 3 events, the nearest first:",
        "  'tokens'  'cus_1'   4    other value",
        "  'tokens'  'cus_12'  2.5  other customer, value",
        "  'calls'   'cus_2'   1    other event_name, customer, value",
    ]


def test_when_nothing_was_recorded_it_says_so() -> None:
    assert failure(event_name="tokens") == [
        "expected an event with event_name='tokens'; found 0",
        "nothing was recorded",
    ]


@pytest.mark.parametrize(
    ("times", "expected"), [(0, "no event"), (1, "exactly 1 event"), (3, "exactly 3 events")]
)
def test_a_wrong_number_of_fitting_events_fails(times: int, expected: str) -> None:
    lines = failure(
        ("tokens", "cus_1", 1), ("tokens", "cus_1", 2), event_name="tokens", times=times
    )
    assert lines[0] == f"expected {expected} with event_name='tokens'; found 2"
    assert lines[2:] == ["  'tokens'  'cus_1'  1  fits", "  'tokens'  'cus_1'  2  fits"]


def test_a_long_list_is_cut() -> None:
    lines = failure(*[("calls", "cus_1", n) for n in range(25)], event_name="tokens")
    assert len(lines) == 23
    assert lines[-1] == "  and 5 more"


def test_what_fits_is_returned() -> None:
    with recording() as events:
        for value in (1, 2, 2):
            meter_agent.record("tokens", "cus_1", value)
    assert len(events.assert_recorded("tokens")) == 3
    assert len(events.assert_recorded("tokens", value=2, times=2)) == 2
    assert events.assert_recorded("tokens", customer="cus_2", times=0) == []


@pytest.mark.parametrize("value", [0.1, "0.10", Decimal("0.1")])
def test_values_are_compared_as_they_are_billed(value: float | str | Decimal) -> None:
    with recording() as events:
        meter_agent.record("tokens", "cus_1", 0.1)
    events.assert_recorded("tokens", value=value)


def test_a_value_that_no_event_may_have_is_a_mistake_of_the_test() -> None:
    with recording() as events, pytest.raises(InvalidEventError, match="value='much'"):
        events.assert_recorded("tokens", value="much")
