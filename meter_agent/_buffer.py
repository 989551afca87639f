"""The in-memory ring buffer: where events wait, and where each of them is accounted for.

What it guarantees:

- `record()` on its fast path is one `extend` of a deque and two looks: no lock, no call that gives
  the interpreter lock away, nothing that another thread, a signal handler or `__del__` could find
  half done.
- Waiting events are nothing to the garbage collector. They lie in the deque piece by piece: a tuple
  for each would count towards the next collection, every 700 calls, in the caller.
- Never more than *capacity* events wait. The last 1 024 places are handed out under a lock, so that
  threads racing between the look at the door and the append do not overshoot; a smaller buffer
  hands out all of its places under the lock. A thread that is held up just there while the others
  fill the buffer takes its event back and asks again.
- No wake-up is lost. A producer appends, then looks at the alarm; a sender sets the alarm, then
  looks at the length. Whichever comes second sees the other.
- Each event leaves exactly once, to exactly one batch or one drop counter.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import repeat, starmap
from operator import itemgetter
from typing import Any, NamedTuple

from meter_agent._amount import UNCHANGING_TYPES, unchanging
from meter_agent._batch import Batch
from meter_agent._event import Label, Name
from meter_agent._event_buffer import NEVER, EventBuffer, Record, Terms, copied
from meter_agent._identifier import draw_prefix, identifier_prefix, identifiers
from meter_agent._ledger import Counts, DropReason, Outcome
from meter_agent._runtime import Runtime

__all__ = ["RingBuffer"]

_PLACES_UNDER_LOCK = 1024
_PLACES_KEPT_FROM_NESTED_CALLS = 8


class _Details(NamedTuple):
    """The rare part of an event. It comes first, and tells where an event begins."""

    timestamp: Any
    identifier: Name | None
    payload: Any


_NO_DETAILS = _Details(None, None, None)
_PIECES = 5
"""Of each event in the deque: details, time of recording, name, customer, value."""
_first = itemgetter(0)


class _Gate:
    """How many events must wait before `record()` looks up from its fast path.

    Never more than the length at which the door has to be closed.
    """

    __slots__ = ("alarm",)

    def __init__(self) -> None:
        self.alarm = 1


class RingBuffer(EventBuffer):
    """A bounded queue of recorded events.

    Args:
        runtime: Clocks and locks.
        terms: What is the same for every kind of buffer.
        capacity: Most events that may wait.
    """

    def __init__(
        self,
        runtime: Runtime,
        terms: Terms,
        *,
        capacity: int,
    ) -> None:
        super().__init__(runtime, terms)
        self._capacity = capacity
        self._nearly_full = max(0, capacity - _PLACES_UNDER_LOCK)
        self._events: deque[Any] = deque()
        self._gate = _Gate()
        self._start_over()

    def _start_over(self) -> None:
        super()._start_over()
        self._events.clear()
        self._prefix = identifier_prefix(draw_prefix(self._runtime))
        self._evicted = 0
        self._wanted = 1
        self._gate.alarm = min(1, self._nearly_full) * _PIECES
        # The door comes last: from here on events are ours.
        self._door[0] = 1 if self._nearly_full and self._refusal is None else 0
        # Only now: another thread of a child would take what is half made for its own.
        self._process_id = self._runtime.process_id()

    # -- the caller's side ---------------------------------------------------------------------

    def recorder(self) -> Record:
        events, extend = self._events, self._events.extend
        door, gate, clock = self._door, self._gate, self._runtime.clock
        look_up, enter, cannot_hold = self._look_up, self._enter, self._cannot_hold
        unchanging_types = UNCHANGING_TYPES

        def record(
            event_name: Name,
            customer_id: Name,
            value: Any = 1,
            *,
            timestamp: Any = None,
            identifier: Name | None = None,
            payload: Mapping[str, Label] | None = None,
        ) -> bool:
            try:
                if timestamp is None and identifier is None and payload is None:
                    details = _NO_DETAILS
                else:
                    if timestamp is not None:
                        timestamp = unchanging(timestamp)
                    details = _Details(timestamp, identifier, copied(payload))
                if type(value) is not int and type(value) not in unchanging_types:
                    value = unchanging(value)
                event = (details, clock.time(), event_name, customer_id, value)
                if not door[0]:
                    return enter(event)
                extend(event)
            except Exception:  # noqa: BLE001 - no memory, or the stack ends
                return cannot_hold()
            try:
                if len(events) >= gate.alarm:
                    return look_up(event)
            except Exception:  # noqa: BLE001, S110 - it is held, and the next call looks up
                pass
            return True

        # What Python says when it is called wrongly names the function by this.
        record.__qualname__ = "record"
        return record

    def _look_up(self, event: Any) -> bool:
        # After the append, outside every lock, perhaps in a signal handler.
        if self._sealed:
            return self._take_back(event)
        if len(self) > self._capacity and self._withdraw(event):
            return self._enter(event)
        if len(self) >= self._nearly_full:
            # A sender may open it again at this very moment, and find that it was wrong: the alarm
            # never lies above this length, so the next caller comes here and closes it.
            self._door[0] = 0
        self._ring_if_wanted()
        return True

    def _ring_if_wanted(self) -> None:
        # The order matters: the wish is taken down first and the bell rung second, so that whoever
        # wakes can utter it anew. Nothing is written here without a ring behind it.
        if len(self) >= self._wanted:
            self._wanted = NEVER
            self._gate.alarm = self._nearly_full * _PIECES
            if self._refusal is not None:
                self._gate.alarm = 0  # as `refuse()` has set it, perhaps just before
            self._call_sender()

    def _look_up_next_time(self) -> None:
        self._wanted = 1
        self._gate.alarm = 0

    def _withdraw(self, event: Any) -> bool:
        # This thread was held up between its look at the door and its append, while others filled
        # the buffer behind the door. False: there is room again, or a sender has taken the event.
        with self._lock:
            return len(self) > self._capacity and self._remove(event)

    def _take_back(self, event: Any) -> bool:
        # This thread looked at the door before `close()` and appended after its last count.
        with self._lock:
            if not self._remove(event):
                return True  # it came in time for the last count
        return self._refuse()

    def _remove(self, event: Any) -> bool:
        # Looked for by identity, and among the latest: only what slipped through the door in the
        # same moment can be behind it. False: a sender has it.
        events, end = self._events, len(self._events) - _PIECES
        for place in range(end, max(-1, end - _PIECES * _PLACES_UNDER_LOCK), -1):
            if all(events[place + n] is piece for n, piece in enumerate(event)):
                # The head last: should a handler raise in here, what is left can be told for what
                # it is, and not for the end of the event before it.
                for n in reversed(range(_PIECES)):
                    del events[place + n]
                return True
        return False

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
        return entered or self._refuse(_as_recorded(event))

    def _enter_nested(self, event: Any) -> bool:
        # A signal handler or `__del__` interrupted this very thread inside the lock, perhaps
        # between its look and its append: leave it the place it may have seen.
        if len(self) >= self._capacity - _PLACES_KEPT_FROM_NESTED_CALLS:
            return False
        return self._put(event)

    def _put(self, event: Any) -> bool:
        # Whoever interrupts this may close the agent. In front of the look the event is taken back,
        # behind it the last count has it.
        self._events.extend(event)
        return not (self._sealed and self._remove(event))

    def _enter_in_turn(self, event: Any) -> bool:
        with self._lock:
            if len(self) >= self._capacity and self._overflow == "drop_oldest":
                evicted = self._pop(1)
                self._evicted += len(evicted)
                self._keep_dropped(DropReason.OVERFLOW, evicted)
            if len(self) < self._capacity:
                entered = self._put(event)
                self._open_door_if_room()
                return entered
        if self._overflow != "block":
            return False
        self._call_sender()
        return self._wait_for_room(lambda: self._enter_if_room(event))

    def _enter_if_room(self, event: Any) -> bool:
        with self._lock:
            if self._refusal is not None or len(self) >= self._capacity:
                return False
            return self._put(event)

    def _open_door_if_room(self) -> None:
        if len(self) < self._nearly_full and self._refusal is None:
            self._door[0] = 1

    # -- the senders' side ---------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._events) // _PIECES

    def set_alarm(self, length: int) -> None:
        """Ask to be woken when *length* events wait. Look at `len()` afterwards, not before."""
        self._want(min(length, self._capacity))

    def unset_alarm(self) -> None:
        """Nobody listens."""
        self._want(NEVER)

    def _want(self, length: int) -> None:
        with self._lock:
            if self._refusal is None:
                self._wanted = length
                self._gate.alarm = min(length, self._nearly_full) * _PIECES

    @property
    def oldest_recorded_at(self) -> float | None:
        """Wall-clock seconds at which the oldest waiting event was recorded."""
        with self._lock:
            try:
                recorded_at: Any = self._events[1]
            except IndexError:
                return None
            # Of a call without memory: long due, so that it is cleared away.
            return 0.0 if type(recorded_at) is _Details else recorded_at

    @property
    def capacity(self) -> int:
        """Most events that may wait."""
        return self._capacity

    def take(self, limit: int) -> Batch | None:
        """Hand over the oldest waiting events, at most *limit*; None when none wait."""
        with self._lock:
            if self._returned:
                return self._returned.popleft()
            events = self._pop(min(limit, len(self)))
            if not events:
                return None
            batch = Batch(events, position=self._taken, floor=self._taken + self._evicted)
            self._taken += batch.size
            self._in_flight[batch] = None
            self._open_door_if_room()
        self._call_waiting(batch.size)
        return batch

    def _pop(self, count: int) -> list[Any]:
        # In C, since a loop in Python would cost a batch 20 µs.
        pieces = starmap(self._events.popleft, repeat((), count * _PIECES))
        try:
            popped = list(zip(*[pieces] * _PIECES, strict=True))
        except IndexError:
            return []  # a signal handler has closed the agent, and cleared everything away
        begins = list(map(_first, popped))
        with contextlib.suppress(IndexError):
            begins.append(self._events[0])
        if begins and set(map(type, begins)) != {_Details}:
            self._put_back_whole_events([piece for event in popped for piece in event])
            return self._pop(min(count, len(self)))
        return [
            (at, name, customer, value, *details) for details, at, name, customer, value in popped
        ]

    def _put_back_whole_events(self, pieces: list[Any]) -> None:
        # A call that ended in a MemoryError has left the first pieces of an event. Nobody has been
        # told that it is held.
        pieces += starmap(self._events.popleft, repeat((), len(self._events)))
        begins = [n for n, piece in enumerate(pieces) if type(piece) is _Details]
        ends = [*begins[1:], len(pieces)]
        whole = [n for n, end in zip(begins, ends, strict=True) if end - n == _PIECES]
        # In front of what has come in meanwhile.
        back = [piece for n in reversed(whole) for piece in reversed(pieces[n : n + _PIECES])]
        self._events.extendleft(back)

    def recorded(self, batch: Batch) -> Sequence[tuple[str, Any]]:
        """Return each event of *batch* as it was recorded, with the identifier minted for it."""
        events = batch.events or ()
        names = identifiers(self._prefix, batch.position, len(events))
        return list(zip(names, events, strict=True))

    # -- positions, counts, the end ------------------------------------------------------------

    def taken_through(self) -> int:
        """Return how many events have left the waiting line so far."""
        with self._lock:
            return self._taken + self._evicted

    def line(self) -> int:
        """Return how many events have entered so far."""
        with self._lock:
            return self._taken + self._evicted + len(self)

    def is_taken(self, line: int) -> bool:
        """Whether the first *line* events have left the waiting line."""
        return self.taken_through() >= line

    def is_settled(self, line: int) -> bool:
        """Whether the first *line* events have all ended."""
        with self._lock:
            taken = self._taken + self._evicted
            return min((batch.floor for batch in self._in_flight), default=taken) >= line

    def _add_counts(self, counts: Counts, dropped: dict[DropReason, int]) -> None:
        # Once: an append may happen beside us, and both sides must see the same length.
        waiting = len(self)
        counts.buffered = waiting
        counts.recorded += self._taken + self._evicted + waiting
        dropped[DropReason.OVERFLOW] += self._evicted

    def _recorded_at(self, recorded: Any) -> float:
        recorded_at: float = recorded[0]
        return recorded_at

    def _oldest_waiting(self) -> float | None:
        return self.oldest_recorded_at

    def refuse(self, reason: DropReason) -> None:
        """Let nothing more in; *reason* is what later calls are counted under."""
        with self._lock:
            self._refusal = self._refusal or reason
            self._door[0] = 0
            self._wanted = NEVER
            self._gate.alarm = 0  # a thread that is past the door looks up and finds `_sealed`
        self._call_waiting(NEVER)

    def seal(self) -> int:
        """Drop what still waits; returns how many. Everything after this is refused."""
        with self._lock:
            self._sealed = True
            oldest = self._pop(min(len(self), self._dropped.places))
            rest = len(self)
            self._events.clear()
            count = len(oldest) + rest
            self._taken += count
            self._settled[Outcome.SHUTDOWN] += count
            self._keep_dropped(DropReason.SHUTDOWN, oldest)
            self._dropped.lose(rest)
            return count


def _as_recorded(event: Any) -> Any:
    details, recorded_at, name, customer, value = event
    return recorded_at, name, customer, value, *details
