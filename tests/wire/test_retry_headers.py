"""`Retry-After` and `Stripe-Should-Retry` over the wire; who waits here has clocks that jump."""

from __future__ import annotations

import threading
from email.utils import formatdate

import pytest

from meter_agent import DeadLetter
from meter_agent.sandbox import Sandbox
from tests.conftest import wait_until
from tests.virtual import HastyRuntime, ShiftedRuntime
from tests.wire.front import Exchange, Front, assert_billed_once, real_agent, record

SLACK_SECONDS = 20.0
"""What a busy machine may add: the limit between the forms, which are further apart."""

FORMS = [
    ("45", 45),
    ("0", 0),
    ("45.5", 45.5),
    ("-45", 0),
    ("86400", 300),
    ("1e400", 300),
    ("nan", 0),
    ("-inf", 0),
    ("soon", 0),
    ("45, 45", 0),
    ("9" * 5000, 300),
]
DATES = [("in a minute", 60, 59), ("a minute ago", -60, 0), ("next week", 600_000, 300)]


def gap_seconds(sandbox: Sandbox, runtime: HastyRuntime, header: str, status: int = 429) -> float:
    """Deliver over one refusal with *header*; return how long the second request was held back."""
    arrived: list[float] = []

    def refuse(exchange: Exchange) -> None:
        arrived.append(runtime.monotonic())
        exchange.say(status, b"", header)

    def serve(exchange: Exchange) -> None:
        arrived.append(runtime.monotonic())
        exchange.serve()

    front = Front(sandbox, refuse, serve)
    with front.open() as server:
        agent = real_agent(server.url, runtime=runtime)
        record(agent, 1)
        assert agent.flush()
        final = agent.close()
    assert_billed_once(sandbox, final, 1)
    first, second = arrived
    return second - first


@pytest.fixture
def hasty(sandbox: Sandbox) -> HastyRuntime:
    runtime = HastyRuntime()
    sandbox.__init__(time=runtime.time)  # type: ignore[misc]  # the same books, on these clocks
    return runtime


@pytest.mark.parametrize(("text", "floor"), FORMS, ids=[text[:8] for text, _ in FORMS])
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_a_floor_within_bounds_and_nonsense_is_none(
    sandbox: Sandbox, hasty: HastyRuntime, text: str, floor: float, status: int
) -> None:
    gap = gap_seconds(sandbox, hasty, f"Retry-After: {text}", status)
    assert floor <= gap < floor + SLACK_SECONDS


@pytest.mark.parametrize(
    ("ahead", "floor"), [row[1:] for row in DATES], ids=[row[0] for row in DATES]
)
def test_retry_after_may_be_a_date(
    sandbox: Sandbox, hasty: HastyRuntime, ahead: float, floor: float
) -> None:
    date = formatdate(hasty.time() + ahead, usegmt=True)
    gap = gap_seconds(sandbox, hasty, f"Retry-After: {date}")
    # A date has whole seconds, and the request leaves a moment after it was written here.
    assert floor - SLACK_SECONDS / 2 <= gap < floor + SLACK_SECONDS


def test_should_retry_false_makes_a_failure_slow_and_gives_no_event_up(
    sandbox: Sandbox, hasty: HastyRuntime
) -> None:
    assert gap_seconds(sandbox, hasty, "Stripe-Should-Retry: false", 503) >= 1.0


def test_without_that_header_the_same_failure_is_asked_again_soon(
    sandbox: Sandbox, hasty: HastyRuntime
) -> None:
    assert gap_seconds(sandbox, hasty, "X-Nothing: 1", 503) < 1.0


def test_should_retry_true_on_a_refusal_sends_the_same_bytes_again_and_splits_nothing(
    sandbox: Sandbox,
) -> None:
    letters: list[DeadLetter] = []

    def refuse(exchange: Exchange) -> None:
        body = b'{"error":{"code":"lock_timeout","message":"try again"}}'
        exchange.say(400, body, "Stripe-Should-Retry: true")

    front = Front(sandbox, refuse, refuse)
    with front.open() as server:
        agent = real_agent(server.url, on_dead_letter=letters.append, flush_interval_seconds=60.0)
        record(agent, 10)
        assert agent.flush(20)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 10)
    assert len({exchange.body for exchange in front.batches}) == 1
    assert (final.splits, final.requests, letters) == (0, 3, [])


def test_a_success_that_was_on_its_way_does_not_cancel_what_a_429_asked_for(
    sandbox: Sandbox,
) -> None:
    runtime = ShiftedRuntime()
    both_are_here, told = threading.Barrier(2), threading.Event()

    def refuse(exchange: Exchange) -> None:
        both_are_here.wait(20)
        exchange.say(429, b"", "Retry-After: 200")

    def serve_later(exchange: Exchange) -> None:
        both_are_here.wait(20)
        assert told.wait(20)
        exchange.serve()

    front = Front(sandbox, refuse, serve_later)
    with front.open() as server:
        agent = real_agent(
            server.url,
            runtime=runtime,
            max_in_flight=2,
            on_error=lambda _error: told.set(),
        )
        record(agent, 200)
        pipeline = agent._pipeline
        assert wait_until(agent, lambda: agent.stats().delivered == 100)
        for n in range(200):
            agent.record("tokens", "cus_1", 201 + n)
        assert not agent.flush(0.3)
        assert len(front.batches) == 2
        assert pipeline.health().problems.keys() == {"requests_fail"}
        runtime.advance(200.0)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 400)
