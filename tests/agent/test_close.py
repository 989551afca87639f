"""How an agent ends, in time and with a ledger that adds up."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meter_agent import (
    DeadLetter,
    Stats,
)
from meter_agent._runtime import SystemRuntime
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import Hold, MakeAgent, sender_threads
from tests.log_lines import lines_of


def test_after_close_events_are_refused_and_counted(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.record("tokens", "cus_1")
    final = agent.close()
    assert final.delivered == 1
    assert not agent.record("tokens", "cus_1")
    assert agent.stats().dropped == {"closed": 1}
    assert agent.close().dropped == {"closed": 1}
    assert agent.stats().balanced


def test_close_ends_the_threads(make_agent: MakeAgent) -> None:
    before = sender_threads()
    agent = make_agent()
    for _ in range(1000):
        agent.record("tokens", "cus_1")
    agent.close(20)
    for thread in set(sender_threads()) - set(before):
        thread.join(20)
    assert set(sender_threads()) <= set(before)


def test_close_drops_what_it_cannot_send_and_says_so(
    make_agent: MakeAgent, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.add_fault(Fault("status", status=429, retry_after="60"))
    agent = make_agent()
    for _ in range(250):
        agent.record("tokens", "cus_1")
    began = time.monotonic()
    final = agent.close(5.0)
    assert time.monotonic() - began < 4.0, "no sender sees a chance, so nobody should wait"
    assert final.dropped == {"shutdown": 250}
    assert final.balanced
    line = lines_of(caplog, "meter_agent.closed")[0]
    assert line.__dict__["dropped"] == {"shutdown": 250}
    assert line.levelno == logging.WARNING
    assert "recorded=250 recovered=0 delivered=0" in line.getMessage()
    assert line.filename == "_pipeline.py"


class CountingRuntime(SystemRuntime):
    """Counts the threads that it starts."""

    def __init__(self) -> None:
        super().__init__()
        self.started = 0

    def start_thread(self, target: Callable[[], None], name: str) -> None:
        self.started += 1
        super().start_thread(target, name)


def test_close_starts_no_senders_when_one_has_found_that_there_is_no_time(
    make_agent: MakeAgent,
) -> None:
    runtime = CountingRuntime()
    agent = make_agent(runtime=runtime, batch_size=1, max_in_flight=8, max_events_per_second=1)
    for _ in range(50):
        agent.record("requests", "cus_1")
    agent.close(0.5)
    assert runtime.started <= 8


def test_close_leaves_what_may_have_arrived_to_a_human(
    make_agent: MakeAgent, sandbox: Sandbox, hold: Hold, tmp_path: Path
) -> None:
    told: list[DeadLetter] = []
    sandbox.add_fault(Fault("hang", accept=True))
    letters = tmp_path / "letters.jsonl"
    agent = make_agent(
        sleep=hold,
        dead_letter_file=str(letters),
        flush_interval_seconds=0.01,
        on_dead_letter=told.append,
    )
    agent.record("tokens", "cus_1")
    final = agent.close(0.3)
    hold.release()
    assert [letter.uncertain for letter in told] == [True]
    assert (final.uncertain, final.delivered, final.in_flight) == (1, 0, 0)
    assert final.balanced
    line = json.loads(letters.read_text())
    assert (line["reason"], line["uncertain"]) == ("uncertain", True)
    assert line["event"]["payload"]["stripe_customer_id"] == "cus_1"
    assert line["attempted_at"] is not None


def test_close_returns_in_time_while_the_server_never_answers(
    make_agent: MakeAgent, sandbox: Sandbox, hold: Hold
) -> None:
    sandbox.add_fault(Fault("hang"))
    agent = make_agent(sleep=hold)
    for _ in range(1000):
        agent.record("tokens", "cus_1")
    began = time.monotonic()
    final = agent.close(0.5)
    took = time.monotonic() - began
    hold.release()
    assert took < 1.0
    assert final.dropped_total + final.uncertain == 1000
    assert final.balanced


def test_two_threads_may_close_at_once_and_read_the_same_ledger(make_agent: MakeAgent) -> None:
    agent = make_agent()
    for _ in range(500):
        agent.record("tokens", "cus_1")
    results: list[Stats] = []
    threads = [threading.Thread(target=lambda: results.append(agent.close(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [stats.delivered for stats in results] == [500] * 4


def test_who_waits_for_another_close_takes_over_where_that_is_struck_twice(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(flush_interval_seconds=60.0)
    agent.record("tokens", "cus_1")
    pipeline, waiting = agent._pipeline, threading.Event()
    drain, stop, wait_until = (
        pipeline._flusher.drain,
        pipeline._flusher.stop,
        pipeline._end.wait_until,
    )
    closed: list[Stats] = []
    other = threading.Thread(target=lambda: closed.append(agent.close(20)))

    def struck_drain(_deadline: float) -> None:
        monkeypatch.setattr(pipeline._flusher, "drain", drain)
        other.start()
        assert waiting.wait(20)
        raise KeyboardInterrupt

    def struck_stop() -> None:
        monkeypatch.setattr(pipeline._flusher, "stop", stop)
        raise KeyboardInterrupt

    def tell_and_wait(*arguments: Any) -> bool:
        waiting.set()
        return wait_until(*arguments)

    monkeypatch.setattr(pipeline._flusher, "drain", struck_drain)
    monkeypatch.setattr(pipeline._flusher, "stop", struck_stop)
    monkeypatch.setattr(pipeline._end, "wait_until", tell_and_wait)
    with pytest.raises(KeyboardInterrupt):
        agent.close(20)
    other.join(20)
    (stats,) = closed
    assert stats.delivered == 1
    assert agent.close(20) == stats


def test_a_handler_that_closes_again_and_again_under_a_lock_starts_one_thread(
    make_agent: MakeAgent,
) -> None:
    agent = make_agent(flush_interval_seconds=60.0)
    agent.record("tokens", "cus_1")
    with agent._pipeline._buffer._lock:
        for _ in range(20):
            agent.close(20)
        closers = [t for t in threading.enumerate() if t.name == "meter-agent-closer"]
        assert len(closers) == 1
    assert agent.close(20).delivered == 1


def test_a_with_block_closes_the_agent(make_agent: MakeAgent) -> None:
    with make_agent(flush_interval_seconds=60.0) as agent:
        agent.record("tokens", "cus_1")
    assert agent.stats().delivered == 1


def test_what_close_has_dropped_is_not_sent_by_a_thread_that_was_waiting_for_a_session(
    make_agent: MakeAgent, sandbox: Sandbox, hold: Hold
) -> None:
    sandbox.add_fault(Fault("delay", on="session", seconds=1.0, times=1))
    agent = make_agent(sleep=hold)
    agent.record("tokens", "cus_1")
    hold.wait()
    threads = sender_threads()
    assert agent.close(0.1).dropped == {"shutdown": 1}
    hold.release()
    for thread in threads:
        thread.join(20)
    assert sandbox.totals()["accepted"] == 0


def test_ctrl_c_during_close_ends_the_wait_and_not_the_accounting(
    make_agent: MakeAgent, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.add_fault(Fault("status", status=503))
    agent = make_agent()
    agent.record("tokens", "cus_1")

    def interrupted(_deadline: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(agent._pipeline._flusher, "drain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.close(20)
    final = agent.close(20)
    assert (final.buffered, final.in_flight) == (0, 0)
    assert final.uncertain + final.dropped_total == 1
    assert final.balanced
