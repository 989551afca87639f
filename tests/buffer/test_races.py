"""Threads and signal handlers that meet in one call: events stay whole, and are all counted."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

import pytest

from meter_agent._runtime import SystemRuntime
from tests.buffer.buffers import balanced, customers, make_buffer, pieces, settle_all
from tests.virtual import START


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
