"""How large a request body may be where a gateway refuses large ones with 413.

One limit for all senders, in events and in bytes, because a gateway may count either. It remembers
the largest size that passed and the smallest that was refused, and halves the gap between them one
try at a time until it is small. From then on it tries rarely whether the gateway takes more.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from operator import attrgetter

from meter_agent._event import MeterEvent
from meter_agent._runtime import Runtime

__all__ = ["BodyLimit"]

_CLOSE_SHARE = 16  # the search ends when the gap is a sixteenth of what was refused
_BODIES_BETWEEN_TRIES_MAX = 256
_GROWTH = 4
_BODY = attrgetter("body")


class _Size:
    """What is known about one measure of a body."""

    __slots__ = ("most", "passed", "refused")

    def __init__(self, most: int | None) -> None:
        self.most = most
        """Bodies are never larger; None: there is no such limit."""
        self.passed = 0
        """The largest that passed since the gateway last became narrower."""
        self.refused: int | None = None
        """The smallest that was refused; None: everything passes."""

    def limit(self, *, trying: bool, step: int = 1) -> int | None:
        """The size that the next body may have; None: any. Sizes differ by *step* at the least."""
        if self.refused is None:
            return None
        if not self.passed:
            return max(1, self.refused // 2)
        if not trying:
            return self.passed
        if self.refused - self.passed > max(step, self.refused // _CLOSE_SHARE):
            return (self.passed + self.refused) // 2
        return 2 * self.passed

    def accept(self, size: int) -> bool:
        """A body of *size* passed. True: what is known about refusals no longer holds."""
        self.passed = max(self.passed, size)
        if self.refused is None or self.passed < self.refused:
            return False
        if self.most is not None and self.passed >= self.most:
            self.refused = None
        else:
            self.refused = _GROWTH * self.passed  # to be tried, step by step
        return True

    def refuse(self, size: int) -> None:
        """A body of *size* was refused."""
        self.refused = size if self.refused is None else min(size, self.refused)
        if self.passed >= self.refused:
            self.passed = 0


class BodyLimit:
    """How many events may go into the next body; shared by the senders.

    Args:
        runtime: Locks.
        events_max: Events of a full batch.
    """

    def __init__(self, runtime: Runtime, events_max: int) -> None:
        self._lock = runtime.reentrant_lock()
        self._events = _Size(events_max)
        self._bytes = _Size(None)
        # Bodies at the limit that passed since the last try, and how many there must be before the
        # next one; doubled by each try that fails.
        self._passed_since_try = 0
        self._bodies_between_tries = 1

    @property
    def _is_open(self) -> bool:
        return self._events.refused is None and self._bytes.refused is None

    def fitting(self, part: Sequence[MeterEvent]) -> int:
        """Return how many of the first events of *part* may go into one body; one at the least."""
        if self._is_open:
            return len(part)
        with self._lock:
            count = _fitting(
                part, self._events.limit(trying=False), self._bytes.limit(trying=False)
            )
            if count == len(part) or self._passed_since_try < self._bodies_between_tries:
                return count
            # One sender alone: the others stay at what surely passes.
            self._passed_since_try = 0
            step = len(part[0].body)
            return _fitting(
                part,
                self._events.limit(trying=True),
                self._bytes.limit(trying=True, step=step),
            )

    def accepted(self, part: Sequence[MeterEvent]) -> None:
        """A body with *part* passed, whatever Stripe said about its events."""
        if self._is_open:
            return  # nearly always
        events, size = len(part), _bytes(part)
        with self._lock:
            # At the limit: one more event might have been too much.
            at_limit = events >= self._events.passed or size + size // events > self._bytes.passed
            larger = [self._events.accept(events), self._bytes.accept(size)]
            if any(larger):
                self._bodies_between_tries = 1
            self._passed_since_try += at_limit

    def refused(self, part: Sequence[MeterEvent]) -> None:
        """A body with *part* was too large."""
        events, size = len(part), _bytes(part)
        with self._lock:
            # Where one measure has passed at this size before, the other one is the cause. Where
            # both have, the gateway has become narrower.
            news = [events > self._events.passed, size > self._bytes.passed]
            if (self._events.passed or self._bytes.passed) and any(news):
                self._bodies_between_tries = min(
                    2 * self._bodies_between_tries, _BODIES_BETWEEN_TRIES_MAX
                )
            if events > 1 and (news[0] or not news[1]):
                self._events.refuse(events)
            if news[1] or not news[0]:
                self._bytes.refuse(size)
            self._passed_since_try = 0


def _bytes(part: Sequence[MeterEvent]) -> int:
    return sum(map(len, map(_BODY, part)))


def _fitting(part: Sequence[MeterEvent], events: int | None, size: int | None) -> int:
    count = len(part) if events is None else min(len(part), events)
    if size is None:
        return count
    totals = itertools.accumulate(len(event.body) for event in part[:count])
    return max(1, sum(1 for total in totals if total <= size))
