"""Dropped events are handed over: to *on_drop* and to the dead-letter file, never in `record()`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from meter_agent import MeterAgent, _default, configure
from meter_agent._dropped import DROPPED_EVENTS_MAX, DroppedEvents
from meter_agent._ledger import DropReason
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import FAST, Hold, MakeAgent
from tests.virtual import ShiftedRuntime


class Heard:
    """An *on_drop* that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Mapping[str, Any]]]] = []
        self.threads: set[str] = set()

    def __call__(self, events: list[Mapping[str, Any]], reason: str) -> None:
        self.calls.append((reason, events))
        self.threads.add(threading.current_thread().name)

    @property
    def events(self) -> list[Mapping[str, Any]]:
        return [event for _, events in self.calls for event in events]

    def values(self) -> list[str]:
        return [event["payload"]["value"] for event in self.events]

    def reasons(self) -> set[str]:
        return {reason for reason, _ in self.calls}


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    return tmp_path / "letters.jsonl"


def read(letters: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in letters.read_text().splitlines()]


@pytest.fixture
def stalled(make_agent: MakeAgent, sandbox: Sandbox, hold: Hold) -> Callable[..., MeterAgent]:
    """Make an agent with ten places whose only sender is held by the server with event 0."""

    def make(**settings: Any) -> MeterAgent:
        sandbox.add_fault(Fault("delay", seconds=1.0, times=1))
        agent = make_agent(sleep=hold, max_in_flight=1, **({"buffer_events": 10} | settings))
        agent.record("tokens", "cus_1", 0)
        hold.wait()
        return agent

    return make


@pytest.mark.parametrize(
    ("overflow", "dropped"),
    [
        ("drop_newest", [*range(11, 26)]),
        ("drop_oldest", [*range(1, 16)]),
        ("block", [*range(11, 26)]),
    ],
)
def test_what_a_full_buffer_drops_is_handed_over_by_a_sender_and_never_by_record(
    stalled: Callable[..., MeterAgent],
    sandbox: Sandbox,
    *,
    hold: Hold,
    heard: Heard,
    letters: Path,
    overflow: str,
    dropped: list[int],
) -> None:
    agent = stalled(
        overflow=overflow,
        block_timeout_seconds=0.01,
        on_drop=heard,
        dead_letter_file=str(letters),
    )
    for n in range(1, 26):
        agent.record("tokens", "cus_1", n, payload={"region": "eu"})
    assert (heard.calls, letters.exists()) == ([], False)
    hold.release()
    assert agent.flush(20)
    assert heard.values() == [str(n) for n in dropped]
    assert heard.reasons() == {"overflow"}
    assert heard.threads == {"meter-agent-sender"}
    written = read(letters)
    assert [letter["event"] for letter in written] == heard.events
    assert {(letter["reason"], letter["attempted_at"]) for letter in written} == {("dropped", None)}
    assert {event["payload"]["region"] for event in heard.events} == {"eu"}
    assert len({event["identifier"] for event in heard.events}) == 15
    stats = agent.close(20)
    assert (stats.delivered, stats.dropped, stats.dead_lettered) == (11, {"overflow": 15}, 0)
    assert stats.balanced
    billed = {row["identifier"] for row in sandbox.ledger()}
    assert not billed & {event["identifier"] for event in heard.events}


def test_what_is_dropped_at_shutdown_is_handed_over_by_the_thread_that_closes(
    stalled: Callable[..., MeterAgent], heard: Heard, letters: Path
) -> None:
    agent = stalled(on_drop=heard, dead_letter_file=str(letters))
    for n in range(1, 6):
        agent.record("tokens", "cus_1", n, identifier=f"own-{n}")
    final = agent.close(0)
    assert (final.dropped, final.uncertain) == ({"shutdown": 5}, 1)
    assert (heard.values(), heard.reasons()) == (["1", "2", "3", "4", "5"], {"shutdown"})
    assert heard.threads == {threading.current_thread().name}
    assert [event["identifier"] for event in heard.events] == [f"own-{n}" for n in range(1, 6)]
    assert [letter["reason"] for letter in read(letters)].count("dropped") == 5
    assert not agent.record("tokens", "cus_1", 7)
    assert agent.stats().dropped == {"shutdown": 5, "closed": 1}
    assert len(heard.events) == 5


