"""The in-memory ring buffer: where events wait, and where each of them is accounted for.

What it guarantees:

- `record()` on its fast path is one append to a deque and two looks: no lock, no call that gives
  the interpreter lock away, nothing that another thread, a signal handler or `__del__` could find
  half done.
- Never more than *capacity* events wait. The last 1 024 places are handed out under a lock, so that
  threads racing between the look at the door and the append do not overshoot; a smaller buffer
  hands out all of its places under the lock. A thread that is held up just there while the others
  fill the buffer takes its event back and asks again.
- No wake-up is lost. A producer appends, then looks at the alarm; a sender sets the alarm, then
  looks at the length. Whichever comes second sees the other.
- Each event leaves exactly once, to exactly one batch or one drop counter.

The door is one byte in a page that the kernel wipes on `fork` (where it can): a forked child finds
it closed at its first `record()`, also when Python's own fork hooks never ran. `os.getpid()` in the
fast path would cost as much as everything else in it.
"""

from __future__ import annotations

import mmap
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from meter_agent._batch import Batch
from meter_agent._event import MeterEvent
from meter_agent._ledger import Counts, DropReason, Outcome, Tally
from meter_agent._runtime import Doorbell, Runtime

__all__ = ["Record", "RingBuffer"]

_PLACES_UNDER_LOCK = 1024
_PLACES_KEPT_FROM_NESTED_CALLS = 8
_LOOK_AGAIN_SECONDS = 0.001
_NEVER = sys.maxsize
_MADV_WIPEONFORK = 18  # Linux 4.14; Python has no name for it
_PREFIX_RANDOM_BITS = 74


class Record(Protocol):
    """The signature of `record()`."""

    def __call__(
        self,
        event_name: str,
        customer_id: str,
        value: Any = 1,
        *,
        timestamp: Any = None,
        identifier: str | None = None,
        payload: Mapping[str, str] | None = None,
    ) -> bool:
        """Take one event; True when it is held."""
        ...


class _Gate:
    """How many events must wait before `record()` looks up from its fast path.

    Never more than the length at which the door has to be closed.
    """

    __slots__ = ("alarm",)

    def __init__(self) -> None:
        self.alarm = 1


