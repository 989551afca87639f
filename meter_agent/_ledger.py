"""What became of every event, each counted once.

The equation that always holds, for every agent and at every moment::

    recorded + recovered == delivered + dead_lettered + uncertain + dropped + buffered + in_flight

Where the numbers come from is chosen so that they cannot drift apart: events that wait are counted
by the buffer that holds them, everything else is counted once, at the moment it happens, under the
buffer's lock. Only a refusal at the door is counted without that lock, because `record()` may run
in a signal handler that interrupted the holder of it; see `Tally`.
"""

from __future__ import annotations

import enum
import itertools
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meter_agent._frozen import FrozenDict
from meter_agent._runtime import Runtime, SystemRuntime

__all__ = [
    "Counts",
    "DropReason",
    "Outcome",
    "RequestDurations",
    "Stats",
    "Stopwatch",
    "Tally",
    "Traffic",
    "stats_of",
]


class Outcome(enum.StrEnum):
    """How an event that left the buffer can end."""

    DELIVERED = "delivered"
    DEAD_LETTERED = "dead_lettered"
    UNCERTAIN = "uncertain"
    SHUTDOWN = "shutdown"


class DropReason(enum.StrEnum):
    """Why an event was dropped; the keys of `Stats.dropped`."""

    OVERFLOW = "overflow"
    """The buffer was full; which event went is the *overflow* setting's choice."""

    CLOSED = "closed"
    """`record()` was called after `close()`."""

    SHUTDOWN = "shutdown"
    """The agent closed before it could be sent, and there was no spool to keep it in."""

    DAMAGED = "damaged"
    """Somebody else wrote into the spool, and the event cannot be read any more."""

    DISABLED = "disabled"
    """The setting *disabled* is on."""

    NOT_CONFIGURED = "not_configured"
    """The default agent could not be built from the environment; the log says why."""


class Tally:
    """A counter that is raised by one C call, so that no lock is needed and no interrupt hurts.

    `count += 1` takes three bytecodes; a signal handler between them would undo an increment.
    """

    __slots__ = ("_reads", "_ticks")

    def __init__(self) -> None:
        self._ticks = itertools.count()
        self._reads = 0

    def up(self) -> None:
        """Add one; safe in any thread, signal handler or `__del__`."""
        next(self._ticks)

    def read(self) -> int:
        """Return the count. Callers hold one common lock, because looking moves the counter."""
        self._reads += 1
        return next(self._ticks) - self._reads + 1


class Counts:
    """What a buffer knows about its events, read at one moment."""

    __slots__ = (
        "buffered",
        "dropped",
        "in_flight",
        "oldest_recorded_at",
        "quarantined",
        "recorded",
        "recovered",
        "settled",
        "spool_failures",
    )

    def __init__(self) -> None:
        self.recorded = 0
        self.recovered = 0
        self.quarantined = 0
        self.spool_failures = 0
        self.buffered = 0
        self.in_flight = 0
        self.settled: dict[Outcome, int] = {}
        self.dropped: dict[str, int] = {}
        self.oldest_recorded_at: float | None = None


_BOUNDS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class RequestDurations:
    """How long requests took, connecting included, until the answer was read or given up.

    Example:
        >>> from meter_agent import Stats
        >>> durations = Stats().request_durations
        >>> durations.count, durations.bounds_seconds[0]
        (0, 0.01)
    """

    bounds_seconds: tuple[float, ...] = _BOUNDS_SECONDS
    """Upper bounds, each inclusive. Always the same."""

    counts: tuple[int, ...] = (0,) * (len(_BOUNDS_SECONDS) + 1)
    """Requests by the lowest bound that holds them, each counted once; the last one: by none."""

    total_seconds: float = 0.0
    """All of them together."""

    @property
    def count(self) -> int:
        """Requests that have ended, in whatever way."""
        return sum(self.counts)


