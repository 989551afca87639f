"""Sender threads that die, and the ledger under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from meter_agent import MeterAgent, Stats, _sender
from meter_agent._dead_letters import DeadLetterFile, letter_of
from meter_agent._delivery import Delivery
from meter_agent._runtime import SystemRuntime
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import MakeAgent, sender_threads, wait_until
from tests.log_lines import events_of


def test_a_sender_that_dies_is_replaced_and_its_batch_is_delivered_once(
    make_agent: MakeAgent,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    deliver = Delivery.deliver
    deaths = [SystemExit("injected")]

    def die_once(self: Delivery, *arguments: Any) -> None:
        if deaths:
            raise deaths.pop()
        deliver(self, *arguments)

    monkeypatch.setattr(Delivery, "deliver", die_once)
    agent = make_agent()
    for _ in range(150):
        agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert agent.stats().delivered == 150
    assert sandbox.totals()["accepted"] == 150
    # Another sender may have delivered the batch before the dying one has said its last words.
    assert wait_until(agent, lambda: "meter_agent.sender_died" in events_of(caplog))


def test_senders_that_die_at_once_are_not_started_in_a_hot_loop(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent()
    deaths: list[int] = []

    def open_work() -> Any:
        deaths.append(1)
        raise MemoryError("injected")

    flusher = agent._pipeline._flusher
    original = flusher._open_work
    flusher._open_work = open_work
    for _ in range(5000):
        agent.record("tokens", "cus_1")
    assert len(deaths) <= 4
    flusher._open_work = original
    assert agent.flush(20)
    assert agent.stats().delivered == 5000


def test_senders_that_die_again_are_replaced_as_soon_as_somebody_waits(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver = Delivery.deliver
    deaths = [1, 2, 3]

    def die(self: Delivery, *arguments: Any) -> None:
        if deaths:
            deaths.pop()
            raise TypeError("injected")
        deliver(self, *arguments)

    monkeypatch.setattr(Delivery, "deliver", die)
    agent = make_agent()
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert agent.stats().delivered == 1


def test_the_ledger_adds_up_at_every_moment_under_load(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    for fault in (
        Fault("status", status=503, probability=0.1),
        Fault("reset", when="after", probability=0.1),
        Fault("poison", every=500),
    ):
        sandbox.add_fault(fault)
    agent = make_agent(buffer_events=2000, overflow="drop_oldest", max_in_flight=4)
    done = threading.Event()
    unbalanced: list[Stats] = []

    def watch() -> None:
        while not done.is_set():
            stats = agent.stats()
            if not stats.balanced:
                unbalanced.append(stats)

    def produce() -> None:
        for n in range(4000):
            agent.record("tokens", f"cus_{n % 5}", 1)

    watcher = threading.Thread(target=watch)
    producers = [threading.Thread(target=produce) for _ in range(4)]
    for thread in (watcher, *producers):
        thread.start()
    for thread in producers:
        thread.join()
    assert agent.flush(60)
    done.set()
    watcher.join()
    final = agent.close(20)
    assert not unbalanced
    assert final.recorded == 16_000
    assert final.balanced
    assert sandbox.totals()["accepted"] == final.delivered


class Death(BaseException):
    """What no sender expects."""


def happens_unasked(agent: MeterAgent, done: Callable[[], bool]) -> bool:
    """Wait for what the senders do by themselves; `wait_until` would start one that is missing."""
    return agent._pipeline._flusher._progress.wait_until(done, time.monotonic() + 20)


def test_senders_that_die_on_the_wire_are_replaced_unasked_and_their_batch_is_billed_once(
    make_agent: MakeAgent, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    deaths = [Death(), Death()]

    def die(_seconds: float) -> None:
        raise deaths.pop()

    # The server has taken the batch in when its sender dies.
    sandbox.add_fault(Fault("delay", seconds=1.0, times=2))
    agent = make_agent(sleep=die)
    agent.record("tokens", "cus_1", 40)
    assert happens_unasked(agent, lambda: agent.stats().delivered == 1)
    assert sandbox.totals()["totals"] == {"tokens": {"cus_1": "40"}}
    assert sandbox.totals()["duplicates"] == 2
    assert "meter_agent.sender_died" in events_of(caplog)


def test_the_next_record_replaces_a_sender_that_died_in_its_sleep(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    others = set(sender_threads())
    agent = make_agent()
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    flusher = agent._pipeline._flusher
    doorbell = flusher._doorbell

    class Deadly:
        def ring(self) -> None:
            doorbell.ring()

        def wait(self, timeout: float | None) -> bool:
            flusher._doorbell = doorbell
            raise Death

    (thread,) = set(sender_threads()) - others
    flusher._doorbell = Deadly()
    doorbell.ring()
    thread.join(20)
    assert not set(sender_threads()) - others
    agent.record("tokens", "cus_1")
    assert happens_unasked(agent, lambda: agent.stats().delivered == 2)
    assert sandbox.totals()["accepted"] == 2


def test_the_next_record_replaces_a_sender_that_died_with_nothing_left_to_send(
    make_agent: MakeAgent, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had no time to ask for a ring at the next event."""
    deliver, deaths = Delivery.deliver, [Death()]

    def die_afterwards(delivery: Delivery, *arguments: Any) -> None:
        deliver(delivery, *arguments)
        if deaths:
            raise deaths.pop()

    monkeypatch.setattr(Delivery, "deliver", die_afterwards)
    others = set(sender_threads())
    agent = make_agent(max_in_flight=1)  # a second one would be looked for
    agent.record("tokens", "cus_1")
    for thread in set(sender_threads()) - others:
        thread.join(20)
    assert not set(sender_threads()) - others
    assert agent.stats().delivered == 1
    agent.record("tokens", "cus_1")
    assert happens_unasked(agent, lambda: agent.stats().delivered == 2)
    assert sandbox.totals()["accepted"] == 2


