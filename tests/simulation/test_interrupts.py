"""Signal handlers that strike anywhere in a call; a trace function at each opcode is one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from meter_agent import _buffer
from meter_agent._buffer import RingBuffer
from meter_agent._ledger import DropReason
from tests.buffer.buffers import balanced, customers, make_buffer, settle_all

OPCODES_MAX = 1000


class CtrlC(BaseException):
    pass


def interrupted(opcode: int, act: Callable[[], object], call: Callable[[], object]) -> bool:
    """Run *call*, with *act* before a certain step in the buffer; False: it was over by then."""
    steps = 0

    def step(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal steps
        if event == "opcode":
            steps += 1
            if steps == opcode:
                sys.settrace(None)
                act()
        return step

    def enter(frame: FrameType, _event: str, _arg: object) -> Any:
        if frame.f_code.co_filename != _buffer.__file__:
            return None
        frame.f_trace_opcodes = True
        return step

    # Python 3.12 traces opcodes only where some frame asked for that before.
    sys._getframe().f_trace_opcodes = True
    before = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    except CtrlC:
        pass
    finally:
        sys.settrace(before)
    return steps >= opcode


def each_interruption(
    make: Callable[[], RingBuffer],
    act: Callable[[RingBuffer], object],
    call: Callable[[RingBuffer], object],
) -> list[RingBuffer]:
    left: list[RingBuffer] = []
    for opcode in range(1, OPCODES_MAX):
        buffer = make()
        if not interrupted(opcode, lambda: act(buffer), lambda: call(buffer)):  # noqa: B023
            return left
        left.append(buffer)
    raise AssertionError("the call has no end")


def full(overflow: str, capacity: int = 3) -> RingBuffer:
    buffer, _ = make_buffer(capacity=capacity, overflow=overflow, block_timeout_seconds=0.0)
    for n in range(capacity):
        buffer.recorder()("tokens", f"cus_{n}")
    return buffer


def close(buffer: RingBuffer) -> None:
    buffer.refuse(DropReason.CLOSED)
    buffer.seal()


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_a_handler_may_close_the_agent_in_the_middle_of_any_record(overflow: str) -> None:
    recorded = each_interruption(
        lambda: full(overflow), close, lambda buffer: buffer.recorder()("tokens", "cus_late")
    )
    assert len(recorded) > 50
    for buffer in recorded:
        assert buffer.counts().recorded == 4
        assert balanced(buffer)
        assert buffer.is_drained


def test_a_handler_may_close_the_agent_while_it_is_asked_for_its_counts() -> None:
    asked = each_interruption(
        lambda: full("drop_newest"), close, lambda buffer: (buffer.counts(), balanced(buffer))
    )
    assert len(asked) > 50
    assert all(balanced(buffer) for buffer in asked)


def test_a_handler_that_raises_while_an_event_is_taken_back_spoils_no_other() -> None:
    def raise_in_removal(_buffer: RingBuffer) -> None:
        raise CtrlC

    def withdraw(buffer: RingBuffer) -> None:
        # As a thread does that was held up behind the open door.
        late = (_buffer._NO_DETAILS, 1.0, "tokens", "cus_late", 1)
        buffer._events.extend(late)
        buffer._withdraw(late)

    for buffer in each_interruption(lambda: full("drop_newest"), raise_in_removal, withdraw):
        taken: list[str] = []
        while (batch := buffer.take(100)) is not None:
            taken += customers(batch)
            settle_all(buffer, batch)
        assert taken[:3] == ["cus_0", "cus_1", "cus_2"]
        assert taken[3:] in ([], ["cus_late"])


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
