"""The crash-safe buffer: events wait in segment files that outlive the process.

What it guarantees:

- An event whose `record()` returned True is in the kernel's pages: `kill -9` loses nothing. It ends
  as delivered, dead-lettered or uncertain, in this process or in one that adopts its segment.
- `record()` encodes the event and appends it to mapped memory in one C call that does not give the
  interpreter lock away: no lock, no system call, and nothing that an interrupt could find half
  done. What is in the segment is the account: nothing is counted beside it.
- No wake-up is lost. A producer appends, then looks at the alarm; a sender sets the alarm, then
  looks at what has been written. Whichever comes second sees the other.
- Where no file can be had (disk full, directory gone), segments of plain memory take their place.

Segments stand in a line in the order of their making, those of dead processes in a line of their
own, and senders take from both in turn.
"""

from __future__ import annotations

import logging
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from json.encoder import encode_basestring as _quote
from typing import Any, NamedTuple
from zlib import crc32

from meter_agent import _spool_format as form
from meter_agent._batch import Batch
from meter_agent._event import EventTuple, MeterEvent
from meter_agent._event_buffer import NEVER, EventBuffer, Record, copied
from meter_agent._identifier import draw_prefix
from meter_agent._ledger import Counts, DropReason, Outcome
from meter_agent._runtime import Runtime
from meter_agent._segment import Segment
from meter_agent._spool_body import decode, encode_anyhow, recorded_at
from meter_agent._spool_directory import SpoolDirectory, SpoolFullError

__all__ = ["SpoolBuffer"]

SEGMENT_BYTES_MIN = 64 * 1024
SEGMENT_BYTES_MAX = 4 * 1024 * 1024
ADOPT_SECONDS = 30.0
_ADOPTED_SEGMENTS_MAX = 64  # at a time, with two descriptors each
_RETRY_DISK_SECONDS = 5.0
_RETRY_FULL_SECONDS = 0.25
_NAME_CHARACTERS_MAX = 100
_MEMORY_BYTES_PER_EVENT = 256
_USUAL_RECORD_BYTES = 80
_RECORD_HEAD = form.RECORD_HEAD.pack


def _no_room(_record: bytes) -> int:
    raise ValueError


def _nowhere() -> int:
    return 0


class _Gate:
    """Where `record()` writes to, and how far before it looks up from its fast path."""

    __slots__ = ("alarm", "tell", "write")

    alarm: int
    tell: Callable[[], int]
    write: Callable[[bytes], int]

    def __init__(self) -> None:
        self.shut()

    def shut(self) -> None:
        """Every write finds no room."""
        self.write, self.tell, self.alarm = _no_room, _nowhere, NEVER


class _Place(NamedTuple):
    """Where an event is kept, and how far a process before this one had come with it."""

    segment: Segment
    offset: int
    body: bytes
    mark: int


class _Own(NamedTuple):
    """The segments that this process writes, replaced as a whole."""

    line: tuple[Segment, ...] = ()
    """In the order of their making; the last one is written to."""
    gone: int = 0
    """Events of segments that have left the line."""
    evicted: int = 0
    """Those of them that were evicted."""


class Line(NamedTuple):
    """Up to where each segment had been written at one moment."""

    ends: tuple[tuple[Segment, int], ...]


