"""What every buffer does the same: who holds which event, from `take()` until it is settled.

How events wait is up to the kind: in memory (`_buffer.py`), or in files that outlive the process
(`_spool.py`). Nothing above knows the difference.

The door is one byte in a page that the kernel wipes on `fork` (where it can): a forked child finds
it closed at its first `record()`, also when Python's own fork hooks never ran. `os.getpid()` in the
fast path would cost as much as everything else in it.
"""

from __future__ import annotations

import mmap
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Sized
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from meter_agent._amount import UNCHANGING_TYPES, unchanging
from meter_agent._batch import Batch
from meter_agent._dropped import DroppedEvents
from meter_agent._event import PAYLOAD_KEYS_MAX, Label, MeterEvent, Name
from meter_agent._health import Problem, Room
from meter_agent._ledger import Counts, DropReason, Outcome, Tally
from meter_agent._runtime import Doorbell, Runtime
from meter_agent._steady_clock import SteadyClock

__all__ = ["NEVER", "EventBuffer", "Record", "Terms", "copied"]

NEVER = sys.maxsize
_LOOK_AGAIN_SECONDS = 0.001
_TIMESTAMP = attrgetter("timestamp")
_MADV_WIPEONFORK = 18  # Linux 4.14; Python has no name for it


class Record(Protocol):
    """The signature of `record()`."""

    def __call__(
        self,
        event_name: Name,
        customer_id: Name,
        value: Any = 1,
        *,
        timestamp: Any = None,
        identifier: Name | None = None,
        payload: Mapping[str, Label] | None = None,
    ) -> bool:
        """Take one event; True when it is held."""
        ...


class Terms(NamedTuple):
    """What every kind of buffer is made with."""

    overflow: str
    """`"drop_newest"`, `"drop_oldest"` or `"block"`."""

    block_timeout_seconds: float
    """How long `"block"` waits for a place before the event is dropped."""

    wake: Callable[[], None]
    """Called without any lock when a sender should look; safe to call from anywhere."""

    on_fork: Callable[[], None]
    """Called when a child of `fork` is noticed by its first `record()`."""

    dropped: DroppedEvents = DroppedEvents(wanted=False)
    """Where dropped events wait to be handed over."""


