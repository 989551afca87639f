"""A full buffer: who stays, what is counted, what is logged."""

from __future__ import annotations

import threading

import pytest

from meter_agent import (
    MeterAgentError,
)
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import Hold, MakeAgent


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
    drops = [r for r in caplog.records if r.getMessage() == "meter_agent.events_dropped"]
    assert len(drops) == 1
    assert 0 < drops[0].__dict__["events"] <= 100_000 - accepted


def test_drops_during_an_outage_are_logged_during_the_outage(
    make_agent: MakeAgent, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    failed, dropped, told = threading.Event(), threading.Event(), threading.Event()

    def on_error(_error: MeterAgentError) -> None:
        failed.set()
        if dropped.is_set():
            told.set()

    sandbox.add_fault(Fault("status", status=503))
    agent = make_agent(buffer_events=10, max_in_flight=1, on_error=on_error)
    agent.record("tokens", "cus_1")
    assert failed.wait(20)
    for _ in range(100):
        agent.record("tokens", "cus_1")
    dropped.set()
    assert told.wait(20)
    assert "meter_agent.events_dropped" in caplog.messages
