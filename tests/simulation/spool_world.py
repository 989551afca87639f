"""A world whose agent has a spool: its process dies, and another one goes on from the files."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from meter_agent import (
    Config,
    MeterAgent,
    Stats,
    _lifecycle,
    _spool_care,
)
from meter_agent import _spool_format as form
from meter_agent._ledger import Outcome
from meter_agent._spool import SpoolBuffer
from meter_agent._spool_header import HEADER_BYTES
from tests.simulation import autopsy
from tests.simulation.books import Books
from tests.simulation.disk import Disk, Found, SimulatedDirectory, installed
from tests.simulation.network import Network
from tests.simulation.scheduler import BrokenPromiseError
from tests.simulation.weather import LOOKUP_SECONDS_MAX, Weather
from tests.simulation.world import IDLE_SECONDS, PATIENCE_SECONDS, UNASKED_SECONDS, World

__all__ = ["WAYS", "SpoolWorld"]

WAYS = (
    "died",
    "died within a lock",
    "died within record()",
    "died with requests on the way",
    "died with events in memory",
    "spoiled",
    "left something at a close",
    "recovered",
    "quarantined",
    "disk failed",
    "evicted",
)
"""What `SpoolWorld.met` counts."""

_PROMPT_SECONDS = 5.0
"""From the moment an event is due until it is settled, where nothing is wrong."""


class SpoolWeather(Weather):
    """A disk that fails, besides."""

    def failing_disk(self) -> None:
        cast("SpoolWorld", self._world).disk.fails = self.random.random() < 0.7

    def heal(self) -> None:
        super().heal()
        cast("SpoolWorld", self._world).disk.fails = False

    KINDS = (*Weather.KINDS, failing_disk, failing_disk)


def evicted(buffer: SpoolBuffer) -> int:
    """How many events made room for others."""
    return buffer._own.evicted + buffer._adopted.evicted


class SpoolWorld(World):
    """Several lives of one application, one after the other, on the same directory."""

    def __init__(self, seed: int, directory: Path) -> None:
        super().__init__(seed, directory)
        random = self.random
        self.disk = Disk(directory / f"{seed}.spool")
        shutil.rmtree(self.disk.path, ignore_errors=True)
        self.weather = SpoolWeather(self)
        self.segment_bytes_min = HEADER_BYTES + random.choice((336, 936, 3936))
        self.spool_bytes = self.segment_bytes_min * random.choice((2, 3, 5, 200))
        if random.random() < 0.15:
            self.settings["overflow"] = "drop_oldest"
            self.spool_bytes = 2 * self.segment_bytes_min
        self.sync_seconds = random.choice((0.0,) * 9 + (20.0,))
        self.deaths = random.choice((0, 1, 1, 2, 3))
        self.heir = random.random() < 0.7
        self.damage = 0.3 if random.random() < 0.3 else 0.0
        self.books = SpoolBooks(self)
        self.met: Counter[str] = Counter()
        self.dead: list[MeterAgent] = []
        """Kept: an agent that nobody holds retires, which a dead one does not."""

    books: SpoolBooks
    EVENTS_PER_PRODUCER = (3, 10, 30)

    @contextmanager
    def installed(self) -> Iterator[None]:
        with installed(self.disk, self.segment_bytes_min):
            yield

    def make_config(self) -> Config:
        config = Config(
            **self.settings,
            dead_letter_file=self.path,
            spool_dir=self.disk.path,
            spool_sync_seconds=self.sync_seconds,
        )
        # Below the least that a user may set, so that few events fill it.
        object.__setattr__(config, "spool_bytes", self.spool_bytes)
        return config

    @property
    def buffer(self) -> SpoolBuffer:
        return cast("SpoolBuffer", self.agent._pipeline._buffer)

    @property
    def directory(self) -> SimulatedDirectory:
        return cast("SimulatedDirectory", self.buffer._care._directory)

    # -- lives ---------------------------------------------------------------------------------

    def play(self) -> None:
        self.scheduler.start(self.weather.blow, "weather")
        for _ in range(self.deaths):
            self.be_born()
            self.start_application()
            self.scheduler.wait_steps(
                int(self.random.random() * self.random.choice((100, 1000, 5000))),
                self.random.random() * 60.0,
            )
            if self.random.random() < 0.4:
                self.wait_for_a_request()
            self.die()
            self.scheduler.wait(self.random.choice((0.0, 0.0, 1.0, 40.0, 100.0)))
        self.be_born()
        self.start_application()
        self.live()
        self.end_life()
        if self.heir:
            self.inherit()
        while self.network.posthumous:
            self.scheduler.wait(1.0)
        self.leave()

    def wait_for_a_request(self) -> None:
        for _ in range(50):
            if self.network.is_busy:
                return
            self.scheduler.wait_steps(10, 1.0)

    def be_born(self) -> None:
        self.runtime.process += 1
        self.closed = False
        self.books.begin_life(self.disk)
        self.agent = self.open_agent()

    def die(self) -> None:
        """The process is killed: its threads stop where they are, its files stay."""
        self.scheduler.kill(self.runtime.process)
        outbound = self.network.process_died()
        self.met["died"] += 1
        self.met["died within a lock"] += self.buffer._lock.owner is not None  # type: ignore[attr-defined]
        self.met["died within record()"] += self.recording
        self.met["died with requests on the way"] += bool(outbound)
        self.met["died with events in memory"] += bool(autopsy.in_memory(self.buffer))
        self.producers_running = self.recording = self.closers_running = 0
        records = self.disk.records()
        autopsy.inspect(self.buffer, records)
        self.twice_allowed |= autopsy.ending(self.buffer)
        self.books.die(self.buffer, records, outbound)
        self.directory.let_go()
        # For the registry and the garbage collector it has gone.
        _lifecycle.unregister(self.agent._pipeline)
        self.agent._pipeline._final = Stats()
        self.dead.append(self.agent)
        if self.random.random() < self.damage and (found := self.disk.spoil(self.random)):
            self.met["spoiled"] += 1
            self.books.spoil(found, self.disk.records())

    def inherit(self) -> None:
        """A later agent delivers what is left."""
        while self.is_stormy:
            self.scheduler.wait(1.0)
        self.weather.heal()
        self.heals = True
        self.books.pressed_close(self.letters(), self.disk.records())
        self.dead.append(self.agent)
        self.be_born()
        self.start(self.observe, "observer")
        self.recover()
        self.close()
        self.end_life()

    def end_life(self) -> None:
        stats = self.agent.stats()
        self.books.end_life(stats, self.buffer, self.disk.records())
        self.met["left something at a close"] += stats.buffered
        self.met["recovered"] += stats.recovered
        self.met["quarantined"] += stats.quarantined
        self.met["disk failed"] += stats.spool_failures
        self.met["evicted"] += evicted(self.buffer)

    def recover(self) -> None:
        if self.lacks_threads:
            self.record()  # which finds that threads can be started again
        before = self.books.held_for_sure()
        asks = self.random.random() < 0.5
        if asks and not self.agent.flush(PATIENCE_SECONDS):
            raise BrokenPromiseError(
                f"not settled within {PATIENCE_SECONDS} s after the trouble ended"
            )
        if asks:
            self.check_settled(before)
        before, began = self.books.held_ever(), self.scheduler.now
        while self.unsettled(before) and self.scheduler.now < began + UNASKED_SECONDS:
            self.scheduler.wait(_spool_care.ADOPT_SECONDS)
        self.check_settled(before)
        if not asks:
            self.scheduler.wait(LOOKUP_SECONDS_MAX)  # one may have begun before the trouble ended
            self.record_at_bedtime()
        if self.scheduler.interrupt is None:
            self.check_idleness()

    # -- what must hold ------------------------------------------------------------------------

    @property
    def bedtime_seconds(self) -> float:
        if self.scheduler.interrupt is not None or self.scheduler.stall:
            return super().bedtime_seconds
        # Shorter than the interval at which it looks for the files of dead processes, which would
        # hide that nobody was woken.
        return float(self.settings["flush_interval_seconds"]) + _PROMPT_SECONDS

    @property
    def observe_seconds(self) -> float:
        return 3.0 if self.producers_running or self.is_stormy else 100.0

    @property
    def wakes_when_idle(self) -> float:
        return IDLE_SECONDS / _spool_care.ADOPT_SECONDS + 2

    @property
    def clock_error_seconds(self) -> float:
        # A mark is of the wall clock, and the next process has no other.
        return self.runtime.clock.span_seconds if self.deaths or self.heir else 0.0

    def check_capacity(self) -> None:
        if self.random.random() < 0.92:
            return  # the disk is slow to ask
        taken = self.disk.bytes_taken()
        if taken > self.spool_bytes:
            raise BrokenPromiseError(f"the spool takes {taken} bytes of {self.spool_bytes}")

    def check_settled(self, numbers: set[int]) -> None:
        if missing := self.unsettled(numbers):
            raise BrokenPromiseError(f"{sorted(missing)} are not settled")

    def unsettled(self, numbers: set[int]) -> set[int]:
        """Which of *numbers* have not ended, if there are more than were given up."""
        billed = {int(row["value"]) for row in self.sandbox.ledger()}
        missing = numbers - billed - set(self.letters()) - self.books.lost
        given_up = self.agent.stats().dropped.get("shutdown", 0) + self.books.given_up
        return missing if len(missing) > given_up + evicted(self.buffer) else set()

    def leave(self) -> None:
        self.books.final = self.agent.stats()
        self.books.check_lives(self.letters(), self.sandbox.ledger(), self.disk.records())
        self.check_dropped()
        self.check_pressure()
        if self.heals:
            self.check_recovered(self.books.final)


class SpoolBooks(Books):
    """The books of several lives."""

    def __init__(self, world: SpoolWorld) -> None:
        super().__init__()
        self._network = world.network
        self._sandbox = world.sandbox
        self._batch_size = world.settings["batch_size"]
        self._first = 1
        self._orphans = 0
        self._damages = 0
        self.cut_off: set[int] = set()
        """Events whose `record()` never returned, because the process died."""
        self.lost: set[int] = set()
        """Events that were held in memory alone when the process died, or that were spoiled."""
        self.marked: set[int] = set()
        """Events that a dead process may have sent."""
        self.given_up = 0
        """How many events former lives dropped for room, or with their memory at a close."""
        self.delivered = 0
        self.slack = 0
        """How many events a dead process may have ended without counting them."""

    def held_ever(self) -> set[int]:
        return super().held_for_sure()

    def held_for_sure(self) -> set[int]:
        """Of this life: `flush()` speaks of no other."""
        return {number for number in super().held_for_sure() if number >= self._first}

    def begin_life(self, disk: Disk) -> None:
        self._first = self.next_number()
        self._orphans = sum(not found.settled for found in disk.records())
        self._damages = disk.damages()

    def die(self, buffer: SpoolBuffer, records: list[Found], outbound: set[str]) -> None:
        self.cut_off |= set(self.called) - set(self.returned)
        self.lost |= autopsy.in_memory(buffer)
        self.given_up += evicted(buffer)
        self.delivered += buffer._settled[Outcome.DELIVERED]
        claims = [batch.claim[0] for batch in buffer._in_flight if batch.claim]
        self.slack += sum(claims) + self._batch_size
        self._check_marks(records, outbound)
        self.marked |= {f.number for f in records if f.mark != form.NEVER_ATTEMPTED}

    def _check_marks(self, records: list[Found], outbound: set[str]) -> None:
        seen: set[int] = set()
        sent = outbound | {row["identifier"] for row in self._sandbox.ledger()}
        for found in records:
            if found.number in seen:
                raise BrokenPromiseError(f"event {found.number} is in the spool twice")
            seen.add(found.number)
            self._network.expect_identifier(found.number, found.identifier)
            if found.identifier in sent and found.mark == form.NEVER_ATTEMPTED:
                raise BrokenPromiseError(f"event {found.number} was sent and is not marked so")

    def spoil(self, found: Found, left: list[Found]) -> None:
        if found.number in {f.number for f in left}:
            self.marked.add(found.number)
        elif not found.settled:
            self.lost.add(found.number)

    def end_life(self, stats: Stats, buffer: SpoolBuffer, records: list[Found]) -> None:
        """The agent was closed, and nobody records any more."""
        left = sum(not found.settled for found in records)
        called = len(self.called) - self._first + 1
        refused = sum(not self.returned[n] for n in range(self._first, len(self.called) + 1))
        self._demand(
            stats,
            {
                "the ledger adds up": stats.balanced,
                "every call is recorded": stats.recorded == called,
                "drops are counted": refused <= stats.dropped_total,
                "nothing was damaged meanwhile": not stats.dropped.get("damaged"),
                "an orphan is recovered once": stats.recovered <= self._orphans,
                "what is buffered is in the spool": (
                    left == stats.buffered + self._orphans - stats.recovered
                ),
                "damage is told": stats.quarantined <= self._damages,
            },
        )
        self.given_up += evicted(buffer) + stats.dropped.get("shutdown", 0)
        self.delivered += stats.delivered

    def pressed_close(self, letters: dict[int, str], records: list[Found]) -> None:
        """A close without time may catch a request between its note and the wire."""
        self.marked |= {f.number for f in records if f.mark != form.NEVER_ATTEMPTED} | set(letters)

    def never_sent(self, letters: Mapping[int, str], network: Network) -> set[int]:
        return super().never_sent(letters, network) - self.marked

    def check_lives(self, letters: dict[int, str], ledger: list[Any], records: list[Found]) -> None:
        """Compare what all lives together say with the application and the server."""
        held = self.held_ever()
        numbers = [int(row["value"]) for row in ledger]
        billed = set(numbers)
        uncertain = {number for number, reason in letters.items() if reason == "uncertain"}
        dead = set(letters) - uncertain
        left = {found.number for found in records if not found.settled}
        possible = held | self.cut_off
        missing = held - billed - set(letters) - left - self.lost
        delivered = len(billed - uncertain - left)
        assert self.final is not None
        self._demand(
            self.final,
            {
                "no call is left open": set(self.called) == set(self.returned) | self.cut_off,
                "each number is billed once": len(numbers) == len(billed),
                "nothing refused is billed": billed <= possible,
                "nothing refused has a letter": set(letters) <= possible,
                "nothing refused is in the spool": left <= possible,
                "nothing poisoned is billed": not billed & (self.poison | self.invalid),
                "a dead letter is not billed": not billed & dead,
                "a good event is not a dead letter": dead
                <= self.poison | self.invalid | self.archived,
                "nothing is missing": len(missing) <= self.given_up,
                "what has a letter has left the spool": not left & set(letters),
                "what is billed was delivered": (
                    delivered - len(self.lost) - self.slack <= self.delivered <= delivered
                ),
                "what is announced is in the file": set(self.announced) <= set(letters),
            },
            letters=letters,
            missing=sorted(missing),
            left=sorted(left),
            delivered=(delivered, self.delivered, self.slack),
        )
        self._check_marks(records, set())

    @staticmethod
    def _demand(stats: Stats, promises: dict[str, bool], **more: Any) -> None:
        broken = [promise for promise, kept in promises.items() if not kept]
        if broken:
            raise BrokenPromiseError(f"not true: {broken}\n{stats}\n{more}")
