"""Pauses a kind of event that Stripe refuses again and again, so that they are not all given up.

Where a meter is missing or archived, or a gateway speaks like Stripe, every event of that name is
refused and would become a dead letter. A run of 20 single events with the same name refused with
the same code, with no event of that name accepted in between, pauses the name: for 30 s at first,
then twice as long each time, up to 15 minutes. After each pause one event is tried. When it is
accepted, all of them go on; when it is refused, for whatever reason, it is a dead letter and the
next pause begins.

Other events go on meanwhile. A paused event stays open in its batch, which the buffer holds. That
an event name is paused is not stored: it ends with the process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from meter_agent._event import MeterEvent
from meter_agent._runtime import Runtime

__all__ = ["Brake", "pause_seconds"]

_RUN = 20
_PAUSE_SECONDS = 30.0
_PAUSE_SECONDS_MAX = 900.0
_NAMES_MAX = 1000
_SHOWN_MAX = 3


def pause_seconds(pauses_before: int) -> float:
    """Return how long to wait after so many pauses without success."""
    return min(_PAUSE_SECONDS_MAX, _PAUSE_SECONDS * 2.0 ** min(pauses_before, 10))


class _Run:
    """Refusals of one event name, one after the other."""

    __slots__ = ("code", "count", "message", "pauses", "tried", "until")

    def __init__(self, code: str | None) -> None:
        self.code = code
        self.count = 0
        self.message = ""
        self.pauses = 0
        self.until = 0.0
        """When the next event of this name may be tried, in monotonic seconds."""
        self.tried: str | None = None
        """The identifier of the event that was let through after the last pause."""


class Brake:
    """Counts refusals by event name; shared by the senders.

    Args:
        runtime: Clocks and locks.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = runtime.reentrant_lock()
        self._runs: dict[bytes, _Run] = {}

    def let_through(self, events: Sequence[MeterEvent]) -> list[MeterEvent]:
        """Return those of *events* that may be sent now.

        Where a pause is over, that is one event, and its result decides about the rest.
        """
        if not self._runs:
            return list(events)
        with self._lock:
            return [event for event in events if self._may_pass(event)]

    def _may_pass(self, event: MeterEvent) -> bool:
        run = self._runs.get(_kind(event))
        if run is None or not run.pauses:
            return True
        if event.identifier == run.tried:
            return True  # again, in a half of the batch that was refused with it
        now = self._runtime.monotonic()
        if now < run.until:
            return False
        # No other until its result is known; or until a pause later, should its sender die.
        run.until = now + pause_seconds(run.pauses - 1)
        run.tried = event.identifier
        return True

    def ends_at(self, events: Iterable[MeterEvent]) -> float:
        """Return when the first of *events* may be sent, in monotonic seconds."""
        with self._lock:
            runs = [self._runs.get(kind) for kind in set(map(_kind, events))]
            return min((run.until for run in runs if run is not None), default=0.0)

    def refused(self, event: MeterEvent, code: str | None, message: str) -> float | None:
        """Stripe refused *event* alone. Returns the seconds of the pause that begins, or None."""
        kind = _kind(event)
        with self._lock:
            run = self._runs.pop(kind, None)
            if run is None or (run.code != code and not run.pauses):
                run = _Run(code)
            self._runs[kind] = run  # the latest last
            if len(self._runs) > _NAMES_MAX:
                del self._runs[self._least_needed()]
            # Other senders' events that were on their way when the pause began say nothing new.
            if run.pauses and event.identifier != run.tried:
                return None
            run.count += 1
            run.code, run.message = code, message
            if run.count < _RUN:
                return None
            seconds = pause_seconds(run.pauses)
            run.until = self._runtime.monotonic() + seconds
            run.pauses += 1
            return seconds

    def _least_needed(self) -> bytes:
        # The oldest, but rather one that is not paused; what came last is no candidate.
        *names, _ = self._runs
        return next((name for name in names if not self._runs[name].pauses), names[0])

    def accepted(self, events: Iterable[MeterEvent]) -> bool:
        """Stripe has *events*. True: that ends a pause."""
        if not self._runs:
            return False
        with self._lock:
            ended = [self._runs.pop(kind, None) for kind in set(map(_kind, events))]
            return any(run.pauses for run in ended if run is not None)

    def describe(self) -> str:
        """Say which event names are paused and why; empty: none is."""
        with self._lock:
            now = self._runtime.monotonic()
            paused = [
                f"every event {_name(kind)!r} is refused, and the next one is tried in "
                f"{run.until - now:.0f} s: {run.message}"
                for kind, run in self._runs.items()
                # Where a pause is over and nobody begins the next one, no event waits.
                if run.pauses and run.until > now
            ]
        more = len(paused) - _SHOWN_MAX
        return "; ".join(paused[:_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")


def _kind(event: MeterEvent) -> bytes:
    # The event name, as the encoder puts it first into each body. Parsing the JSON of every event
    # while one name is paused would cost more than all else that is done for it.
    return event.body[: event.body.index(b',"identifier":"')]


def _name(kind: bytes) -> str:
    name: str = json.loads(kind + b"}")["event_name"]
    return name
