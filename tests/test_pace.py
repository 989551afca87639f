"""The pace: token bucket, shared back-off, one probe at a time, and an end to every wait."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from meter_agent._pace import Pace, Ticket
from meter_agent._runtime import SystemRuntime
from tests.virtual import VirtualRuntime


def make_pace(runtime: Any, **options: Any) -> Pace:
    options = {
        "events_per_second": 1000.0,
        "burst_events": 100,
        "base_seconds": 0.5,
        "max_seconds": 30.0,
    } | options
    return Pace(runtime, **options)


def admitted(pace: Pace, events: int = 100) -> Ticket:
    ticket = pace.admit(events)
    assert ticket is not None
    return ticket


def test_events_pass_at_the_rate_of_the_bucket(runtime: VirtualRuntime) -> None:
    pace = make_pace(runtime)
    began = runtime.monotonic()
    for _ in range(51):
        pace.succeeded(admitted(pace))
    assert runtime.monotonic() - began == pytest.approx(5.0)


def test_a_bucket_that_rested_gives_no_more_than_a_burst(runtime: VirtualRuntime) -> None:
    pace = make_pace(runtime, events_per_second=10_000.0)
    runtime.advance(3600)
    began = runtime.monotonic()
    for _ in range(20):
        pace.succeeded(admitted(pace))
    assert runtime.monotonic() - began == pytest.approx(0.1)


def test_a_rate_below_one_batch_a_second_still_lets_batches_through(
    runtime: VirtualRuntime,
) -> None:
    pace = make_pace(runtime, events_per_second=10.0)
    pace.succeeded(admitted(pace))
    pace.succeeded(admitted(pace))
    assert sum(runtime.waits) == pytest.approx(10.0)


def test_the_back_off_doubles_up_to_its_maximum(runtime: VirtualRuntime) -> None:
    runtime.draw = 1.0
    pace = make_pace(runtime, events_per_second=1e9)
    waits = []
    for _ in range(9):
        began = runtime.monotonic()
        pace.failed(admitted(pace))
        waits.append(round(runtime.monotonic() - began, 3))
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_the_back_off_is_drawn_evenly_from_zero_to_its_bound(runtime: VirtualRuntime) -> None:
    runtime.draw = 0.25
    pace = make_pace(runtime)
    pace.failed(admitted(pace))
    admitted(pace)
    assert sum(runtime.waits) == pytest.approx(0.125)


def test_success_ends_the_back_off(runtime: VirtualRuntime) -> None:
    pace = make_pace(runtime)
    for _ in range(5):
        pace.failed(admitted(pace, 1))
    assert pace.failing
    pace.succeeded(admitted(pace, 1))
    assert not pace.failing
    runtime.waits.clear()
    admitted(pace, 1)
    assert runtime.waits == []


def test_what_the_server_asks_for_is_a_floor(runtime: VirtualRuntime) -> None:
    runtime.draw = 0.0
    pace = make_pace(runtime)
    pace.failed(admitted(pace, 1), at_least_seconds=20.0)
    admitted(pace, 1)
    assert sum(runtime.waits) == pytest.approx(20.0)


def test_a_slow_failure_is_never_asked_again_within_a_second(runtime: VirtualRuntime) -> None:
    runtime.draw = 0.0
    pace = make_pace(runtime, max_seconds=0.01)
    for _ in range(5):
        pace.failed(admitted(pace, 1), slowly=True)
        pace.hurry()
    assert sum(runtime.waits) == pytest.approx(4.0)


def test_requests_that_were_under_way_when_the_first_failed_do_not_deepen_the_back_off(
    runtime: VirtualRuntime,
) -> None:
    runtime.draw = 1.0
    pace = make_pace(runtime, events_per_second=1e9)
    tickets = [admitted(pace, 1) for _ in range(8)]
    for ticket in tickets:
        pace.failed(ticket)
    admitted(pace, 1)
    assert sum(runtime.waits) == pytest.approx(0.5)


def test_while_failing_only_one_request_probes(runtime: VirtualRuntime) -> None:
    pace = make_pace(runtime)
    pace.failed(admitted(pace, 1))
    probe = admitted(pace, 1)
    waited: list[bool] = []

    def answer() -> None:
        waited.append(True)
        pace.succeeded(probe)

    runtime.on_wait = answer
    with pytest.raises(AssertionError, match="nobody is there"):
        pace.admit(1)
    assert waited


def test_a_probe_that_says_nothing_makes_room_for_the_next(runtime: VirtualRuntime) -> None:
    pace = make_pace(runtime)
    pace.failed(admitted(pace, 1))
    pace.returned(admitted(pace, 1))
    assert pace.failing
    assert admitted(pace, 1)


def test_who_has_failed_goes_behind_those_who_wait() -> None:
    pace = make_pace(SystemRuntime(), base_seconds=0.001, max_seconds=0.001)
    first = admitted(pace, 1)
    pace.failed(first)
    probe = admitted(pace, 1)
    order: list[str] = []
    queued = threading.Event()

    def wait_in_line() -> None:
        queued.set()
        ticket = admitted(pace, 1)
        order.append("waiting")
        pace.failed(ticket)

    thread = threading.Thread(target=wait_in_line, daemon=True)
    thread.start()
    queued.wait()
    while not pace._queue:
        pass
    pace.failed(probe)
    ticket = admitted(pace, 1)
    order.append("failed before")
    pace.succeeded(ticket)
    thread.join()
    assert order == ["waiting", "failed before"]


def test_closing_ends_a_wait_that_would_outlast_the_deadline(runtime: VirtualRuntime) -> None:
    pace = make_pace(runtime)
    pace.failed(admitted(pace, 1), at_least_seconds=60.0)
    pace.close(runtime.monotonic() + 2.0)
    began = runtime.monotonic()
    assert pace.admit(1) is None
    assert runtime.monotonic() == began


def test_closing_gives_one_more_try_without_delay(runtime: VirtualRuntime) -> None:
    runtime.draw = 1.0
    pace = make_pace(runtime)
    for _ in range(8):
        pace.failed(admitted(pace, 1))
    runtime.waits.clear()
    pace.close(runtime.monotonic() + 2.0)
    admitted(pace, 1)
    assert runtime.waits == []


def test_while_closing_the_back_off_leaves_room_for_several_tries(
    runtime: VirtualRuntime,
) -> None:
    runtime.draw = 1.0
    pace = make_pace(runtime)
    for _ in range(8):
        pace.failed(admitted(pace, 1))
    pace.close(runtime.monotonic() + 4.0)
    tries = 0
    while (ticket := pace.admit(1)) is not None:
        tries += 1
        pace.failed(ticket)
    assert 4 <= tries <= 40


def test_after_the_deadline_nothing_passes(runtime: VirtualRuntime) -> None:
    pace = make_pace(runtime)
    pace.close(runtime.monotonic())
    assert pace.admit(1) is None
    assert pace.seconds_left() == 0.0


def test_an_open_pace_sets_no_limit_to_a_request(runtime: VirtualRuntime) -> None:
    pace = make_pace(runtime)
    assert pace.seconds_left() is None
    with pace.until(runtime.monotonic() + 3.0):
        assert pace.seconds_left() == pytest.approx(3.0)
    with pace.until(None):
        assert pace.seconds_left() is None


def test_a_flush_shortens_a_long_back_off_to_its_first_step(runtime: VirtualRuntime) -> None:
    runtime.draw = 1.0
    pace = make_pace(runtime)
    for _ in range(8):
        pace.failed(admitted(pace, 1))
    runtime.waits.clear()
    pace.hurry()
    admitted(pace, 1)
    assert sum(runtime.waits) == pytest.approx(0.5)


def test_asking_often_does_not_send_often(runtime: VirtualRuntime) -> None:
    runtime.draw = 1.0
    pace = make_pace(runtime)
    sent = 0
    began = runtime.monotonic()
    while runtime.monotonic() - began < 25.0:  # as `flush(0.1)` in a loop does
        pace.hurry()
        with pace.until(runtime.monotonic() + 0.1):
            ticket = pace.admit(1)
        if ticket is None:
            runtime.advance(0.1)
        else:
            sent += 1
            pace.failed(ticket)
    assert sent <= 8


def test_a_flush_after_a_long_outage_still_brings_the_next_try_forward(
    runtime: VirtualRuntime,
) -> None:
    runtime.draw = 1.0
    pace = make_pace(runtime)
    for _ in range(8):
        pace.failed(admitted(pace, 1))
        pace.hurry()
    runtime.advance(30.0)
    pace.failed(admitted(pace, 1))
    runtime.waits.clear()
    pace.hurry()
    admitted(pace, 1)
    assert sum(runtime.waits) == pytest.approx(0.5)


def test_a_success_of_a_request_that_left_before_the_failure_does_not_end_the_back_off(
    runtime: VirtualRuntime,
) -> None:
    pace = make_pace(runtime)
    early, refused = admitted(pace, 1), admitted(pace, 1)
    pace.failed(refused, at_least_seconds=2.0)
    pace.succeeded(early)
    assert pace.failing
    admitted(pace, 1)
    assert sum(runtime.waits) == pytest.approx(2.0)


def test_a_probe_that_left_before_a_second_refusal_does_not_cancel_what_that_one_asked_for(
    runtime: VirtualRuntime,
) -> None:
    runtime.draw = 0.0
    pace = make_pace(runtime)
    first, second = admitted(pace, 1), admitted(pace, 1)
    pace.failed(first)
    probe = admitted(pace, 1)
    pace.failed(second, at_least_seconds=20.0)
    pace.succeeded(probe)
    began = runtime.monotonic()
    admitted(pace, 1)
    assert runtime.monotonic() - began == pytest.approx(20.0)


class CountingRuntime(SystemRuntime):
    """The real one, with conditions that count how often somebody goes to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeps = 0

    def condition(self) -> Any:
        condition: Any = super().condition()
        wait = condition.wait

        def count(timeout: float | None = None) -> Any:
            self.sleeps += 1
            return wait(timeout)

        condition.wait = count
        return condition


