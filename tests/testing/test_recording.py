"""Agents that keep in memory what they would send."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time
from prometheus_client import CollectorRegistry

import meter_agent
from meter_agent import ConfigError, Health, InvalidEventError, MeterAgent, Stats
from meter_agent._agent import adopt, room
from meter_agent.integrations import prometheus
from meter_agent.testing import RefusedError, recording
from tests.conftest import sender_threads


def test_events_are_there_as_soon_as_they_are_recorded_and_no_thread_is_needed() -> None:
    with recording() as events:
        assert meter_agent.record("tokens", "cus_1", 5)
        (event,) = events.all
        assert (event.event_name, event.customer) == ("tokens", "cus_1")
        assert event.value == 5
        assert meter_agent.flush(0)
        assert sender_threads() == []


def test_sums_are_exact_and_asked_by_event_and_customer() -> None:
    with recording() as events:
        for customer, value in (("cus_1", 0.1), ("cus_1", "0.2"), ("cus_2", Decimal("1e3"))):
            meter_agent.record("tokens", customer, value)
        meter_agent.record("calls", "cus_1")
    assert events.total("tokens") == Decimal("1000.3")
    assert events.total("tokens", customer="cus_1") == Decimal("0.3")
    assert events.total("nothing") == 0
    assert {name: len(each) for name, each in events.by_customer().items()} == {
        "cus_1": 3,
        "cus_2": 1,
    }


def test_an_event_is_shown_as_stripe_gets_it() -> None:
    used_at = datetime.now(UTC).replace(microsecond=123_456)
    with recording(payload_keys={"tokens": {"value_key": "count"}}) as events:
        meter_agent.record(
            "tokens", "cus_1", "1.50", timestamp=used_at, identifier="one", payload={"model": "m"}
        )
    (event,) = events.all
    assert event.payload == {"stripe_customer_id": "cus_1", "count": "1.5", "model": "m"}
    assert (event.customer, event.value, event.identifier) == ("cus_1", Decimal("1.5"), "one")
    assert event.timestamp == used_at.replace(microsecond=123_000)


@pytest.mark.parametrize("strict", [True, False])
def test_an_invalid_event_raises_whatever_the_settings_say(strict: bool) -> None:
    with recording(strict=strict) as events:
        with pytest.raises(InvalidEventError, match=r"value=True is invalid"):
            meter_agent.record("tokens", "cus_1", True)
        assert events.all == []
        assert meter_agent.stats() == Stats()


def test_an_identifier_that_comes_again_is_absorbed_as_by_stripe() -> None:
    with recording() as events:
        assert meter_agent.record("tokens", "cus_1", 2, identifier="one")
        assert meter_agent.record("tokens", "cus_1", 3, identifier="one")
        assert meter_agent.stats().delivered == 2
    assert events.total("tokens") == 2
    assert [event.value for event in events.absorbed] == [3]
    with pytest.raises(AssertionError, match="absorbed, because identifier='one' had come before"):
        events.assert_recorded("tokens", times=2)


def test_every_agent_that_the_application_builds_records_here() -> None:
    with recording() as events:
        replaced = meter_agent.get_agent()
        meter_agent.configure(api_key="sk_test_1", batch_size=7)
        assert meter_agent.get_agent().config.batch_size == 7
        meter_agent.record("tokens", "default")
        with MeterAgent(sandbox_url="http://127.0.0.1:1") as own:
            own.record("tokens", "own")
        replaced.record("tokens", "replaced")
    assert list(events.by_customer()) == ["default", "own", "replaced"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_default_agent_of_before_is_back_and_untouched_afterwards(fails: bool) -> None:
    before = meter_agent.configure(disabled=True)
    with contextlib.suppress(LookupError), recording():
        assert meter_agent.get_agent() is not before
        if fails:
            raise LookupError
    assert meter_agent.get_agent() is before
    assert not before.closed
    assert not meter_agent.record("tokens", "cus_1")
    assert before.stats().dropped == {"disabled": 1}


def test_every_method_of_an_agent_answers() -> None:
    with recording():
        agent = meter_agent.get_agent()
        agent.record("tokens", "cus_1", 5)
        assert agent.health() == meter_agent.health() == Health()
        assert repr(agent) == "<MeterAgent recorded=1 delivered=1 buffered=0 in_flight=0>"
        assert room(agent).used == 0
        assert adopt(agent)
        for name, method in inspect.getmembers(agent, callable):
            if not name.startswith("_") and name != "record":
                result = method()
                if inspect.iscoroutine(result):
                    asyncio.run(result)
        assert list(agent.health().problems) == ["closed"]


def test_metrics_of_an_agent_are_there() -> None:
    registry = CollectorRegistry()
    with recording():
        meter_agent.record("tokens", "cus_1", 5)
        prometheus.register(registry=registry)
        assert registry.get_sample_value("meter_agent_events_recorded_total") == 1
        assert registry.get_sample_value("meter_agent_events_delivered_total") == 1


def test_an_event_has_the_time_of_a_frozen_clock_and_is_judged_by_it() -> None:
    with recording() as events, freeze_time("2024-02-25T12:00:00Z"):
        now = datetime.now(UTC)
        meter_agent.record("tokens", "cus_1")
        meter_agent.record("tokens", "cus_1", timestamp=now - timedelta(days=35))
        with pytest.raises(InvalidEventError, match="timestamp"):
            meter_agent.record("tokens", "cus_1", timestamp=now + timedelta(seconds=301))
    assert [event.timestamp.isoformat() for event in events.all] == [
        "2024-02-25T12:00:00+00:00",
        "2024-01-21T12:00:00+00:00",
    ]


def test_without_a_default_agent_before_there_is_none_afterwards() -> None:
    with recording():
        meter_agent.record("tokens", "cus_1")
    assert meter_agent.stats() == Stats()
    with pytest.raises(ConfigError):
        meter_agent.get_agent()


def test_blocks_may_be_nested_and_the_inner_one_records() -> None:
    with recording() as outer:
        with recording() as inner:
            meter_agent.record("tokens", "inner")
        meter_agent.record("tokens", "outer")
    assert (list(outer.by_customer()), list(inner.by_customer())) == (["outer"], ["inner"])


def test_an_agent_that_was_closed_or_disabled_refuses_and_counts() -> None:
    with recording() as events:
        meter_agent.record("tokens", "cus_1")
        assert meter_agent.close() == Stats(recorded=1, delivered=1)
        assert meter_agent.get_agent().closed
        assert not meter_agent.record("tokens", "cus_1")
        assert meter_agent.stats().dropped == {"closed": 1}
        off = MeterAgent(disabled=True)
        assert not off.record("tokens", "cus_1")
        assert off.stats().dropped == {"disabled": 1}
        assert off.stats().balanced
    assert len(events.all) == 1


def test_the_rest_of_an_agent_works_too() -> None:
    async def shut_down(agent: MeterAgent) -> Stats:
        assert await agent.aflush()
        return await agent.aclose()

    with recording() as events:
        agent = meter_agent.get_agent()
        record = agent.record
        record("tokens", "cus_1")
        assert "recorded=1 delivered=1" in repr(agent)
        assert asyncio.run(shut_down(agent)).delivered == 1
        events.clear()
    assert events.all == []


def test_threads_may_record_at_the_same_time() -> None:
    with recording() as events:
        threads = [
            threading.Thread(target=lambda: [meter_agent.record("t", "cus_1") for _ in range(500)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert events.total("t") == meter_agent.stats().delivered == 2000


def test_the_environment_leads_nowhere_within_the_block_and_is_restored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outside = {
        "METER_AGENT_SPOOL_DIR": str(tmp_path / "spool"),
        "METER_AGENT_DEAD_LETTER_FILE": str(tmp_path / "letters"),
        "METER_AGENT_DISABLED": "true",
        "METER_AGENT_SANDBOX_URL": "http://127.0.0.1:2",
        "METER_AGENT_BATCH_SIZE": "7",
    }
    for name, text in outside.items():
        monkeypatch.setenv(name, text)
    with recording() as events:
        config = meter_agent.configure().config
        assert (config.spool_dir, config.dead_letter_file, config.disabled) == (None, None, False)
        assert (config.sandbox_url, config.batch_size) == ("http://127.0.0.1:9", 7)
        assert meter_agent.record("tokens", "cus_1")
        assert len(events.all) == 1
    assert {name: os.environ.get(name) for name in outside} == outside
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match="METER_AGENT_BATCH_SIZE"), recording(batch_size=0):
        pass
    assert "METER_AGENT_SANDBOX_URL" not in os.environ


LIVE = ["sk_live_1", "rk_live_1", "sk_org_live_1"]


@pytest.mark.parametrize("key", LIVE)
@pytest.mark.parametrize("name", ["STRIPE_API_KEY", "METER_AGENT_API_KEY"])
def test_a_live_key_in_the_environment_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    monkeypatch.setenv(name, key)
    block = recording()
    with pytest.raises(RefusedError, match="is a live key, and this is a test") as caught:
        block.__enter__()
    assert key not in str(caught.value)


@pytest.mark.parametrize("settings", [{}, {"sandbox_url": None}])
def test_a_live_key_of_the_application_is_refused_where_it_is_set(settings: dict[str, Any]) -> None:
    with recording(), pytest.raises(RefusedError, match="sk_live_"):
        meter_agent.configure(api_key="sk_live_1", stripe_context="acct_1", **settings)


def test_a_live_key_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("rk_live_1\n")
    with recording(), pytest.raises(RefusedError, match="rk_live_"):
        MeterAgent(api_key_file=tmp_path / "key", sandbox_url=None)


def test_test_keys_are_welcome() -> None:
    with recording(api_key="sk_test_1", sandbox_url=None) as events:
        meter_agent.record("tokens", "cus_1")
    assert len(events.all) == 1


def test_recording_imports_no_network_and_no_sandbox() -> None:
    script = """
import sys, meter_agent
from meter_agent.testing import recording
with recording() as events:
    meter_agent.record("tokens", "cus_1")
assert events.total("tokens") == 1
print([name for name in ("requests", "starlette", "structlog", "tenacity", "pytest", "asyncio")
       if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
