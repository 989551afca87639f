"""What is measured: each metric once, for Prometheus, OpenTelemetry and the reference page.

The name is that of OpenTelemetry, with dots. That of Prometheus follows from it by the rules of
OpenTelemetry's exporter, so that dashboards and alerts fit both. No metric has a label whose values
come from customers or events: their number would have no limit.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meter_agent._agent import MeterAgent, room
from meter_agent._default import current_agent
from meter_agent._health import Room
from meter_agent._ledger import DropReason, RequestDurations, Stats

__all__ = ["METRICS", "Kind", "Merge", "Metric", "Reading", "buckets", "numbers", "take_reading"]

_PROMETHEUS_UNITS = {"s": "_seconds", "By": "_bytes"}


class Kind(enum.StrEnum):
    """What becomes of the numbers in time; the word is that of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(enum.StrEnum):
    """How the numbers of several processes become one; the word is that of prometheus_client."""

    SUM = "livesum"
    LARGEST = "livemax"


@dataclass(frozen=True)
class Reading:
    """An agent at one moment."""

    stats: Stats
    room: Room | None = None

    @property
    def spool(self) -> Room | None:
        """The room in the spool; None when there is no spool."""
        return self.room if self.room is not None and self.room.in_bytes else None

    @property
    def buffer_capacity(self) -> int | None:
        """Most events that may wait in memory; None when the spool's bytes are the limit."""
        return None if self.room is None or self.room.in_bytes else self.room.capacity

    @property
    def dropped(self) -> dict[str, float]:
        """Events dropped, by every reason there is: a rate needs the zero before the first."""
        return {reason.value: self.stats.dropped.get(reason.value, 0) for reason in DropReason}


@dataclass(frozen=True)
class Metric:
    """One metric.

    *read* returns `RequestDurations` for a histogram; otherwise a number, or one for each value of
    *label*, or None when there is nothing to tell.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    read: Callable[[Reading], Any]
    label: str = ""
    merge: Merge = Merge.SUM

    @property
    def family(self) -> str:
        """The name in Prometheus, without the `_total` of a counter."""
        return self.name.replace(".", "_") + _PROMETHEUS_UNITS.get(self.unit, "")

    @property
    def prometheus_name(self) -> str:
        """The name in Prometheus."""
        return self.family + ("_total" if self.kind is Kind.COUNTER else "")


def take_reading(agent: MeterAgent | None) -> Reading:
    """Read *agent*; None: the default agent, or zeros before its first use."""
    agent = agent or current_agent()
    return Reading(Stats()) if agent is None else Reading(agent.stats(), room(agent))


def numbers(metric: Metric, reading: Reading) -> dict[str, float]:
    """Return the numbers of a counter or gauge by the value of its label, "" without a label."""
    value = metric.read(reading)
    if isinstance(value, dict):
        return value
    return {} if value is None else {"": value}


def buckets(durations: RequestDurations) -> dict[str, int]:
    """Return the buckets of a histogram, each request in one of them, by Prometheus' *le*."""
    bounds = (*map(str, durations.bounds_seconds), "+Inf")
    return dict(zip(bounds, durations.counts, strict=True))