class RingBuffer:
    """A bounded queue of recorded events.

    Args:
        runtime: Clocks and locks.
        capacity: Most events that may wait.
        overflow: `"drop_newest"`, `"drop_oldest"` or `"block"`.
        block_timeout_seconds: How long `"block"` waits for a place before the event is dropped.
        wake: Called without any lock when a sender should look; safe to call from anywhere.
        on_fork: Called when a child of `fork` is noticed by its first `record()`.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        capacity: int,
        overflow: str,
        block_timeout_seconds: float,
        wake: Callable[[], None],
        on_fork: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._capacity = capacity
        self._overflow = overflow
        self._block_timeout_seconds = block_timeout_seconds
        self._wake = wake
        self._on_fork = on_fork
        self._nearly_full = max(0, capacity - _PLACES_UNDER_LOCK)
        self._events: deque[Any] = deque()
        self._gate = _Gate()
        self._door = _wiped_on_fork()
        self._refusal: DropReason | None = None
        self._fork_turn = deque([True])
        self._starting_over_in: int | None = None
        self._start_over()

    def _start_over(self) -> None:
        self._lock = self._runtime.reentrant_lock()
        self._prefix = _identifier_prefix(self._runtime)
        self._taken = 0
        self._evicted = 0
        self._in_flight: dict[Batch, None] = {}
        self._returned: deque[Batch] = deque()
        self._settled = dict.fromkeys(Outcome, 0)
        self._refused = {reason: Tally() for reason in DropReason}
        self._waiting: deque[Doorbell] = deque()
        self._sealed = False
        self._wanted = 1
        self._gate.alarm = min(1, self._nearly_full)
        self._process_id = self._runtime.process_id()
        # The door comes last: from here on events are ours.
        self._door[0] = 1 if self._nearly_full and self._refusal is None else 0

    def start_over_after_fork(self) -> None:
        """Forget the parent's events, in place: the parent sends them, and only the parent.

        In place, because product code may have bound `record` to a name of its own.
        """
        for batch in self._in_flight:
            # With gevent the child has a copy of the greenlet that sends it, and that goes on.
            batch.abandoned = True
            batch.claim = None
        self._events.clear()
        self._start_over()

    @property
    def belongs_to_this_process(self) -> bool:
        """False in a child of `fork` that has not started over."""
        return self._process_id == self._runtime.process_id()

    # -- the caller's side ---------------------------------------------------------------------

    def recorder(self) -> Record:
        """Return the `record()` of this buffer.

        A closure, because each attribute looked up on `self` would cost the hot path 4 ns.
        """
        events, append = self._events, self._events.append
        door, gate, clock = self._door, self._gate, self._runtime.clock
        look_up, enter = self._look_up, self._enter

        def record(
            event_name: str,
            customer_id: str,
            value: Any = 1,
            *,
            timestamp: Any = None,
            identifier: str | None = None,
            payload: Mapping[str, str] | None = None,
        ) -> bool:
            if payload is not None:
                payload = _copied(payload)
            event = (clock.time(), event_name, customer_id, value, timestamp, identifier, payload)
            if door[0]:
                append(event)
                if len(events) >= gate.alarm:
                    return look_up(event)
                return True
            return enter(event)

        return record

    def _look_up(self, event: Any) -> bool:
        # After the append, outside every lock, perhaps in a signal handler.
        if self._sealed:
            return self._take_back(event)
        if len(self._events) > self._capacity and self._withdraw(event):
            return self._enter(event)
        if len(self._events) >= self._nearly_full:
            # A sender may open it again at this very moment, and find that it was wrong: the alarm
            # never lies above this length, so the next caller comes here and closes it.
            self._door[0] = 0
        self._ring_if_wanted()
        return True

    def _ring_if_wanted(self) -> None:
        # The order matters: the wish is taken down first and the bell rung second, so that whoever
        # wakes can utter it anew. Nothing is written here without a ring behind it.
        if len(self._events) >= self._wanted:
            self._wanted = _NEVER
            self._gate.alarm = self._nearly_full
            self._wake()

    def _withdraw(self, event: Any) -> bool:
        # This thread was held up between its look at the door and its append, while others filled
        # the buffer behind the door. False: there is room again, or a sender has taken the event.
        with self._lock:
            if len(self._events) <= self._capacity:
                return False
            try:
                self._events.remove(event)
            except ValueError:
                return False
            return True

    def _take_back(self, event: Any) -> bool:
        # This thread looked at the door before `close()` and appended after its last count.
        with self._lock:
            try:
                self._events.remove(event)
            except ValueError:
                return True  # it came in time for the last count
        return self._refuse()

    def _enter(self, event: Any) -> bool:
        # The door is closed: nearly full, closed for good, or wiped because this is a child.
        if not self.belongs_to_this_process and not self._start_over_once():
            return False
        if self._refusal is not None:
            return self._refuse()
        if self._lock._is_owned():  # noqa: SLF001
            entered = self._enter_nested(event)
        else:
            entered = self._enter_in_turn(event)
        # Also by an event that found no place: when no thread could be started before, the next
        # call has to try again, and in a full buffer each next call is one of these.
        self._ring_if_wanted()
        return entered or self._refuse()

    def _start_over_once(self) -> bool:
        # No hook saw the fork, and several threads of the child may record first. One of them
        # starts over; an event that another appended meanwhile would be cleared with the parent's.
        try:
            self._fork_turn.pop()
        except IndexError:
            if self._starting_over_in == self._runtime.thread_id():
                return False  # a signal handler in the thread that is just doing it
            while not self.belongs_to_this_process:
                self._runtime.doorbell().wait(_LOOK_AGAIN_SECONDS)
            return True
        self._starting_over_in = self._runtime.thread_id()
        if not self.belongs_to_this_process:
            self._on_fork()
        self._starting_over_in = None
        self._fork_turn.append(True)
        return True

    def _refuse(self) -> bool:
        self._refused[self._refusal or DropReason.OVERFLOW].up()
        return False

    def _enter_nested(self, event: Any) -> bool:
        # A signal handler or `__del__` interrupted this very thread inside the lock, perhaps
        # between its look and its append: leave it the place it may have seen.
        if len(self._events) >= self._capacity - _PLACES_KEPT_FROM_NESTED_CALLS:
            return False
        self._events.append(event)
        return True

    def _enter_in_turn(self, event: Any) -> bool:
        with self._lock:
            if self._sealed:
                return False
            if len(self._events) >= self._capacity and self._overflow == "drop_oldest":
                self._events.popleft()
                self._evicted += 1
            if len(self._events) < self._capacity:
                self._events.append(event)
                self._open_door_if_room()
                return True
        return self._overflow == "block" and self._enter_after_waiting(event)

    def _enter_after_waiting(self, event: Any) -> bool:
        deadline = self._runtime.monotonic() + self._block_timeout_seconds
        self._wake()
        while self._refusal is None:
            # The bell is hung up before the look, so that a place freed in between rings it.
            bell = self._runtime.doorbell()
            self._waiting.append(bell)
            entered = self._enter_if_room(event)
            left = deadline - self._runtime.monotonic()
            if not entered and left > 0:
                bell.wait(left)
            self._take_down(bell)
            if entered or left <= 0:
                return entered
        return False

    def _enter_if_room(self, event: Any) -> bool:
        with self._lock:
            if self._refusal is not None or len(self._events) >= self._capacity:
                return False
            self._events.append(event)
            return True

    def _take_down(self, bell: Doorbell) -> None:
        try:
            self._waiting.remove(bell)
        except ValueError:
            # It was rung. Whoever waits behind us may find room as well, and only we know. Without
            # room the two would ring each other for ever.
            if len(self._events) < self._capacity:
                self._call_waiting(1)

    def _open_door_if_room(self) -> None:
        if len(self._events) < self._nearly_full and self._refusal is None:
            self._door[0] = 1

    # -- the senders' side ---------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._events)

    def set_alarm(self, length: int) -> None:
        """Ask to be woken when *length* events wait. Look at `len()` afterwards, not before."""
        self._want(min(length, self._capacity))

    def unset_alarm(self) -> None:
        """Nobody listens."""
        self._want(_NEVER)

    def _want(self, length: int) -> None:
        with self._lock:
            if self._refusal is None:
                self._wanted = length
                self._gate.alarm = min(length, self._nearly_full)

    @property
    def oldest_recorded_at(self) -> float | None:
        """Wall-clock seconds at which the oldest waiting event was recorded."""
        try:
            recorded_at: float = self._events[0][0]
        except IndexError:
            return None
        return recorded_at

    @property
    def capacity(self) -> int:
        """Most events that may wait."""
        return self._capacity

    @property
    def is_drained(self) -> bool:
        """Whether nothing waits and nothing is in flight."""
        return not self._events and not self._in_flight

    @property
    def is_closed(self) -> bool:
        """Whether events are refused because the agent closed."""
        return self._refusal is DropReason.CLOSED

    @property
    def has_returned_batches(self) -> bool:
        """Whether a sender died and left a batch behind."""
        return bool(self._returned)

    def take(self, limit: int) -> Batch | None:
        """Hand over the oldest waiting events, at most *limit*; None when none wait."""
        with self._lock:
            if self._returned:
                return self._returned.popleft()
            count = min(limit, len(self._events))
            if not count:
                return None
            floor = self._taken + self._evicted
            batch = Batch(
                [self._events.popleft() for _ in range(count)], position=self._taken, floor=floor
            )
            self._taken += count
            self._in_flight[batch] = None
            self._open_door_if_room()
        self._call_waiting(count)
        return batch

    def _call_waiting(self, count: int) -> None:
        while count and self._waiting:
            try:
                self._waiting.popleft().ring()
            except IndexError:  # another sender called the last one
                return
            count -= 1

    def identifier(self, position: int) -> str:
        """Return the UUID of the event at *position*: the same one whenever it is asked."""
        return f"{self._prefix}{position:012x}"

    def begin_attempt(self, batch: Batch, part: Sequence[MeterEvent]) -> bool:
        """Note that *part* of *batch* leaves now, before any byte of it does.

        False: it must not, because `close()` has accounted for it, or because this is a forked
        child that still runs a thread of its parent.
        """
        with self._lock:
            if batch.abandoned or batch not in self._in_flight:
                return False
            wall, ids = self._runtime.clock.time(), list(map(id, part))
            batch.sent_at = dict.fromkeys(ids, wall) | batch.sent_at
            now = wall, self._runtime.monotonic()
            batch.attempted = dict.fromkeys(ids, now) | batch.attempted
            return True

    def forget_attempt(self, batch: Batch, attempted: dict[int, tuple[float, float]]) -> None:
        """The last attempt was surely not accepted: *attempted* is how it stood before."""
        with self._lock:
            if not batch.abandoned:
                batch.attempted = attempted

    def settle(self, batch: Batch, events: Sequence[MeterEvent], outcome: Outcome) -> bool:
        """Count *events* of *batch* as ended. False: `close()` had already accounted for them."""
        with self._lock:
            claimed = self.claim(batch, events, outcome)
            self.settle_claim(batch)
            return claimed

    def claim(self, batch: Batch, events: Sequence[MeterEvent], outcome: Outcome) -> bool:
        """Announce that *events* of *batch* end as *outcome*, to be counted by `settle_claim()`.

        In between their letters are written. A `close()` that cannot wait for that counts them by
        the claim. False: it had already accounted for them, and there is nothing to write.
        """
        with self._lock:
            if batch.abandoned:
                return False
            if len(events) == len(batch.open):
                batch.open = []
            else:
                gone = set(map(id, events))
                batch.open = [event for event in batch.open if id(event) not in gone]
            batch.claim = len(events), outcome
            return True

    def freeze(self, batch: Batch, events: list[MeterEvent]) -> bool:
        """Fix the bytes of *batch*; what is not among *events* is invalid, and is claimed so.

        False: `close()` had already accounted for the batch.
        """
        with self._lock:
            if batch.abandoned:
                return False
            batch.events = None
            batch.open = events
            batch.oldest_timestamp = min((event.timestamp for event in events), default=0.0)
            batch.claim = batch.size - len(events), Outcome.DEAD_LETTERED
            return True

    def settle_claim(self, batch: Batch) -> None:
        """Count what was claimed."""
        with self._lock:
            if batch.claim is not None:
                claim, batch.claim = batch.claim, None
                self._count(batch, *claim)

    def _count(self, batch: Batch, count: int, outcome: Outcome) -> None:
        self._settled[outcome] += count
        batch.size -= count
        if not batch.size:
            self._in_flight.pop(batch, None)

    def give_back(self, batch: Batch) -> None:
        """Leave *batch* for another sender, with its bytes and its history."""
        with self._lock:
            if batch.size and not batch.abandoned:
                self._returned.append(batch)

    # -- positions, counts, the end ------------------------------------------------------------

    def taken_through(self) -> int:
        """Return how many events have left the waiting line so far."""
        with self._lock:
            return self._taken + self._evicted

    def recorded_through(self) -> int:
        """Return how many events have entered so far."""
        with self._lock:
            return self._taken + self._evicted + len(self._events)

    def settled_through(self) -> int:
        """Return how many events, counted from the first, have all ended."""
        with self._lock:
            return min(
                (batch.floor for batch in self._in_flight), default=self._taken + self._evicted
            )

    def counts(self, read_more: Callable[[], None] | None = None) -> Counts:
        """Return the whole account at one moment; *read_more* runs at the same moment."""
        counts = Counts()
        with self._lock:
            refused = {reason: tally.read() for reason, tally in self._refused.items()}
            # Once: an append may happen beside us, and both sides must see the same length.
            waiting = len(self._events)
            counts.buffered = waiting
            counts.in_flight = sum(batch.size for batch in self._in_flight)
            counts.settled = dict(self._settled)
            counts.recorded = self._taken + self._evicted + waiting + sum(refused.values())
            refused[DropReason.OVERFLOW] += self._evicted
            refused[DropReason.SHUTDOWN] += self._settled[Outcome.SHUTDOWN]
            counts.dropped = {reason.value: count for reason, count in refused.items() if count}
            counts.oldest_recorded_at = self._oldest_held()
            if read_more is not None:
                read_more()
        return counts

    def _oldest_held(self) -> float | None:
        held = [
            batch.events[0][0] if batch.events else batch.open[0].recorded_at
            for batch in self._in_flight
            if batch.events or batch.open
        ]
        if self._events:
            held.append(self._events[0][0])
        return min(held, default=None)

    def refuse(self, reason: DropReason) -> None:
        """Let nothing more in; *reason* is what later calls are counted under."""
        with self._lock:
            self._refusal = self._refusal or reason
            self._door[0] = 0
            self._wanted = _NEVER
            self._gate.alarm = 0  # a thread that is past the door looks up and finds `_sealed`
        self._call_waiting(_NEVER)

    def seal(self) -> int:
        """Drop what still waits; returns how many. Everything after this is refused."""
        with self._lock:
            self._sealed = True
            count = len(self._events)
            self._events.clear()
            self._taken += count
            self._settled[Outcome.SHUTDOWN] += count
            return count

    def abandon(self) -> list[Batch]:
        """Stop waiting for the batches in flight; each is accounted for by the caller."""
        with self._lock:
            batches = list(self._in_flight)
            for batch in batches:
                batch.abandoned = True
                self.settle_claim(batch)
            return batches

    def settle_abandoned(self, batch: Batch, count: int, outcome: Outcome) -> None:
        """Count *count* of the events that were left open in an abandoned batch."""
        with self._lock:
            self._count(batch, count, outcome)


def _wiped_on_fork() -> mmap.mmap | bytearray:
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return bytearray(1)
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError):
        # An old kernel, or not Linux: Python's fork hook alone must tell the child.
        return bytearray(1)
    return page


def _identifier_prefix(runtime: Runtime) -> str:
    # A version 8 UUID (RFC 9562): 74 random bits name this buffer in this process, the last 48 are
    # the event's position in it.
    bits = f"{runtime.random_bits(_PREFIX_RANDOM_BITS):074b}"
    high, middle, low = int(bits[:48], 2), int(bits[48:60], 2), int(bits[60:], 2)
    return f"{high >> 16:08x}-{high & 0xFFFF:04x}-8{middle:03x}-{0x8000 | low:04x}-"


def _copied(payload: Any) -> Any:
    # The caller may change its dict after the call. What is not a mapping stays as it is and is
    # refused by the validation; `record()` itself never raises.
    try:
        return dict(payload)
    except Exception:  # noqa: BLE001 - whatever a caller's object does when it is read
        return payload
