"""A full buffer: who stays, what is counted, what is logged."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from meter_agent import MeterAgent, MeterAgentError
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import Hold, MakeAgent
from tests.log_lines import events_of, lines_of
from tests.virtual import ShiftedRuntime


def test_the_buffer_bounds_what_waits_and_the_drops_are_logged_in_one_line(
    make_agent: MakeAgent, sandbox: Sandbox, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.add_fault(Fault("delay", seconds=1.0, times=1))
    agent = make_agent(sleep=hold, buffer_events=100, max_in_flight=1)
    accepted = sum(agent.record("tokens", "cus_1") for _ in range(100_000))
    stats = agent.stats()
    assert stats.buffered <= 100
    assert stats.dropped == {"overflow": 100_000 - accepted}
    hold.release()
    final = agent.close(20)
    assert final.delivered == accepted
    drops = lines_of(caplog, "meter_agent.events_dropped")
    assert len(drops) == 1
    assert 0 < drops[0].__dict__["events"] <= 100_000 - accepted


def test_drops_during_an_outage_are_logged_during_the_outage(
    make_agent: MakeAgent, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    failed, dropped, told = threading.Event(), threading.Event(), threading.Event()

    def on_error(_error: MeterAgentError) -> None:
        if dropped.is_set():
            told.set()
        failed.set()

    sandbox.add_fault(Fault("status", status=503))
    agent = make_agent(buffer_events=10, max_in_flight=1, on_error=on_error)
    agent.record("tokens", "cus_1")
    assert failed.wait(20)
    for _ in range(100):
        agent.record("tokens", "cus_1")
    dropped.set()
    assert told.wait(20)
    assert "meter_agent.events_dropped" in events_of(caplog)


@pytest.fixture
def stalled(make_agent: MakeAgent, sandbox: Sandbox, hold: Hold) -> Callable[..., MeterAgent]:
    """Make an agent with ten places whose only sender is held by the server with event 0."""

    def make(**settings: Any) -> MeterAgent:
        sandbox.add_fault(Fault("delay", seconds=1.0, times=1))
        agent = make_agent(sleep=hold, buffer_events=10, max_in_flight=1, **settings)
        agent.record("tokens", "cus_1", 0)
        hold.wait()
        return agent

    return make


def values(sandbox: Sandbox) -> list[int]:
    return sorted(int(entry["value"]) for entry in sandbox.ledger())


SURVIVORS = {
    "drop_newest": [*range(11)],
    "drop_oldest": [0, *range(16, 26)],
    "block": [*range(11)],
}


@pytest.mark.parametrize("overflow", SURVIVORS)
def test_who_survives_a_full_buffer_is_exact_and_told_in_one_line(
    stalled: Callable[..., MeterAgent],
    sandbox: Sandbox,
    hold: Hold,
    caplog: pytest.LogCaptureFixture,
    overflow: str,
) -> None:
    agent = stalled(overflow=overflow, block_timeout_seconds=0.01)
    held = [agent.record("tokens", "cus_1", n) for n in range(1, 26)]
    assert sum(held) == (25 if overflow == "drop_oldest" else 10)
    stats = agent.stats()
    assert (stats.recorded, stats.buffered, stats.in_flight) == (26, 10, 1)
    assert stats.dropped == {"overflow": 15}
    assert stats.balanced
    hold.release()
    final = agent.close(20)
    assert values(sandbox) == SURVIVORS[overflow]
    assert (final.delivered, final.dropped) == (11, {"overflow": 15})
    assert final.balanced
    (line,) = drops(caplog)
    assert line.__dict__["events"] == 15


def test_who_blocks_gets_the_places_that_the_server_frees_and_nothing_is_dropped(
    stalled: Callable[..., MeterAgent], sandbox: Sandbox, hold: Hold
) -> None:
    agent = stalled(overflow="block", block_timeout_seconds=30.0)
    held: list[bool] = []
    producer = threading.Thread(
        target=lambda: held.extend(agent.record("tokens", "cus_1", n) for n in range(1, 31))
    )
    producer.start()
    assert wait_for(lambda: agent.stats().buffered == 10)
    hold.release()
    producer.join(30)
    final = agent.close(20)
    assert held == [True] * 30
    assert values(sandbox) == [*range(31)]
    assert (final.delivered, final.dropped) == (31, {})


def test_drops_are_logged_once_in_each_interval_and_the_lines_add_up(
    make_agent: MakeAgent, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = ShiftedRuntime()
    agent = make_agent(
        runtime=runtime, buffer_events=10, flush_interval_seconds=3600.0, max_in_flight=1
    )

    def overflow() -> None:
        for _ in range(3):
            for _ in range(25):
                agent.record("tokens", "cus_1")
            assert agent.flush(20)

    overflow()
    assert len(drops(caplog)) == 1
    runtime.advance(31)
    sandbox.advance(31)
    overflow()
    told = [line.__dict__["events"] for line in drops(caplog)]
    assert len(told) == 2
    runtime.advance(31)
    sandbox.advance(31)
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    told = [line.__dict__["events"] for line in drops(caplog)]
    assert sum(told) == agent.stats().dropped["overflow"]
    assert len(told) == 3


def drops(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return lines_of(caplog, "meter_agent.events_dropped")


def wait_for(done: Callable[[], bool]) -> bool:
    while not done():
        pass  # the 60 s of the test itself are the limit
    return True
