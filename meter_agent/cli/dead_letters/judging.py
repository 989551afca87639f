"""Whether an event in a dead letter may be sent again, and how it was recorded."""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from meter_agent._dead_letters import DeadLetterReason
from meter_agent._event import TIMESTAMP_PAST_SECONDS_MAX, EventEncoder, PayloadKeys, RecordedEvent
from meter_agent.cli.dead_letters.letters import Letter
from meter_agent.cli.dead_letters.resent import State
from meter_agent.exceptions import InvalidEventError

__all__ = ["Judge", "Judgement", "Stay"]


class Stay(enum.StrEnum):
    """Why a letter is not sent again."""

    SENT_BEFORE = "sent_before"
    DISCARDED = "discarded"
    INVALID = "invalid"
    TOO_OLD = "too_old"
    UNCERTAIN = "uncertain"
    HALF_SENT = "half_sent"
    OTHER = "other"

    @property
    def text(self) -> str:
        """Return it for people, behind a number of letters."""
        return _TEXTS[self]


_TEXTS = {
    Stay.SENT_BEFORE: "were sent again before",
    Stay.DISCARDED: "were discarded",
    Stay.INVALID: "are invalid: mend what is wrong and record them again",
    Stay.TOO_OLD: "are more than 35 days old: Stripe takes them no more",
    Stay.UNCERTAIN: "are uncertain, Stripe may have them: --uncertain sends them all the same",
    Stay.HALF_SENT: "were sent before, with an unknown end: --uncertain sends them all the same",
    Stay.OTHER: "are not as an agent with these settings would send them",
}

_CLOSED: Mapping[State | None, Stay] = {
    State.DELIVERED: Stay.SENT_BEFORE,
    State.FAILED: Stay.SENT_BEFORE,
    State.DISCARDED: Stay.DISCARDED,
}

_NOT_AT_STRIPE = {DeadLetterReason.REJECTED, DeadLetterReason.DROPPED}
_DEDUPLICATION_SECONDS = 86_400


class Judgement(NamedTuple):
    """What is to be done with a letter."""

    event: RecordedEvent | None
    """To be recorded again; None: it stays."""
    stay: Stay | None = None
    """Why it stays."""
    may_bill_twice: bool = False
    """Stripe may have it, and would no longer notice that it comes again."""


class Judge:
    """Judges letters.

    Args:
        keys: The payload keys of every event, and those of single event names.
        uncertain: Whether what Stripe may have is sent again as well.
    """

    def __init__(
        self, keys: tuple[PayloadKeys, Mapping[str, PayloadKeys]], *, uncertain: bool
    ) -> None:
        self._keys, self._keys_by_event = keys
        self._encoder = EventEncoder(self._keys, self._keys_by_event)
        self._uncertain = uncertain

    def judge(self, letter: Letter, state: State | None) -> Judgement:
        """Return what is to be done with *letter*, which has come as far as *state* says."""
        stay = self._why_it_stays(letter, state)
        if stay is not None:
            return Judgement(None, stay)
        event = self._as_recorded(letter.event)
        if event is None:
            return Judgement(None, Stay.OTHER)
        now = time.time()
        if (
            isinstance(event.timestamp, float)
            and event.timestamp < now - TIMESTAMP_PAST_SECONDS_MAX
        ):
            return Judgement(None, Stay.TOO_OLD)
        if not self._is_the_same(event, letter.event):
            return Judgement(None, Stay.OTHER)
        maybe_there = letter.reason == DeadLetterReason.UNCERTAIN or state is State.SENDING
        first = _unix_seconds(letter.fields.get("attempted_at"))
        forgotten = first is None or first < now - _DEDUPLICATION_SECONDS
        return Judgement(event, may_bill_twice=maybe_there and forgotten)

    def _why_it_stays(self, letter: Letter, state: State | None) -> Stay | None:
        if state in _CLOSED:
            return _CLOSED[state]
        if letter.reason == DeadLetterReason.INVALID:
            return Stay.INVALID
        if letter.reason == DeadLetterReason.TOO_OLD:
            return Stay.TOO_OLD
        if self._uncertain:
            return None
        if state is State.SENDING:
            return Stay.HALF_SENT
        # A reason that this version does not know is treated with the same care.
        return None if letter.reason in _NOT_AT_STRIPE else Stay.UNCERTAIN

    def _as_recorded(self, event: Mapping[str, Any]) -> RecordedEvent | None:
        try:
            name, payload = event["event_name"], dict(event["payload"])
            keys = self._keys_by_event.get(name, self._keys)
            customer, value = payload.pop(keys.customer_key), payload.pop(keys.value_key)
            timestamp = _unix_seconds(event["timestamp"])
            identifier = event["identifier"]
        except (KeyError, TypeError, ValueError):
            return None
        if timestamp is None:
            return None
        return RecordedEvent(
            time.time(), name, customer, value, timestamp, identifier, payload or None
        )

    def _is_the_same(self, event: RecordedEvent, wire: Mapping[str, Any]) -> bool:
        # Whatever was done to the file, and whatever the settings are by now: what goes out is what
        # the letter says.
        try:
            return bool(json.loads(self._encoder.encode(event, "").body) == wire)
        except InvalidEventError:
            return False


def _unix_seconds(text: object) -> float | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None
