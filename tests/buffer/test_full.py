"""A full buffer: capacity holds, and each policy decides as it says."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from meter_agent._runtime import SystemRuntime
from tests.buffer.buffers import balanced, customers, make_buffer, pieces, settle_all
from tests.virtual import VirtualRuntime


@pytest.mark.parametrize("capacity", [1, 7, 1024, 1025, 3000])
def test_drop_newest_keeps_exactly_the_first_events_up_to_capacity(capacity: int) -> None:
    buffer, _ = make_buffer(capacity=capacity)
    record = buffer.recorder()
    answers = [record("tokens", f"cus_{n}") for n in range(capacity + 10)]
    assert answers == [True] * capacity + [False] * 10
    assert len(buffer) == capacity
    assert buffer.counts().dropped == {"overflow": 10}
    kept = customers(buffer.take(capacity + 10))
    assert kept == [f"cus_{n}" for n in range(capacity)]


@pytest.mark.parametrize("capacity", [1, 7, 1025])
def test_drop_oldest_keeps_exactly_the_last_events(capacity: int) -> None:
    buffer, _ = make_buffer(capacity=capacity, overflow="drop_oldest")
    record = buffer.recorder()
    assert all(record("tokens", f"cus_{n}") for n in range(capacity + 10))
    assert buffer.counts().dropped == {"overflow": 10}
    assert balanced(buffer)
    kept = customers(buffer.take(capacity + 10))
    assert kept == [f"cus_{n}" for n in range(10, capacity + 10)]


def test_block_waits_for_its_timeout_and_then_drops() -> None:
    runtime = VirtualRuntime()
    buffer, wakes = make_buffer(runtime, capacity=1, overflow="block", block_timeout_seconds=0.7)
    record = buffer.recorder()
    assert record("tokens", "cus_1")
    assert not record("tokens", "cus_2")
    assert sum(runtime.waits) == pytest.approx(0.7)
    assert wakes.count >= 2
    assert buffer.counts().dropped == {"overflow": 1}


def test_block_takes_the_place_that_a_sender_frees_while_it_waits() -> None:
    runtime = VirtualRuntime()
    buffer, _ = make_buffer(runtime, capacity=1, overflow="block")
    record = buffer.recorder()
    record("tokens", "cus_1")
    runtime.on_wait = lambda: settle_all(buffer, taken) if (taken := buffer.take(1)) else None
    assert record("tokens", "cus_2")
    assert runtime.waits == []
    assert customers(buffer.take(1)) == ["cus_2"]


def test_block_takes_the_place_that_a_sender_frees_just_before_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = VirtualRuntime()
    buffer, _ = make_buffer(runtime, capacity=1, overflow="block")
    record = buffer.recorder()
    record("tokens", "cus_1")
    enter_if_room = buffer._enter_if_room

    def enter_or_see_one_leave(event: Any) -> bool:
        return enter_if_room(event) or not buffer.take(1)

    monkeypatch.setattr(buffer, "_enter_if_room", enter_or_see_one_leave)
    assert record("tokens", "cus_2")
    assert runtime.waits == []


def test_threads_that_block_are_all_let_in_as_places_become_free() -> None:
    buffer, _ = make_buffer(
        SystemRuntime(), capacity=2, overflow="block", block_timeout_seconds=20.0
    )
    record = buffer.recorder()
    outcomes: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda: outcomes.extend(record("tokens", "cus_1") for _ in range(50)),
            daemon=True,
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    taken, deadline = 0, time.monotonic() + 15.0
    while taken < 200 and time.monotonic() < deadline:
        if batch := buffer.take(2):
            taken += batch.size
            settle_all(buffer, batch)
    assert taken == 200
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 200
    assert balanced(buffer)


@pytest.mark.parametrize(
    ("overflow", "survives"),
    [("drop_newest", "others"), ("drop_oldest", "late"), ("block", "others")],
)
def test_a_thread_held_up_behind_the_open_door_does_not_overfill_the_buffer(
    overflow: str, survives: str
) -> None:
    buffer, _ = make_buffer(capacity=2, overflow=overflow, block_timeout_seconds=0.0)
    record = buffer.recorder()
    buffer._gate.alarm = 0
    buffer._door[0] = 1  # as this thread saw it, before the others came
    for customer in ("others", "others", "late"):
        buffer._door[0] = 1
        record("tokens", customer)
    assert len(buffer) == 2
    assert buffer.counts().dropped == {"overflow": 1}
    assert balanced(buffer)
    assert customers(buffer.take(2)) == ["others", survives]


def test_an_event_that_a_sender_took_from_an_overfull_buffer_is_not_entered_again() -> None:
    buffer, _ = make_buffer(capacity=1, overflow="drop_oldest")
    late = pieces("cus_late")
    buffer._events.extend(pieces("others") * 2)
    assert buffer._look_up(late) is True  # it was appended, and is gone again
    assert customers(buffer.take(10)) == ["others", "others"]
    assert buffer.counts().dropped == {}


def test_a_caller_that_is_called_in_vain_looks_again_and_calls_nobody_else() -> None:
    runtime = VirtualRuntime()
    buffer, _ = make_buffer(runtime, capacity=1, overflow="block", block_timeout_seconds=1.0)
    record = buffer.recorder()
    record("tokens", "cus_1")
    other = runtime.doorbell()

    def call_in_vain() -> None:
        runtime.on_wait = lambda: None
        buffer._call_waiting(1)
        buffer._waiting.append(other)

    runtime.on_wait = call_in_vain
    assert not record("tokens", "cus_2")
    assert runtime.waits == [1.0]
    assert not other.rung  # or the two would ring each other for ever
    assert buffer.take(1) is not None
    assert other.rung


def test_a_caller_that_was_called_and_finds_room_calls_the_next_one() -> None:
    runtime = VirtualRuntime()
    buffer, _ = make_buffer(runtime, capacity=3, overflow="block", block_timeout_seconds=1.0)
    record = buffer.recorder()
    for _ in range(3):
        record("tokens", "cus_1")
    other = runtime.doorbell()

    def make_room() -> None:
        buffer.take(3)  # one of those who wait is called
        buffer._waiting.append(other)

    runtime.on_wait = make_room
    assert record("tokens", "cus_2")
    assert other.rung


def test_a_caller_that_is_called_when_its_time_is_over_calls_the_next_one() -> None:
    runtime = VirtualRuntime()
    buffer, _ = make_buffer(runtime, capacity=1, overflow="block", block_timeout_seconds=1.0)
    other = runtime.doorbell()

    def find_no_room() -> bool:
        runtime.advance(1.0)
        buffer._call_waiting(1)  # just behind the last look
        buffer._waiting.append(other)
        return False

    assert not buffer._wait_for_room(find_no_room)
    assert other.rung


def test_a_nested_call_leaves_the_last_places_to_the_call_that_it_interrupted() -> None:
    buffer, _ = make_buffer(capacity=20)
    record = buffer.recorder()
    with buffer._lock:
        outcomes = [record("tokens", "cus_1") for _ in range(20)]
    assert outcomes == [True] * 12 + [False] * 8
    assert record("tokens", "cus_1")
    assert balanced(buffer)
