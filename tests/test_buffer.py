"""The ring buffer: every event leaves once, capacity holds, and nobody sleeps through an event."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_agent._batch import Batch
from meter_agent._buffer import _NO_DETAILS, RingBuffer
from meter_agent._event import EventEncoder
from meter_agent._ledger import DropReason, Outcome
from meter_agent._runtime import SystemRuntime
from tests.virtual import START, VirtualRuntime

ENCODER = EventEncoder()


class Wakes:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def make_buffer(runtime: Any = None, **options: Any) -> tuple[RingBuffer, Wakes]:
    wakes = Wakes()
    defaults: dict[str, Any] = {
        "capacity": 5000,
        "overflow": "drop_newest",
        "block_timeout_seconds": 1.0,
        "wake": wakes,
        "on_fork": lambda: None,
    }
    return RingBuffer(runtime or VirtualRuntime(), **(defaults | options)), wakes


def freeze(buffer: RingBuffer, batch: Batch) -> None:
    assert batch.events is not None
    events = [ENCODER.encode(event, identifier) for identifier, event in buffer.recorded(batch)]
    assert buffer.freeze(batch, events, list(range(len(events))))


def minted(buffer: RingBuffer, count: int) -> list[str]:
    batch = Batch([None] * count, position=0, floor=0)
    return [identifier for identifier, _ in buffer.recorded(batch)]


def pieces(customer: str) -> tuple[Any, ...]:
    """What `record()` puts into the deque."""
    return _NO_DETAILS, START, "tokens", customer, 1


def customers(batch: Batch | None) -> list[str]:
    assert batch is not None
    assert batch.events is not None
    return [event[2] for event in batch.events]


def settle_all(buffer: RingBuffer, batch: Batch, outcome: Outcome = Outcome.DELIVERED) -> None:
    freeze(buffer, batch)
    assert buffer.settle(batch, batch.open, outcome)


def balanced(buffer: RingBuffer) -> bool:
    counts = buffer.counts()
    settled = sum(n for outcome, n in counts.settled.items() if outcome is not Outcome.SHUTDOWN)
    ends = settled + sum(counts.dropped.values())
    return counts.recorded == ends + counts.buffered + counts.in_flight


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


def test_the_first_event_wakes_a_sender_and_the_following_ones_do_not() -> None:
    buffer, wakes = make_buffer()
    record = buffer.recorder()
    for _ in range(50):
        record("tokens", "cus_1")
    assert wakes.count == 1


def test_the_event_that_fills_the_batch_wakes_the_sender_that_asked_for_it() -> None:
    buffer, wakes = make_buffer()
    record = buffer.recorder()
    record("tokens", "cus_1")
    buffer.set_alarm(100)
    for _ in range(98):
        record("tokens", "cus_1")
    assert wakes.count == 1
    record("tokens", "cus_1")
    assert wakes.count == 2


def test_a_door_that_a_sender_opens_at_the_wrong_moment_is_closed_by_the_next_event() -> None:
    buffer, _ = make_buffer(capacity=3000)
    record = buffer.recorder()
    for _ in range(3000 - 1024):
        record("tokens", "cus_1")
    assert buffer._door[0] == 0
    for alarm in (1, 100, None):
        buffer._door[0] = 1
        if alarm is None:
            buffer.unset_alarm()
        else:
            buffer.set_alarm(alarm)
        record("tokens", "cus_1")
        assert buffer._door[0] == 0


def test_a_batch_that_can_never_fill_rings_when_the_buffer_is_full() -> None:
    buffer, wakes = make_buffer(capacity=3)
    record = buffer.recorder()
    record("tokens", "cus_1")
    buffer.set_alarm(100)
    record("tokens", "cus_1")
    record("tokens", "cus_1")
    assert wakes.count == 2


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


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_what_a_call_without_memory_has_left_spoils_no_event(
    before: int, after: int, length: int
) -> None:
    buffer, _ = make_buffer()
    record = buffer.recorder()
    for n in range(before):
        record("tokens", f"cus_{n}", payload={"region": "eu"})
    buffer._events.extend(pieces("cus_x")[:length])
    for n in range(before, before + after):
        record("tokens", f"cus_{n}")
    assert (buffer.oldest_recorded_at or 0.0) <= START
    taken: list[str] = []
    while (batch := buffer.take(3)) is not None:
        taken += customers(batch)
        settle_all(buffer, batch)
    assert taken == [f"cus_{n}" for n in range(before + after)]
    assert buffer.is_drained
    assert balanced(buffer)


def test_events_stay_whole_while_threads_record_take_and_evict() -> None:
    buffer, _ = make_buffer(SystemRuntime(), capacity=40, overflow="drop_oldest")
    record = buffer.recorder()
    threads, each = 3, 3000
    done = threading.Barrier(threads + 1)

    def produce(thread: int) -> None:
        for n in range(each):
            name = f"{thread}-{n}"
            assert record(name, name, n, identifier=name if n % 7 == 0 else None)
        done.wait()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in range(threads):
            threading.Thread(target=produce, args=(thread,)).start()
        seen: list[str] = []
        while done.n_waiting < threads or len(buffer):
            batch = buffer.take(10)
            for _, (at, name, customer, value, *details) in buffer.recorded(batch) if batch else ():
                assert type(at) is float
                assert name == customer
                assert name.endswith(f"-{value}")
                assert details == [None, name if value % 7 == 0 else None, None]
                seen.append(name)
            if batch:
                settle_all(buffer, batch)
        done.wait()
    finally:
        sys.setswitchinterval(interval)
    counts = buffer.counts()
    assert len(set(seen)) == len(seen)
    assert len(seen) + counts.dropped.get("overflow", 0) == threads * each == counts.recorded
    assert balanced(buffer)


def test_a_forked_child_counts_nothing_of_what_its_parent_is_settling() -> None:
    buffer, _ = make_buffer()
    buffer.recorder()("tokens", "cus_1")
    batch = buffer.take(1)
    assert batch is not None
    freeze(buffer, batch)
    assert buffer.claim(batch, batch.open, Outcome.DEAD_LETTERED)
    buffer.start_over_after_fork()
    buffer.settle_claim(batch)
    assert buffer.counts().settled[Outcome.DEAD_LETTERED] == 0


def test_an_event_that_finds_no_place_wakes_a_sender_that_is_still_wanted() -> None:
    buffer, wakes = make_buffer(capacity=1)
    record = buffer.recorder()
    assert record("tokens", "cus_1")
    buffer.set_alarm(1)  # as it is done when no thread could be started
    before = wakes.count
    assert not record("tokens", "cus_1")
    assert wakes.count == before + 1


def test_callers_that_wait_for_a_place_do_not_ring_each_other_without_one() -> None:
    runtime = VirtualRuntime()
    buffer, _ = make_buffer(runtime, capacity=1)
    buffer.recorder()("tokens", "cus_1")
    mine, other = runtime.doorbell(), runtime.doorbell()
    buffer._waiting.append(other)
    buffer._take_down(mine)
    assert other.rung == 0
    assert buffer.take(1) is not None
    assert other.rung == 1


def test_a_caller_that_was_called_and_leaves_calls_the_next_one_while_there_is_room() -> None:
    runtime = VirtualRuntime()
    buffer, _ = make_buffer(runtime, capacity=1)
    mine, other = runtime.doorbell(), runtime.doorbell()
    buffer._waiting.append(other)
    buffer._take_down(mine)
    assert other.rung == 1


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


def test_a_child_starts_empty_with_identifiers_of_its_own() -> None:
    runtime = VirtualRuntime()
    buffer: RingBuffer
    buffer, wakes = make_buffer(runtime, on_fork=lambda: buffer.start_over_after_fork())  # noqa: PLW0108
    record = buffer.recorder()
    record("tokens", "cus_parent")
    before = minted(buffer, 1)
    runtime.pid += 1
    buffer._door[0] = 0  # what the kernel does to the page
    assert record("tokens", "cus_child")
    assert customers(buffer.take(10)) == ["cus_child"]
    assert minted(buffer, 1) != before
    assert buffer.counts().recorded == 1
    assert wakes.count == 2


class Forked(SystemRuntime):
    """A process that becomes another one when the test says so."""

    pid = 1

    def process_id(self) -> int:
        return self.pid


def test_a_thread_that_records_while_another_starts_over_waits_for_it() -> None:
    buffer: RingBuffer
    starts: list[threading.Thread] = []

    def start_over() -> None:
        starts.append(threading.current_thread())
        if len(starts) == 1:
            other.start()
            other.join(0.2)  # it has this time to start over as well
        buffer.start_over_after_fork()

    runtime = Forked()
    buffer, _ = make_buffer(runtime, capacity=10, on_fork=start_over)
    record = buffer.recorder()
    other = threading.Thread(target=record, args=("tokens", "other"), daemon=True)
    runtime.pid = 2
    assert record("tokens", "first")
    other.join(20)
    assert starts == [threading.current_thread()]
    assert sorted(customers(buffer.take(10))) == ["first", "other"]


def test_a_thread_whose_turn_comes_after_another_has_started_over_does_not_do_so_again() -> None:
    starts: list[None] = []
    buffer, _ = make_buffer(on_fork=lambda: starts.append(None))
    assert buffer.belongs_to_this_process  # by now: it was not when this thread asked for its turn
    assert buffer._start_over_once()
    assert starts == []


def test_a_signal_handler_in_the_thread_that_starts_over_waits_for_no_one() -> None:
    runtime = VirtualRuntime()
    buffer: RingBuffer
    nested: list[bool] = []

    def interrupted() -> None:
        nested.append(record("tokens", "nested"))
        buffer.start_over_after_fork()

    def deadlock() -> None:
        raise AssertionError("it waits for itself")

    buffer, _ = make_buffer(runtime, capacity=10, on_fork=interrupted)
    record = buffer.recorder()
    runtime.pid += 1
    runtime.on_wait = deadlock
    assert record("tokens", "first")
    assert nested == [False]
    assert customers(buffer.take(10)) == ["first"]


def test_the_kernel_closes_the_door_in_a_child_without_any_python_hook() -> None:
    buffer, _ = make_buffer(SystemRuntime())
    assert buffer._door[0] == 1
    child = os.fork()
    if not child:
        os._exit(buffer._door[0])
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert buffer._door[0] == 1


def test_a_signal_handler_may_record_while_its_thread_holds_the_lock() -> None:
    buffer, _ = make_buffer(capacity=100)
    record = buffer.recorder()
    nested: list[bool] = []

    def handler(_signal: int, _frame: FrameType | None) -> None:
        nested.append(record("tokens", "cus_nested"))

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with buffer._lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert nested == [True]
    assert balanced(buffer)


def test_a_nested_call_leaves_the_last_places_to_the_call_that_it_interrupted() -> None:
    buffer, _ = make_buffer(capacity=20)
    record = buffer.recorder()
    with buffer._lock:
        outcomes = [record("tokens", "cus_1") for _ in range(20)]
    assert outcomes == [True] * 12 + [False] * 8
    assert record("tokens", "cus_1")
    assert balanced(buffer)


@pytest.mark.parametrize("capacity", [50, 3000])
@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_under_load_from_many_threads_capacity_holds_and_the_account_adds_up(
    capacity: int, overflow: str
) -> None:
    buffer, _ = make_buffer(SystemRuntime(), capacity=capacity, overflow=overflow)
    record = buffer.recorder()
    accepted = [0] * 6
    done = threading.Event()

    def produce(mine: int) -> None:
        for _ in range(3000):
            accepted[mine] += record("tokens", "cus_1")

    wrong: list[str] = []

    def watch() -> None:
        while not done.is_set():
            if len(buffer) > capacity:
                wrong.append(f"{len(buffer)} events in {capacity} places")
            if not balanced(buffer):
                wrong.append("the account does not add up")

    producers = [threading.Thread(target=produce, args=(n,)) for n in range(6)]
    watcher = threading.Thread(target=watch)
    for thread in (*producers, watcher):
        thread.start()
    delivered = 0
    while any(thread.is_alive() for thread in producers) or len(buffer):
        if batch := buffer.take(100):
            delivered += batch.size
            settle_all(buffer, batch)
    done.set()
    watcher.join()
    assert not wrong
    counts = buffer.counts()
    evicted = counts.dropped.get("overflow", 0) if overflow == "drop_oldest" else 0
    assert counts.recorded == 18_000
    assert delivered == sum(accepted) - evicted


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
