"""The agent as product code sees it, over the sandbox in this process."""

from __future__ import annotations

import copy
import gc
import json
import logging
import pickle
import threading
import time
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time

import meter_agent
from meter_agent import (
    Config,
    ConfigError,
    DeadLetter,
    InvalidEventError,
    MeterAgent,
    MeterAgentError,
    Stats,
    _lifecycle,
)
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import FAST, MakeAgent, billed, sender_threads


def test_usage_is_billed(make_agent: MakeAgent, sandbox: Sandbox) -> None:
    agent = make_agent()
    assert agent.record("tokens", "cus_1", 3)
    assert agent.record("tokens", "cus_1", "0.5")
    assert agent.record("requests", "cus_2")
    assert agent.flush(20)
    assert billed(sandbox) == {"tokens": {"cus_1": "3.5"}, "requests": {"cus_2": "1"}}
    stats = agent.close()
    assert (stats.recorded, stats.delivered, stats.in_flight) == (3, 3, 0)
    assert stats.balanced


def test_ten_thousand_events_take_fewer_than_140_requests(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent(flush_interval_seconds=1.0)
    for n in range(10_000):
        agent.record("tokens", f"cus_{n % 9}", n)
    assert agent.close(30).delivered == 10_000
    assert len(sandbox.requests) < 140
    assert max(request.events for request in sandbox.requests) == 100


def test_a_batch_leaves_when_it_is_full_without_waiting_for_the_interval(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent(flush_interval_seconds=60.0)
    for _ in range(100):
        agent.record("tokens", "cus_1")
    assert agent._pipeline._flusher._wait_until(
        lambda: agent.stats().delivered == 100, time.monotonic() + 20
    )


def test_a_batch_leaves_when_its_oldest_event_is_as_old_as_the_interval(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent(flush_interval_seconds=0.2)
    began = time.time()
    agent.record("tokens", "cus_1")
    assert agent._pipeline._flusher._wait_until(
        lambda: agent.stats().delivered == 1, time.monotonic() + 20
    )
    assert sandbox.requests[-1].at - began >= 0.19


def test_a_small_batch_size_is_kept(make_agent: MakeAgent, sandbox: Sandbox) -> None:
    agent = make_agent(batch_size=7)
    for _ in range(50):
        agent.record("tokens", "cus_1")
    agent.close(20)
    assert max(request.events for request in sandbox.requests) == 7


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
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    held, release = threading.Event(), threading.Event()

    def hold(_seconds: float) -> None:
        held.set()
        assert release.wait(20)

    sandbox.add_fault(Fault("delay", seconds=1.0, times=1))
    agent = make_agent(sleep=hold)
    agent.record("tokens", "cus_1")
    assert held.wait(20)
    assert len(agent._pipeline._buffer) == 0
    assert not agent.flush(0.05)
    release.set()
    assert agent.flush(20)


def test_flush_without_events_and_after_close_is_true_at_once(make_agent: MakeAgent) -> None:
    agent = make_agent()
    assert agent.flush()
    agent.close()
    assert agent.flush()


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
    line = next(r for r in caplog.records if r.getMessage() == "meter_agent.closed")
    assert line.__dict__["dropped"] == {"shutdown": 250}
    assert line.levelno == logging.WARNING


def test_close_leaves_what_may_have_arrived_to_a_human(
    make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path
) -> None:
    release = threading.Event()
    told: list[DeadLetter] = []
    sandbox.add_fault(Fault("hang", accept=True))
    letters = tmp_path / "letters.jsonl"
    agent = make_agent(
        sleep=lambda _seconds: release.wait(20),
        dead_letter_file=str(letters),
        flush_interval_seconds=0.01,
        on_dead_letter=told.append,
    )
    agent.record("tokens", "cus_1")
    final = agent.close(0.3)
    release.set()
    assert [letter.uncertain for letter in told] == [True]
    assert (final.uncertain, final.delivered, final.in_flight) == (1, 0, 0)
    assert final.balanced
    line = json.loads(letters.read_text())
    assert (line["reason"], line["uncertain"]) == ("uncertain", True)
    assert line["event"]["payload"]["stripe_customer_id"] == "cus_1"
    assert line["attempted_at"] is not None


def test_close_returns_in_time_while_the_server_never_answers(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    release = threading.Event()
    sandbox.add_fault(Fault("hang"))
    agent = make_agent(sleep=lambda _seconds: release.wait(20))
    for _ in range(1000):
        agent.record("tokens", "cus_1")
    began = time.monotonic()
    final = agent.close(0.5)
    took = time.monotonic() - began
    release.set()
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


def test_a_with_block_closes_the_agent(make_agent: MakeAgent) -> None:
    with make_agent(flush_interval_seconds=60.0) as agent:
        agent.record("tokens", "cus_1")
    assert agent.stats().delivered == 1


def test_an_invalid_event_is_a_dead_letter_that_names_field_value_and_rule(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    letters: list[DeadLetter] = []
    path = tmp_path / "letters.jsonl"
    agent = make_agent(on_dead_letter=letters.append, dead_letter_file=str(path))
    assert agent.record("tokens", "cus_1", float("nan"))
    assert agent.record("tokens", "cus_2", 2)
    agent.record("tokens", "")
    agent.record(None, [object()], payload=7)  # type: ignore[arg-type]
    assert agent.flush(20)
    stats = agent.stats()
    assert (stats.delivered, stats.dead_lettered) == (1, 3)
    assert "value=nan" in letters[0].message
    assert letters[0].event["customer_id"] == "cus_1"
    assert [letter.reason for letter in letters] == ["invalid"] * 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["message"] for line in lines] == [letter.message for letter in letters]
    assert path.stat().st_mode & 0o777 == 0o600


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __hash__ = __eq__ = __str__  # type: ignore[assignment]


def test_an_object_that_misbehaves_costs_only_itself(make_agent: MakeAgent) -> None:
    letters: list[DeadLetter] = []
    agent = make_agent(on_dead_letter=letters.append)
    agent.record("tokens", Unreadable(), Unreadable())  # type: ignore[arg-type]
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert agent.stats().delivered == 1
    assert len(letters) == 1


def test_strict_mode_raises_where_the_event_is_recorded(make_agent: MakeAgent) -> None:
    agent = make_agent(strict=True)
    with pytest.raises(InvalidEventError, match="value") as raised:
        agent.record("tokens", "cus_1", True)
    assert raised.value.field == "value"
    assert agent.record("tokens", "cus_1", 1, payload={"region": "eu"})
    assert agent.close(20).recorded == 1


def test_a_refused_event_is_a_dead_letter_with_stripes_words(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    sandbox.add_fault(
        Fault("poison", match={"customer": "cus_bad"}, code="no_meter", message="no such meter")
    )
    letters: list[DeadLetter] = []
    agent = make_agent(on_dead_letter=letters.append)
    for n in range(100):
        agent.record("tokens", "cus_bad" if n == 31 else "cus_good", n)
    assert agent.flush(20)
    (letter,) = letters
    assert (letter.reason, letter.code) == ("rejected", "no_meter")
    assert letter.attempted_at is not None
    assert "no such meter" in letter.message
    assert letter.request_id is not None
    assert letter.event["payload"] == {"stripe_customer_id": "cus_bad", "value": "31"}
    assert billed(sandbox) == {"tokens": {"cus_good": str(sum(range(100)) - 31)}}


def test_own_identifiers_and_timestamps_reach_stripe(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent()
    moment = datetime.now(UTC).replace(microsecond=123_000)
    agent.record("tokens", "cus_1", 1, identifier="invoice-7", timestamp=moment)
    agent.record("tokens", "cus_1", 1, identifier="invoice-7", timestamp=moment)
    agent.record("tokens", "cus_1", 1, timestamp=time.time() - 3600)
    assert agent.close(20).delivered == 3
    first, second = sandbox.ledger()
    assert first["identifier"] == "invoice-7"
    assert first["timestamp"].startswith(moment.strftime("%Y-%m-%dT%H:%M:%S.123"))
    assert sandbox.totals()["duplicates"] == 1
    assert second["timestamp"] < first["timestamp"]


def test_the_timestamp_is_the_moment_of_recording_however_late_the_event_leaves(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent(flush_interval_seconds=60.0)
    before = datetime.now(UTC)
    agent.record("tokens", "cus_1")
    after = datetime.now(UTC)
    sandbox.add_fault(Fault("status", status=503, times=3))
    assert agent.flush(20)
    stamped = datetime.fromisoformat(sandbox.ledger()[0]["timestamp"])
    assert before.timestamp() - 0.001 <= stamped.timestamp() <= after.timestamp()


def test_frozen_time_freezes_timestamps_but_no_deadline(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent()
    with freeze_time("2026-11-20T12:00:00.500Z"):
        sandbox.advance(time.time() - sandbox.now())
        agent.record("tokens", "cus_1")
        assert agent.flush(20)
        sandbox.add_fault(Fault("status", status=503))
        agent.record("tokens", "cus_1")
        assert not agent.flush(0.05)
    assert sandbox.ledger()[0]["timestamp"].startswith("2026-11-20T12:00:00.5")
    sandbox.clear_faults()
    assert agent.flush(20)


def test_payload_keys_can_be_set_for_all_meters_and_for_one() -> None:
    sandbox = Sandbox(
        payload_keys={
            "tokens": {"customer_key": "buyer", "value_key": "amount"},
            "pages": {"customer_key": "buyer", "value_key": "sheets"},
        }
    )
    from meter_agent._agent import build
    from meter_agent.sandbox import SandboxAdapter

    config = Config(
        **FAST,
        customer_key="buyer",
        value_key="amount",
        payload_keys={"pages": {"value_key": "sheets"}},
    )
    with build(config, open_adapter=lambda: SandboxAdapter(sandbox)) as agent:
        agent.record("tokens", "cus_1", 2, payload={"model": "small"})
        agent.record("pages", "cus_1", 3)
    assert agent.stats().delivered == 2
    assert billed(sandbox) == {"tokens": {"cus_1": "2"}, "pages": {"cus_1": "3"}}
    assert sandbox.ledger()[0]["payload"]["model"] == "small"


def test_the_configured_headers_are_sent(make_agent: MakeAgent) -> None:
    from tests.wire.servers import answer, listening

    with listening(lambda connection, _: answer(connection, b"{}", "503 No")) as server:
        agent = MeterAgent(
            Config(
                api_key="sk_test_1",
                api_url=server.url,
                events_url=server.url,
                stripe_version="2026-09-30.endive",
                stripe_account="acct_1",
                stripe_context="acct_2",
            )
        )
        agent.record("tokens", "cus_1")
        agent.close(0.5)
        request = server.requests[0]
    assert b"Stripe-Version: 2026-09-30.endive" in request
    assert b"Stripe-Account: acct_1" in request
    assert b"Stripe-Context: acct_2" in request


def test_a_disabled_agent_refuses_counts_and_starts_nothing(make_agent: MakeAgent) -> None:
    before = len(sender_threads())
    agent = make_agent(disabled=True, sandbox_url=None)
    assert not agent.record("tokens", "cus_1")
    assert agent.flush()
    assert agent.close().dropped == {"disabled": 1}
    assert len(sender_threads()) == before


def test_settings_by_keyword_win_over_the_config_and_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METER_AGENT_API_KEY", "sk_test_env")
    monkeypatch.setenv("METER_AGENT_BATCH_SIZE", "7")
    monkeypatch.setenv("METER_AGENT_MAX_IN_FLIGHT", "3")
    assert MeterAgent(batch_size=5).config.batch_size == 5
    assert MeterAgent(batch_size=5).config.max_in_flight == 3
    assert (
        MeterAgent(Config(api_key="sk_test_1", batch_size=9), batch_size=6).config.batch_size == 6
    )
    assert MeterAgent(Config(api_key="sk_test_1")).config.batch_size == 100


def test_without_a_key_the_constructor_raises_and_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="METER_AGENT_API_KEY"):
        MeterAgent()


def test_an_unknown_variable_is_a_warning_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("METER_AGENT_API_KEY", "sk_test_1")
    monkeypatch.setenv("METER_AGENT_BATCHSIZE", "7")
    MeterAgent()
    (line,) = (r for r in caplog.records if r.getMessage() == "meter_agent.unknown_setting")
    assert line.__dict__["variable"] == "METER_AGENT_BATCHSIZE"
    assert line.__dict__["nearest"] == "METER_AGENT_BATCH_SIZE"


def test_the_key_file_is_read_again_so_that_a_wrong_key_can_be_replaced(
    tmp_path: Path,
) -> None:
    from meter_agent._agent import build
    from meter_agent.sandbox import SandboxAdapter

    sandbox = Sandbox(api_keys={"sk_test_right"})
    key = tmp_path / "key"
    key.write_text("sk_test_wrong\n")
    settings: dict[str, Any] = FAST | {
        "sandbox_url": None,
        "api_url": "http://127.0.0.1:1",
        "events_url": "http://127.0.0.1:1",
        "api_key_file": str(key),
    }
    errors: list[MeterAgentError] = []
    refused = threading.Event()

    def on_error(error: MeterAgentError) -> None:
        errors.append(error)
        refused.set()

    agent = build(
        Config(**settings), open_adapter=lambda: SandboxAdapter(sandbox), on_error=on_error
    )
    agent.record("tokens", "cus_1")
    assert refused.wait(20)
    key.write_text("sk_test_right\n")
    assert agent.flush(20)
    assert isinstance(errors[0], meter_agent.AuthenticationError)
    agent.close()


# -- callbacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
def test_a_callback_that_raises_harms_nobody(
    make_agent: MakeAgent,
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    raised: BaseException,
) -> None:
    calls: list[object] = []

    def fail(argument: object) -> None:
        calls.append(argument)
        raise raised

    sandbox.add_fault(Fault("status", status=503, times=1))
    agent = make_agent(on_dead_letter=fail, on_error=fail)
    agent.record("tokens", "cus_1", True)
    agent.record("tokens", "cus_1", 1)
    assert agent.flush(20)
    assert (agent.stats().delivered, agent.stats().dead_lettered) == (1, 1)
    assert len(calls) == 2
    assert "meter_agent.callback_failed" in caplog.messages
    assert "meter_agent.sender_died" not in caplog.messages


def test_a_callback_may_record_flush_and_close(make_agent: MakeAgent, sandbox: Sandbox) -> None:
    agent: MeterAgent
    seen: list[object] = []

    def on_dead_letter(letter: DeadLetter) -> None:
        seen.append(agent.record("letters", "cus_1"))
        seen.append(agent.flush(20))
        seen.append(agent.close(20))

    agent = make_agent(on_dead_letter=on_dead_letter)
    agent.record("tokens", "cus_1", True)
    agent.flush(20)
    final = agent.close(20)
    assert seen[0] is True
    assert seen[1] is False, "flush() in a sender thread does not wait for itself"
    assert final.dead_lettered == 1
    assert final.delivered == 1
    assert billed(sandbox) == {"letters": {"cus_1": "1"}}


# -- trouble inside ------------------------------------------------------------------------------


def test_a_sender_that_dies_is_replaced_and_its_batch_is_delivered_once(
    make_agent: MakeAgent,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from meter_agent._delivery import Delivery

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
    assert "meter_agent.sender_died" in caplog.messages


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


def test_the_buffer_bounds_what_waits_and_the_drops_are_logged_in_one_line(
    make_agent: MakeAgent, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    sandbox.add_fault(Fault("delay", seconds=1.0, times=1))
    agent = make_agent(sleep=lambda _seconds: release.wait(20), buffer_events=100, max_in_flight=1)
    accepted = sum(agent.record("tokens", "cus_1") for _ in range(100_000))
    stats = agent.stats()
    assert stats.buffered <= 100
    assert stats.dropped == {"overflow": 100_000 - accepted}
    release.set()
    final = agent.close(20)
    assert final.delivered == accepted
    drops = [r for r in caplog.records if r.getMessage() == "meter_agent.events_dropped"]
    assert len(drops) == 1
    assert 0 < drops[0].__dict__["events"] <= 100_000 - accepted


def test_events_per_second_are_held_to_their_limit(make_agent: MakeAgent, sandbox: Sandbox) -> None:
    agent = make_agent(max_events_per_second=1000)
    for _ in range(600):
        agent.record("tokens", "cus_1")
    assert agent.close(20).delivered == 600
    times = [request.at for request in sandbox.requests if request.events]
    assert times[-1] - times[0] >= 0.45


def test_a_slow_server_is_met_by_several_requests_in_flight(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    together = threading.Barrier(4)
    sandbox.add_fault(Fault("delay", seconds=1.0))
    agent = make_agent(max_in_flight=4, sleep=lambda _seconds: together.wait(20))
    for _ in range(800):
        agent.record("tokens", "cus_1")
    assert agent.close(30).delivered == 800


def test_one_request_at_a_time_when_only_one_is_allowed(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    inside: list[int] = []
    most: list[int] = []

    def sleep(_seconds: float) -> None:
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    sandbox.add_fault(Fault("delay", seconds=1.0))
    agent = make_agent(max_in_flight=1, sleep=sleep)
    for _ in range(2000):
        agent.record("tokens", "cus_1")
    assert agent.close(20).delivered == 2000
    assert max(most) == 1


def test_an_idle_agent_makes_no_wake_ups(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    doorbell = agent._pipeline._flusher._doorbell
    waits: list[float | None] = []
    asleep = threading.Event()
    wait = doorbell.wait

    class Listening:
        def ring(self) -> None:
            doorbell.ring()

        def wait(self, timeout: float | None) -> bool:
            waits.append(timeout)
            if timeout is None:
                asleep.set()
            return wait(timeout)

    agent._pipeline._flusher._doorbell = Listening()
    doorbell.ring()
    assert asleep.wait(20)
    assert waits[-1] is None


# -- being a good object -------------------------------------------------------------------------


def test_an_agent_that_is_collected_sends_what_it_holds_and_leaves_nothing(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    from meter_agent._agent import build
    from meter_agent.sandbox import SandboxAdapter

    agent = build(
        Config(**(FAST | {"flush_interval_seconds": 60.0})),
        open_adapter=lambda: SandboxAdapter(sandbox),
    )
    agent.record("tokens", "cus_1")
    (thread,) = sender_threads()[-1:]
    reference = weakref.ref(agent)
    del agent
    gc.collect()
    assert reference() is None
    thread.join(20)
    assert sandbox.totals()["accepted"] == 1
    assert not _lifecycle._state.pipelines


def test_a_thousand_agents_leave_no_hook_thread_or_reference_behind() -> None:
    threads = threading.active_count()
    references = []
    for _ in range(1000):
        agent = MeterAgent(Config(**FAST))
        references.append(weakref.ref(agent))
        agent.close()
    del agent
    gc.collect()
    assert not any(reference() for reference in references)
    assert threading.active_count() == threads
    assert not _lifecycle._state.pipelines


def test_who_keeps_only_the_record_method_keeps_the_agent(
    sandbox: Sandbox, make_agent: MakeAgent
) -> None:
    from meter_agent._agent import build
    from meter_agent.sandbox import SandboxAdapter

    record = build(Config(**FAST), open_adapter=lambda: SandboxAdapter(sandbox)).record
    gc.collect()
    assert record("tokens", "cus_1")


def test_a_subclass_may_extend_record(sandbox: Sandbox) -> None:
    class Counting(MeterAgent):
        calls = 0

        def record(self, *event: Any, **options: Any) -> bool:
            self.calls += 1
            return super().record(*event, **options)

    agent = Counting(Config(disabled=True))
    assert not agent.record("tokens", "cus_1")
    assert agent.calls == 1
    assert agent.stats().dropped == {"disabled": 1}


def test_stats_can_be_copied_and_pickled(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.record("tokens", "cus_1")
    agent.close(20)
    stats = agent.stats()
    assert pickle.loads(pickle.dumps(stats)) == copy.deepcopy(stats) == stats
    assert stats.last_success_at is not None
    assert stats.oldest_event_age_seconds is None


def test_the_repr_shows_the_ledger(make_agent: MakeAgent) -> None:
    agent = make_agent(flush_interval_seconds=60.0)
    agent.record("tokens", "cus_1")
    assert repr(agent) == "<MeterAgent recorded=1 delivered=0 buffered=1 in_flight=0>"
    assert agent.stats().oldest_event_age_seconds is not None


def test_no_secret_appears_in_logs_reprs_errors_letters_or_statistics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from meter_agent._agent import build
    from meter_agent.sandbox import SandboxAdapter

    caplog.set_level(logging.DEBUG)
    key = "rk_test_" + "thisisverysecret" * 2
    sandbox = Sandbox(api_keys={key})
    for fault in (
        Fault("status", status=503, times=1),
        Fault("status", status=401, code="x", times=1),
        Fault("poison", match={"payload.value": "5"}),
    ):
        sandbox.add_fault(fault)
    told: list[object] = []
    letters = tmp_path / "letters.jsonl"
    settings: dict[str, Any] = FAST | {"sandbox_url": None, "api_url": "http://127.0.0.1:1"}
    config = Config(
        **settings, events_url="http://127.0.0.1:1", api_key=key, dead_letter_file=str(letters)
    )
    agent = build(
        config,
        open_adapter=lambda: SandboxAdapter(sandbox),
        on_dead_letter=told.append,
        on_error=told.append,
    )
    for n in range(10):
        agent.record("tokens", "cus_1", n)
    stats = agent.close(20)
    assert stats.delivered == 9
    tokens = list(sandbox._sessions._by_token)
    assert len(tokens) >= 2
    heard = "".join(
        [
            repr(config),
            str(config),
            repr(agent),
            repr(stats),
            repr(told),
            letters.read_text(),
            *(repr(record.__dict__) for record in caplog.records),
        ]
    )
    assert "thisisverysecret" not in heard
    for token in tokens:
        assert token not in heard


# -- what an attack on the agent found -----------------------------------------------------------


def wait_until(agent: MeterAgent, done: Any) -> bool:
    return agent._pipeline._flusher._wait_until(done, time.monotonic() + 20)


@pytest.mark.parametrize("setting", ["batch_size", "buffer_events"])
def test_a_batch_of_one_leaves_the_watcher_asleep_while_another_sender_is_busy(
    make_agent: MakeAgent, sandbox: Sandbox, setting: str
) -> None:
    inside, release = threading.Event(), threading.Event()

    def hold(_seconds: float) -> None:
        inside.set()
        assert release.wait(20)

    sandbox.add_fault(Fault("delay", seconds=1.0, times=1))
    agent = make_agent(sleep=hold, overflow="block", **{setting: 1})
    agent.record("tokens", "cus_1")
    assert inside.wait(20)
    assert agent.record("tokens", "cus_2")
    assert wait_until(agent, lambda: agent.stats().delivered == 1)
    release.set()
    assert agent.close(20).delivered == 2


def test_what_close_has_dropped_is_not_sent_by_a_thread_that_was_waiting_for_a_session(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    inside, release = threading.Event(), threading.Event()

    def hold(_seconds: float) -> None:
        inside.set()
        assert release.wait(20)

    sandbox.add_fault(Fault("delay", on="session", seconds=1.0, times=1))
    agent = make_agent(sleep=hold)
    agent.record("tokens", "cus_1")
    assert inside.wait(20)
    threads = sender_threads()
    assert agent.close(0.1).dropped == {"shutdown": 1}
    release.set()
    for thread in threads:
        thread.join(20)
    assert sandbox.totals()["accepted"] == 0


def test_a_small_batch_that_hangs_does_not_hold_up_the_events_behind_it(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    inside, release = threading.Event(), threading.Event()

    def hold(_seconds: float) -> None:
        inside.set()
        assert release.wait(20)

    sandbox.add_fault(Fault("delay", seconds=1.0, times=1))
    agent = make_agent(sleep=hold)
    agent.record("tokens", "cus_1")
    assert inside.wait(20)
    for _ in range(100):
        agent.record("tokens", "cus_2")
    assert wait_until(agent, lambda: agent.stats().delivered == 100)
    release.set()
    assert agent.close(20).delivered == 101


def test_a_wall_clock_that_is_set_back_does_not_keep_events_from_leaving(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent(flush_interval_seconds=0.1)
    with freeze_time("2026-11-21T12:00:00Z", auto_tick_seconds=0) as clock:
        sandbox.advance(time.time() - sandbox.now())
        agent.record("tokens", "cus_1")
        clock.tick(-30)
        assert wait_until(agent, lambda: agent.stats().delivered == 1)


def test_a_callback_that_closes_at_every_failure_makes_no_storm(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent: MeterAgent

    def on_error(_error: MeterAgentError) -> None:
        agent.close(0.3)

    sandbox.add_fault(Fault("status", status=503))
    agent = make_agent(on_error=on_error, retry_base_seconds=0.5, retry_max_seconds=30.0)
    agent.record("tokens", "cus_1")
    assert wait_until(agent, lambda: agent.stats().requests > 0)
    assert not agent.flush()
    assert len(sandbox.requests) < 20
    assert agent.close(0.1).uncertain == 1


def test_an_agent_closed_by_a_callback_ends_its_threads(make_agent: MakeAgent) -> None:
    agent: MeterAgent
    agent = make_agent(on_dead_letter=lambda _letter: agent.close(20))
    agent.record("tokens", "cus_1", True)
    assert agent.flush(20)
    for thread in sender_threads():
        thread.join(20)
    assert not sender_threads()
    assert agent._pipeline not in _lifecycle._state.pipelines


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


def test_drops_during_an_outage_are_logged_during_the_outage(
    make_agent: MakeAgent, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    failed, dropped, told = threading.Event(), threading.Event(), threading.Event()

    def on_error(_error: MeterAgentError) -> None:
        failed.set()
        if dropped.is_set():
            told.set()

    sandbox.add_fault(Fault("status", status=503))
    agent = make_agent(buffer_events=10, max_in_flight=1, on_error=on_error)
    agent.record("tokens", "cus_1")
    assert failed.wait(20)
    for _ in range(100):
        agent.record("tokens", "cus_1")
    dropped.set()
    assert told.wait(20)
    assert "meter_agent.events_dropped" in caplog.messages


@pytest.mark.parametrize("call", ["flush", "close"])
def test_a_signal_handler_of_the_application_may_flush_and_close(
    make_agent: MakeAgent, call: str
) -> None:
    agent = make_agent()
    agent.record("tokens", "cus_1")
    with agent._pipeline._flusher._progress:
        # As the handler would run that interrupted `flush()` where it waits, in the same thread.
        assert getattr(agent, call)(20)
    assert agent.stats().delivered == 1


def test_times_beyond_all_limits_are_as_long_as_it_takes(make_agent: MakeAgent) -> None:
    agent = make_agent()
    agent.record("tokens", "cus_1")
    assert agent.flush(float("inf"))
    assert agent.close(1e300).delivered == 1


def test_a_clock_before_1970_makes_letters_and_not_dead_senders(
    make_agent: MakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    letters: list[DeadLetter] = []
    agent = make_agent(on_dead_letter=letters.append)
    agent._pipeline._buffer._events.append((-5.0, "tokens", "cus_1", 1, None, None, None))
    agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert [letter.recorded_at for letter in letters] == ["-5.0"]
    assert "meter_agent.sender_died" not in caplog.messages


def test_senders_that_die_again_are_replaced_as_soon_as_somebody_waits(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meter_agent._delivery import Delivery

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


def test_an_event_is_sent_although_its_agent_was_retired_while_it_was_recorded(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    agent = make_agent()
    agent._pipeline.retire()
    assert agent._pipeline not in _lifecycle._state.pipelines
    assert agent.record("tokens", "cus_1")
    assert agent.flush(20)
    assert sandbox.totals()["accepted"] == 1
