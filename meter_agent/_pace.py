"""When a request may leave: token bucket, shared back-off, one probe at a time while failures last.

All senders of an agent share one pace. While Stripe accepts, requests pass as fast as the token
bucket allows. After a failure nobody sends until the back-off has passed; then one sender probes,
and the others wait for its result. Whoever failed goes to the back of the queue, so a batch that
fails for ever cannot keep the others from being tried.

Every wait ends when the agent closes.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator

from meter_agent._runtime import Runtime

__all__ = ["Pace", "Ticket"]

_BUCKET_SECONDS = 0.1
_SLOWLY_SECONDS = 1.0
_ROUNDING_SECONDS = 1e-6


class Ticket:
    """The right to send one request; give it back with what came of it."""

    __slots__ = ("failures_seen",)

    def __init__(self, failures_seen: int) -> None:
        self.failures_seen = failures_seen
        """How many failures had been reported when the request left."""


class Pace:
    """Lets requests through.

    Args:
        runtime: Clocks and locks.
        events_per_second: The token bucket's rate.
        burst_events: The least that the bucket holds; a whole batch must fit.
        base_seconds: Longest back-off after the first failure; it doubles with each further one.
        max_seconds: Longest back-off of all. Drawn evenly from zero to the bound ("full jitter").
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        events_per_second: float,
        burst_events: int,
        base_seconds: float,
        max_seconds: float,
    ) -> None:
        self._runtime = runtime
        self._events_per_second = events_per_second
        self._bucket_events = max(float(burst_events), events_per_second * _BUCKET_SECONDS)
        self._base_seconds = base_seconds
        self._max_seconds = max_seconds
        # Guards everything below; never held while a request is on its way.
        self._changed = runtime.condition()
        self._queue: deque[object] = deque()
        self._tokens = self._bucket_events
        self._filled_at = runtime.monotonic()
        self._failures = 0
        self._failures_reported = 0
        # What `_failures_reported` was after the failure that lengthened the back-off last.
        self._lengthened_by = 0
        self._resume_at = 0.0
        self._not_before = 0.0
        self._may_hurry_at = float("-inf")
        self._probing: Ticket | None = None
        self._deadline: float | None = None
        self._caller_deadline: float | None = None

    def admit(self, events: int) -> Ticket | None:
        """Wait for the turn of a request with *events*; None when the agent closes first."""
        place = object()
        has_waited = False
        with self._changed:
            self._queue.append(place)
            try:
                while True:
                    now = self._runtime.monotonic()
                    left = self.seconds_left()
                    if left is not None and left <= 0:
                        return None
                    wait = self._seconds_to_turn(place, events, now)
                    if wait == 0:
                        return self._let_through(events)
                    if left is not None and wait is not None and wait > left:
                        return None
                    if has_waited and self._queue[0] is not place:
                        self._changed.notify()  # called out of turn: pass it on
                    self._changed.wait(left if wait is None else wait)
                    has_waited = True
            finally:
                self._queue.remove(place)
                # The next in line alone. All of them would take the interpreter lock in turns, from
                # each other and from the application, to find that it is not theirs yet.
                self._changed.notify()

    def succeeded(self, ticket: Ticket) -> None:
        """The server answered: failures are over, if the request left after the last of them.

        A request that was already on its way when another one failed shows how the server was
        before: a 2xx that comes back after a 429 does not cancel its `Retry-After`.
        """
        with self._changed:
            self._end_probe(ticket)
            if self._failures and ticket.failures_seen == self._failures_reported:
                self._failures = 0
                self._resume_at = self._not_before = 0.0
                self._changed.notify()

    def failed(
        self, ticket: Ticket, *, at_least_seconds: float = 0.0, slowly: bool = False
    ) -> None:
        """The request failed: back off.

        Args:
            ticket: As `admit()` gave it.
            at_least_seconds: What the server asked for.
            slowly: Wait a whole second at the least, and without jitter: nothing suggests that the
                next answer will differ.
        """
        with self._changed:
            self._end_probe(ticket)
            now = self._runtime.monotonic()
            self._failures_reported += 1
            # Requests that were already on their way when the first of them failed say nothing new.
            if ticket.failures_seen >= self._lengthened_by:
                self._failures += 1
                self._lengthened_by = self._failures_reported
                self._resume_at = now + self._back_off_seconds(slowly)
            floor = max(at_least_seconds, _SLOWLY_SECONDS if slowly else 0.0)
            self._not_before = max(self._not_before, now + floor)
            self._changed.notify_all()

    def returned(self, ticket: Ticket) -> None:
        """The request says nothing about the server's health (or was never sent)."""
        with self._changed:
            self._end_probe(ticket)

    @property
    def failing(self) -> bool:
        """Whether the last word was a failure."""
        return self._failures > 0

    def hurry(self) -> None:
        """Somebody waits in `flush()`: shorten the back-off to its first step.

        Once within *max_seconds*. A program that calls `flush(0.1)` in a loop would otherwise send
        a request in each first step, however long the server has been failing.
        """
        with self._changed:
            now = self._runtime.monotonic()
            soon = now + self._base_seconds
            if now >= self._may_hurry_at and soon < self._resume_at:
                self._may_hurry_at = now + self._max_seconds
                self._resume_at = soon
                self._changed.notify_all()

    def close(self, deadline: float) -> None:
        """End every wait by *deadline* (monotonic seconds), after one more try without delay.

        A later call can put the end off, but earns no further try: callbacks that close the agent
        at each failure would otherwise make a storm of it.
        """
        with self._changed:
            if self._deadline is None:
                self._resume_at = 0.0
            self._deadline = max(deadline, self._deadline or deadline)
            self._changed.notify_all()

    @contextlib.contextmanager
    def until(self, deadline: float | None) -> Iterator[None]:
        """Give up by *deadline* within the block, for a caller who sends in its own thread."""
        self._caller_deadline = deadline
        try:
            yield
        finally:
            self._caller_deadline = None

    @property
    def closing(self) -> bool:
        """Whether `close()` has set an end."""
        return self._deadline is not None

    def seconds_left(self) -> float | None:
        """How long a request may still take; None while nothing presses."""
        ends = [end for end in (self._deadline, self._caller_deadline) if end is not None]
        return min(ends) - self._runtime.monotonic() if ends else None

    def _seconds_to_turn(self, place: object, events: int, now: float) -> float | None:
        # None: not before somebody else gives way, who then notifies.
        if self._queue[0] is not place or self._probing is not None:
            return None
        rest = max(self._resume_at, self._not_before) - now if self._failures else 0.0
        self._tokens = min(
            self._bucket_events, self._tokens + (now - self._filled_at) * self._events_per_second
        )
        self._filled_at = now
        missing = (events - self._tokens) / self._events_per_second
        wait = max(rest, missing)
        # Less than a microsecond is rounding; waiting for it could go on for ever.
        return wait if wait > _ROUNDING_SECONDS else 0.0

    def _let_through(self, events: int) -> Ticket:
        self._tokens -= events
        ticket = Ticket(self._failures_reported)
        if self._failures:
            self._probing = ticket
        return ticket

    def _end_probe(self, ticket: Ticket) -> None:
        if self._probing is ticket:
            self._probing = None
            self._changed.notify_all()

    def _back_off_seconds(self, slowly: bool) -> float:
        doublings = min(self._failures - 1, 30)
        if slowly:
            seconds = min(self._max_seconds, _SLOWLY_SECONDS * 2.0**doublings)
        else:
            bound = min(self._max_seconds, self._base_seconds * 2.0**doublings)
            seconds = self._runtime.random() * bound
        left = self.seconds_left()
        if left is not None:
            # The last moments: rather try once too often than sleep through them.
            seconds = min(seconds, max(_BUCKET_SECONDS, left / 4))
        return seconds