class Stopwatch:
    """Counts durations; see `RequestDurations`."""

    __slots__ = ("_counts", "_lock", "_total_seconds")

    def __init__(self, runtime: Runtime) -> None:
        self._lock = runtime.reentrant_lock()
        self._counts = list(RequestDurations().counts)
        self._total_seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one request."""
        bucket = bisect_left(_BOUNDS_SECONDS, seconds)
        with self._lock:
            self._counts[bucket] += 1
            self._total_seconds += seconds

    def read(self) -> RequestDurations:
        """Return what was counted so far."""
        with self._lock:
            return RequestDurations(counts=tuple(self._counts), total_seconds=self._total_seconds)


class Traffic:
    """What went over the wire, counted by the sender threads.

    Args:
        runtime: Locks; None: the system's.
    """

    __slots__ = (
        "durations",
        "key_refused",
        "last_error",
        "last_success_at",
        "requests",
        "retries",
        "sessions",
        "splits",
    )

    def __init__(self, runtime: Runtime | None = None) -> None:
        self.durations = Stopwatch(runtime or SystemRuntime())
        self.requests = Tally()
        self.retries = Tally()
        self.sessions = Tally()
        self.splits = Tally()
        self.last_success_at: float | None = None
        self.last_error: str | None = None
        self.key_refused = False

    def read(self, durations: RequestDurations) -> dict[str, Any]:
        """Return what `Stats` tells of it, by field. Callers hold one common lock; see `Tally`.

        *durations* were read before that: whatever has ended by then, had begun. Not under that
        lock, for who holds the one of the durations may be interrupted by a `record()` that waits
        for that lock.
        """
        requests = self.requests.read()
        return {
            "requests": requests,
            "in_flight_requests": requests - durations.count,
            "request_durations": durations,
            "retries": self.retries.read(),
            "sessions": self.sessions.read(),
            "splits": self.splits.read(),
            "last_success_at": self.last_success_at,
            "last_error": self.last_error,
        }


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of an agent's ledger. Nothing in it changes afterwards.

    `recorded + recovered == delivered + dead_lettered + uncertain + dropped_total + buffered +
    in_flight` holds in every snapshot.

    Example:
        >>> from meter_agent import Stats
        >>> stats = Stats(recorded=3, delivered=2, dropped={"overflow": 1})
        >>> stats.dropped_total
        1
        >>> stats.balanced
        True
    """

    recorded: int = 0
    """Calls of `record()` that have an entry in this ledger, refused ones included."""

    recovered: int = 0
    """Events adopted from the spool of a process that died."""

    delivered: int = 0
    """Events that Stripe received. It validates them later."""

    dead_lettered: int = 0
    """Events that cannot be billed as they are; see the dead-letter file."""

    uncertain: int = 0
    """Events that Stripe may or may not have received, left for a human to decide."""

    dropped: Mapping[str, int] = field(default_factory=FrozenDict)
    """Events that were given up, by reason; see `DropReason`. Cannot be changed."""

    buffered: int = 0
    """Events that wait to be sent."""

    in_flight: int = 0
    """Events that have left the buffer and have not ended: a sender has them, or they may not be
    sent for a while, because Stripe refuses all of their name or a gateway finds them too large."""

    requests: int = 0
    """Batches put on the wire, retries included, session requests excluded."""

    in_flight_requests: int = 0
    """Requests that are on the wire at this moment, session requests excluded."""

    request_durations: RequestDurations = field(default_factory=RequestDurations)
    """How long requests took, session requests excluded; see `RequestDurations`."""

    retries: int = 0
    """Requests that carried the same bytes again."""

    sessions: int = 0
    """Meter event sessions opened."""

    splits: int = 0
    """Batches cut in two to find the event that Stripe refused."""

    quarantined: int = 0
    """Damaged pieces found in the spool and moved to its `quarantine/`."""

    spool_failures: int = 0
    """How often the spool could not be written or read; memory took over meanwhile."""

    dead_letter_failures: int = 0
    """Dead letters that could not be written to *dead_letter_file*, or not in time."""

    oldest_event_age_seconds: float | None = None
    """Age of the oldest event that is neither delivered nor given up; None when there is none."""

    last_success_at: float | None = None
    """Unix seconds of the last accepted batch; None before the first."""

    last_error: str | None = None
    """What the last failed request said; None before the first failure."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dropped", FrozenDict(self.dropped))

    @property
    def dropped_total(self) -> int:
        """Events dropped for whatever reason."""
        return sum(self.dropped.values())

    @property
    def balanced(self) -> bool:
        """Whether the ledger equation holds. It always does; a False is a bug worth reporting."""
        return self.recorded + self.recovered == (
            self.delivered
            + self.dead_lettered
            + self.uncertain
            + self.dropped_total
            + self.buffered
            + self.in_flight
        )


def stats_of(counts: Counts, wire: Mapping[str, Any], wall_time: float) -> Stats:
    """Return the snapshot that *counts*, `Traffic.read()` and the time of both amount to."""
    oldest = counts.oldest_recorded_at
    return Stats(
        recorded=counts.recorded,
        recovered=counts.recovered,
        delivered=counts.settled[Outcome.DELIVERED],
        dead_lettered=counts.settled[Outcome.DEAD_LETTERED],
        uncertain=counts.settled[Outcome.UNCERTAIN],
        dropped=counts.dropped,
        buffered=counts.buffered,
        in_flight=counts.in_flight,
        quarantined=counts.quarantined,
        spool_failures=counts.spool_failures,
        oldest_event_age_seconds=None if oldest is None else max(0.0, wall_time - oldest),
        **wire,
    )
