"""What `flush()` waits for, and who does the work."""

from __future__ import annotations

import threading
import time

import pytest

from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import Hold, MakeAgent


def test_flush_does_not_wait_for_the_interval(make_agent: MakeAgent) -> None:
    agent = make_agent(flush_interval_seconds=60.0)
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert agent.stats().delivered == 1


def test_flush_is_false_when_the_time_is_over_first(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("status", status=503))
    agent = make_agent()
    agent.record("tokens", "cus_1")
    assert not agent.flush(0.05)
    sandbox.clear_faults()
    assert agent.flush(20)


def test_flush_waits_for_what_is_in_flight_and_not_for_an_empty_buffer(
    make_agent: MakeAgent, sandbox: Sandbox, hold: Hold
) -> None:
    sandbox.add_fault(Fault("delay", seconds=1.0, times=1))
    agent = make_agent(sleep=hold)
    agent.record("tokens", "cus_1")
    hold.wait()
    assert len(agent._pipeline._buffer) == 0
    assert not agent.flush(0.05)
    hold.release()
    assert agent.flush(20)


def test_flush_without_events_and_after_close_is_true_at_once(make_agent: MakeAgent) -> None:
    agent = make_agent()
    assert agent.flush()
    agent.close()
    assert agent.flush()


def test_when_no_thread_can_be_started_flush_and_close_do_the_work_themselves(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    agent = make_agent()

    def refuse(*_arguments: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(agent._runtime, "start_thread", refuse)
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert agent.stats().delivered == 1
    sandbox.add_fault(Fault("status", status=503, times=1))
    agent.record("tokens", "cus_1")
    final = agent.close(20)
    assert final.delivered == 2
    assert final.balanced


def test_working_in_the_callers_thread_keeps_to_the_time_limit(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    agent = make_agent(retry_base_seconds=0.05)

    def refuse(*_arguments: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(agent._runtime, "start_thread", refuse)
    sandbox.add_fault(Fault("status", status=503))
    agent.record("tokens", "cus_1")
    began = time.monotonic()
    assert not agent.flush(0.2)
    assert time.monotonic() - began < 1.0
    sandbox.clear_faults()
    assert agent.close(20).delivered == 1


def test_flush_does_the_work_where_the_thread_that_another_call_was_starting_cannot_be(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent()
    runtime = agent._runtime
    make_doorbell, starting, flushing = runtime.doorbell, threading.Event(), threading.Event()

    def refuse(*_arguments: object) -> None:
        starting.set()
        assert flushing.wait(20)
        raise RuntimeError("can't start new thread")

    class Bell:
        def __init__(self) -> None:
            self._bell = make_doorbell()
            self.ring = self._bell.ring

        def wait(self, timeout: float | None) -> bool:
            flushing.set()
            return self._bell.wait(timeout)

    monkeypatch.setattr(runtime, "start_thread", refuse)
    recording = threading.Thread(target=agent.record, args=("tokens", "cus_1"))
    recording.start()
    assert starting.wait(20)
    monkeypatch.setattr(runtime, "doorbell", Bell)
    assert agent.flush(20)
    recording.join(20)


@pytest.mark.parametrize("call", ["flush", "close"])
def test_a_signal_handler_of_the_application_may_flush_and_close(
    make_agent: MakeAgent, call: str
) -> None:
    agent = make_agent()
    agent.record("tokens", "cus_1")
    # As the handler would run that interrupted `flush()` where it waits, in the same thread.
    assert agent._pipeline._flusher._progress.wait_until(lambda: bool(getattr(agent, call)(20)))
    assert agent.stats().delivered == 1


def test_times_beyond_all_limits_are_as_long_as_it_takes(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.record("tokens", "cus_1")
    assert agent.flush(float("inf"))
    assert agent.close(1e300).delivered == 1