class SpoolBuffer(EventBuffer):
    """A bounded queue of recorded events in mapped files.

    Args:
        runtime: Clocks and locks.
        directory: Where the files are.
        check: Raises `InvalidEventError` for an event that cannot be billed.
        bytes_max: *spool_bytes*.
        memory_events: About how many events memory takes where no file can be had.
        sync_seconds: Longest time between two syncs to the disk; 0: left to the kernel.
        overflow: `"drop_newest"`, `"drop_oldest"` or `"block"`.
        block_timeout_seconds: How long `"block"` waits for a place before the event is dropped.
        wake: Called without any lock when a sender should look; safe to call from anywhere.
        on_fork: Called when a child of `fork` is noticed by its first `record()`.
        say: Writes to the log; called from sender threads, never by `record()`.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        directory: SpoolDirectory,
        check: Callable[[EventTuple], None],
        bytes_max: int,
        memory_events: int,
        sync_seconds: float,
        overflow: str,
        block_timeout_seconds: float,
        wake: Callable[[], None],
        on_fork: Callable[[], None],
        say: Callable[..., object],
    ) -> None:
        super().__init__(
            runtime,
            overflow=overflow,
            block_timeout_seconds=block_timeout_seconds,
            wake=wake,
            on_fork=on_fork,
        )
        self._directory = directory
        self._check = check
        self._segment_bytes_max = max(SEGMENT_BYTES_MIN, min(SEGMENT_BYTES_MAX, bytes_max // 8))
        self._memory_bytes_max = max(SEGMENT_BYTES_MIN, memory_events * _MEMORY_BYTES_PER_EVENT)
        self._sync_seconds = sync_seconds
        self._say = say
        self._gate = _Gate()
        self._own: _Own = _Own()
        self._recovered_line: deque[Segment] = deque()
        self._prepared: Segment | None = None
        self._start_over()

    def _start_over(self) -> None:
        self._gate.shut()
        super()._start_over()
        for segment in (*self._line, *self._recovered_line, self._prepared):
            if segment is not None:
                segment.release()  # in a child of fork: the parent's lock is not touched by this
        self._own = _Own()
        self._recovered_line.clear()
        self._prepared = None
        self._next_bytes = SEGMENT_BYTES_MIN
        self._recorded_before = 0
        self._recovered = 0
        self._more_orphans = False
        self._damaged = 0
        self._quarantined = 0
        self._kept = 0
        self._troubles = 0
        self.adoptions = 0
        self._told: deque[tuple[str, dict[str, Any]]] = deque(maxlen=100)
        self._disk_rests_until = self._full_until = float("-inf")
        self._next_wake_at = float("-inf")
        self._next_adoption_at = self._synced_at = float("-inf")
        self._synced = 0
        self._recovered_turn = False
        # A deque, because `pop` is one step: one sender at a time.
        self._turn = deque([True])
        # The door comes last: from here on events are ours.
        self._door[0] = 1 if self._refusal is None else 0
        # Only now: another thread of a child would take what is half made for its own.
        self._process_id = self._runtime.process_id()

    @property
    def _line(self) -> tuple[Segment, ...]:
        return self._own.line

    @property
    def _recorded(self) -> int:
        own = self._own
        return own.gone + sum(segment.counted for segment in own.line)

    # -- the caller's side ---------------------------------------------------------------------

    def recorder(self) -> Record:
        door, gate, clock = self._door, self._gate, self._runtime.clock
        look_up, enter, encode = self._look_up, self._enter, self._encode

        def record(
            event_name: str,
            customer_id: str,
            value: Any = 1,
            *,
            timestamp: Any = None,
            identifier: str | None = None,
            payload: Mapping[str, str] | None = None,
        ) -> bool:
            now = clock.time_ns()
            try:
                if (
                    type(value) is int
                    and timestamp is None
                    and identifier is None
                    and payload is None
                    and type(event_name) is str
                    and type(customer_id) is str
                    and len(event_name) <= _NAME_CHARACTERS_MAX
                    and len(customer_id) <= _NAME_CHARACTERS_MAX
                ):
                    text = f"[{now},{_quote(event_name)},{_quote(customer_id)},{value}]"
                    body = text.encode()
                else:
                    body = encode(
                        now, event_name, customer_id, value, timestamp, identifier, payload
                    )
            except ValueError:  # half of a surrogate pair, or a number of thousands of digits
                body = encode(now, event_name, customer_id, value, timestamp, identifier, payload)
            record = _RECORD_HEAD(form.RECORD_MAGIC, len(body), 0, crc32(body)) + body
            try:
                # One line, between whose steps no other thread and no signal handler runs: a child
                # that is forked in here finds the door shut, and not its parent's segment.
                written = door[0] and gate.write(record)
            except ValueError:
                written = 0
            if written:
                if gate.tell() >= gate.alarm:
                    look_up()
                return True
            return enter(record)

        return record

    def _encode(self, now: int, *event: Any) -> bytes:
        if event[-1] is not None:
            event = (*event[:-1], copied(event[-1]))
        return encode_anyhow(now, event, self._check)

    def _look_up(self) -> None:
        # After the append, outside every lock, perhaps in a signal handler. The wish is taken down
        # first and the bell rung second, so that whoever wakes can utter it anew.
        self._gate.alarm = NEVER
        self._wake()

    def _enter(self, record: bytes) -> bool:
        # No room, closed for good, or a child of fork, whose door was wiped.
        if not self.belongs_to_this_process and not self._start_over_once():
            return False
        if self._refusal is not None:
            return self._refuse()
        if self._lock._is_owned():  # noqa: SLF001
            # A signal handler or `__del__` interrupted this very thread while it makes room.
            return self._try_write(record) or self._refuse()
        entered = self._enter_in_turn(record)
        if not entered and self._overflow == "block":
            self._wake()
            entered = self._enter_after_waiting(record)
        now = self._runtime.monotonic()
        if entered or now >= self._next_wake_at:
            # A segment was begun, and the next one wants to be prepared. Also now and then when
            # there is no room: no thread could be started before, perhaps.
            self._next_wake_at = now + _RETRY_FULL_SECONDS
            self._wake()
        return entered or self._refuse()

    def _try_write(self, record: bytes) -> bool:
        try:
            return bool(self._gate.write(record))
        except ValueError:
            return False

    def _enter_in_turn(self, record: bytes) -> bool:
        with self._lock:
            while self._refusal is None:
                if self._try_write(record):
                    return True
                if not self._begin_segment(form.HEADER_BYTES + len(record)) and not self._evict():
                    return False
            return False

    def _enter_after_waiting(self, record: bytes) -> bool:
        deadline = self._runtime.monotonic() + self._block_timeout_seconds
        while self._refusal is None:
            # The bell is hung up before the look, so that room made in between rings it.
            bell = self._runtime.doorbell()
            self._waiting.append(bell)
            entered = self._enter_in_turn(record)
            left = deadline - self._runtime.monotonic()
            if not entered and left > 0:
                bell.wait(min(left, _RETRY_FULL_SECONDS))
            try:
                self._waiting.remove(bell)
            except ValueError:
                self._call_waiting(1)  # whoever waits behind us may find room as well
            if entered or left <= 0:
                return entered
        return False

    # -- segments ------------------------------------------------------------------------------

    def _begin_segment(self, bytes_min: int) -> bool:
        # Called with the lock held. False: there is no room for another one.
        unfit = self._prepared
        if unfit is not None and (unfit.bytes < bytes_min or unfit in self._line):
            self._prepared = None
            if unfit not in self._line:
                self._remove(unfit)
        if self._prepared is None:
            self._prepared = self._make_segment(bytes_min)
        if self._prepared is None and self._give_back_current():
            self._prepared = self._make_segment(bytes_min)
        segment = self._prepared
        if segment is None:
            return False
        self._own = self._own._replace(line=(*self._line, segment))
        self._prepared = None
        self._gate.alarm = NEVER
        self._gate.tell = segment.tell
        self._gate.write = segment.writer(self._lock)
        for older in self._line:
            older.sealed = older is not segment
        self._clear_away()
        return True

    def _give_back_current(self) -> bool:
        # Called with the lock held. A file in which every event has ended is room for another
        # process, or for a smaller file.
        self._count_all()
        if not self._line or self._line[-1].open:
            return False
        self._gate.shut()
        self._line[-1].sealed = True
        self._clear_away()
        self._next_bytes = SEGMENT_BYTES_MIN
        return True

    def _make_segment(self, bytes_min: int) -> Segment | None:
        size = max(self._next_bytes, bytes_min)
        segment = self._make_file(size, bytes_min)
        if segment is None and self._runtime.monotonic() < self._disk_rests_until:
            return self._make_memory(size, bytes_min)
        return segment

    def _make_file(self, size: int, bytes_min: int = SEGMENT_BYTES_MIN) -> Segment | None:
        # None: not now. A directory that is full, or a disk that fails, is not asked at every call.
        now = self._runtime.monotonic()
        if now < max(self._disk_rests_until, self._full_until):
            return None
        while True:
            try:
                segment = self._directory.make_segment(size)
            except SpoolFullError:
                if size <= max(bytes_min, SEGMENT_BYTES_MIN):
                    self._full_until = now + _RETRY_FULL_SECONDS
                    return None
                size = max(bytes_min, SEGMENT_BYTES_MIN, size // 2)
            except Exception as error:  # noqa: BLE001 - whatever ails the disk, memory takes over
                self._disk_rests_until = now + _RETRY_DISK_SECONDS
                self._tell_trouble(error)
                return None
            else:
                self._next_bytes = min(self._segment_bytes_max, 2 * size)
                return segment

    def _make_memory(self, size: int, bytes_min: int) -> Segment | None:
        taken = sum(segment.bytes for segment in self._line if segment.path is None)
        size = min(size, self._memory_bytes_max - taken)
        if size < bytes_min:
            return None
        try:
            data = mmap.mmap(-1, size)
        except (OSError, MemoryError):
            return None
        data.seek(form.HEADER_BYTES)
        return Segment(draw_prefix(self._runtime), data)

    def _evict(self) -> bool:
        # Room is made by whole files: the oldest in which nothing is in flight.
        if self._overflow != "drop_oldest":
            return False
        for segment in self._line:
            if segment.sealed and segment.open == segment.waiting:
                self._leave_line(segment, evicted=segment.waiting)
                segment.give_up_waiting()
                self._remove(segment)
                self._full_until = float("-inf")
                return True
        return False

    def _leave_line(self, segment: Segment, *, evicted: int = 0) -> None:
        # One store: whoever is interrupted here leaves the old account or the new one.
        own = self._own
        line = tuple(other for other in own.line if other is not segment)
        self._own = _Own(line, own.gone + segment.counted, own.evicted + evicted)

    def _clear_away(self) -> None:
        # Files of which every event has ended.
        self._count_all()
        for segment in (*self._line, *self._recovered_line):
            if segment.sealed and not segment.open:
                if segment.recovered:
                    self._recovered_line.remove(segment)
                else:
                    self._leave_line(segment)
                self._remove(segment)
                self._full_until = float("-inf")
                self._call_waiting(1)
        if self._more_orphans and len(self._recovered_line) < _ADOPTED_SEGMENTS_MAX // 2:
            self._more_orphans = False
            self._next_adoption_at = float("-inf")

    def _remove(self, segment: Segment) -> None:
        try:
            segment.remove()
        except OSError as error:
            self._tell_trouble(error)

    def _count_all(self) -> None:
        # Sealed ones as well: a profiler can hold a thread up between the look at the gate and the
        # write.
        for segment in self._line:
            segment.count()

    # -- the senders' side ---------------------------------------------------------------------

    def __len__(self) -> int:
        with self._lock:
            self._count_all()
            return sum(segment.waiting for segment in (*self._line, *self._recovered_line))

    @property
    def capacity(self) -> int:
        """Most events that may wait: as many as *spool_bytes* hold, which depends on their size."""
        return NEVER

    def set_alarm(self, length: int) -> None:
        """Ask to be woken when about *length* events wait. Look at `len()` afterwards."""
        with self._lock:
            if self._refusal is None and self._line:
                missing = length - len(self)
                end = self._gate.tell()
                # A little early, because events differ in length: who finds that it was too early
                # sets it once more.
                ahead = 1 if missing <= 1 else int(missing * self._record_bytes() * 0.9)
                self._gate.alarm = end + ahead

    def _record_bytes(self) -> float:
        current = self._line[-1]
        if not current.counted:
            return _USUAL_RECORD_BYTES
        return (current.written_through() - form.HEADER_BYTES) / current.counted

    def unset_alarm(self) -> None:
        """Nobody listens."""
        self._gate.alarm = NEVER

    @property
    def oldest_recorded_at(self) -> float | None:
        """Wall-clock seconds at which the oldest waiting event was recorded.

        Events of a dead process have waited long enough, whenever that was.
        """
        with self._lock:
            self._count_all()
            if any(segment.waiting for segment in self._recovered_line):
                return 0.0
            return self._oldest_in(self._line)

    def _oldest_in(self, line: Iterable[Segment]) -> float | None:
        for segment in line:
            if segment.waiting and (record := segment.oldest()) is not None:
                return recorded_at(record.body)
        return None

    @property
    def is_drained(self) -> bool:
        """Whether nothing waits and nothing is in flight."""
        return not self._in_flight and not len(self)

    def take(self, limit: int) -> Batch | None:
        """Hand over the oldest waiting events, at most *limit*; None when none wait."""
        with self._lock:
            if self._returned:
                return self._returned.popleft()
            self._count_all()
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

    def _take_places(self, limit: int) -> list[_Place]:
        # In turn: the events of a dead process are old, but there may be a million of them.
        self._recovered_turn = not self._recovered_turn
        lines = (self._line, self._recovered_line)
        places: list[_Place] = []
        for line in reversed(lines) if self._recovered_turn else lines:
            for segment in line:
                if segment.waiting and len(places) < limit:
                    places += self._take_from(segment, limit - len(places))
        return places

    def _take_from(self, segment: Segment, limit: int) -> list[_Place]:
        expected = min(limit, segment.waiting)
        records = segment.take(expected)
        if len(records) < expected:
            # Counted before, and damaged since: somebody writes into our files.
            self._damaged += segment.give_up_waiting()
        return [_Place(segment, r.offset, r.body, r.mark) for r in records]

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
            mark = form.attempted_mark(self._runtime.clock.time())
            for event in part:
                if id(event) not in before:
                    place = batch.places[id(event)]
                    place.segment.mark(place.offset, mark)
            return True

    def forget_attempt(self, batch: Batch, attempted: dict[int, tuple[float, float]]) -> None:
        """The last attempt was surely not accepted: *attempted* is how it stood before."""
        with self._lock:
            if not batch.abandoned:
                for key in batch.attempted.keys() - attempted.keys():
                    if (place := batch.places.get(key)) is not None:
                        place.segment.mark(place.offset, form.NEVER_ATTEMPTED)
            super().forget_attempt(batch, attempted)

    def freeze(self, batch: Batch, events: list[MeterEvent], places: list[int]) -> bool:
        """Fix the bytes of *batch*; what a dead process knew of its attempts is taken over."""
        with self._lock:
            recorded: list[_Place] = batch.places
            if not super().freeze(batch, events, places):
                return False
            kept = set(places)
            batch.ending = [place for n, place in enumerate(recorded) if n not in kept]
            batch.places = {id(event): recorded[n] for event, n in zip(events, places, strict=True)}
            wall, monotonic = self._runtime.clock.time(), self._runtime.monotonic()
            for key, place in batch.places.items():
                first = form.read_mark(place.mark)
                if first is not None:
                    batch.attempted[key] = first, monotonic - (wall - first)
                    batch.sent_at[key] = first
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

    def _end(self, places: Sequence[_Place]) -> None:
        for place in places:
            place.segment.end(place.offset)

    # -- care of the files ---------------------------------------------------------------------

    def tend(self) -> None:
        """Adopt what dead processes left, make the next segment ready, sync, tell of trouble."""
        if self._refusal is not None:
            return
        try:
            self._turn.pop()
        except IndexError:
            return  # another sender does it
        try:
            now = self._runtime.monotonic()
            if now >= self._next_adoption_at:
                self._next_adoption_at = now + ADOPT_SECONDS
                self._adopt()
                self.adoptions += 1
                self._look_after_current()
            self._leave_memory()
            self._prepare()
            if self._sync_seconds and now >= self._synced_at + self._sync_seconds:
                self._synced_at = now
                self._sync()
        finally:
            self._turn.append(True)
            self.tell_troubles()

    def seconds_until_tending(self) -> float | None:
        """Return when `tend()` has something to do again, at the latest."""
        if self._refusal is not None:
            return None
        now = self._runtime.monotonic()
        due_at = self._next_adoption_at
        if self._sync_seconds and self._recorded > self._synced:
            due_at = min(due_at, self._synced_at + self._sync_seconds)
        if self._line and self._line[-1].path is None:
            due_at = min(due_at, max(self._disk_rests_until, self._full_until))
        return max(0.0, due_at - now)

    def tell_troubles(self) -> None:
        """Write to the log what has gone wrong since the last time."""
        while self._told:
            event, fields = self._told.popleft()
            self._say(event, logging.WARNING, spool_dir=str(self._directory.path), **fields)

    def _adopt(self) -> None:
        if len(self._recovered_line) >= _ADOPTED_SEGMENTS_MAX:
            self._more_orphans = True
            return
        try:
            for segment, damages in self._directory.adopt():
                with self._lock:
                    if self._refusal is not None:
                        segment.release()
                        return
                    self._recovered += segment.open
                    self._quarantined += len(damages)
                    self._recovered_line.append(segment)
                    if segment.open:
                        self._note("meter_agent.spool_recovered", events=segment.open)
                    for damage in damages:
                        self._note("meter_agent.spool_damaged", error=damage)
                    self._clear_away()
                    if len(self._recovered_line) >= _ADOPTED_SEGMENTS_MAX:
                        self._more_orphans = True
                        break
            for reason in self._directory.left_alone():
                self._note("meter_agent.spool_file_left_alone", error=reason)
        except Exception as error:  # noqa: BLE001 - whatever ails the disk, sending goes on
            self._tell_trouble(error)

    def _look_after_current(self) -> None:
        with self._lock:
            for segment in (*self._line[-1:], *filter(None, [self._prepared])):
                segment.look_whether_it_outlives()
                if segment.path is not None and not segment.outlives:
                    self._tell_trouble(
                        FileNotFoundError(f"{segment.path} was deleted while in use")
                    )
                    if segment is self._prepared:
                        self._prepared = None
                    else:
                        self._begin_segment(form.HEADER_BYTES)
            # Nothing since the last look, and nothing waits: others may need the room.
            self._count_all()
            if self._recorded == self._recorded_before and self._give_back_current():
                unused, self._prepared = self._prepared, None
                if unused is not None:
                    self._remove(unused)
            self._recorded_before = self._recorded

    def _leave_memory(self) -> None:
        # The disk may be well again, and what is recorded from now on would survive.
        if self._line and self._line[-1].path is None:
            segment = self._make_file(self._next_bytes)
            if segment is not None:
                with self._lock:
                    self._prepared = segment
                    self._begin_segment(form.HEADER_BYTES)

    def _prepare(self) -> None:
        with self._lock:
            current = self._line[-1] if self._line else None
            if (
                current is None
                or self._prepared is not None
                or current.written_through() < current.bytes // 2
            ):
                return
        # Outside the lock, in which a caller of `record()` may be waiting.
        segment = self._make_file(self._next_bytes)
        if segment is not None:
            with self._lock:
                if self._refusal is None and self._prepared is None:
                    self._prepared, segment = segment, None
            if segment is not None:
                segment.remove()

    def _sync(self) -> None:
        with self._lock:
            self._count_all()
            recorded, line = self._recorded, list(self._line)
        if recorded == self._synced:
            return
        try:
            for segment in line:
                segment.sync()
            self._synced = recorded
        except OSError as error:
            self._tell_trouble(error)

    def _tell_trouble(self, error: Exception) -> None:
        self._troubles += 1
        self._note("meter_agent.spool_failed", error=f"{type(error).__name__}: {error}")

    def _note(self, event: str, **fields: Any) -> None:
        # For the next sender thread: `record()` logs nothing.
        self._told.append((event, fields))

    # -- positions, counts, the end ------------------------------------------------------------

    def line(self) -> Line:
        """Return how far each segment of this process has been written."""
        with self._lock:
            return Line(tuple((s, s.written_through()) for s in self._line))

    def is_taken(self, line: Line) -> bool:
        """Whether every event before *line* has left the waiting line."""
        with self._lock:
            self._count_all()
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

    def counts(self, read_more: Callable[[], None] | None = None) -> Counts:
        """Return the whole account at one moment; *read_more* runs at the same moment."""
        counts = Counts()
        with self._lock:
            counts.buffered = len(self) + self._kept
            refused = {reason: tally.read() for reason, tally in self._refused.items()}
            counts.in_flight = sum(batch.size for batch in self._in_flight)
            counts.settled = dict(self._settled)
            counts.recorded = self._recorded + sum(refused.values())
            counts.recovered = self._recovered
            counts.spool_failures = self._troubles
            counts.quarantined = self._quarantined
            refused[DropReason.OVERFLOW] += self._own.evicted
            refused[DropReason.DAMAGED] += self._damaged
            refused[DropReason.SHUTDOWN] += self._settled[Outcome.SHUTDOWN]
            counts.dropped = {reason.value: count for reason, count in refused.items() if count}
            counts.oldest_recorded_at = self._oldest_held()
            if read_more is not None:
                read_more()
        return counts

    def _oldest_held(self) -> float | None:
        held = [
            recorded_at(batch.events[0]) if batch.events else batch.open[0].recorded_at
            for batch in self._in_flight
            if batch.events or batch.open
        ]
        for line in (self._recovered_line, self._line):
            oldest = self._oldest_in(line)
            if oldest is not None:
                held.append(oldest)
        return min(held, default=None)

    def refuse(self, reason: DropReason) -> None:
        """Let nothing more in; *reason* is what later calls are counted under."""
        with self._lock:
            self._refusal = self._refusal or reason
            self._door[0] = 0
        self._call_waiting(NEVER)

    def seal(self) -> int:
        """Drop what waits in memory; what waits in files is kept. Returns how many are dropped."""
        with self._lock:
            self._count_all()
            self._gate.shut()
            self._sealed = True
            dropped = 0
            for segment in self._line:
                segment.sealed = True
                segment.look_whether_it_outlives()
                if not segment.outlives:
                    dropped += segment.give_up_waiting()
            self._settled[Outcome.SHUTDOWN] += dropped
            return dropped

    def keep_abandoned(self, batch: Batch) -> None:
        """Leave the events of *batch* that are in files to whoever adopts the files."""
        with self._lock:
            if batch.events is not None:
                kept = sum(place.segment.outlives for place in batch.places)
            else:
                in_memory = [e for e in batch.open if not batch.places[id(e)].segment.outlives]
                kept = len(batch.open) - len(in_memory)
                batch.open = in_memory
            batch.size -= kept
            self._kept += kept
            if not batch.size:
                self._in_flight.pop(batch, None)

    def release(self) -> None:
        """Let go of all files: others may adopt what is left in them."""
        with self._lock:
            self._gate.shut()
            self._count_all()
            if not self._sealed and len(self):
                return  # recorded just now, by whoever still holds a retired agent
            self._kept += sum(s.waiting for s in (*self._line, *self._recovered_line))
            for segment in self._line:
                segment.sealed = True
            self._clear_away()
            prepared, self._prepared = self._prepared, None
            if prepared is not None:
                self._remove(prepared)
            for segment in (*self._line, *self._recovered_line):
                segment.release()
            self._own = _Own((), self._recorded, self._own.evicted)
            self._recovered_line.clear()
        self.tell_troubles()
