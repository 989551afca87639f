"""How long requests take, and how many are on the wire."""

from __future__ import annotations

import pytest

from meter_agent import RequestDurations
from meter_agent._ledger import Stopwatch
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import Hold, MakeAgent
from tests.test_delivery import World
from tests.virtual import VirtualRuntime


def filled(durations: RequestDurations) -> dict[float, int]:
    """Return the buckets in which something is, by their upper bound."""
    bounds = (*durations.bounds_seconds, float("inf"))
    return {bound: n for bound, n in zip(bounds, durations.counts, strict=True) if n}


def test_each_request_is_counted_once_by_its_duration_whether_it_failed_or_not() -> None:
    world = World()
    world.sandbox.add_fault(Fault("delay", seconds=0.3, times=2))
    world.sandbox.add_fault(Fault("status", status=503, times=1))
    world.sandbox.add_fault(Fault("delay", on="session", seconds=4.0))
    world.deliver()
    world.deliver()
    durations = world.traffic.durations.read()
    assert filled(durations) == {0.5: 2, 0.01: 1}
    assert durations.count == world.traffic.requests.read() == 3
    assert durations.total_seconds == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("seconds", "bound"), [(0.0, 0.01), (0.01, 0.01), (0.011, 0.025), (30.0, 30.0), (31.0, None)]
)
def test_a_duration_counts_under_the_lowest_bound_that_holds_it(
    runtime: VirtualRuntime, seconds: float, bound: float | None
) -> None:
    stopwatch = Stopwatch(runtime)
    stopwatch.add(seconds)
    assert filled(stopwatch.read()) == {float("inf") if bound is None else bound: 1}


def test_a_request_is_in_flight_until_its_answer_was_read(
    make_agent: MakeAgent, sandbox: Sandbox, hold: Hold
) -> None:
    sandbox.add_fault(Fault("delay", seconds=1, times=1))
    agent = make_agent(sleep=hold)
    agent.record("tokens", "cus_1")
    hold.wait()
    stats = agent.stats()
    assert (stats.requests, stats.in_flight_requests, stats.request_durations.count) == (1, 1, 0)
    hold.release()
    assert agent.flush(20)
    stats = agent.stats()
    assert (stats.requests, stats.in_flight_requests, stats.request_durations.count) == (1, 0, 1)


def test_a_request_whose_sender_dies_in_it_is_in_flight_no_more(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("delay", seconds=1, times=1))

    def die(_seconds: float) -> None:
        raise SystemExit

    agent = make_agent(sleep=die)
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    stats = agent.stats()
    assert (stats.requests, stats.in_flight_requests, stats.delivered) == (2, 0, 1)


def test_statistics_hold_no_lock_of_events_while_they_wait_for_that_of_requests(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent()
    held: list[bool] = []
    read = Stopwatch.read

    def watched(stopwatch: Stopwatch) -> RequestDurations:
        held.append(agent._pipeline._buffer._lock._is_owned())
        return read(stopwatch)

    monkeypatch.setattr(Stopwatch, "read", watched)
    agent.stats()
    assert held == [False]
