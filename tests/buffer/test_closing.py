"""A buffer that closes: what comes too late is refused, and the account adds up."""

from __future__ import annotations

from meter_agent._ledger import DropReason, Outcome
from tests.buffer.buffers import balanced, freeze, make_buffer, pieces
from tests.virtual import VirtualRuntime


def test_closing_lets_a_blocked_caller_go_at_once_and_counts_it_as_closed() -> None:
    runtime = VirtualRuntime()
    buffer, _ = make_buffer(runtime, capacity=1, overflow="block", block_timeout_seconds=60.0)
    record = buffer.recorder()
    record("tokens", "cus_1")
    runtime.on_wait = lambda: buffer.refuse(DropReason.CLOSED)
    assert not record("tokens", "cus_2")
    assert runtime.waits == []
    assert buffer.counts().dropped == {"closed": 1}


def test_a_refusing_buffer_counts_each_call_under_its_reason() -> None:
    buffer, _ = make_buffer()
    buffer.refuse(DropReason.DISABLED)
    buffer.refuse(DropReason.CLOSED)
    record = buffer.recorder()
    assert not any(record("tokens", "cus_1") for _ in range(3))
    assert buffer.counts().dropped == {"disabled": 3}
    assert balanced(buffer)


def test_what_waits_at_the_end_is_dropped_as_shutdown() -> None:
    buffer, _ = make_buffer()
    record = buffer.recorder()
    for _ in range(3):
        record("tokens", "cus_1")
    buffer.refuse(DropReason.CLOSED)
    assert buffer.seal() == 3
    assert buffer.counts().dropped == {"shutdown": 3}
    assert buffer.is_drained
    assert balanced(buffer)


def test_an_event_that_slips_in_after_the_last_count_is_taken_back_and_refused() -> None:
    buffer, _ = make_buffer()
    events, gate = buffer._events, buffer._gate
    buffer.refuse(DropReason.CLOSED)
    buffer.seal()
    # As a thread would that had passed the door before: it appends, then looks at the alarm.
    late = pieces("cus_late")
    events.extend(late)
    assert len(events) >= gate.alarm
    assert buffer._look_up(late) is False
    assert buffer.counts().dropped == {"closed": 1}
    assert buffer.is_drained
    assert balanced(buffer)


def test_an_event_that_slips_in_before_the_last_count_is_held() -> None:
    buffer, _ = make_buffer()
    buffer.refuse(DropReason.CLOSED)
    late = pieces("cus_late")
    buffer._events.extend(late)
    assert buffer._look_up(late) is True
    assert buffer.seal() == 1
    assert balanced(buffer)


def test_an_event_that_was_in_the_last_count_is_not_refused_as_well() -> None:
    buffer, _ = make_buffer()
    buffer.refuse(DropReason.CLOSED)
    late = pieces("cus_late")
    buffer._events.extend(late)
    assert buffer.seal() == 1
    assert buffer._look_up(late) is True
    assert buffer.counts().dropped == {"shutdown": 1}
    assert balanced(buffer)


def test_nobody_can_unset_the_alarm_of_a_closed_buffer() -> None:
    buffer, _ = make_buffer()
    buffer.refuse(DropReason.CLOSED)
    buffer.set_alarm(100)
    assert buffer._gate.alarm == 0
    buffer.unset_alarm()
    assert buffer._gate.alarm == 0


def test_a_late_answer_cannot_change_an_account_that_close_has_made() -> None:
    buffer, _ = make_buffer()
    record = buffer.recorder()
    record("tokens", "cus_1")
    record("tokens", "cus_2")
    frozen, raw = buffer.take(1), buffer.take(1)
    assert frozen is not None
    assert raw is not None
    freeze(buffer, frozen)
    assert buffer.abandon() == [frozen, raw]
    for batch in (frozen, raw):
        buffer.settle_abandoned(batch, batch.size, Outcome.UNCERTAIN)
    assert not buffer.settle(frozen, frozen.open, Outcome.DELIVERED)
    assert not buffer.freeze(raw, [], [])
    counts = buffer.counts()
    assert counts.settled[Outcome.UNCERTAIN] == 2
    assert counts.settled[Outcome.DELIVERED] == counts.in_flight == 0
    assert balanced(buffer)


def test_what_is_being_settled_when_the_agent_closes_is_counted_by_its_claim() -> None:
    buffer, _ = make_buffer()
    for _ in range(3):
        buffer.recorder()("tokens", "cus_1")
    batch = buffer.take(3)
    assert batch is not None
    freeze(buffer, batch)
    assert buffer.claim(batch, batch.open[:1], Outcome.DEAD_LETTERED)
    buffer.abandon()
    assert (batch.size, len(batch.open)) == (2, 2)
    buffer.settle_claim(batch)
    counts = buffer.counts()
    assert (counts.settled[Outcome.DEAD_LETTERED], counts.in_flight) == (1, 2)
    assert balanced(buffer)
