"""An identifier that comes again: with the same event it is a retry, with another one a mistake."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from meter_agent import MeterAgent
from meter_agent._event import EventEncoder, RecordedEvent
from meter_agent._log import EventLog
from meter_agent._own_identifiers import IDENTIFIERS_MAX, OwnIdentifiers
from tests.conftest import MakeAgent
from tests.virtual import VirtualRuntime

NOW = 1_717_244_100.0
REUSED = "meter_agent.identifier_reused"


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [line for line in caplog.records if line.__dict__.get("error", "").startswith("another")]


@pytest.fixture
def noted(runtime: VirtualRuntime) -> OwnIdentifiers:
    return OwnIdentifiers(runtime, EventLog(runtime))


def note(noted: OwnIdentifiers, identifier: str | None = "req_77", **fields: Any) -> None:
    defaults: dict[str, Any] = {
        "recorded_at": NOW,
        "event_name": "in",
        "customer_id": "cus_1",
        "value": 100,
        "identifier": identifier,
    }
    event = RecordedEvent(**(defaults | fields))
    noted.note([(event, EventEncoder().encode(event, "minted"))])


@pytest.mark.parametrize(
    "other",
    [
        {"event_name": "out", "value": 10},
        {"customer_id": "cus_2"},
        {"value": 101},
        {"payload": {"model": "a"}},
        {"payload": {'x","timestamp":"y': "a"}},
    ],
    ids=str,
)
def test_the_same_identifier_with_another_event_is_a_warning(
    noted: OwnIdentifiers, caplog: pytest.LogCaptureFixture, other: dict[str, Any]
) -> None:
    note(noted)
    note(noted, **other)
    (line,) = warnings(caplog)
    assert (line.levelno, line.__dict__["identifier"]) == (logging.WARNING, "req_77")
    assert line.__dict__["event_name"] == other.get("event_name", "in")


def test_the_same_event_again_is_silent_also_later_and_in_other_words(
    noted: OwnIdentifiers, caplog: pytest.LogCaptureFixture
) -> None:
    note(noted)
    note(noted, recorded_at=NOW + 3600, value="100.0")
    note(noted, timestamp=NOW - 60)
    note(noted, identifier=None, value=7)
    note(noted, identifier=None, value=8)
    assert warnings(caplog) == []


def test_a_payload_in_another_order_is_the_same_event_and_with_its_values_swapped_another(
    noted: OwnIdentifiers, caplog: pytest.LogCaptureFixture
) -> None:
    note(noted, payload={"model": "a", "region": 'eu,"model":"b'})
    note(noted, payload={"region": 'eu,"model":"b', "model": "a"})
    assert warnings(caplog) == []
    note(noted, payload={"region": "a", "model": 'eu,"model":"b'})
    assert len(warnings(caplog)) == 1


def test_two_timestamps_that_were_given_are_two_events(
    noted: OwnIdentifiers, caplog: pytest.LogCaptureFixture
) -> None:
    moment = datetime.fromtimestamp(NOW, UTC)
    note(noted, timestamp=moment)
    note(noted, timestamp=NOW)
    assert warnings(caplog) == []
    note(noted, timestamp=moment - timedelta(hours=1))
    assert len(warnings(caplog)) == 1


def test_there_is_one_warning_each_30_seconds_with_the_number_of_the_others(
    noted: OwnIdentifiers, runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    for value in range(1000):
        note(noted, f"req_{value % 10}", value=value)
    assert len(warnings(caplog)) == 1
    runtime.advance(31)
    note(noted, "req_0", value=-1)
    assert [line.__dict__.get("held_back") for line in warnings(caplog)] == [None, 989]


def test_the_last_ten_thousand_identifiers_are_remembered_and_no_more(
    noted: OwnIdentifiers, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(IDENTIFIERS_MAX + 1):
        note(noted, f"req_{number}")
    note(noted, "req_0", value=1)
    assert warnings(caplog) == []
    note(noted, "req_2", value=1)
    assert len(warnings(caplog)) == 1
    assert len(noted._seen) == IDENTIFIERS_MAX


@pytest.mark.parametrize("with_spool", [False, True])
def test_an_agent_warns_of_it_and_delivers_both(
    make_agent: MakeAgent, caplog: pytest.LogCaptureFixture, tmp_path: Any, with_spool: bool
) -> None:
    agent: MeterAgent = make_agent(spool_dir=tmp_path if with_spool else None)
    agent.record("in", "cus_1", 100, identifier="req_77")
    agent.record("out", "cus_1", 10, identifier="req_77")
    assert agent.flush(20)
    assert [line.__dict__["event_name"] for line in warnings(caplog)] == ["out"]
    assert agent.stats().delivered == 2
