"""Clocks that are set between two lives: what may have been sent, and what surely was not."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest

from meter_agent import MeterAgent, Stats
from meter_agent._runtime import SystemRuntime
from meter_agent._steady_clock import SteadyClock
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import MakeAgent, wait_until
from tests.spool.spools import Spool, heir_of, left_by_a_dead_process, take
from tests.virtual import ShiftedRuntime, VirtualRuntime

HOUR = 3600.0
LOST_ANSWER, LOST_REQUEST = ("after", "before")


class Clocks(ShiftedRuntime):
    """The wall clock can be set; the monotonic one goes on."""

    def __init__(self, *, set_by: float = 0.0, ahead: float = 0.0) -> None:
        super().__init__()
        self._set_by = set_by
        self.advance(ahead)

    def time(self) -> float:
        return super().time() + self._set_by


def ended(stats: Stats) -> int:
    return stats.delivered + stats.uncertain + stats.dead_lettered


class Lives:
    """Agents on one spool, one after the other, and what has come of its two events."""

    def __init__(self, make_agent: MakeAgent, sandbox: Sandbox, spool: Path) -> None:
        self._make_agent = make_agent
        self._sandbox = sandbox
        self._spool = spool

    def begin(self, runtime: Clocks) -> MeterAgent:
        self.failed = threading.Event()
        return self._make_agent(
            runtime=runtime,
            spool_dir=self._spool,
            batch_size=1,
            max_in_flight=1,
            on_error=lambda _error: self.failed.set(),
        )

    def leave_two_events(self, when: Literal["before", "after"]) -> None:
        """One that Stripe may have, because the connection was cut, and one never attempted."""
        self._sandbox.add_fault(Fault("reset", when=when))
        agent = self.begin(Clocks())
        assert agent.record("tokens", "cus_1", 1, identifier="doubtful")
        assert self.failed.wait(20)
        # The one sender there is does not get as far as this one.
        assert agent.record("tokens", "cus_1", 1, identifier="never sent")
        assert agent.close(0).buffered == 2
        self._sandbox.clear_faults()

    def deliver(self, runtime: Clocks) -> None:
        agent = self.begin(runtime)
        # Not by `flush()`, which speaks of this life's own events.
        flusher = agent._pipeline._flusher
        assert flusher._wait_until(lambda: ended(agent.stats()) == 2, runtime.monotonic() + 20)
        final = agent.close(20)
        assert final.balanced
        assert (final.recovered, final.buffered, dict(final.dropped)) == (2, 0, {})

    @property
    def billed(self) -> Counter[str]:
        return Counter(row["identifier"] for row in self._sandbox.ledger())

    @property
    def letters(self) -> dict[str, str]:
        path = self._spool / "dead-letters.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        read: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return {letter["event"]["identifier"]: letter["reason"] for letter in read}

    def sent(self) -> list[str]:
        return [name for request in self._sandbox.requests for name in request.identifiers]


@pytest.fixture
def lives(make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path) -> Lives:
    return Lives(make_agent, sandbox, tmp_path / "spool")


CUTS = pytest.mark.parametrize("cut", [LOST_ANSWER, LOST_REQUEST])


@CUTS
@pytest.mark.parametrize("set_by", [0.0, -60.0, -2 * HOUR, 2 * HOUR])
def test_a_clock_that_is_set_within_the_window_neither_loses_nor_doubles(
    lives: Lives, cut: Literal["before", "after"], set_by: float
) -> None:
    lives.leave_two_events(cut)
    lives.deliver(Clocks(set_by=set_by))
    assert lives.billed.keys() | lives.letters.keys() == {"doubtful", "never sent"}
    assert set(lives.billed.values()) == {1}
    assert "never sent" in lives.billed
    assert set(lives.letters.values()) <= {"uncertain"}


@CUTS
@pytest.mark.parametrize("slept", [False, True], ids=["set ahead", "a day has gone by"])
def test_a_day_later_what_may_have_been_sent_is_uncertain_and_the_rest_goes_out(
    lives: Lives, sandbox: Sandbox, cut: Literal["before", "after"], slept: bool
) -> None:
    lives.leave_two_events(cut)
    before = lives.sent().count("doubtful")
    if slept:
        sandbox.advance(25 * HOUR)
        lives.deliver(Clocks(ahead=25 * HOUR))
    else:
        lives.deliver(Clocks(set_by=25 * HOUR))
    assert lives.letters == {"doubtful": "uncertain"}
    assert lives.sent().count("doubtful") == before
    assert lives.billed["never sent"] == 1
    assert lives.billed["doubtful"] == (cut == LOST_ANSWER)


@CUTS
def test_what_became_uncertain_under_a_wrong_clock_is_not_sent_when_the_clock_is_right_again(
    lives: Lives, sandbox: Sandbox, cut: Literal["before", "after"]
) -> None:
    lives.leave_two_events(cut)
    before = lives.sent().count("doubtful")
    sandbox.add_fault(Fault("status", status=429))
    wrong = lives.begin(Clocks(set_by=25 * HOUR))
    assert wait_until(wrong, lambda: wrong.stats().uncertain == 1)
    assert lives.failed.wait(20)
    assert wrong.close(0).buffered == 1
    sandbox.clear_faults()
    right = lives.begin(Clocks())
    assert wait_until(right, lambda: right.stats().delivered == 1)
    assert right.close(20).recovered == 1
    assert lives.letters == {"doubtful": "uncertain"}
    assert lives.sent().count("doubtful") == before
    assert lives.billed["never sent"] == 1


def test_what_was_never_sent_is_too_old_when_its_timestamp_is_and_a_letter_says_so(
    lives: Lives, sandbox: Sandbox
) -> None:
    lives.leave_two_events("before")
    sandbox.advance(36 * 24 * HOUR)
    lives.deliver(Clocks(ahead=36 * 24 * HOUR))
    assert lives.letters == {"doubtful": "uncertain", "never sent": "too_old"}
    assert not lives.billed


@pytest.mark.parametrize("set_back", [2 * HOUR, 25 * HOUR])
def test_what_was_sent_in_a_time_to_come_is_uncertain_since_nobody_knows_when_that_was(
    lives: Lives, sandbox: Sandbox, set_back: float
) -> None:
    # A machine that boots with a wrong clock, which is set right between two lives.
    sandbox.add_fault(Fault("reset", when="after"))
    agent = lives.begin(Clocks(set_by=set_back))
    agent.record("tokens", "cus_1", 1, identifier="doubtful", timestamp=time.time())
    assert lives.failed.wait(20)
    assert agent.close(0).buffered == 1
    sandbox.clear_faults()
    later = lives.begin(Clocks())
    assert wait_until(later, lambda: ended(later.stats()) == 1)
    assert later.close(20).uncertain == 1
    assert lives.billed == {"doubtful": 1}
    assert lives.letters == {"doubtful": "uncertain"}


def test_a_clock_that_was_corrected_by_seconds_makes_nothing_uncertain(
    lives: Lives, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("reset", when="before"))
    agent = lives.begin(Clocks(set_by=30.0))
    agent.record("tokens", "cus_1", 1, identifier="doubtful", timestamp=time.time())
    assert lives.failed.wait(20)
    assert agent.close(0).buffered == 1
    sandbox.clear_faults()
    later = lives.begin(Clocks())
    assert wait_until(later, lambda: ended(later.stats()) == 1)
    assert later.close(20).delivered == 1
    assert lives.billed == {"doubtful": 1}


@pytest.mark.parametrize("jump", [25 * HOUR, 36 * 24 * HOUR, -25 * HOUR])
def test_what_is_sent_while_the_wall_clock_is_wrong_for_a_moment_has_a_mark_of_the_right_time(
    tmp_path: Path, runtime: VirtualRuntime, jump: float
) -> None:
    spool = Spool(tmp_path, runtime)
    assert spool.record("tokens", "cus_1", 1)
    batch = take(spool.buffer)
    runtime.wall_clock.wall += jump
    assert spool.buffer.begin_attempt(batch, batch.open)
    runtime.wall_clock.wall -= jump
    spool.die()
    runtime.advance(100.0)
    batch = take(heir_of(tmp_path, runtime).buffer)
    ((wall, monotonic),) = batch.attempted.values()
    assert runtime.clock.time() - wall == runtime.monotonic() - monotonic == 100.0


@pytest.mark.parametrize("jump", [25 * HOUR, 36 * 24 * HOUR, -25 * HOUR])
def test_what_is_recovered_while_the_wall_clock_is_wrong_for_a_moment_is_no_older_than_it_is(
    tmp_path: Path, runtime: VirtualRuntime, jump: float
) -> None:
    heir = heir_of(tmp_path, runtime)
    spool = Spool(tmp_path, runtime)
    assert spool.record("tokens", "cus_1", 1)
    batch = take(spool.buffer)
    assert spool.buffer.begin_attempt(batch, batch.open)
    spool.die()
    runtime.advance(100.0)
    runtime.wall_clock.wall += jump
    heir.buffer.tend()
    batch = take(heir.buffer)
    ((_, monotonic),) = batch.attempted.values()
    assert runtime.monotonic() - monotonic == 100.0
    assert heir.buffer.clock.ahead() == pytest.approx(max(0.0, jump))


def test_a_claim_of_the_wall_clock_is_believed_when_it_has_kept_to_it_for_a_minute(
    runtime: VirtualRuntime,
) -> None:
    clock = SteadyClock(runtime)
    right = runtime.clock.time
    for seconds in (50.0, -50.0, 30.0):  # as clocks are corrected
        runtime.wall_clock.wall += seconds
        assert clock.time() == right()
    runtime.sleep_through(25 * HOUR)
    assert clock.time() == right()
    runtime.wall_clock.wall += 25 * HOUR
    for _ in range(6):
        assert clock.time() == right() - 25 * HOUR
        assert clock.ahead() == 25 * HOUR
        runtime.advance(10.0)
    assert (clock.time(), clock.ahead()) == (right(), 0.0)


def test_claims_that_contradict_each_other_are_never_believed(runtime: VirtualRuntime) -> None:
    clock = SteadyClock(runtime)
    for n in range(1, 100):
        runtime.advance(30.0)
        runtime.wall_clock.wall += HOUR
        assert clock.time() == runtime.clock.time() - n * HOUR


@pytest.mark.parametrize("age", [HOUR, 25 * HOUR], ids=["within the window", "a day later"])
def test_a_copy_of_a_segment_is_sent_while_stripe_knows_its_identifiers_and_uncertain_later(
    lives: Lives, sandbox: Sandbox, tmp_path: Path, age: float
) -> None:
    # A backup is made before anything is sent, and restored when all of it was delivered.
    spool, backup = tmp_path / "spool", tmp_path / "backup"
    left_by_a_dead_process(spool, SystemRuntime(), events=2)
    shutil.copytree(spool, backup)
    lives.deliver(Clocks())
    assert set(lives.billed.values()) == {1}
    shutil.copytree(backup, spool, dirs_exist_ok=True)
    sandbox.advance(age)
    clocks = Clocks(ahead=age)
    agent = lives.begin(clocks)
    flusher = agent._pipeline._flusher
    assert flusher._wait_until(lambda: ended(agent.stats()) == 2, clocks.monotonic() + 60)
    final = agent.close(20)
    late = age > 24 * HOUR
    assert (final.delivered, final.uncertain) == ((0, 2) if late else (2, 0))
    assert set(lives.billed.values()) == {1}


def test_a_segment_that_was_moved_on_its_file_system_is_no_copy(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    left_by_a_dead_process(tmp_path / "spool", runtime)
    (tmp_path / "spool").rename(tmp_path / "elsewhere")
    batch = take(heir_of(tmp_path / "elsewhere", runtime).buffer)
    assert (len(batch.open), batch.attempted) == (10, {})
