"""The events of a test, and questions about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from meter_agent._event import format_value

__all__ = ["Event", "Events"]

_SHOWN_EVENTS_MAX = 20


@dataclass(frozen=True)
class Event:
    """One meter event, as Stripe gets it."""

    event_name: str
    """The meter's event name."""

    customer: str
    """Whom it is billed to."""

    value: Decimal
    """How much, exactly."""

    identifier: str
    """What Stripe deduplicates by."""

    timestamp: datetime
    """When it was used; in UTC, with milliseconds."""

    payload: Mapping[str, str]
    """All payload keys, those of customer and value included."""


class Events(ABC):
    """Questions about the events of a test. Sums are exact."""

    @property
    @abstractmethod
    def all(self) -> list[Event]:
        """Every event so far that Stripe would bill, in order."""

    def by_customer(self) -> dict[str, list[Event]]:
        """Return the events of each customer, in order."""
        grouped: dict[str, list[Event]] = {}
        for event in self.all:
            grouped.setdefault(event.customer, []).append(event)
        return grouped

    def total(self, event_name: str, *, customer: str | None = None) -> Decimal:
        """Return the sum of the values of *event_name*; 0 when there are none.

        Args:
            event_name: The meter's event name.
            customer: Only this customer. None: all of them.
        """
        wanted = _wanted(event_name, customer, None)
        return sum((event.value for event in self.all if not _misses(event, wanted)), Decimal(0))

    def assert_recorded(
        self,
        event_name: str,
        *,
        customer: str | None = None,
        value: float | Decimal | str | None = None,
        times: int | None = None,
    ) -> list[Event]:
        """Return the events that fit, or fail with a list of those that there were instead.

        Args:
            event_name: The meter's event name.
            customer: None: any.
            value: The value of each single event, compared exactly. None: any.
            times: How many events have to fit. None: one or more.

        Raises:
            AssertionError: Too few or too many fit.
            InvalidEventError: *value* is none that an event may have.

        Example:
            >>> from meter_agent.testing import recording
            >>> with recording() as events:
            ...     _ = meter_agent.record("api_requests", "cus_123")
            >>> [event.customer for event in events.assert_recorded("api_requests", times=1)]
            ['cus_123']
        """
        # Hides this frame from pytest's traceback; it means nothing to others.
        __tracebackhide__ = True
        wanted = _wanted(event_name, customer, value)
        everything = self.all
        fitting = [event for event in everything if not _misses(event, wanted)]
        if len(fitting) == times or (times is None and fitting):
            return fitting
        raise AssertionError(
            "\n".join(
                [
                    f"expected {_times(times)} with {_listed(wanted)}; found {len(fitting)}",
                    *_shown(everything, wanted),
                    *self._remarks(),
                ]
            )
        )

    @abstractmethod
    def _remarks(self) -> list[str]:
        """Return what else may explain that an event is not there."""


def _wanted(event_name: str, customer: str | None, value: Any) -> dict[str, Any]:
    number = None if value is None else Decimal(format_value(value))
    wanted = {"event_name": event_name, "customer": customer, "value": number}
    return {name: each for name, each in wanted.items() if each is not None}


def _misses(event: Event, wanted: Mapping[str, Any]) -> list[str]:
    return [name for name, each in wanted.items() if getattr(event, name) != each]


def _times(times: int | None) -> str:
    if times is None:
        return "an event"
    return "no event" if times == 0 else f"exactly {times} event{'s' * (times != 1)}"


def _listed(wanted: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_plain(each)}" for name, each in wanted.items())


def _plain(each: str | Decimal) -> str:
    return str(each) if isinstance(each, Decimal) else repr(each)


def _shown(events: list[Event], wanted: Mapping[str, Any]) -> list[str]:
    """Return a line for each event, the nearest first, with what is different about it."""
    if not events:
        return ["nothing was recorded"]
    ranked = sorted(events, key=lambda event: len(_misses(event, wanted)))
    rows = [
        (
            _plain(event.event_name),
            _plain(event.customer),
            _plain(event.value),
            _verdict(_misses(event, wanted)),
        )
        for event in ranked[:_SHOWN_EVENTS_MAX]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"recorded {len(events)} event{'s' * (len(events) != 1)}, the nearest first:"]
    for *cells, verdict in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"  {'  '.join(padded)}  {verdict}")
    if len(events) > _SHOWN_EVENTS_MAX:
        lines.append(f"  and {len(events) - _SHOWN_EVENTS_MAX} more")
    return lines


def _verdict(misses: list[str]) -> str:
    return f"other {', '.join(misses)}" if misses else "fits"
