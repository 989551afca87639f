"""Dropped events, handed to the application and to the dead-letter file.

Called by sender threads between two requests, and by the thread that closes the agent. Nothing of
this changes the ledger: a dropped event has been counted when it was dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Any

from meter_agent._dead_letters import (
    DeadLetter,
    DeadLetterFile,
    DeadLetterReason,
    format_anyhow,
    letter_of,
)
from meter_agent._dropped import Dropped, DroppedEvents
from meter_agent._event import EventEncoder, MeterEvent, describe
from meter_agent._identifier import draw_prefix, identifier_prefix, identifiers
from meter_agent._ledger import DropReason
from meter_agent._log import WARNING, EventLog, write
from meter_agent._runtime import Runtime
from meter_agent._spool_body import InvalidRecord, decode
from meter_agent.exceptions import InvalidEventError

__all__ = ["HandOver", "OnDrop"]

OnDrop = Callable[[list[Mapping[str, Any]], str], None]

_AT_A_TIME = 100
"""Events of one call and one write. Beside threads that compute, each write waits for its turn."""

_WORDS = {
    DropReason.OVERFLOW: "the buffer was full",
    DropReason.SHUTDOWN: "the agent closed before it could be sent",
}


class HandOver:
    """Hands dropped events over.

    Args:
        runtime: Clocks and random numbers.
        dropped: Where they wait.
        encoder: Makes their wire form.
        letters: The dead-letter file.
        on_drop: The application's callback; already guarded, so it does not raise.
        log: Is told how many were not kept.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        dropped: DroppedEvents,
        encoder: EventEncoder,
        letters: DeadLetterFile,
        on_drop: OnDrop,
        log: EventLog,
    ) -> None:
        self._runtime = runtime
        self._dropped = dropped
        self._encoder = encoder
        self._letters = letters
        self._on_drop = on_drop
        self._log = log
        self._lock = runtime.reentrant_lock()
        self._told = 0

    def run(self, until: float | None = None) -> None:
        """Hand over what waits; call it outside every lock.

        Args:
            until: When to stop (monotonic seconds), though some may be left: `end()` logs them.
                None: with the last of those that wait now. What *on_drop* itself brings about waits
                for the next call.
        """
        left = len(self._dropped)
        while left > 0 and (until is None or self._runtime.monotonic() < until):
            piece = self._dropped.take(min(left, _AT_A_TIME))
            left = left - len(piece) if piece else 0
            for reason, group in groupby(piece, attrgetter("reason")):
                letters = self._letters_of(list(group))
                if until is None:
                    self._letters.write(*letters)
                else:
                    self._letters.write_until(until, letters)
                self._on_drop([letter.event for letter in letters], reason.value)
        if self._dropped.wanted and until is None:
            self._tell_not_kept()

    def end(self) -> None:
        """Nobody hands over any more: log what was left, however recent the last such line is."""
        if self._dropped.wanted and (count := self._not_told() + len(self._dropped)) > 0:
            write("meter_agent.dropped_not_kept", WARNING, events=count)

    def _tell_not_kept(self) -> None:
        count = self._not_told()
        if count > 0 and self._log.say("meter_agent.dropped_not_kept", events=count):
            with self._lock:
                self._told += count

    def _not_told(self) -> int:
        with self._lock:
            return self._dropped.read_not_kept() - self._told

    def _letters_of(self, dropped: list[Dropped]) -> list[DeadLetter]:
        # They were never sent, so any identifier will do, as long as it is theirs from now on.
        prefix = identifier_prefix(draw_prefix(self._runtime))
        minted = identifiers(prefix, 0, len(dropped))
        now = self._runtime.clock.time()
        return [
            self._letter(each, each.identifier or identifier, now)
            for each, identifier in zip(dropped, minted, strict=True)
        ]

    def _letter(self, dropped: Dropped, identifier: str, now: float) -> DeadLetter:
        event, words = dropped.event, _WORDS[dropped.reason]
        if isinstance(event, bytes):
            event = decode(event)
        try:
            if isinstance(event, InvalidRecord):
                return _invalid(event.event, f"{words}; {event.rule}", event.recorded_at, now)
            if not isinstance(event, MeterEvent):
                event = self._encoder.encode(event, identifier)
            return letter_of(
                event, DeadLetterReason.DROPPED, message=words, attempted_at=None, settled_at=now
            )
        except InvalidEventError as error:
            rule = str(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - objects that misbehave
            rule = f"it cannot be read: {type(error).__name__}"
        return _invalid(describe(event), f"{words}; {rule}", event[0], now)


def _invalid(event: Any, message: str, recorded_at: float, now: float) -> DeadLetter:
    return DeadLetter(
        event=event,
        reason=DeadLetterReason.DROPPED.value,
        message=message,
        code=None,
        request_id=None,
        recorded_at=format_anyhow(recorded_at),
        attempted_at=None,
        settled_at=format_anyhow(now),
    )