def test_who_leaves_the_line_calls_the_next_and_nobody_else() -> None:
    runtime = CountingRuntime()
    pace = make_pace(runtime, events_per_second=10_000.0, burst_events=100)
    admitted(pace, 1000)  # what the bucket holds at first

    def send() -> None:
        pace.succeeded(admitted(pace))

    line = [threading.Thread(target=send, daemon=True) for _ in range(20)]
    for thread in line:
        thread.start()
    for thread in line:
        thread.join(20)
    # Once until its turn comes, once for the bucket. All of them at each turn would be 200.
    assert runtime.sleeps <= 60


def test_the_probe_is_over_for_those_in_line_also_when_an_earlier_request_succeeds_meanwhile() -> (
    None
):
    pace = make_pace(SystemRuntime(), base_seconds=0.001, max_seconds=0.001)
    earlier, failing = admitted(pace, 1), admitted(pace, 1)
    pace.failed(failing)
    probe = admitted(pace, 1)
    passed = threading.Event()

    def wait_in_line() -> None:
        pace.succeeded(admitted(pace, 1))
        passed.set()

    thread = threading.Thread(target=wait_in_line, daemon=True)
    thread.start()
    while not pace._queue:
        pass
    with pace._changed:
        pass  # the one in line sleeps
    pace.succeeded(earlier)
    assert not passed.wait(0.05), "there is one probe at a time"
    pace.succeeded(probe)
    pace.returned(probe)
    assert passed.wait(20)
    thread.join(20)