def test_a_batch_that_was_taken_and_never_sent_is_handed_over_too(
    make_agent: MakeAgent, sandbox: Sandbox, heard: Heard
) -> None:
    sandbox.add_fault(Fault("status", status=503, on="session"))
    failed = threading.Event()
    agent = make_agent(on_drop=heard, on_error=lambda _: failed.set(), max_in_flight=1)
    for n in range(3):
        agent.record("tokens", "cus_1", n)
    assert failed.wait(20)
    final = agent.close(0)
    assert final.dropped == {"shutdown": 3}
    assert sorted(heard.values()) == ["0", "1", "2"]


def test_at_most_a_thousand_wait_and_how_many_were_not_kept_is_logged(
    stalled: Callable[..., MeterAgent],
    hold: Hold,
    heard: Heard,
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = stalled(on_drop=heard)
    for n in range(1, 3011):
        agent.record("tokens", "cus_1", n)
    hold.release()
    agent.close(20)
    assert heard.values() == [str(n) for n in range(11, 11 + DROPPED_EVENTS_MAX)]
    assert agent.stats().dropped == {"overflow": 3000}
    (line,) = (r for r in caplog.records if r.getMessage().startswith("meter_agent.dropped_not"))
    assert line.__dict__["events"] == 2000


def test_at_shutdown_the_oldest_are_kept_and_the_number_of_the_others_is_logged(
    stalled: Callable[..., MeterAgent], heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    agent = stalled(on_drop=heard, buffer_events=5000)
    for n in range(1, 3001):
        agent.record("tokens", "cus_1", n)
    final = agent.close(0)
    assert final.dropped == {"shutdown": 3000}
    kept = len(heard.events)
    assert 0 < kept <= DROPPED_EVENTS_MAX
    assert heard.values() == [str(n) for n in range(1, kept + 1)]
    (line,) = (r for r in caplog.records if r.getMessage().startswith("meter_agent.dropped_not"))
    assert line.__dict__["events"] == 3000 - kept


def test_close_logs_how_many_were_not_kept_also_shortly_after_such_a_line(
    stalled: Callable[..., MeterAgent],
    sandbox: Sandbox,
    hold: Hold,
    heard: Heard,
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = stalled(on_drop=heard)
    for n in range(1, 3011):
        agent.record("tokens", "cus_1", n)
    hold.release()
    assert agent.flush(20)
    sandbox.add_fault(Fault("hang"))
    for n in range(3011, 6021):
        agent.record("tokens", "cus_1", n)
    final = agent.close(0)
    lines = [r for r in caplog.records if r.getMessage().startswith("meter_agent.dropped_not")]
    assert len(lines) == 2
    not_kept = sum(line.__dict__["events"] for line in lines)
    assert not_kept == final.dropped_total - len(heard.events)


def test_a_callback_that_records_what_was_dropped_does_not_go_round_in_circles(
    stalled: Callable[..., MeterAgent], hold: Hold
) -> None:
    calls: list[int] = []

    def again(events: list[Mapping[str, Any]], _reason: str) -> None:
        calls.append(len(events))
        for event in events:
            agent.record("tokens", "cus_1", event["payload"]["value"])

    agent = stalled(on_drop=again)
    for n in range(1, 100):
        agent.record("tokens", "cus_1", n)
    hold.release()
    assert agent.flush(20)
    final = agent.close(20)
    assert calls[0] == 89
    assert final.balanced


def test_a_callback_that_raises_costs_no_event_and_no_sender(
    stalled: Callable[..., MeterAgent], hold: Hold, letters: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_events: object, _reason: str) -> None:
        raise SystemExit

    agent = stalled(on_drop=fail, dead_letter_file=str(letters))
    for n in range(1, 26):
        agent.record("tokens", "cus_1", n)
    hold.release()
    assert agent.close(20).delivered == 11
    assert len(read(letters)) == 15
    assert any(r.getMessage().startswith("meter_agent.callback_failed") for r in caplog.records)


def test_a_dropped_event_that_is_invalid_says_so_in_its_letter(
    stalled: Callable[..., MeterAgent], hold: Hold, heard: Heard, letters: Path
) -> None:
    agent = stalled(on_drop=heard, dead_letter_file=str(letters))
    for n in range(1, 11):
        agent.record("tokens", "cus_1", n)
    agent.record("tokens", "cus_1", Decimal("NaN"))
    hold.release()
    agent.close(20)
    (letter,) = read(letters)
    assert letter["reason"] == "dropped"
    assert letter["message"].startswith("the buffer was full; value=Decimal('NaN') is invalid")
    assert heard.events == [letter["event"]]


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_a_spool_hands_over_what_it_drops(
    make_agent: MakeAgent,
    sandbox: Sandbox,
    hold: Hold,
    *,
    heard: Heard,
    tmp_path: Path,
    overflow: str,
) -> None:
    sandbox.add_fault(Fault("delay", seconds=1.0, times=1))
    agent = make_agent(
        sleep=hold,
        max_in_flight=1,
        on_drop=heard,
        overflow=overflow,
        spool_dir=tmp_path / "spool",
        spool_bytes=1024 * 1024,
    )
    agent.record("tokens", "cus_1", 0)
    hold.wait()
    padding = {"text": "x" * 450}
    total = 4000
    held = [agent.record("tokens", "cus_1", n, payload=padding) for n in range(1, total)]
    assert heard.calls == []
    hold.release()
    final = agent.close(60)
    dropped = final.dropped["overflow"]
    assert final.delivered + dropped == total
    assert len(heard.events) == min(dropped, DROPPED_EVENTS_MAX)
    values = [int(value) for value in heard.values()]
    if overflow == "drop_newest":
        assert values == [n for n, kept in enumerate(held, 1) if not kept][: len(values)]
    else:
        assert values == sorted(values)
        assert all(held)
    billed = {int(row["value"]) for row in sandbox.ledger(limit=None)}
    assert not billed & set(values)
    assert {row["reason"] for row in read(tmp_path / "spool" / "dead-letters.jsonl")} == {"dropped"}


def test_without_callback_and_file_nothing_is_kept(
    stalled: Callable[..., MeterAgent], hold: Hold
) -> None:
    agent = stalled()
    for n in range(1, 26):
        agent.record("tokens", "cus_1", n)
    assert len(agent._pipeline._dropped) == 0
    hold.release()
    agent.close(20)


def test_the_default_agent_takes_on_drop_and_keeps_it_when_it_is_opened_again(
    heard: Heard,
) -> None:
    agent = configure(**FAST, on_drop=heard)
    agent.close(0)
    assert _default.reopen()._pipeline.callbacks[2] is heard


def test_threads_that_drop_at_once_lose_no_count() -> None:
    dropped = DroppedEvents(wanted=True)

    def drop() -> None:
        for n in range(1000):
            dropped.keep(DropReason.OVERFLOW, n)

    threads = [threading.Thread(target=drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(dropped) <= DROPPED_EVENTS_MAX + len(threads)
    assert len(dropped) + dropped.read_not_kept() == 4000
    assert dropped.places == 0


def test_a_slow_callback_ends_the_handing_over_when_the_time_of_close_is_over(
    stalled: Callable[..., MeterAgent], caplog: pytest.LogCaptureFixture
) -> None:
    runtime, calls = ShiftedRuntime(), []

    def slow(events: list[Mapping[str, Any]], _reason: str) -> None:
        calls.append(len(events))
        runtime.advance(1.0)

    agent = stalled(on_drop=slow, buffer_events=2000, runtime=runtime)
    for n in range(1, 1501):
        agent.record("tokens", "cus_1", n)
    agent.close(0)
    assert calls == [100]
    (line,) = (r for r in caplog.records if r.getMessage().startswith("meter_agent.dropped_not"))
    assert line.__dict__["events"] == 1400, "those that wait, and those that found no place"
