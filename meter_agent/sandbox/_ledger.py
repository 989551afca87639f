"""What was accepted: each event once, and exact totals.

The ledger is built for a million events: texts are shared where they repeat, and a payload is kept
only as far as it says more than customer and value.
"""

from collections.abc import Iterator
from decimal import Context, Decimal, Inexact
from typing import TypedDict

from meter_agent.sandbox._events import MeterEvent, PayloadKeys

__all__ = ["Entry", "Ledger", "LedgerRow", "TotalsDocument"]

_DEDUPLICATION_SECONDS = 24 * 3600

# Exact or not at all: 60 digits hold any sum of 15-digit values that fits into memory.
_EXACT = Context(prec=60, traps=[Inexact])


class LedgerRow(TypedDict):
    """One accepted event as `Sandbox.ledger` shows it."""

    identifier: str
    event_name: str
    customer: str
    value: str
    timestamp: str
    payload: dict[str, str]
    received_at: float
    times_seen: int


class TotalsDocument(TypedDict):
    """The answer of `GET /_sandbox/totals`."""

    accepted: int
    duplicates: int
    totals: dict[str, dict[str, str]]


class Entry:
    """An accepted event in memory."""

    __slots__ = (
        "customer",
        "event_name",
        "extra",
        "identifier",
        "keys",
        "received_at",
        "times_seen",
        "timestamp",
        "value",
    )

    def __init__(self, event: MeterEvent, identifier: str, timestamp: str, now: float) -> None:
        self.identifier = identifier
        self.event_name = event.event_name
        self.customer = event.customer
        self.value = event.value
        self.timestamp = timestamp
        self.received_at = now
        self.times_seen = 1
        self.keys: PayloadKeys = event.keys
        known = (event.keys.customer_key, event.keys.value_key)
        self.extra: dict[str, str] | None = None
        if len(event.payload) > len(known):
            self.extra = {key: text for key, text in event.payload.items() if key not in known}

    def row(self) -> LedgerRow:
        """A copy that the caller may keep."""
        return {
            "identifier": self.identifier,
            "event_name": self.event_name,
            "customer": self.customer,
            "value": self.value,
            "timestamp": self.timestamp,
            "payload": {
                self.keys.customer_key: self.customer,
                self.keys.value_key: self.value,
                **(self.extra or {}),
            },
            "received_at": self.received_at,
            "times_seen": self.times_seen,
        }


class Ledger:
    """Accepted events in order, an index for duplicates, and sums."""

    def __init__(self) -> None:
        self.duplicates = 0
        self._entries: list[Entry] = []
        self._latest: dict[str, Entry] = {}
        self._totals: dict[str, dict[str, Decimal]] = {}
        self._texts: dict[str, str] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def seen(self, identifier: str, now: float) -> Entry | None:
        """The event that holds *identifier* within a rolling 24 hours, if any."""
        entry = self._latest.get(identifier)
        if entry is None or now - entry.received_at >= _DEDUPLICATION_SECONDS:
            return None
        return entry

    def repeat(self, entry: Entry) -> None:
        """Note that *entry* came again."""
        entry.times_seen += 1
        self.duplicates += 1

    def accept(self, event: MeterEvent, identifier: str, timestamp: str, now: float) -> Entry:
        """Take *event* in; whether it is a duplicate has been asked before."""
        entry = Entry(event, identifier, timestamp, now)
        entry.event_name = self._texts.setdefault(entry.event_name, entry.event_name)
        entry.customer = self._texts.setdefault(entry.customer, entry.customer)
        self._entries.append(entry)
        self._latest[identifier] = entry
        customers = self._totals.setdefault(entry.event_name, {})
        total = customers.get(entry.customer, _ZERO)
        customers[entry.customer] = _EXACT.add(total, Decimal(entry.value))
        return entry

    def totals(self) -> TotalsDocument:
        """Sums per event name and customer, as fixed-point text."""
        return {
            "accepted": len(self._entries),
            "duplicates": self.duplicates,
            "totals": {
                event_name: {customer: _plain(total) for customer, total in customers.items()}
                for event_name, customers in self._totals.items()
            },
        }


_ZERO = Decimal(0)


def _plain(number: Decimal) -> str:
    """*number* without exponent and without trailing zeros: equal sums read the same."""
    return format(number.normalize(_EXACT), "f") if number else "0"
