"""A forked child starts with an empty buffer of its own."""

from __future__ import annotations

import os
import threading

from meter_agent._buffer import RingBuffer
from meter_agent._ledger import Outcome
from meter_agent._runtime import SystemRuntime
from tests.buffer.buffers import customers, freeze, make_buffer, minted
from tests.virtual import VirtualRuntime


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
