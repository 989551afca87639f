"""The crash-safe buffer: events wait in segment files that outlive the process.

What it guarantees:

- An event whose `record()` returned True is in the kernel's pages: `kill -9` loses nothing. It ends
  as delivered, dead-lettered or uncertain, in this process or in one that adopts its segment.
- `record()` appends the event to mapped memory, without a lock and without a system call; see
  `_spool_record.py`. What is in the segment is the account: nothing is counted beside it.
- No wake-up is lost. A producer appends, then looks at the alarm; a sender sets the alarm, then
  looks at what has been written. Whichever comes second sees the other.
- Where no file can be had (disk full, directory gone), segments of plain memory take their place.

Segments stand in a line in the order of their making, those of dead processes in a line of their
own, and senders take from both in turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from meter_agent import _spool_format as form
from meter_agent._batch import Batch
from meter_agent._event import EventTuple, MeterEvent
from meter_agent._event_buffer import NEVER, EventBuffer, Record, Terms
from meter_agent._health import Problem, Room
from meter_agent._ledger import Counts, DropReason, Outcome
from meter_agent._runtime import Runtime
from meter_agent._segment import Segment
from meter_agent._segment_line import SegmentLine
from meter_agent._segment_supply import SegmentSupply
from meter_agent._spool_body import decode, recorded_at
from meter_agent._spool_care import SpoolCare
from meter_agent._spool_directory import SpoolDirectory
from meter_agent._spool_header import HEADER_BYTES
from meter_agent._spool_place import Line, Place
from meter_agent._spool_record import recorder
from meter_agent._spool_troubles import SpoolTroubles
from meter_agent._written_line import WrittenLine

__all__ = ["SpoolBuffer"]

_WAKE_AGAIN_SECONDS = 0.25
_BODY_BEGINS = form.RECORD_OVERHEAD_BYTES


class SpoolBuffer(EventBuffer):
    """A bounded queue of recorded events in mapped files.

    Args:
        runtime: Clocks and locks.
        terms: What is the same for every kind of buffer.
        directory: Where the files are.
        check: Raises `InvalidEventError` for an event that cannot be billed.
        bytes_max: *spool_bytes*.
        memory_events: About how many events memory takes where no file can be had.
        sync_seconds: Longest time between two syncs to the disk; 0: left to the kernel.
        say: Writes to the log; called from sender threads, never by `record()`.
    """

    def __init__(
        self,
        runtime: Runtime,
        terms: Terms,
        *,
        directory: SpoolDirectory,
        check: Callable[[EventTuple], None],
        bytes_max: int,
        memory_events: int,
        sync_seconds: float,
        say: Callable[..., object],
    ) -> None:
        super().__init__(runtime, terms)
        self._check = check
        self._troubles = SpoolTroubles(say, directory.path)
        self._supply = SegmentSupply(
            runtime,
            directory,
            self._troubles,
            bytes_max=bytes_max,
            memory_events=memory_events,
        )
        self._own = WrittenLine(self._supply)
        self._adopted = SegmentLine(self._supply)
        self._care = SpoolCare(
            runtime,
            directory,
            own=self._own,
            adopted=self._adopted,
            supply=self._supply,
            troubles=self._troubles,
            sync_seconds=sync_seconds,
            progress=self._progress,
            is_open=lambda: self._refusal is None,
            is_sealed=lambda: self._sealed,
        )
        self._start_over()

    def _start_over(self) -> None:
        self._own.start_over()
        super()._start_over()
        self._adopted.start_over()
        self._supply.start_over()
        self._troubles.start_over()
        self._marked = 0
        self._damaged = 0
        self._kept = 0
        self._care.start_over(self._lock)
        self._next_wake_at = float("-inf")
        self._adopted_turn = False
        # The door comes last: from here on events are ours.
        self._door[0] = 1 if self._refusal is None else 0
        # Only now: another thread of a child would take what is half made for its own.
        self._process_id = self._runtime.process_id()

    def _progress(self) -> object:
        return self._own.counted, self._marked

    # -- the caller's side ---------------------------------------------------------------------

    def recorder(self) -> Record:
        return recorder(
            self._runtime.clock,
            door=self._door,
            gate=self._own.gate,
            check=self._check,
            look_up=self._look_up,
            enter=self._enter,
            cannot_hold=self._cannot_hold,
        )

    def _look_up(self) -> None:
        # After the append, outside every lock, perhaps in a signal handler. The wish is taken down
        # first and the bell rung second, so that whoever wakes can utter it anew.
        self._own.gate.alarm = NEVER
        self._call_sender()

    def _look_up_next_time(self) -> None:
        self._own.gate.alarm = 0

    def _enter(self, record: bytes) -> bool:
        # No room, closed for good, or a child of fork, whose door was wiped.
        if not self.belongs_to_this_process and not self._start_over_once():
            return False
        if self._refusal is not None:
            return self._refuse()
        if self._lock._is_owned():  # noqa: SLF001
            # A signal handler or `__del__` interrupted this very thread while it makes room.
            return self._own.gate.try_write(record) or self._refuse()
        entered = self._enter_in_turn(record)
        if not entered and self._overflow == "block":
            self._call_sender()
            entered = self._wait_for_room(lambda: self._enter_in_turn(record), _WAKE_AGAIN_SECONDS)
        now = self._runtime.monotonic()
        if entered or now >= self._next_wake_at:
            # A segment was begun, and the next one wants to be prepared. Also now and then when
            # there is no room: no thread could be started before, perhaps.
            self._next_wake_at = now + _WAKE_AGAIN_SECONDS
            self._call_sender()
        return entered or self._refuse(record[_BODY_BEGINS:])

    def _enter_in_turn(self, record: bytes) -> bool:
        with self._lock:
            while self._refusal is None:
                if self._own.gate.try_write(record):
                    return True
                if not self._make_room(HEADER_BYTES + len(record)):
                    return False
            return False

    def _make_room(self, bytes_min: int) -> bool:
        # Called with the lock held.
        if self._own.begin(bytes_min, self._lock):
            return True
        if self._overflow != "drop_oldest":
            return False
        # What was adopted is the oldest, but a disk that fails has no use for its room.
        return (self._supply.makes_files and self._adopted.evict(self._keep_evicted)) or (
            self._own.evict(self._keep_evicted)
        )

    def _keep_evicted(self, segment: Segment) -> None:
        self._keep_waiting(segment, DropReason.OVERFLOW)

    def _keep_waiting(self, segment: Segment, reason: DropReason) -> None:
        # Of a file that is just being evicted, within `record()`: as many as find a place.
        if not self._dropped.wanted:
            return
        kept = list(islice(segment.waiting_records(), self._dropped.places))
        for record in kept:
            self._dropped.keep(reason, record.body, segment.identifier(record.offset))
            # The file may have another name, or come back from where somebody has moved it. Then
            # the event must not be sent from there as well.
            segment.mark(record.offset, form.SETTLED)
        self._dropped.lose(segment.waiting - len(kept))

    # -- the senders' side ---------------------------------------------------------------------

    def __len__(self) -> int:
        with self._lock:
            self._own.count()
            return self._own.waiting + self._adopted.waiting

    @property
    def capacity(self) -> int:
        """Most events that may wait: as many as *spool_bytes* hold, which depends on their size."""
        return NEVER

    def room(self) -> Room:
        """Return what the files of all processes take of *spool_bytes*."""
        return self._supply.room()

    def problems(self) -> dict[Problem, str]:
        """Return what is wrong with the files of the spool."""
        problems = self._care.problems()
        current = self._own.current
        if not self._supply.makes_files or (current is not None and current.path is None):
            # Memory has taken over from the disk.
            problems[Problem.SPOOL_FAILS] = "the spool cannot be written; the log says why"
        return problems

    def set_alarm(self, length: int) -> None:
        """Ask to be woken when about *length* events wait. Look at `len()` afterwards."""
        with self._lock:
            if self._refusal is None:
                self._own.set_alarm(length - len(self))

    def unset_alarm(self) -> None:
        """Nobody listens."""
        self._own.gate.alarm = NEVER

    @property
    def oldest_recorded_at(self) -> float | None:
        """Wall-clock seconds at which the oldest waiting event was recorded.

        Events of a dead process have waited long enough, whenever that was.
        """
        with self._lock:
            self._own.count()
            return 0.0 if self._adopted.waiting else self._own.oldest_recorded_at()

    def take(self, limit: int) -> Batch | None:
        """Hand over the oldest waiting events, at most *limit*; None when none wait."""
        with self._lock:
            if self._returned:
                return self._returned.popleft()
            self._own.count()
            places = self._take_places(limit)
            if not places:
                self._clear_away()
                return None
            batch = Batch([place.body for place in places], position=self._taken, floor=0)
            batch.places = places
            batch.floor = {place.segment: place.offset for place in reversed(places)}
            self._taken += len(places)
            self._in_flight[batch] = None
            return batch

    def _clear_away(self) -> None:
        self._call_waiting(self._own.clear_away() + self._adopted.clear_away())

    def _take_places(self, limit: int) -> list[Place]:
        # In turn: the events of a dead process are old, but there may be a million of them.
        self._adopted_turn = not self._adopted_turn
        lines = (self._own, self._adopted)
        places: list[Place] = []
        for line in reversed(lines) if self._adopted_turn else lines:
            for segment in line.segments:
                if segment.waiting and len(places) < limit:
                    places += self._take_from(segment, limit - len(places))
        return places

    def _take_from(self, segment: Segment, limit: int) -> list[Place]:
        expected = min(limit, segment.waiting)
        records = segment.take(expected)
        if len(records) < expected:
            # Counted before, and damaged since: somebody writes into our files.
            self._damaged += segment.give_up_waiting()
        return [Place(segment, r.offset, r.body, r.mark) for r in records]

    def recorded(self, batch: Batch) -> Sequence[tuple[str, Any]]:
        """Return each event of *batch* as it was recorded, with the identifier minted for it."""
        return [
            (place.segment.identifier(place.offset), decode(place.body)) for place in batch.places
        ]

    def begin_attempt(self, batch: Batch, part: Sequence[MeterEvent]) -> bool:
        """Note in the segments that *part* leaves now, before any byte of it does."""
        with self._lock:
            before = batch.attempted
            if not super().begin_attempt(batch, part):
                return False
            mark = form.attempted_mark(self.clock.time())
            for event in part:
                if id(event) not in before:
                    self._mark(batch.places[id(event)], mark)
            return True

    def _mark(self, place: Place, mark: int) -> None:
        place.segment.mark(place.offset, mark)
        self._marked += 1

    def forget_attempt(self, batch: Batch, attempted: dict[int, tuple[float, float]]) -> None:
        """The last attempt was surely not accepted: *attempted* is how it stood before."""
        with self._lock:
            if not batch.abandoned:
                for key in batch.attempted.keys() - attempted.keys():
                    if (place := batch.places.get(key)) is not None:
                        self._mark(place, form.NEVER_ATTEMPTED)
            super().forget_attempt(batch, attempted)

    def freeze(self, batch: Batch, events: list[MeterEvent], places: list[int]) -> bool:
        """Fix the bytes of *batch*; what a dead process knew of its attempts is taken over."""
        with self._lock:
            recorded: list[Place] = batch.places
            if not super().freeze(batch, events, places):
                return False
            kept = set(places)
            batch.ending = [place for n, place in enumerate(recorded) if n not in kept]
            batch.places = {id(event): recorded[n] for event, n in zip(events, places, strict=True)}
            wall, monotonic = self.clock.time(), self._runtime.monotonic()
            for key, place in batch.places.items():
                first = place.first_sent_at(wall)
                if first is not None:
                    batch.attempted[key] = first, monotonic - (wall - first)
                    batch.sent_at[key] = first
            # How the attempts of that process ended is not known.
            batch.ambiguous = frozenset(batch.attempted)
            return True

    def claim(self, batch: Batch, events: Sequence[MeterEvent], outcome: Outcome) -> bool:
        """Announce that *events* of *batch* end as *outcome*, to be counted by `settle_claim()`."""
        with self._lock:
            claimed = super().claim(batch, events, outcome)
            if claimed:
                batch.ending = [batch.places[id(event)] for event in events]
            return claimed

    def settle_claim(self, batch: Batch) -> None:
        """Count what was claimed, in the segments first: a crash in between repeats no event."""
        with self._lock:
            if batch.claim is None:
                return
            self._end(batch.ending)
            batch.ending = []
            super().settle_claim(batch)
            self._clear_away()

    def _end(self, places: Sequence[Place]) -> None:
        for place in places:
            place.segment.end(place.offset)
        self._marked += len(places)

    # -- care of the files ---------------------------------------------------------------------

    @property
    def adoptions(self) -> int:
        """How often what dead processes left has been looked for and taken over."""
        return self._care.adoptions

    @property
    def needs_tending(self) -> bool:
        """Whether what dead processes left has yet to be looked for, also by an agent that closes.

        Where all processes are short jobs, nobody else would ever do it.
        """
        return not self._care.adoptions and not self._sealed

    def tend(self) -> None:
        """Adopt what dead processes left, make the next segment ready, sync, tell of trouble."""
        if self._refusal is None or self.needs_tending:
            self._care.tend()

    def recover_all(self) -> bool:
        """Take over all that dead processes left; False: there may be more, ask again."""
        return self._care.recover_all()

    def seconds_until_tending(self) -> float | None:
        """Return when `tend()` has something to do again, at the latest."""
        if self._refusal is not None:
            return None
        return max(0.0, self._care.due_at() - self._runtime.monotonic())

    # -- positions, counts, the end ------------------------------------------------------------

    def line(self) -> Line:
        """Return how far each segment of this process has been written."""
        with self._lock:
            return Line(tuple((s, s.written_through()) for s in self._own.segments))

    def is_taken(self, line: Line) -> bool:
        """Whether every event before *line* has left the waiting line."""
        with self._lock:
            self._own.count()
            return all(s.taken_through >= end or not s.waiting for s, end in line.ends)

    def is_settled(self, line: Line) -> bool:
        """Whether every event before *line* has ended."""
        with self._lock:
            if self._kept or not self.is_taken(line):
                return False
            return not any(
                batch.floor.get(segment, NEVER) < end
                for batch in self._in_flight
                for segment, end in line.ends
            )

    def _add_counts(self, counts: Counts, dropped: dict[DropReason, int]) -> None:
        counts.buffered = len(self) + self._kept
        counts.recorded += self._own.counted
        counts.recovered = self._adopted.counted
        counts.spool_failures = self._troubles.failures
        counts.quarantined = self._care.quarantined
        dropped[DropReason.OVERFLOW] += self._own.evicted + self._adopted.evicted
        dropped[DropReason.DAMAGED] += self._damaged

    def _recorded_at(self, recorded: Any) -> float:
        return recorded_at(recorded)

    def _oldest_waiting(self) -> float | None:
        oldest = [self._adopted.oldest_recorded_at(), self._own.oldest_recorded_at()]
        return min((at for at in oldest if at is not None), default=None)

    def refuse(self, reason: DropReason) -> None:
        """Let nothing more in; *reason* is what later calls are counted under."""
        with self._lock:
            self._refusal = self._refusal or reason
            self._door[0] = 0
        self._call_waiting(NEVER)

    def seal(self) -> int:
        """Drop what waits in memory; what waits in files is kept. Returns how many are dropped."""
        with self._lock:
            self._own.shut()
            self._own.count()
            self._sealed = True
            self._care.write_anew()
            dropped = 0
            for segment in self._own.segments:
                with contextlib.suppress(OSError):
                    segment.look_whether_it_outlives()
                if not segment.outlives:
                    self._keep_waiting(segment, DropReason.SHUTDOWN)
                    dropped += segment.give_up_waiting()
            self._settled[Outcome.SHUTDOWN] += dropped
            return dropped

    def keep_abandoned(self, batch: Batch) -> None:
        """Leave the events of *batch* that are in files to whoever adopts the files."""
        with self._lock:
            if batch.events is not None:
                lost = [place for place in batch.places if not place.segment.outlives]
                kept = len(batch.places) - len(lost)
            else:
                in_memory = [e for e in batch.open if not batch.places[id(e)].segment.outlives]
                lost = [batch.places[id(event)] for event in in_memory]
                kept = len(batch.open) - len(lost)
                batch.open = in_memory
            # The caller hands these over; see `_keep_waiting()`.
            for place in lost if self._dropped.wanted else ():
                self._mark(place, form.SETTLED)
            batch.size -= kept
            self._kept += kept
            if not batch.size:
                self._in_flight.pop(batch, None)

    def release(self) -> None:
        """Let go of all files: others may adopt what is left in them."""
        with self._lock:
            self._own.gate.shut()
            if not self._sealed and len(self):
                return  # recorded just now, by whoever still holds a retired agent
            self._kept += len(self)
            self._own.release()
            self._adopted.release()
        self._troubles.tell()
