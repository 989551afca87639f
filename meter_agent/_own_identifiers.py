"""Identifiers that the application gave to its events, and what it gave them to.

Stripe bills the first event of an identifier and takes the others of the next 24 hours without
billing them. That is what an identifier is for where the same event is recorded again. Where it is
another event, it is lost, and nobody else says so: two meters that are billed for one request under
its id, for example.

The same event: event name, customer, value and payload agree, and the timestamp where both events
have one of their own. When an event was recorded does not count, for a retry is recorded later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from meter_agent._event import EventTuple, MeterEvent, name_text
from meter_agent._log import EventLog
from meter_agent._runtime import Runtime

__all__ = ["IDENTIFIERS_MAX", "OwnIdentifiers"]

IDENTIFIERS_MAX = 10_000
"""About 2 MB where each has 100 characters."""

_OWN_TIMESTAMP = 4
_OWN_IDENTIFIER = 5


class OwnIdentifiers:
    """Remembers the last 10 000 of them, and warns when one comes again with another event.

    Args:
        runtime: Locks.
        log: Where it warns, at most once per interval.
    """

    def __init__(self, runtime: Runtime, log: EventLog) -> None:
        self._lock = runtime.reentrant_lock()
        self._log = log
        self._seen: OrderedDict[str, tuple[int, bytes]] = OrderedDict()

    def note(self, pairs: Iterable[tuple[EventTuple, MeterEvent]]) -> None:
        """Look at events as they were recorded and as they are sent; call it outside every lock."""
        for recorded, sent in pairs:
            if recorded[_OWN_IDENTIFIER] is not None and not self._is_known(recorded, sent):
                self._log.say(
                    "meter_agent.identifier_reused",
                    identifier=sent.identifier,
                    event_name=name_text("event_name", recorded[1]),
                    error="another event had it before, and Stripe bills that one alone",
                )

    def _is_known(self, recorded: EventTuple, sent: MeterEvent) -> bool:
        # The timestamp is the last field of the body. A hash of the rest is enough, and short: of
        # its fields in any order, for the payload is a dict. A quote within a text is escaped.
        content, _, moment = sent.body.rpartition(b'},"timestamp":')
        now = (
            hash(tuple(sorted(content.split(b',"')))),
            moment if recorded[_OWN_TIMESTAMP] is not None else b"",
        )
        with self._lock:
            before = self._seen.pop(sent.identifier, now)
            self._seen[sent.identifier] = before
            if len(self._seen) > IDENTIFIERS_MAX:
                self._seen.popitem(last=False)
        return before[0] == now[0] and (before[1] == now[1] or not (before[1] and now[1]))
