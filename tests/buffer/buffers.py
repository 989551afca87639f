"""Ring buffers for tests, and what is asked of them again and again."""

from __future__ import annotations

from typing import Any

from meter_agent._batch import Batch
from meter_agent._buffer import _NO_DETAILS, RingBuffer
from meter_agent._event import EventEncoder
from meter_agent._event_buffer import Terms
from meter_agent._ledger import Outcome
from tests.virtual import START, VirtualRuntime

ENCODER = EventEncoder()


class Wakes:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def make_buffer(runtime: Any = None, **options: Any) -> tuple[RingBuffer, Wakes]:
    wakes = Wakes()
    capacity = options.pop("capacity", 5000)
    terms = Terms("drop_newest", 1.0, wakes, lambda: None)._replace(**options)
    return RingBuffer(runtime or VirtualRuntime(), terms, capacity=capacity), wakes


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