METRICS = (
    Metric(
        "meter_agent.events.recorded",
        Kind.COUNTER,
        "{event}",
        "Calls of record() that have an entry in the ledger, refused ones included.",
        lambda reading: reading.stats.recorded,
    ),
    Metric(
        "meter_agent.events.recovered",
        Kind.COUNTER,
        "{event}",
        "Events adopted from the spool of a process that died.",
        lambda reading: reading.stats.recovered,
    ),
    Metric(
        "meter_agent.events.delivered",
        Kind.COUNTER,
        "{event}",
        "Events that Stripe received.",
        lambda reading: reading.stats.delivered,
    ),
    Metric(
        "meter_agent.events.dead_lettered",
        Kind.COUNTER,
        "{event}",
        "Events that cannot be billed as they are.",
        lambda reading: reading.stats.dead_lettered,
    ),
    Metric(
        "meter_agent.events.uncertain",
        Kind.COUNTER,
        "{event}",
        "Events that Stripe may or may not have received, left for a human to decide.",
        lambda reading: reading.stats.uncertain,
    ),
    Metric(
        "meter_agent.events.dropped",
        Kind.COUNTER,
        "{event}",
        "Events that were given up, by reason.",
        lambda reading: reading.dropped,
        label="reason",
    ),
    Metric(
        "meter_agent.buffer.events",
        Kind.GAUGE,
        "{event}",
        "Events that wait to be sent.",
        lambda reading: reading.stats.buffered,
    ),
    Metric(
        "meter_agent.buffer.capacity_events",
        Kind.GAUGE,
        "{event}",
        "Most events that may wait in memory; absent with a spool.",
        lambda reading: reading.buffer_capacity,
    ),
    Metric(
        "meter_agent.in_flight.events",
        Kind.GAUGE,
        "{event}",
        "Events that a sender holds.",
        lambda reading: reading.stats.in_flight,
    ),
    Metric(
        "meter_agent.in_flight.requests",
        Kind.GAUGE,
        "{request}",
        "Requests that are on the wire, session requests excluded.",
        lambda reading: reading.stats.in_flight_requests,
    ),
    Metric(
        "meter_agent.oldest_event.age",
        Kind.GAUGE,
        "s",
        "Age of the oldest event that is neither delivered nor given up; 0 when there is none.",
        lambda reading: reading.stats.oldest_event_age_seconds or 0.0,
        merge=Merge.LARGEST,
    ),
    Metric(
        "meter_agent.last_success.timestamp",
        Kind.GAUGE,
        "s",
        "Unix time of the last accepted batch; absent before the first.",
        lambda reading: reading.stats.last_success_at,
        merge=Merge.LARGEST,
    ),
    Metric(
        "meter_agent.request.duration",
        Kind.HISTOGRAM,
        "s",
        "How long requests took until the answer was read or given up, session requests excluded.",
        lambda reading: reading.stats.request_durations,
    ),
    Metric(
        "meter_agent.requests",
        Kind.COUNTER,
        "{request}",
        "Batches put on the wire, retries included, session requests excluded.",
        lambda reading: reading.stats.requests,
    ),
    Metric(
        "meter_agent.retries",
        Kind.COUNTER,
        "{request}",
        "Requests that carried the same bytes again.",
        lambda reading: reading.stats.retries,
    ),
    Metric(
        "meter_agent.sessions",
        Kind.COUNTER,
        "{session}",
        "Meter event sessions opened.",
        lambda reading: reading.stats.sessions,
    ),
    Metric(
        "meter_agent.splits",
        Kind.COUNTER,
        "{split}",
        "Batches cut in two to find the event that Stripe refused.",
        lambda reading: reading.stats.splits,
    ),
    Metric(
        "meter_agent.spool.used",
        Kind.GAUGE,
        "By",
        "What the spool takes on disk, for all processes together; absent without a spool.",
        lambda reading: reading.spool and reading.spool.used,
        merge=Merge.LARGEST,
    ),
    Metric(
        "meter_agent.spool.capacity",
        Kind.GAUGE,
        "By",
        "What the spool may take on disk; absent without a spool.",
        lambda reading: reading.spool and reading.spool.capacity,
        merge=Merge.LARGEST,
    ),
    Metric(
        "meter_agent.spool.quarantined",
        Kind.COUNTER,
        "{piece}",
        "Damaged pieces found in the spool and moved to its quarantine.",
        lambda reading: reading.stats.quarantined,
    ),
    Metric(
        "meter_agent.spool.failures",
        Kind.COUNTER,
        "{failure}",
        "How often the spool could not be written or read; memory took over meanwhile.",
        lambda reading: reading.stats.spool_failures,
    ),
    Metric(
        "meter_agent.dead_letters.failures",
        Kind.COUNTER,
        "{letter}",
        "Dead letters that could not be written to their file, or not in time.",
        lambda reading: reading.stats.dead_letter_failures,
    ),
)
"""Every metric, in the order of the reference page."""
