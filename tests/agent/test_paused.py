"""Events that may not be sent for a while: they keep no sender, no `flush()` and no `close()`."""

from __future__ import annotations

from pathlib import Path

import pytest

from meter_agent import DeadLetter, MeterAgent
from meter_agent._agent import build
from meter_agent._config import Config
from meter_agent.sandbox import Fault, Sandbox, SandboxAdapter
from tests.conftest import FAST, MakeAgent, billed, wait_until
from tests.virtual import ShiftedRuntime

REFUSED = Fault("poison", match={"event_name": "ghost"}, code="no_meter")


# One sender: those of others that are on their way when a pause begins are refused as well.


def record_refused(agent: MeterAgent, count: int = 100) -> None:
    for _ in range(count):
        assert agent.record("ghost", "cus_1")
    assert wait_until(agent, lambda: agent.stats().dead_lettered == 20)
    assert wait_until(agent, lambda: "events_paused" in agent.health().problems)


def test_a_refused_kind_of_event_is_paused_and_others_are_delivered(
    make_agent: MakeAgent, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.add_fault(REFUSED)
    agent = make_agent(max_in_flight=1)
    record_refused(agent)
    health = agent.health()
    assert "every event 'ghost' is refused" in health.problems["events_paused"]
    assert "no_meter" in health.problems["events_paused"]
    assert health.alive
    assert health.ready
    assert "meter_agent.events_paused" in caplog.text
    requests = len(sandbox.requests)
    for _ in range(500):
        agent.record("tokens", "cus_1")
    for _ in range(500):
        agent.record("ghost", "cus_1")
    assert wait_until(agent, lambda: agent.stats().delivered == 500)
    assert len(sandbox.requests) <= requests + 20
    assert agent.stats().dead_lettered == 20
    assert agent.stats().balanced
    agent.close(0)


def test_flush_says_that_paused_events_are_not_settled_and_close_does_not_wait_for_them(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    sandbox.add_fault(REFUSED)
    agent = make_agent(max_in_flight=1)
    record_refused(agent)
    assert not agent.flush(0.1)
    runtime = agent._runtime
    began = runtime.monotonic()
    final = agent.close(60)
    assert runtime.monotonic() - began < 10.0
    assert final.balanced
    assert final.dead_lettered == 20
    # Those that were in a refused batch may have been taken in with it; the others never left.
    assert final.uncertain + final.dropped.get("shutdown", 0) == 80


def test_paused_events_stay_in_the_spool_and_are_sent_by_the_next_process(
    make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_fault(REFUSED)
    spool = str(tmp_path / "spool")
    agent = make_agent(spool_dir=spool, max_in_flight=1)
    record_refused(agent)
    final = agent.close(60)
    assert (final.dead_lettered, final.buffered, final.uncertain) == (20, 80, 0)
    sandbox.clear_faults()
    later = make_agent(spool_dir=spool)
    assert wait_until(later, lambda: later.stats().delivered == 80)
    assert billed(sandbox) == {"ghost": {"cus_1": "80"}}
    assert later.close(20).recovered == 80


def test_after_the_pause_they_are_sent_when_the_first_of_them_is_accepted() -> None:
    sandbox, runtime = Sandbox(), ShiftedRuntime()
    sandbox.add_fault(REFUSED)
    letters: list[DeadLetter] = []
    agent = build(
        Config(**FAST | {"max_in_flight": 1}),
        runtime=runtime,
        open_adapter=lambda: SandboxAdapter(sandbox),
        on_dead_letter=letters.append,
    )
    record_refused(agent, 300)
    sandbox.clear_faults()
    runtime.advance(30.0)
    agent.record("tokens", "cus_1")  # wakes the sender, whose clock did not move by itself
    assert agent.flush(60)
    assert agent.health().problems == {}
    assert agent.close(20).delivered == 281
    assert len(letters) == 20


def test_an_event_that_a_gateway_finds_too_large_keeps_nobody(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("gateway", form="nginx-413", times=1))
    agent = make_agent(max_in_flight=1)
    agent.record("tokens", "cus_1", 5)
    assert wait_until(agent, lambda: agent.stats().requests == 1)
    agent.record("tokens", "cus_1", 7)
    assert wait_until(agent, lambda: agent.stats().delivered == 1)
    assert agent.stats().in_flight == 1
    final = agent.close(60)
    assert final.dropped == {"shutdown": 1}
    assert billed(sandbox) == {"tokens": {"cus_1": "7"}}
