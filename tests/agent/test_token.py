"""Sessions that end, lie or are refused: no stampede, no hot loop, no event dropped."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import requests

from meter_agent import Config, MeterAgent, MeterAgentError
from meter_agent._agent import build
from meter_agent.sandbox import Sandbox, SandboxAdapter
from meter_agent.sandbox._reply import Reply
from tests.conftest import FAST
from tests.virtual import HastyRuntime

SESSION_PATH = "/v2/billing/meter_event_session"


@pytest.fixture
def hasty() -> HastyRuntime:
    return HastyRuntime()


@pytest.fixture
def agents() -> Iterator[list[MeterAgent]]:
    made: list[MeterAgent] = []
    yield made
    for agent in made:
        agent.close(0)


def sessions_asked(sandbox: Sandbox) -> list[float]:
    return [log.at for log in sandbox.requests if log.path == SESSION_PATH]


class Meeting(SandboxAdapter):
    """Lets the first four batches pass only together, so that all carry the same token.

    The renewal behind them is answered when the other three senders wait for it, or have not come
    to wait for it within five seconds.
    """

    def __init__(self, sandbox: Sandbox, agents: list[MeterAgent]) -> None:
        super().__init__(sandbox)
        self._agents = agents
        self._together = threading.Barrier(4, action=sandbox.revoke_sessions)
        self._batches = [1, 2, 3, 4]
        self._met = False

    def send(self, request: requests.PreparedRequest, *args: Any, **settings: Any) -> Any:
        if request.path_url != SESSION_PATH and self._batches:
            self._batches.pop()
            self._together.wait(20)
        elif not self._batches:
            self._wait_for_the_others()
        return super().send(request, *args, **settings)

    def _wait_for_the_others(self) -> None:
        condition: Any = self._agents[0]._pipeline._shared["sessions"]._changed
        deadline = time.monotonic() + 5
        while not self._met and time.monotonic() < deadline:
            self._met = len(condition._waiters) == 3


@pytest.mark.parametrize("expired_status", [400, 401])
def test_four_senders_and_one_revocation_make_one_renewal_and_no_wait(
    agents: list[MeterAgent], expired_status: Literal[400, 401]
) -> None:
    sandbox = Sandbox(expired_status=expired_status)
    adapter = Meeting(sandbox, agents)
    settings = FAST | {
        "max_in_flight": 4,
        "retry_base_seconds": 3600.0,
        "retry_max_seconds": 3600.0,
        "flush_interval_seconds": 3600.0,
    }
    agent = build(Config(**settings), open_adapter=lambda: adapter)
    agents.append(agent)
    for _ in range(400):
        agent.record("tokens", "cus_1")
    assert agent.flush(20)
    stats = agent.stats()
    assert [log.authorization_kind for log in sandbox.requests].count("expired_session") == 4
    assert len(sessions_asked(sandbox)) == 2
    assert (stats.sessions, stats.delivered) == (2, 400)
    assert sandbox.totals()["accepted"] == 400


class Lying(Sandbox):
    """Opens sessions that work, and says about their dates what it likes."""

    def __init__(self, created: object, expires_at: object, **options: Any) -> None:
        super().__init__(**options)
        self._dates = {"created": created, "expires_at": expires_at}

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        reply = super().handle(method, path, headers, body)
        if path != SESSION_PATH:
            return reply
        document = json.loads(reply.body) | self._dates
        return replace(reply, body=json.dumps(document).encode())


NOON, QUARTER_PAST = "2024-06-01T12:00:00.000Z", "2024-06-01T12:15:00.000Z"
DATES = [
    ("expired long ago", NOON, QUARTER_PAST),
    ("no life at all", NOON, NOON),
    ("expired before it began", QUARTER_PAST, NOON),
    ("unix seconds", 1717243200, 1717244100),
    ("words", "yesterday", "tomorrow"),
    ("nothing", None, None),
    ("lists", [], {}),
    ("with and without a zone", NOON, "2024-06-01T12:15:00"),
    ("milliseconds", NOON, "2024-06-01T12:00:00.001Z"),
    ("the end of the calendar", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"),
]


@pytest.mark.parametrize("dates", [row[1:] for row in DATES], ids=[row[0] for row in DATES])
def test_whatever_the_dates_of_a_session_are_there_is_no_hot_loop(
    agents: list[MeterAgent], hasty: HastyRuntime, dates: tuple[object, object]
) -> None:
    sandbox = Lying(*dates, time=hasty.time, session_seconds=1e9)
    agent = build(Config(**FAST), runtime=hasty, open_adapter=lambda: SandboxAdapter(sandbox))
    agents.append(agent)
    for _ in range(100):
        agent.record("tokens", "cus_1")
        assert agent.flush()
        hasty.advance(0.1)
    stats = agent.stats()
    assert (stats.delivered, stats.requests, stats.last_error) == (100, 100, None)
    # Ten seconds and a little: a life of a millisecond counts as 1.25 s, of which 75 % are used.
    asked = sessions_asked(sandbox)
    assert len(asked) <= 2 + (asked[-1] - asked[0] + 10) / 0.9375


def test_sessions_that_are_answered_already_expired_make_no_hot_loop_and_lose_nothing(
    agents: list[MeterAgent], hasty: HastyRuntime
) -> None:
    sandbox = Sandbox(time=hasty.time)
    began = hasty.monotonic()

    def on_error(_error: MeterAgentError) -> None:
        if hasty.monotonic() - began > 600:
            stuck.clear()

    stuck = [True]

    class Late(SandboxAdapter):
        """Every token is over when it arrives."""

        def send(self, request: requests.PreparedRequest, *args: Any, **settings: Any) -> Any:
            if request.path_url != SESSION_PATH and stuck:
                sandbox.revoke_sessions()
            return super().send(request, *args, **settings)

    settings = FAST | {"retry_base_seconds": 0.5, "retry_max_seconds": 30.0, "max_in_flight": 4}
    agent = build(
        Config(**settings), runtime=hasty, on_error=on_error, open_adapter=lambda: Late(sandbox)
    )
    agents.append(agent)
    for _ in range(1000):
        agent.record("tokens", "cus_1")
    assert agent.flush()
    stats = agent.stats()
    assert (stats.delivered, stats.dropped) == (1000, {})
    assert sandbox.totals()["accepted"] == 1000
    expired = [log for log in sandbox.requests if log.authorization_kind == "expired_session"]
    assert expired[-1].at - expired[0].at > 500
    # About 600 s at 15 s on average, and two requests each time.
    assert len(sandbox.requests) < 250


def test_a_wrong_key_is_asked_about_once_a_second_at_most_and_nothing_is_dropped(
    agents: list[MeterAgent],
    hasty: HastyRuntime,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sandbox = Sandbox(api_keys={"sk_test_right"}, time=hasty.time)
    key = tmp_path / "key"
    key.write_text("sk_test_wrong\n")
    began = hasty.monotonic()

    def on_error(_error: MeterAgentError) -> None:
        if hasty.monotonic() - began > 300:
            key.write_text("sk_test_right\n")

    settings = FAST | {
        "sandbox_url": None,
        "api_url": "http://127.0.0.1:1",
        "events_url": "http://127.0.0.1:1",
        "api_key_file": str(key),
        "max_in_flight": 8,
        # Even with a back-off as short as this.
        "retry_base_seconds": 0.01,
        "retry_max_seconds": 0.01,
    }
    agent = build(
        Config(**settings),
        runtime=hasty,
        on_error=on_error,
        open_adapter=lambda: SandboxAdapter(sandbox),
    )
    agents.append(agent)
    for _ in range(2000):
        agent.record("tokens", "cus_1")
    assert agent.flush()
    refused = [log.at for log in sandbox.requests if log.status == 401]
    assert refused[-1] - refused[0] > 250
    burst, later = refused[:8], refused[8:]
    assert len(later) > 100
    assert all(late - early >= 0.999 for early, late in pairwise([burst[-1], *later]))
    stats = agent.stats()
    assert (stats.delivered, stats.dropped, stats.dead_lettered) == (2000, {}, 0)
    assert sandbox.totals()["accepted"] == 2000
    lines = [line for line in caplog.records if "credentials_refused" in line.getMessage()]
    assert lines
    assert {line.levelno for line in lines} == {logging.ERROR}
    assert len(lines) <= 300 / 30 + 2
