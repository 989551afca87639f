"""Signal handlers that strike anywhere in a call, those that raise and those that call back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meter_agent import (
    MeterAgent,
    _buffer,
    _deaths,
    _event_buffer,
    _flusher,
    _ledger,
    _log,
    _pace,
    _pipeline,
    _progress,
    _runtime,
    _schedule,
    _segment,
    _segment_line,
    _segment_supply,
    _spool,
    _spool_record,
    _written_line,
)
from meter_agent._buffer import RingBuffer
from meter_agent._ledger import DropReason
from tests.buffer.buffers import balanced, customers, make_buffer, settle_all
from tests.conftest import MakeAgent
from tests.simulation.strikes import CtrlC, each_strike

AGENT = (
    *(_buffer, _deaths, _event_buffer, _flusher, _ledger, _log, _pace, _pipeline, _progress),
    *(_runtime, _schedule, _segment, _segment_line, _segment_supply, _spool, _spool_record),
    *(_written_line, threading),
)
CALLS: dict[str, Callable[[MeterAgent], object]] = {
    "record": lambda agent: agent.record("tokens", "cus_1"),
    "flush": lambda agent: agent.flush(20),
    "stats": MeterAgent.stats,
    "health": MeterAgent.health,
}


def raise_ctrl_c(_subject: object) -> None:
    raise CtrlC


def full(overflow: str, capacity: int = 3) -> RingBuffer:
    buffer, _ = make_buffer(capacity=capacity, overflow=overflow, block_timeout_seconds=0.0)
    for n in range(capacity):
        buffer.recorder()("tokens", f"cus_{n}")
    return buffer


def close(buffer: RingBuffer) -> None:
    buffer.refuse(DropReason.CLOSED)
    buffer.seal()


# -- in the buffer -------------------------------------------------------------------------------


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_a_handler_may_close_the_agent_in_the_middle_of_any_record(overflow: str) -> None:
    def record(buffer: RingBuffer) -> None:
        buffer.recorder()("tokens", "cus_late")

    strikes = 0
    for place, buffer in each_strike(lambda: full(overflow), close, record, _buffer):
        strikes += 1
        assert buffer.counts().recorded == 4, place
        assert balanced(buffer), place
        assert buffer.is_drained, place
    assert strikes > 10


def test_a_handler_may_close_the_agent_while_it_is_asked_for_its_counts() -> None:
    strikes = 0
    for place, buffer in each_strike(
        lambda: full("drop_newest"), close, RingBuffer.counts, _buffer, _event_buffer
    ):
        strikes += 1
        assert balanced(buffer), place
    assert strikes > 10


def test_a_handler_that_raises_while_an_event_is_taken_back_spoils_no_other() -> None:
    def withdraw(buffer: RingBuffer) -> None:
        # As a thread does that was held up behind the open door.
        late = (_buffer._NO_DETAILS, 1.0, "tokens", "cus_late", 1)
        buffer._events.extend(late)
        buffer._withdraw(late)

    for place, buffer in each_strike(lambda: full("drop_newest"), raise_ctrl_c, withdraw, _buffer):
        taken: list[str] = []
        while (batch := buffer.take(100)) is not None:
            taken += customers(batch)
            settle_all(buffer, batch)
        assert taken[:3] == ["cus_0", "cus_1", "cus_2"], place
        assert taken[3:] in ([], ["cus_late"]), place


def test_whether_a_buffer_is_drained_is_asked_under_the_lock_that_events_change_hands_under() -> (
    None
):
    class Watched(dict[Any, None]):
        def __len__(self) -> int:
            looks.append(buffer._lock._is_owned())
            return 0

    buffer, _ = make_buffer()
    looks: list[bool] = []
    buffer._in_flight = Watched()
    assert buffer.is_drained
    assert looks == [True]


# -- in an agent ---------------------------------------------------------------------------------


@pytest.fixture(params=["in memory", "in a spool"])
def make_used(
    make_agent: MakeAgent, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[], MeterAgent]]:
    """Agents that hold an event already, but for those that are to record their first."""

    def make() -> MeterAgent:
        where = {"spool_dir": tmp_path_factory.mktemp("spool")} if "spool" in request.param else {}
        agent = make_agent(**where)
        if "record" not in request.node.name:
            agent.record("tokens", "cus_1")
        return agent

    yield make
    # The standard library lists a thread for ever whose `start()` was struck.
    limbo: dict[threading.Thread, threading.Thread] = threading._limbo  # type: ignore[attr-defined]
    for thread in list(limbo):
        if not thread.is_alive():
            del limbo[thread]


def elsewhere(call: Callable[[], Any]) -> Any:
    """Call it in another thread, which no lock that this one may have kept lets pass."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(20)
    return results[0] if results else "no answer"


@pytest.mark.parametrize("call", CALLS)
def test_an_exception_that_strikes_anywhere_leaves_an_agent_that_sends(
    make_used: Callable[[], MeterAgent], call: str
) -> None:
    """As Ctrl-C in a notebook does, or a soft time limit of Celery."""
    strikes = 0
    for place, agent in each_strike(make_used, raise_ctrl_c, CALLS[call], *AGENT):
        strikes += 1
        agent.record("tokens", "cus_2")
        assert elsewhere(lambda: agent.flush(10)) is True, place  # noqa: B023
        stats = agent.close(10)
        assert stats.balanced, place
        assert stats.delivered == stats.recorded >= 1, place
    assert strikes > 10


def test_an_exception_that_strikes_anywhere_in_close_ends_the_wait_and_not_the_accounting(
    make_used: Callable[[], MeterAgent],
) -> None:
    strikes = 0
    for place, agent in each_strike(make_used, raise_ctrl_c, lambda agent: agent.close(20), *AGENT):
        strikes += 1
        stats = elsewhere(lambda: agent.close(10))  # noqa: B023
        assert stats.balanced, place
        assert stats.recorded == 1, place
        assert stats.in_flight == 0, place
        # What waits at the end is dropped, or left to the next process.
        assert stats.buffered == 0 or agent.config.spool_dir, place
    assert strikes > 10


@pytest.mark.parametrize("call", [*CALLS, "close"])
def test_a_handler_may_flush_wherever_it_strikes_and_waits_for_nobody_who_waits_for_it(
    make_used: Callable[[], MeterAgent], call: str
) -> None:
    answers: list[bool] = []
    strikes = 0
    for place, agent in each_strike(
        make_used,
        lambda agent: answers.append(agent.flush()),  # as long as it takes
        CALLS.get(call, lambda agent: agent.close(20)),
        *AGENT,
    ):
        strikes += 1
        stats = agent.close(10)
        assert stats.balanced, place
        assert stats.delivered == stats.recorded >= 1, place
    assert strikes > 10
    assert any(answers)  # it does wait where it can


@pytest.mark.parametrize("call", [*CALLS, "close"])
def test_a_handler_may_close_wherever_it_strikes_and_nothing_is_lost(
    make_used: Callable[[], MeterAgent], call: str
) -> None:
    strikes = 0
    for place, agent in each_strike(
        make_used,
        lambda agent: agent.close(15),
        CALLS.get(call, lambda agent: agent.close(20)),
        *AGENT,
    ):
        strikes += 1
        stats = agent.close(15)
        assert stats.balanced, place
        assert stats.delivered == stats.recorded - stats.dropped.get("closed", 0), place
        assert agent._pipeline._told, place
    assert strikes > 10
