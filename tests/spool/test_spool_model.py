"""The spool against a model of it, with the death of the process at every step."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meter_agent._batch import Batch
from meter_agent._event import MeterEvent
from meter_agent._ledger import Outcome
from tests.spool.spools import Spool, freeze
from tests.virtual import VirtualRuntime

ENDED = {Outcome.DELIVERED, Outcome.DEAD_LETTERED, Outcome.UNCERTAIN}


class SpoolMachine(RuleBasedStateMachine):
    """Events are numbered by their value. The model knows of each what may be known of it."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.runtime = VirtualRuntime()
        self.numbers = 0
        self.held: set[int] = set()
        """Recorded, and not ended."""
        self.ended: set[int] = set()
        self.first_sent: dict[int, float] = {}
        """Of those that Stripe may have."""
        self.identifiers: dict[int, str] = {}
        self.start()

    def start(self) -> None:
        self.spool = Spool(Path(self.directory.name), self.runtime)
        self.recorded = self.before = 0
        self.batches: list[Batch] = []
        self.spool.buffer.tend()
        self.before = len(self.held)

    def teardown(self) -> None:
        self.spool.die()
        self.directory.cleanup()

    @rule(count=st.integers(1, 40), keys=st.integers(0, 9))
    def record(self, count: int, keys: int) -> None:
        payload = {f"key {n}": "x" * 500 for n in range(keys)} if keys > 5 else None
        for _ in range(count):
            self.numbers += 1
            assert self.spool.record("tokens", "cus_1", self.numbers, payload=payload)
            self.held.add(self.numbers)
            self.recorded += 1

    @rule(limit=st.integers(1, 100))
    def take(self, limit: int) -> None:
        batch = self.spool.buffer.take(limit)
        if batch is not None:
            assert batch.size <= limit
            freeze(self.spool.buffer, batch)
            self.batches.append(batch)
            for event in batch.open:
                self.check(batch, event)

    def check(self, batch: Batch, event: MeterEvent) -> None:
        number = number_of(event)
        assert number in self.held
        assert self.identifiers.setdefault(number, event.identifier) == event.identifier
        first = batch.attempted.get(id(event))
        if number in self.first_sent:
            assert first is not None
            assert first[0] == int(self.first_sent[number])
        else:
            assert first is None

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), seconds=st.floats(0, 5))
    def send(self, data: st.DataObject, seconds: float) -> None:
        batch, part = self.part(data)
        self.runtime.advance(seconds)
        before = batch.attempted
        assert self.spool.buffer.begin_attempt(batch, part)
        if data.draw(st.booleans(), label="surely not accepted"):
            self.spool.buffer.forget_attempt(batch, before)
        else:
            for event in part:
                self.first_sent.setdefault(number_of(event), self.runtime.clock.time())

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), outcome=st.sampled_from(sorted(ENDED)))
    def settle(self, data: st.DataObject, outcome: Outcome) -> None:
        batch, part = self.part(data)
        assert self.spool.buffer.settle(batch, part, outcome)
        numbers = set(map(number_of, part))
        self.held -= numbers
        self.ended |= numbers
        if not batch.size:
            self.batches.remove(batch)

    @rule(seconds=st.floats(1, 100))
    def send_everything(self, seconds: float) -> None:
        self.take(100)
        self.runtime.advance(seconds)
        for batch in self.batches:
            assert self.spool.buffer.begin_attempt(batch, batch.open)
            for event in batch.open:
                self.first_sent.setdefault(number_of(event), self.runtime.clock.time())

    @rule()
    def deliver_everything(self) -> None:
        while len(self.spool.buffer):
            self.take(100)
        for batch in self.batches:
            numbers = set(map(number_of, batch.open))
            assert self.spool.buffer.settle(batch, batch.open, Outcome.DELIVERED)
            self.held -= numbers
            self.ended |= numbers
        self.batches = []
        assert not self.held
        assert self.spool.buffer.is_drained

    @precondition(lambda self: self.batches)
    @rule()
    def give_back(self) -> None:
        self.spool.buffer.give_back(self.batches[0])
        assert self.spool.buffer.take(1) is self.batches[0]

    @rule()
    def crash(self) -> None:
        self.spool.die()
        self.start()

    @rule()
    def crash_twice(self) -> None:
        self.spool.die()
        self.start()
        self.spool.die()
        self.start()

    @rule()
    def close(self) -> None:
        buffer = self.spool.buffer
        buffer.seal()
        for batch in buffer.abandon():
            buffer.keep_abandoned(batch)
        buffer.release()
        counts = buffer.counts()
        assert (counts.buffered, counts.in_flight) == (len(self.held), 0)
        self.start()

    @rule()
    def tend(self) -> None:
        self.runtime.advance(31.0)
        self.spool.buffer.tend()

    @invariant()
    def the_account_adds_up(self) -> None:
        counts = self.spool.buffer.counts()
        assert counts.recorded == self.recorded
        assert counts.recovered == self.before
        assert counts.buffered + counts.in_flight == len(self.held)
        assert counts.recorded + counts.recovered == (
            counts.buffered + counts.in_flight + sum(counts.settled.values())
        )
        assert not counts.spool_failures
        assert not counts.quarantined

    @invariant()
    def no_file_is_kept_for_nothing(self) -> None:
        buffer = self.spool.buffer
        wanted = {
            s for s in (*buffer._own.segments, *buffer._adopted.segments) if s.open or not s.sealed
        }
        if buffer._own.prepared is not None:
            wanted.add(buffer._own.prepared)
        files = {path.name for path in Path(self.directory.name).glob("*.segment")}
        assert files == {segment.path.name for segment in wanted if segment.path is not None}

    def part(self, data: st.DataObject) -> tuple[Batch, list[MeterEvent]]:
        batch = data.draw(st.sampled_from(self.batches), label="batch")
        part = data.draw(
            st.lists(st.sampled_from(batch.open), unique_by=id, min_size=1), label="part"
        )
        return batch, part


def number_of(event: MeterEvent) -> int:
    return int(json.loads(event.body)["payload"]["value"])


SpoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestSpoolAgainstItsModel = SpoolMachine.TestCase
