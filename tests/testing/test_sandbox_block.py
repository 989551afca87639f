"""A local Stripe for a block of code, and what may not be left behind at its end."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import meter_agent
from meter_agent import MeterAgent, _lifecycle
from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from meter_agent.testing import LeftBehindError, MeterSandbox, RefusedError, _sandbox, sandbox
from tests.conftest import sender_threads
from tests.patience import PATIENCE_SECONDS


def left_behind(use: Callable[[MeterSandbox], object], **settings: Any) -> str:
    """Return what the end of the block has to say about *use*."""
    with pytest.raises(LeftBehindError) as caught, sandbox(**settings) as stripe:
        use(stripe)
    return str(caught.value)


def test_events_take_the_whole_way_and_are_asked_as_those_in_memory() -> None:
    with sandbox() as stripe:
        meter_agent.record("tokens", "cus_1", "0.1", identifier="one", payload={"model": "m"})
        meter_agent.record("tokens", "cus_2", 2)
        assert meter_agent.flush(20)
        assert stripe.total("tokens") == meter_agent.stats().delivered + stripe.all[0].value
        (event,) = stripe.assert_recorded("tokens", customer="cus_1", value="0.1", times=1)
        assert (event.identifier, event.payload["model"]) == ("one", "m")
        assert event.timestamp.utcoffset() is not None
        first, *others = (request.path.rsplit("_", 1)[1] for request in stripe.requests)
        assert (first, set(others)) == ("session", {"stream"})


def test_what_goes_wrong_on_request_changes_no_total() -> None:
    with sandbox() as stripe:
        stripe.inject("status", status=503, times=2)
        stripe.inject(Fault("reset", when="after", times=1))
        meter_agent.record("tokens", "cus_1", 5)
        assert meter_agent.flush(20)
        assert stripe.total("tokens") == 5
        assert len([request for request in stripe.requests if request.events]) == 4
        with pytest.raises(ValueError, match="kind must be one of"):
            stripe.inject("typhoon")


def test_the_sandbox_looks_for_customer_and_value_where_the_agents_write_them() -> None:
    keys = {"output": {"value_key": "tokens"}, "input": {"value_key": "words"}}
    with sandbox(payload_keys=keys, customer_key="org") as stripe:
        for name in ("output", "input", "seats"):
            meter_agent.record(name, "cus_1", 5)
        assert meter_agent.flush(20)
        (event,) = stripe.assert_recorded("output", customer="cus_1", value=5)
        assert event.payload == {"org": "cus_1", "tokens": "5"}
        assert [stripe.total(name) for name in ("input", "seats")] == [5, 5]
        # The application's own configuration, as it starts within the test.
        meter_agent.configure(payload_keys={"output": {"value_key": "count"}})
        meter_agent.record("output", "cus_1", 7)
        assert meter_agent.flush(20)
        assert stripe.total("output") == 12
        # A meter that was named is as it is.
        stripe.sandbox.set_meters(["output"])
        meter_agent.record("output", "cus_1", 9)
        assert meter_agent.flush(20)
        with pytest.raises(AssertionError, match=r"refused: 1 .*payload_no_value_defined"):
            stripe.assert_recorded("output", value=9)


def test_the_clock_of_the_sandbox_ends_sessions() -> None:
    with sandbox() as stripe:
        for _ in range(2):
            before = stripe.clock.now()
            meter_agent.record("tokens", "cus_1")
            assert meter_agent.flush(20)
            stripe.clock.advance(3600)
            assert stripe.clock.now() >= before + 3600
        assert stripe.total("tokens") == 2
        assert meter_agent.stats().sessions == 2


def test_what_still_waits_is_delivered_at_the_end() -> None:
    with sandbox(flush_interval_seconds=60.0) as stripe:
        meter_agent.record("tokens", "cus_1")
        with pytest.raises(AssertionError, match=r"holds 1: call meter_agent\.flush\(10\) before"):
            stripe.assert_recorded("tokens")
    assert stripe.total("tokens") == 1
    assert sender_threads() == []


def test_what_stripe_rejects_later_explains_why_it_is_not_there() -> None:
    with SandboxServer(Sandbox(validate="async")) as server, sandbox(server) as stripe:
        stripe.clock.advance(40 * 86_400)
        meter_agent.record("tokens", "cus_1")
        assert meter_agent.flush(20)
        with pytest.raises(AssertionError) as caught:
            stripe.assert_recorded("tokens")
    _, nothing, *remarks = str(caught.value).splitlines()
    assert nothing == "nothing was recorded"
    assert [remark.split(":")[0] for remark in remarks] == ["rejected"]


def test_agents_that_the_application_builds_find_the_sandbox() -> None:
    with sandbox() as stripe:
        meter_agent.configure(flush_interval_seconds=0.01)
        meter_agent.record("tokens", "default")
        with MeterAgent() as own:
            own.record("tokens", "own")
        assert meter_agent.flush(20)
        assert sorted(stripe.by_customer()) == ["default", "own"]


def test_child_processes_find_the_sandbox_too() -> None:
    script = "import meter_agent; meter_agent.record('tokens', 'child')"
    with sandbox() as stripe:
        subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE_SECONDS)
        assert list(stripe.by_customer()) == ["child"]


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": "sk_test_1", "sandbox_url": None},
        {"api_key": "sk_test_1", "sandbox_url": None, "api_url": "http://127.0.0.1:1"},
        {"sandbox_url": "https://localhost.example.com"},
    ],
)
def test_an_agent_for_another_host_is_refused(settings: dict[str, Any]) -> None:
    with sandbox(), pytest.raises(RefusedError, match="may bill on this host only"):
        meter_agent.configure(**settings)


def test_a_live_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with sandbox(), pytest.raises(RefusedError, match="is a live key"):
        MeterAgent(api_key="sk_live_1")
    monkeypatch.setenv("STRIPE_API_KEY", "rk_live_1")
    with pytest.raises(RefusedError, match="is a live key"), sandbox():
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before_afterwards(fails: bool) -> None:
    before = meter_agent.configure(disabled=True)
    with contextlib.suppress(LookupError), sandbox() as stripe:
        meter_agent.record("tokens", "cus_1")
        assert os.environ["METER_AGENT_SANDBOX_URL"] == stripe.url
        if fails:
            raise LookupError
    assert meter_agent.get_agent() is before
    assert "METER_AGENT_SANDBOX_URL" not in os.environ
    assert not _lifecycle._state.pipelines
    MeterAgent(api_key="sk_live_1").close(0)  # refused no more


def test_undelivered_events_are_an_error_that_says_why() -> None:
    def record(stripe: MeterSandbox) -> None:
        stripe.inject("status", status=503)
        meter_agent.record("tokens", "cus_1")
        meter_agent.record("tokens", "cus_1")
        while not meter_agent.stats().last_error:
            meter_agent.flush(0.01)

    said = left_behind(record, shutdown_timeout_seconds=0.3)
    assert said.startswith("2 of 2 event(s) were not delivered when the test ended (uncertain=2,")
    assert "HTTP 503" in said
    assert "allow_undelivered = True" in said


def test_also_those_that_the_application_itself_gave_up() -> None:
    def give_up(stripe: MeterSandbox) -> None:
        stripe.inject("status", on="session", status=503)
        meter_agent.record("tokens", "cus_1")
        assert meter_agent.close(0).dropped == {"shutdown": 1}

    assert "1 of 1 event(s) were not delivered" in left_behind(give_up)


def test_undelivered_events_may_be_what_a_test_is_about() -> None:
    with sandbox() as stripe:
        stripe.inject("status", status=503)
        stripe.allow_undelivered = True
        meter_agent.record("tokens", "cus_1")
    assert sender_threads() == []


def test_a_request_that_hangs_is_cut_so_that_no_thread_goes_on() -> None:
    with sandbox(read_timeout_seconds=60.0) as stripe:
        stripe.inject("hang", times=1)
        stripe.allow_undelivered = True
        meter_agent.record("tokens", "cus_1")
        while not stripe.requests[1:]:  # the one that hangs
            meter_agent.flush(0.01)
    assert sender_threads() == []


def test_an_agent_that_was_not_closed_is_an_error() -> None:
    forgotten: list[MeterAgent] = []

    def forget(_stripe: MeterSandbox) -> None:
        forgotten.append(MeterAgent(flush_interval_seconds=60))
        forgotten[0].record("tokens", "cus_1")

    assert left_behind(forget).startswith("1 agent(s) built in this test were not closed: close")
    assert forgotten[0].closed
    assert forgotten[0].stats().delivered == 1, "what it held is delivered all the same"


def test_agents_that_were_replaced_or_closed_or_are_off_are_no_error() -> None:
    with sandbox() as stripe:
        off = MeterAgent(disabled=True)
        meter_agent.record("tokens", "replaced")
        agents = [meter_agent.get_agent(), MeterAgent()]
        agents[1].record("tokens", "closed")
        agents[1].close()
        meter_agent.configure()
    assert not off.closed
    assert sorted(stripe.by_customer()) == ["closed", "replaced"]


def test_a_thread_that_goes_on_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sandbox, "_PATIENCE_SECONDS", 0.05)
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(30,), name="meter-agent-sender")
    try:
        said = left_behind(lambda _: thread.start())
        assert said == "1 thread(s) go on after their agents were closed: meter-agent-sender"
    finally:
        end.set()
        thread.join()


def test_threads_of_before_are_not_looked_at() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(30,), name="meter-agent-sender")
    thread.start()
    try:
        with sandbox():
            pass
    finally:
        end.set()
        thread.join()


def test_an_exception_of_the_block_is_not_covered_by_what_it_leaves_behind() -> None:
    def fail(stripe: MeterSandbox) -> None:
        stripe.inject("status", status=503)
        meter_agent.record("tokens", "cus_1")
        raise LookupError

    with pytest.raises(LookupError), sandbox() as stripe:
        fail(stripe)
    assert not _lifecycle._state.pipelines


def test_a_server_of_its_own_is_stopped() -> None:
    with sandbox() as stripe:
        assert "meter-sandbox" in {thread.name for thread in threading.enumerate()}
    assert "meter-sandbox" not in {thread.name for thread in threading.enumerate()}
    host, _, port = stripe.url.removeprefix("http://").partition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=10)


def test_a_server_may_be_used_again_and_is_as_new() -> None:
    with SandboxServer() as server:
        for _ in range(2):
            with sandbox(server) as stripe:
                assert (stripe.all, stripe.requests, server.sandbox.faults) == ([], [], [])
                assert abs(stripe.clock.now() - time.time()) < 9
                meter_agent.record("tokens", "cus_1")
                assert meter_agent.flush(20)
                stripe.inject("status", status=503)
                stripe.clock.advance(86_400)
                stripe.clear_faults()
                stripe.inject("delay", seconds=1)


def test_an_agent_closed_by_the_application_needs_nothing_more() -> None:
    with sandbox() as stripe:
        meter_agent.record("tokens", "cus_1")
        final = meter_agent.close(20)
        assert (final.recorded, final.delivered, final.requests, final.sessions) == (1, 1, 1, 1)
        assert final.balanced
    assert stripe.total("tokens") == 1


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('no uvicorn', name='uvicorn')")
    done = subprocess.run(
        [sys.executable, "-c", "from meter_agent.testing import sandbox; sandbox().__enter__()"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert "the sandbox needs uvicorn: pip install 'meter-agent[sandbox]'" in done.stderr
