"""When batches leave, how many at a time, and when nobody wakes up."""

from __future__ import annotations

import threading
import time

import pytest
from freezegun import freeze_time

from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import Hold, MakeAgent, billed, wait_until


def test_usage_is_billed(make_agent: MakeAgent, sandbox: Sandbox) -> None:
    agent = make_agent()
    assert agent.record("tokens", "cus_1", 3)
    assert agent.record("tokens", "cus_1", "0.5")
    assert agent.record("requests", "cus_2")
    assert agent.flush(20)
    assert billed(sandbox) == {"tokens": {"cus_1": "3.5"}, "requests": {"cus_2": "1"}}
    stats = agent.close()
    assert (stats.recorded, stats.delivered, stats.in_flight) == (3, 3, 0)
    assert stats.balanced


def test_ten_thousand_events_take_fewer_than_140_requests(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent(flush_interval_seconds=1.0)
    for n in range(10_000):
        agent.record("tokens", f"cus_{n % 9}", n)
    assert agent.close(30).delivered == 10_000
    assert len(sandbox.requests) < 140
    assert max(request.events for request in sandbox.requests) == 100


def test_a_batch_leaves_when_it_is_full_without_waiting_for_the_interval(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent(flush_interval_seconds=60.0)
    for _ in range(100):
        agent.record("tokens", "cus_1")
    assert wait_until(agent, lambda: agent.stats().delivered == 100)


def test_a_batch_leaves_when_its_oldest_event_is_as_old_as_the_interval(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent(flush_interval_seconds=0.2)
    began = time.time()
    agent.record("tokens", "cus_1")
    assert wait_until(agent, lambda: agent.stats().delivered == 1)
    assert sandbox.requests[-1].at - began >= 0.19


def test_a_small_batch_size_is_kept(make_agent: MakeAgent, sandbox: Sandbox) -> None:
    agent = make_agent(batch_size=7)
    for _ in range(50):
        agent.record("tokens", "cus_1")
    agent.close(20)
    assert max(request.events for request in sandbox.requests) == 7


def test_events_per_second_are_held_to_their_limit(make_agent: MakeAgent, sandbox: Sandbox) -> None:
    agent = make_agent(max_events_per_second=1000)
    began = time.time()
    for _ in range(600):
        agent.record("tokens", "cus_1")
    assert agent.close(20).delivered == 600
    # From the beginning, not from the first arrival, which a busy machine may delay: one batch may
    # leave at once, the five after it a tenth of a second apart.
    assert sandbox.requests[-1].at - began >= 0.5


def test_a_slow_server_is_met_by_several_requests_in_flight(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    together = threading.Barrier(4)
    sandbox.add_fault(Fault("delay", seconds=1.0))
    agent = make_agent(
        max_in_flight=4, flush_interval_seconds=60.0, sleep=lambda _seconds: together.wait(20)
    )
    for _ in range(800):
        agent.record("tokens", "cus_1")
    assert agent.close(30).delivered == 800


def test_one_request_at_a_time_when_only_one_is_allowed(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    inside: list[int] = []
    most: list[int] = []

    def sleep(_seconds: float) -> None:
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    sandbox.add_fault(Fault("delay", seconds=1.0))
    agent = make_agent(max_in_flight=1, sleep=sleep)
    for _ in range(2000):
        agent.record("tokens", "cus_1")
    assert agent.close(20).delivered == 2000
    assert max(most) == 1


def test_an_idle_agent_makes_no_wake_ups(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    doorbell = agent._pipeline._flusher._doorbell
    waits: list[float | None] = []
    asleep = threading.Event()
    wait = doorbell.wait

    class Listening:
        def ring(self) -> None:
            doorbell.ring()

        def wait(self, timeout: float | None) -> bool:
            waits.append(timeout)
            if timeout is None:
                asleep.set()
            return wait(timeout)

    agent._pipeline._flusher._doorbell = Listening()
    doorbell.ring()
    assert asleep.wait(20)
    assert waits[-1] is None


@pytest.mark.parametrize("setting", ["batch_size", "buffer_events"])
def test_a_batch_of_one_leaves_the_watcher_asleep_while_another_sender_is_busy(
    make_agent: MakeAgent, sandbox: Sandbox, hold: Hold, setting: str
) -> None:
    sandbox.add_fault(Fault("delay", seconds=1.0, times=1))
    agent = make_agent(sleep=hold, overflow="block", **{setting: 1})
    agent.record("tokens", "cus_1")
    hold.wait()
    assert agent.record("tokens", "cus_2")
    assert wait_until(agent, lambda: agent.stats().delivered == 1)
    hold.release()
    assert agent.close(20).delivered == 2


def test_a_small_batch_that_hangs_does_not_hold_up_the_events_behind_it(
    make_agent: MakeAgent, sandbox: Sandbox, hold: Hold
) -> None:
    sandbox.add_fault(Fault("delay", seconds=1.0, times=1))
    agent = make_agent(sleep=hold)
    agent.record("tokens", "cus_1")
    hold.wait()
    for _ in range(100):
        agent.record("tokens", "cus_2")
    assert wait_until(agent, lambda: agent.stats().delivered == 100)
    hold.release()
    assert agent.close(20).delivered == 101


def test_a_wall_clock_that_is_set_back_does_not_keep_events_from_leaving(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent(flush_interval_seconds=0.1)
    with freeze_time("2026-11-21T12:00:00Z", auto_tick_seconds=0) as clock:
        sandbox.advance(time.time() - sandbox.now())
        agent.record("tokens", "cus_1")
        clock.tick(-30)
        assert wait_until(agent, lambda: agent.stats().delivered == 1)
