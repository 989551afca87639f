"""What leaves the buffer: each event once, in order, until it is settled."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_agent._batch import Batch
from meter_agent._ledger import Outcome
from tests.buffer.buffers import balanced, customers, freeze, make_buffer, minted, settle_all
from tests.virtual import START, VirtualRuntime


def test_events_leave_in_the_order_of_recording_with_the_time_of_recording() -> None:
    buffer, _ = make_buffer()
    record = buffer.recorder()
    for n in range(5):
        assert record("tokens", f"cus_{n}", n)
    batch = buffer.take(3)
    assert customers(batch) == ["cus_0", "cus_1", "cus_2"]
    assert batch is not None
    assert batch.events is not None
    assert batch.events[0] == (START, "tokens", "cus_0", 0, None, None, None)
    assert customers(buffer.take(3)) == ["cus_3", "cus_4"]
    assert buffer.take(3) is None


def test_a_payload_is_copied_by_the_call() -> None:
    buffer, _ = make_buffer()
    payload = {"region": "eu"}
    buffer.recorder()("tokens", "cus_1", payload=payload)
    payload["region"] = "us"
    batch = buffer.take(1)
    assert batch is not None
    assert batch.events is not None
    assert batch.events[0][6] == {"region": "eu"}


class Hostile:
    def keys(self) -> Any:
        raise RuntimeError("no keys today")


@pytest.mark.parametrize("payload", [Hostile(), 7, "text", object()])
def test_recording_never_raises_whatever_the_payload_is(payload: Any) -> None:
    buffer, _ = make_buffer()
    assert buffer.recorder()("tokens", "cus_1", payload=payload)
    assert len(buffer) == 1


def test_identifiers_are_uuids_that_derive_from_the_position_alone() -> None:
    buffer, _ = make_buffer()
    other, _ = make_buffer()
    first = minted(buffer, 1000)
    assert minted(buffer, 1000) == first
    assert len({*first, *minted(other, 1000)}) == 2000
    parsed = uuid.UUID(first[77])
    assert str(parsed) == first[77]
    assert (parsed.version, parsed.variant) == (8, uuid.RFC_4122)
    assert parsed.int & (2**48 - 1) == 77


def test_positions_name_what_is_settled_however_batches_overtake_each_other() -> None:
    buffer, _ = make_buffer()
    record = buffer.recorder()
    for _ in range(10):
        record("tokens", "cus_1")
    first, second = buffer.take(4), buffer.take(4)
    assert first is not None
    assert second is not None
    assert buffer.line() == 10
    assert not buffer.is_settled(1)
    settle_all(buffer, second)
    assert not buffer.is_settled(1)
    settle_all(buffer, first)
    assert buffer.is_settled(8)
    assert not buffer.is_settled(9)


def test_a_batch_settles_part_by_part() -> None:
    buffer, _ = make_buffer()
    record = buffer.recorder()
    for _ in range(4):
        record("tokens", "cus_1")
    batch = buffer.take(4)
    assert batch is not None
    freeze(buffer, batch)
    first, *rest = batch.open
    buffer.settle(batch, [first], Outcome.DEAD_LETTERED)
    assert batch.open == rest
    assert buffer.counts().in_flight == 3
    buffer.settle(batch, rest, Outcome.DELIVERED)
    assert buffer.counts().settled[Outcome.DELIVERED] == 3
    assert buffer.is_drained
    assert balanced(buffer)


def test_a_batch_that_is_given_back_comes_first_and_as_it_was() -> None:
    buffer, _ = make_buffer()
    record = buffer.recorder()
    for n in range(3):
        record("tokens", f"cus_{n}")
    batch = buffer.take(2)
    assert batch is not None
    freeze(buffer, batch)
    bodies = [event.body for event in batch.open]
    buffer.give_back(batch)
    assert buffer.counts().in_flight == 2
    again = buffer.take(100)
    assert again is batch
    assert [event.body for event in again.open] == bodies
    assert not buffer.has_returned_batches


def test_a_settled_batch_is_not_taken_back() -> None:
    buffer, _ = make_buffer()
    buffer.recorder()("tokens", "cus_1")
    batch = buffer.take(1)
    assert batch is not None
    settle_all(buffer, batch)
    buffer.give_back(batch)
    assert buffer.take(1) is None


def test_the_oldest_event_is_found_among_waiting_taken_and_frozen_ones() -> None:
    runtime = VirtualRuntime()
    buffer, _ = make_buffer(runtime)
    record = buffer.recorder()
    assert buffer.counts().oldest_recorded_at is None
    assert buffer.oldest_recorded_at is None
    for _ in range(2):
        record("tokens", "cus_1")
        runtime.advance(10)
    batch = buffer.take(1)
    assert batch is not None
    assert buffer.counts().oldest_recorded_at == START
    freeze(buffer, batch)
    assert buffer.counts().oldest_recorded_at == START
    buffer.settle(batch, batch.open, Outcome.DELIVERED)
    assert buffer.counts().oldest_recorded_at == buffer.oldest_recorded_at == START + 10


@given(
    st.integers(1, 12),
    st.sampled_from(["drop_newest", "drop_oldest"]),
    st.lists(st.sampled_from(["push", "take", "settle", "back"]), max_size=60),
)
def test_any_interleaving_agrees_with_a_list(  # noqa: C901 - the model is one piece
    capacity: int, overflow: str, steps: list[str]
) -> None:
    """The model: a list of waiting events, a list of batches in flight, and a set of ends."""
    buffer, _ = make_buffer(capacity=capacity, overflow=overflow)
    record = buffer.recorder()
    waiting: list[int] = []
    flying: list[tuple[Batch, list[int]]] = []
    returned: list[tuple[Batch, list[int]]] = []
    dropped = pushed = 0
    for step in steps:
        if step == "push":
            full = len(waiting) == capacity
            assert record("tokens", "cus_1", pushed) is not (full and overflow == "drop_newest")
            if full:
                dropped += 1
            if full and overflow == "drop_oldest":
                waiting.pop(0)
            if not full or overflow == "drop_oldest":
                waiting.append(pushed)
            pushed += 1
        elif step == "take":
            batch = buffer.take(3)
            if returned:
                expected_batch, values = returned.pop(0)
                assert batch is expected_batch
                flying.append((expected_batch, values))
            elif waiting:
                assert batch is not None
                assert batch.events is not None
                values, waiting = waiting[:3], waiting[3:]
                assert [event[3] for event in batch.events] == values
                flying.append((batch, values))
            else:
                assert batch is None
        elif step == "settle" and flying:
            batch, _values = flying.pop()
            if batch.events is not None:
                freeze(buffer, batch)
            buffer.settle(batch, batch.open, Outcome.DELIVERED)
        elif step == "back" and flying:
            batch, values = flying.pop(0)
            buffer.give_back(batch)
            returned.append((batch, values))
        counts = buffer.counts()
        assert counts.buffered == len(waiting)
        assert counts.in_flight == sum(len(values) for _, values in flying + returned)
        assert counts.dropped.get("overflow", 0) == dropped
        assert counts.recorded == pushed
        assert balanced(buffer)
