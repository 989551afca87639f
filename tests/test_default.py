"""The module's functions and the agent behind them."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

import meter_agent
from meter_agent import ConfigError, DeadLetter, MeterAgent, Stats, _default, _lifecycle
from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer


def test_without_a_key_record_is_false_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not any(meter_agent.record("tokens", "cus_1") for _ in range(5))
    assert meter_agent.stats().dropped == {"not_configured": 5}
    assert meter_agent.stats().recorded == 5
    (line,) = (r for r in caplog.records if r.name == "meter_agent")
    assert line.levelno == logging.ERROR
    assert "METER_AGENT_API_KEY" in line.__dict__["error"]


def test_get_agent_raises_what_record_cannot_say() -> None:
    meter_agent.record("tokens", "cus_1")
    with pytest.raises(ConfigError, match="METER_AGENT_API_KEY"):
        meter_agent.get_agent()


def test_before_first_use_there_is_nothing_to_flush_or_close() -> None:
    assert meter_agent.stats() == Stats()
    assert meter_agent.flush()
    assert meter_agent.close() == Stats()
    assert _default._default.agent is None


def test_the_first_record_builds_the_agent_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with SandboxServer(sandbox := Sandbox()) as server:
        monkeypatch.setenv("METER_AGENT_SANDBOX_URL", server.url)
        assert meter_agent.record("tokens", "cus_1", 5, payload={"a": "b"})
        assert meter_agent.flush(20)
        assert meter_agent.get_agent().config.sandbox_url == server.url
        assert meter_agent.close(20).delivered == 1
        assert not meter_agent.record("tokens", "cus_1")
        assert meter_agent.stats().dropped == {"closed": 1}
    assert sandbox.totals()["totals"] == {"tokens": {"cus_1": "5"}}


def test_threads_that_record_first_at_the_same_time_share_one_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METER_AGENT_DISABLED", "true")
    built: list[MeterAgent] = []
    another = threading.Event()
    original = MeterAgent._assemble

    def counting(self: MeterAgent, *arguments: object, **options: object) -> None:
        built.append(self)
        if len(built) > 1:
            another.set()
        another.wait(0.2)  # the others have this time to build one too
        original(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(MeterAgent, "_assemble", counting)
    together = threading.Barrier(8)

    def record() -> None:
        together.wait()
        meter_agent.record("tokens", "cus_1")

    threads = [threading.Thread(target=record) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert meter_agent.stats().dropped == {"disabled": 8}


def test_configure_replaces_the_agent_and_the_old_one_still_sends_what_it_holds() -> None:
    with SandboxServer(sandbox := Sandbox()) as server:
        first = meter_agent.configure(sandbox_url=server.url, flush_interval_seconds=60.0)
        meter_agent.record("tokens", "cus_1", 1)
        second = meter_agent.configure(sandbox_url=server.url)
        assert meter_agent.get_agent() is second is not first
        meter_agent.record("tokens", "cus_1", 2)
        assert first.flush(20)
        assert first.record("tokens", "cus_1", 4), "a thread may have been about to record with it"
        assert first.flush(20)
        assert meter_agent.close(20).delivered == 1
    assert sandbox.totals()["totals"] == {"tokens": {"cus_1": "7"}}


def test_configure_mends_a_default_agent_that_could_not_be_built() -> None:
    meter_agent.record("tokens", "cus_1")
    agent = meter_agent.configure(disabled=True)
    assert meter_agent.get_agent() is agent


def test_a_wrong_configuration_leaves_the_agent_before_it_in_place() -> None:
    agent = meter_agent.configure(disabled=True)
    with pytest.raises(ConfigError) as raised:
        meter_agent.configure(batch_size=0, max_in_flight=0, disabled=True)
    assert len(raised.value.problems) == 2
    assert meter_agent.get_agent() is agent


def test_a_default_agent_that_was_closed_opens_again_with_its_settings_and_callbacks(
    sandbox: Sandbox,
) -> None:
    letters: list[DeadLetter] = []
    with SandboxServer(sandbox) as server:
        first = meter_agent.configure(
            sandbox_url=server.url, batch_size=7, on_dead_letter=letters.append
        )
        assert _default.reopen() is first
        first.close()
        second = _default.reopen()
        assert second is meter_agent.get_agent() is not first
        assert second.config == first.config
        assert meter_agent.record("tokens", "cus_1")
        assert meter_agent.record("", "cus_1")
        assert meter_agent.close(20).delivered == 1
    assert len(letters) == 1


def test_opening_again_says_what_is_wrong_with_the_settings() -> None:
    with pytest.raises(ConfigError, match="METER_AGENT_API_KEY"):
        _default.reopen()


def test_handlers_that_record_while_the_default_agent_is_built_wait_for_no_one() -> None:
    """One thread builds it and has something to log, another records from within a handler."""
    emitting, building = threading.Event(), threading.Event()

    class Recording(logging.Handler):
        def emit(self, line: logging.LogRecord) -> None:
            if line.name == "application":
                emitting.set()
                building.wait(20)
                meter_agent.record("tokens", "cus_1")

    def build() -> None:
        emitting.wait(20)
        building.set()
        meter_agent.record("tokens", "cus_1")

    handler = Recording()
    logging.getLogger().addHandler(handler)
    try:
        threads = [
            threading.Thread(target=logging.getLogger("application").error, args=("line",)),
            threading.Thread(target=build),
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.lock = None  # `logging` takes it at the exit: a deadlock ends here, not there
    assert meter_agent.stats().recorded == 2


def test_a_record_that_interrupts_the_making_of_the_default_agent_waits_for_no_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As from a signal handler; each of the two calls may then build an agent."""
    make, interruptions, held = MeterAgent._assemble, [1], []

    def interrupted(self: MeterAgent, *arguments: Any, **options: Any) -> None:
        if interruptions:
            interruptions.pop()
            held.append(meter_agent.record("tokens", "cus_1"))
        make(self, *arguments, **options)

    with SandboxServer(sandbox := Sandbox()) as server:
        monkeypatch.setenv("METER_AGENT_SANDBOX_URL", server.url)
        monkeypatch.setattr(MeterAgent, "_assemble", interrupted)
        thread = threading.Thread(
            target=lambda: held.append(meter_agent.record("tokens", "cus_1")), daemon=True
        )
        thread.start()
        thread.join(20)
        assert held == [True, True]
        _lifecycle.close_all()
    assert sandbox.totals()["totals"] == {"tokens": {"cus_1": "2"}}