def test_a_letter_that_cannot_be_made_costs_no_batch_and_no_storm_of_threads(
    make_agent: MakeAgent, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_letter, bombs = letter_of, [MemoryError("once")]

    def fail_once(*arguments: Any, **options: Any) -> Any:
        if bombs:
            raise bombs.pop()
        return make_letter(*arguments, **options)

    monkeypatch.setattr(_sender, "letter_of", fail_once)
    sandbox.add_fault(Fault("poison", match={"customer": "cus_2"}))
    letters: list[Any] = []
    agent = make_agent(on_dead_letter=letters.append)
    agent.record("tokens", "cus_2")
    assert agent.flush(20)
    assert not bombs
    assert (agent.stats().dead_lettered, len(letters)) == (1, 1)


def test_a_letter_is_written_also_when_the_clock_is_before_all_calendars(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    class Clock:
        offset_seconds = 0.0

        def time(self) -> float:
            return time.time() + self.offset_seconds

        def time_ns(self) -> int:
            return int(self.time() * 1e9)

    class LostClock(SystemRuntime):
        clock: Any = Clock()

    def lose_the_clock(event: Any) -> bool:
        LostClock.clock.offset_seconds = -time.time() - 10
        return True

    sandbox.add_fault(Fault("poison", predicate=lose_the_clock))
    letters: list[Any] = []
    agent = make_agent(runtime=LostClock(), on_dead_letter=letters.append)
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert float(letters[0].settled_at) < 0


def test_who_is_interrupted_while_writing_letters_ends_only_after_the_rest(
    make_agent: MakeAgent,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    append, bombs = DeadLetterFile._append, [SystemExit("a signal handler")]

    def interrupted(file: DeadLetterFile, line: bytes) -> None:
        if bombs:
            raise bombs.pop()
        append(file, line)

    monkeypatch.setattr(DeadLetterFile, "_append", interrupted)
    letters: list[Any] = []
    path = tmp_path / "letters.jsonl"
    agent = make_agent(on_dead_letter=letters.append, dead_letter_file=path, batch_size=100)
    for _ in range(3):
        agent.record("", "cus_1")
    assert agent.flush(20)
    assert (agent.stats().dead_lettered, len(letters)) == (3, 3)
    assert len(path.read_text().splitlines()) == 2
    assert wait_until(agent, lambda: "meter_agent.sender_died" in events_of(caplog))


def test_a_sender_that_dies_while_the_agent_closes_is_replaced(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver, bombs = Delivery.deliver, [MemoryError("once"), MemoryError("twice")]

    def die(delivery: Delivery, *arguments: Any) -> None:
        if bombs:
            raise bombs.pop()
        deliver(delivery, *arguments)

    monkeypatch.setattr(Delivery, "deliver", die)
    agent = make_agent(flush_interval_seconds=60.0)
    for _ in range(99):
        agent.record("tokens", "cus_1")
    assert agent.close(20).delivered == 99


def test_a_sender_that_dies_before_anybody_waits_for_the_close_is_replaced(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver, bombs = Delivery.deliver, [MemoryError("once")]

    def die(delivery: Delivery, *arguments: Any) -> None:
        if bombs:
            raise bombs.pop()
        deliver(delivery, *arguments)

    monkeypatch.setattr(Delivery, "deliver", die)
    others = set(sender_threads())
    agent = make_agent(flush_interval_seconds=60.0)
    flusher = agent._pipeline._flusher
    set_to_work = flusher._set_to_work

    def set_to_work_and_lose_them() -> None:
        set_to_work()
        for thread in set(sender_threads()) - others:
            thread.join(20)

    monkeypatch.setattr(flusher, "_set_to_work", set_to_work_and_lose_them)
    agent.record("tokens", "cus_1")
    assert agent.close(20).delivered == 1
    assert not bombs


def test_a_batch_is_sent_when_no_memory_was_left_to_start_a_helper(make_agent: MakeAgent) -> None:
    class Short(SystemRuntime):
        bombs: ClassVar = [MemoryError("no stack")]

        def start_thread(self, target: Any, name: str) -> None:
            if threading.current_thread().name == "meter-agent-sender" and self.bombs:
                raise self.bombs.pop()
            super().start_thread(target, name)

    agent = make_agent(runtime=Short(), batch_size=10)
    for _ in range(50):
        agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert not Short.bombs
