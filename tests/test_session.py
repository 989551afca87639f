"""The session cache: one valid token, renewed early, one renewal at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from meter_agent._answer import Answer, Grant, Verdict
from meter_agent._log import EventLog
from meter_agent._runtime import SystemRuntime
from meter_agent._session import SessionCache
from tests.virtual import VirtualRuntime

FAILURE = Answer(Verdict.RETRY, message="no session today")


class Opener:
    """Grants numbered tokens, or whatever *outcome* says."""

    def __init__(self, lifetime_seconds: float | None = 900.0) -> None:
        self.lifetime_seconds = lifetime_seconds
        self.count = 0
        self.failing = False

    def __call__(self) -> Grant | Answer:
        self.count += 1
        return FAILURE if self.failing else Grant(f"token_{self.count}", self.lifetime_seconds)


@pytest.fixture
def cache(runtime: VirtualRuntime) -> SessionCache:
    return SessionCache(runtime, log=EventLog(runtime))


def test_a_session_serves_until_four_fifths_of_its_life(
    runtime: VirtualRuntime, cache: SessionCache
) -> None:
    opener = Opener(900.0)
    runtime.draw = 0.5
    assert cache.token(opener) == "token_1"
    runtime.advance(719.9)
    assert cache.token(opener) == "token_1"
    runtime.advance(0.2)
    assert cache.token(opener) == "token_2"


@pytest.mark.parametrize(("draw", "share"), [(0.0, 0.75), (1.0, 0.85)])
def test_the_moment_of_renewal_is_spread_so_that_a_fleet_does_not_renew_at_once(
    runtime: VirtualRuntime, cache: SessionCache, draw: float, share: float
) -> None:
    opener = Opener(100.0)
    runtime.draw = draw
    cache.token(opener)
    runtime.advance(share * 100 - 0.01)
    assert cache.token(opener) == "token_1"
    runtime.advance(0.02)
    assert cache.token(opener) == "token_2"


def test_the_age_counts_from_before_the_request(
    runtime: VirtualRuntime, cache: SessionCache
) -> None:
    opener = Opener(100.0)

    def slowly() -> Grant | Answer:
        runtime.advance(79.0)
        return opener()

    cache.token(slowly)
    runtime.advance(2.0)
    assert cache.token(opener) == "token_2"


@pytest.mark.parametrize("clock", ["wall", "monotonic"])
def test_either_clock_alone_can_tell_that_a_session_has_aged(
    runtime: VirtualRuntime, cache: SessionCache, clock: str
) -> None:
    opener = Opener(900.0)
    cache.token(opener)
    if clock == "wall":
        runtime.wall_clock.wall += 3600  # the laptop slept, and its monotonic clock with it
    else:
        runtime.uptime += 3600
        runtime.wall_clock.wall -= 86_400  # somebody set the clock back
    assert cache.token(opener) == "token_2"


def test_a_clock_set_back_does_not_make_a_session_immortal_or_stale(
    runtime: VirtualRuntime, cache: SessionCache
) -> None:
    opener = Opener(900.0)
    cache.token(opener)
    runtime.wall_clock.wall -= 86_400
    assert cache.token(opener) == "token_1"


def test_a_dropped_token_is_renewed_and_only_if_it_is_the_current_one(
    cache: SessionCache,
) -> None:
    opener = Opener()
    cache.token(opener)
    cache.drop("token_0")
    assert cache.token(opener) == "token_1"
    cache.drop("token_1")
    assert cache.token(opener) == "token_2"


def test_a_failure_is_told_and_the_next_caller_tries_again(cache: SessionCache) -> None:
    opener = Opener()
    opener.failing = True
    assert cache.token(opener) is FAILURE
    opener.failing = False
    assert cache.token(opener) == "token_2"


def test_a_failed_early_renewal_keeps_the_token_that_still_serves(
    runtime: VirtualRuntime, cache: SessionCache
) -> None:
    opener = Opener(100.0)
    cache.token(opener)
    opener.failing = True
    runtime.advance(90.0)
    assert cache.token(opener) == "token_1"
    assert cache.token(opener) == "token_1"
    assert opener.count == 2
    runtime.advance(5.0)
    cache.token(opener)
    assert opener.count == 3
    runtime.advance(6.0)
    assert cache.token(opener) is FAILURE


@pytest.mark.parametrize("lifetime_seconds", [None, 0.0, -900.0])
def test_a_session_with_senseless_dates_is_used_for_a_minute(
    runtime: VirtualRuntime, cache: SessionCache, lifetime_seconds: float | None
) -> None:
    opener = Opener(lifetime_seconds)
    for _ in range(100):
        assert cache.token(opener) == "token_1"
    runtime.advance(61.0)
    assert cache.token(opener) == "token_2"


def test_sessions_that_live_for_milliseconds_are_asked_for_once_a_second_at_most(
    runtime: VirtualRuntime, cache: SessionCache
) -> None:
    opener = Opener(0.001)
    for _ in range(1000):
        cache.token(opener)
        runtime.advance(0.01)
    assert opener.count <= 11


class Gate:
    """Holds the one who opens a session until the others have been seen to wait."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.calls = 0

    def __call__(self, outcome: Grant | Answer) -> Callable[[], Grant | Answer]:
        def open_session() -> Grant | Answer:
            self.calls += 1
            self.entered.set()
            assert self.release.wait(20)
            return outcome

        return open_session


@pytest.mark.parametrize("outcome", [Grant("token", 900.0), FAILURE])
def test_senders_that_ask_together_share_one_renewal_and_its_outcome(
    outcome: Grant | Answer,
) -> None:
    runtime = SystemRuntime()
    cache = SessionCache(runtime, log=EventLog(runtime))
    gate = Gate()
    results: list[str | Answer] = []
    threads = [
        threading.Thread(target=lambda: results.append(cache.token(gate(outcome))))
        for _ in range(4)
    ]
    threads[0].start()
    assert gate.entered.wait(20)
    for thread in threads[1:]:
        thread.start()
    waiters = cache._changed._waiters  # type: ignore[attr-defined]
    while len(waiters) < 3:
        pass
    gate.release.set()
    for thread in threads:
        thread.join()
    assert gate.calls == 1
    expected = "token" if isinstance(outcome, Grant) else FAILURE
    assert results == [expected] * 4


def test_during_an_early_renewal_the_others_go_on_with_the_old_token() -> None:
    runtime = VirtualRuntime()
    cache = SessionCache(runtime, log=EventLog(runtime))
    cache.token(Opener(100.0))
    runtime.advance(90.0)
    seen: list[str | Answer] = []

    def renew() -> Grant | Answer:
        seen.append(cache.token(Opener()))
        return Grant("new", 900.0)

    assert cache.token(renew) == "new"
    assert seen == ["token_1"]


def test_an_opening_that_dies_leaves_nobody_waiting(cache: SessionCache) -> None:
    def die() -> Grant | Answer:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.token(die)
    assert cache.token(Opener()) == "token_1"


def test_a_grant_does_not_show_its_token() -> None:
    assert "secret" not in repr(Grant("secret", 900.0))