class EventBuffer(ABC):
    """A bounded queue of recorded events, and the account of each of them.

    Args:
        runtime: Clocks and locks.
        terms: See `Terms`.
    """

    def __init__(
        self,
        runtime: Runtime,
        terms: Terms,
    ) -> None:
        self._runtime = runtime
        self.clock = SteadyClock(runtime)
        """What may have been sent when, and whether that is too long ago."""
        self._overflow, self._block_timeout_seconds, self._wake, self._on_fork = terms[:4]
        self._dropped = terms.dropped
        self._door = _wiped_on_fork()
        self._refusal: DropReason | None = None
        self._fork_turn = deque([True])
        self._starting_over_in: int | None = None
        self._process_id = -1

    def _start_over(self) -> None:
        self._lock = self._runtime.reentrant_lock()
        self._taken = 0
        self._in_flight: dict[Batch, None] = {}
        self._returned: deque[Batch] = deque()
        self._settled = dict.fromkeys(Outcome, 0)
        self._refused = {reason: Tally() for reason in DropReason}
        self._waiting: deque[Doorbell] = deque()
        self._sealed = False

    def start_over_after_fork(self) -> None:
        """Forget the parent's events, in place: the parent sends them, and only the parent.

        In place, because product code may have bound `record` to a name of its own.
        """
        for batch in self._in_flight:
            # With gevent the child has a copy of the greenlet that sends it, and that goes on.
            batch.abandoned = True
            batch.claim = None
        self._start_over()

    @property
    def belongs_to_this_process(self) -> bool:
        """False in a child of `fork` that has not started over."""
        return self._process_id == self._runtime.process_id()

    # -- the caller's side ---------------------------------------------------------------------

    @abstractmethod
    def recorder(self) -> Record:
        """Return the `record()` of this buffer: a closure, since attributes cost 4 ns each."""

    def _start_over_once(self) -> bool:
        # No hook saw the fork, and several threads of the child may record first. One of them
        # starts over; an event that another appended meanwhile would be cleared with the parent's.
        try:
            del self._fork_turn[0]
        except IndexError:
            if self._starting_over_in == self._runtime.thread_id():
                return False  # a signal handler in the thread that is just doing it
            while not self.belongs_to_this_process:
                self._runtime.doorbell().wait(_LOOK_AGAIN_SECONDS)
            return True
        try:
            self._starting_over_in = self._runtime.thread_id()
            if not self.belongs_to_this_process:
                self._on_fork()
        finally:  # also when a signal handler raises here: the others wait for it
            self._starting_over_in = None
            self._fork_turn.append(True)
        return True

    def _refuse(self, event: Any = None) -> bool:
        # *event*, as it was recorded, is kept only where it finds the buffer full. After `close()`,
        # and where the agent never works, nobody is there to hand it to.
        reason = self._refusal or DropReason.OVERFLOW
        self._refused[reason].up()
        if event is not None and reason is DropReason.OVERFLOW:
            self._dropped.keep(reason, event)
        return False

    def _cannot_hold(self) -> bool:
        # Called by `record()` when it failed: no memory for the event, or the stack ends here.
        try:
            return self._refuse()
        except Exception:  # noqa: BLE001 - not even a call fits on the stack any more
            return False

    def _call_sender(self) -> None:
        # A sender should look. Without memory, threads or stack for that, the event is held all the
        # same, and the next `record()` tries again.
        try:
            self._wake()
        except Exception:  # noqa: BLE001 - `record()` never raises
            self._look_up_next_time()

    @abstractmethod
    def _look_up_next_time(self) -> None:
        """Have the next `record()` call a sender again. Takes no lock."""

    def count_refused(self, reason: DropReason, count: int) -> None:
        """Count *count* events that were refused before there was this buffer."""
        for _ in range(count):
            self._refused[reason].up()

    def _keep_dropped(self, reason: DropReason, events: Sequence[Any]) -> None:
        for event in events:
            self._dropped.keep(reason, event)

    # -- the senders' side ---------------------------------------------------------------------

    @abstractmethod
    def __len__(self) -> int:
        """Return how many events wait."""

    @abstractmethod
    def set_alarm(self, length: int) -> None:
        """Ask to be woken when *length* events wait. Look at `len()` afterwards, not before."""

    @abstractmethod
    def unset_alarm(self) -> None:
        """Nobody listens."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Most events that may wait."""

    @property
    @abstractmethod
    def oldest_recorded_at(self) -> float | None:
        """Wall-clock seconds at which the oldest waiting event was recorded."""

    @abstractmethod
    def take(self, limit: int) -> Batch | None:
        """Hand over the oldest waiting events, at most *limit*; None when none wait."""

    @abstractmethod
    def recorded(self, batch: Batch) -> Sequence[tuple[str, Any]]:
        """Return each event of *batch* as it was recorded, with the identifier minted for it."""

    @property
    def refusal(self) -> DropReason | None:
        """Why events are refused; None while they are not."""
        return self._refusal

    @property
    def is_closed(self) -> bool:
        """Whether events are refused because the agent closed."""
        return self._refusal is DropReason.CLOSED

    def room(self) -> Room:
        """Return how much of what events may take up is taken."""
        return Room(len(self), self.capacity)

    def problems(self) -> dict[Problem, str]:
        """Return what is wrong with the place where events wait, in words."""
        return {}

    @property
    def has_returned_batches(self) -> bool:
        """Whether a sender died and left a batch behind."""
        return bool(self._returned)

    def _call_waiting(self, count: int) -> None:
        while count and self._waiting:
            try:
                self._waiting.popleft().ring()
            except IndexError:  # another sender called the last one
                return
            count -= 1

    def _wait_for_room(
        self, enter: Callable[[], bool], look_again_seconds: float = float("inf")
    ) -> bool:
        # Calls *enter* until it finds room, the time is over, or events are refused.
        deadline = self._runtime.monotonic() + self._block_timeout_seconds
        called = False
        while self._refusal is None:
            # The bell is hung up before the look, so that room made in between rings it.
            bell = self._runtime.doorbell()
            self._waiting.append(bell)
            entered, leaves = False, True
            try:
                entered = enter()
                left = deadline - self._runtime.monotonic()
                if entered or left <= 0:
                    return entered
                bell.wait(min(left, look_again_seconds))
                leaves = False
            finally:
                rung = self._take_down(bell)
                # Whoever waits behind may find room as well: who leaves passes the call on. Who
                # stays looks for itself: two without room would call each other for ever.
                if leaves and (rung or (called and entered)):
                    self._call_waiting(1)
            called = called or rung
        return False

    def _take_down(self, bell: Doorbell) -> bool:
        # True: it was rung.
        try:
            self._waiting.remove(bell)
        except ValueError:
            return True
        return False

    def begin_attempt(self, batch: Batch, part: Sequence[MeterEvent]) -> bool:
        """Note that *part* of *batch* leaves now, before any byte of it does.

        False: it must not, because `close()` has accounted for it, or because this is a forked
        child that still runs a thread of its parent.
        """
        with self._lock:
            if batch.abandoned or batch not in self._in_flight:
                return False
            batch.begin_attempt(part, self.clock.time(), self._runtime.monotonic())
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

    def freeze(
        self,
        batch: Batch,
        events: list[MeterEvent],
        places: list[int],  # noqa: ARG002 - for buffers that keep events elsewhere
    ) -> bool:
        """Fix the bytes of *batch*; what is not among *events* is invalid, and is claimed so.

        *places* says for each of *events* which of the recorded ones it is.

        False: `close()` had already accounted for the batch.
        """
        with self._lock:
            if batch.abandoned:
                return False
            batch.events = None
            batch.open = events
            batch.oldest_timestamp = min(map(_TIMESTAMP, events), default=0.0)
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

    # -- care, for buffers that keep events outside memory -----------------------------------

    @property
    def adoptions(self) -> int:
        """How often what dead processes left has been looked for and taken over."""
        return 0

    @property
    def needs_tending(self) -> bool:
        """Whether what dead processes left has yet to be looked for."""
        return False

    def tend(self) -> None:  # noqa: B027 - most buffers want nothing
        """Do what a buffer wants to have done now and then, in a sender thread."""

    def recover_all(self) -> bool:
        """Take over all that dead processes left; False: there may be more, ask again."""
        return True

    def seconds_until_tending(self) -> float | None:
        """Return when `tend()` has something to do again, at the latest; None: never."""
        return None

    # -- positions, counts, the end ------------------------------------------------------------

    @property
    def is_drained(self) -> bool:
        """Whether nothing waits and nothing is in flight."""
        return self.has_only(())

    def has_only(self, batches: Sized) -> bool:
        """Whether nothing waits and nothing is in flight but *batches*, all of which are."""
        with self._lock:  # `take()` has a moment in which its events are in neither
            return not len(self) and len(self._in_flight) == len(batches)

    def taken_through(self) -> int:
        """Return how many events have left the waiting line so far."""
        with self._lock:
            return self._taken

    @abstractmethod
    def line(self) -> Any:
        """Return what tells the events recorded so far from those that come later."""

    @abstractmethod
    def is_taken(self, line: Any) -> bool:
        """Whether no event before *line* waits any more."""

    @abstractmethod
    def is_settled(self, line: Any) -> bool:
        """Whether every event before *line* has ended."""

    def counts(self, read_more: Callable[[], None] | None = None) -> Counts:
        """Return the whole account at one moment; *read_more* runs at the same moment."""
        counts = Counts()
        with self._lock:
            dropped = {reason: tally.read() for reason, tally in self._refused.items()}
            counts.recorded = sum(dropped.values())
            counts.in_flight = sum(batch.size for batch in self._in_flight)
            counts.settled = dict(self._settled)
            dropped[DropReason.SHUTDOWN] += self._settled[Outcome.SHUTDOWN]
            self._add_counts(counts, dropped)
            counts.dropped = {reason.value: count for reason, count in dropped.items() if count}
            counts.oldest_recorded_at = self._oldest_held()
            if read_more is not None:
                read_more()
        return counts

    @abstractmethod
    def _add_counts(self, counts: Counts, dropped: dict[DropReason, int]) -> None:
        """Add what waits and how it came, and what this kind of buffer has dropped."""

    def _oldest_held(self) -> float | None:
        held = [
            self._recorded_at(batch.events[0]) if batch.events else batch.open[0].recorded_at
            for batch in self._in_flight
            if batch.events or batch.open
        ]
        waiting = self._oldest_waiting()
        return min(held if waiting is None else (*held, waiting), default=None)

    @abstractmethod
    def _recorded_at(self, recorded: Any) -> float:
        """Return when an event was recorded, in wall-clock seconds."""

    @abstractmethod
    def _oldest_waiting(self) -> float | None:
        """Return when the oldest waiting event was recorded, in wall-clock seconds."""

    @abstractmethod
    def refuse(self, reason: DropReason) -> None:
        """Let nothing more in; *reason* is what later calls are counted under."""

    @abstractmethod
    def seal(self) -> int:
        """Drop what still waits; returns how many. Everything after this is refused."""

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

    def keep_abandoned(self, batch: Batch) -> None:  # noqa: B027 - memory outlives nothing
        """Take what outlives this process out of an abandoned batch."""

    def release(self) -> None:  # noqa: B027 - memory outlives nothing
        """Let go of everything that outlives this process."""


def _wiped_on_fork() -> mmap.mmap | bytearray:
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return bytearray(1)
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError):
        # An old kernel, not Linux, or no address space: Python's fork hook alone must tell the
        # child.
        return bytearray(1)
    return page


def copied(payload: Any) -> Any:
    # The caller may change its dict and what is in it after the call. What is not a mapping stays
    # as it is and is refused by the validation, and so does one that cannot be read; of an endless
    # one no more is read than the validation needs to refuse it. `record()` itself never raises.
    try:
        if type(payload) is dict:
            labels = dict(payload)
        elif isinstance(payload, Mapping):
            labels = dict(islice(payload.items(), PAYLOAD_KEYS_MAX + 1))
        else:
            return payload
        for key, label in labels.items():
            if type(label) not in UNCHANGING_TYPES:
                labels[key] = unchanging(label)
    except (Exception, SystemExit):  # noqa: BLE001 - code of the application
        return payload
    return labels
