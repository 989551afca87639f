"""The metrics of an agent in the files of prometheus_client's multiprocess mode.

Whoever is scraped reads the files of all processes, so each process has to write its own before it
is asked: a thread does it every few seconds, and once more at the end of an agent. Counters grow by
what has come since the last time, so they go on through forks, new default agents and process ids
that come back.

prometheus_client has one lock for all values of a process, and a child that inherits it locked can
count nothing any more. So a fork waits until this thread is not writing, for the sake of the
application's own metrics; and nobody but this thread writes, so that a lock which the application's
threads left locked keeps no agent from closing.

The files are made before the process serves anybody, because a scrape that finds one just being
made, and still empty, fails.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.values import ValueClass

from meter_agent import _lifecycle
from meter_agent._agent import MeterAgent
from meter_agent._default import current_agent
from meter_agent._ledger import Stats
from meter_agent._log import EventLog
from meter_agent._runtime import Doorbell, SystemRuntime
from meter_agent.integrations._metrics import (
    METRICS,
    Kind,
    Metric,
    Reading,
    buckets,
    numbers,
    take_reading,
)

__all__ = ["PUBLISH_SECONDS", "publish_to_files"]

PUBLISH_SECONDS = 5.0
_LAST_SECONDS = 0.2

Sample = tuple[str, tuple[str, ...], tuple[str, ...]]
"""A name, the names of its labels, their values."""

_publishing: list[_Publisher] = []


def publish_to_files(agent: MeterAgent | None, every_seconds: float) -> None:
    """Write the metrics of *agent* (None: the default agent) now and then, until the process ends.

    Raises:
        ValueError: It is done already, or *every_seconds* is not above zero.
        OSError: No files can be made in `PROMETHEUS_MULTIPROC_DIR`.
    """
    if not every_seconds > 0:
        raise ValueError(f"publish_seconds={every_seconds!r} must be above zero")
    if _publishing:
        raise ValueError("the metrics of this process are published already; register once")
    _publishing.append(_Publisher(agent, every_seconds))


class _Publisher:
    def __init__(self, agent: MeterAgent | None, every_seconds: float) -> None:
        self._agent = agent
        self._every_seconds = every_seconds
        self._runtime = SystemRuntime()
        self._values: dict[Sample, Any] = {}
        self._write_numbers(Reading(Stats()), {})
        self._begin()
        os.register_at_fork(
            before=self._hold, after_in_parent=self._go_on, after_in_child=self._begin
        )
        _lifecycle.call_after_close(self._publish_last)

    def _begin(self) -> None:
        # In the child of a fork, the ledger of its agent begins at zero, and so do the files.
        self._writing = threading.Lock()
        self._log = EventLog(self._runtime)
        self._bell = self._runtime.doorbell()
        self._waiting: deque[Doorbell] = deque()
        self._counted: dict[Sample, float] = {}
        self._seen: MeterAgent | None = None
        try:
            self._runtime.start_thread(self._run, "meter-agent-metrics")
        except RuntimeError as error:
            self._tell(error)

    def _hold(self) -> None:
        self._writing.acquire()

    def _go_on(self) -> None:
        self._writing.release()

    def _run(self) -> None:
        # Zeros come first: a child has hooks to run before its agent may be asked.
        self._guarded(lambda: self._write_numbers(Reading(Stats()), {}))
        while True:
            self._bell.wait(self._every_seconds)
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._guarded(self._write)
            for bell in waiting:
                bell.ring()

    def _publish_last(self, deadline: float) -> None:
        written = self._runtime.doorbell()
        self._waiting.append(written)
        self._bell.ring()
        written.wait(max(_LAST_SECONDS, deadline - self._runtime.monotonic()))

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            with self._writing:
                write()
        except Exception as error:  # noqa: BLE001 - metrics must not stop what they measure
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self._log.say("meter_agent.metrics_unwritable", logging.WARNING, error=text)

    def _write(self) -> None:
        agent = self._agent or current_agent()
        if self._seen is not agent and self._seen is not None:
            self._write_numbers(take_reading(self._seen), self._counted)  # its last word
            self._counted.clear()
        self._seen = agent
        self._write_numbers(take_reading(agent), self._counted)

    def _write_numbers(self, reading: Reading, counted: dict[Sample, float]) -> None:
        for metric in METRICS:
            for sample, number in _samples(metric, reading):
                value = self._values.get(sample) or self._open(metric, sample)
                if metric.kind is Kind.GAUGE:
                    value.set(number)
                else:
                    value.inc(number - counted.get(sample, 0.0))
                    counted[sample] = number

    def _open(self, metric: Metric, sample: Sample) -> Any:
        # What Counter, Gauge and Histogram are made of: a histogram takes no more than one
        # observation at a time, and a gauge begins with a zero that would be a wrong time.
        mode = {"multiprocess_mode": metric.merge.value} if metric.kind is Kind.GAUGE else {}
        value = ValueClass(metric.kind.value, metric.family, *sample, metric.help, **mode)
        self._values[sample] = value
        return value


def _samples(metric: Metric, reading: Reading) -> Iterator[tuple[Sample, float]]:
    if metric.kind is Kind.HISTOGRAM:
        durations = metric.read(reading)
        for bound, count in buckets(durations).items():
            yield (f"{metric.family}_bucket", ("le",), (bound,)), count
        yield (f"{metric.family}_sum", (), ()), durations.total_seconds
        return
    for label, number in numbers(metric, reading).items():
        labels = ((metric.label,), (label,)) if label else ((), ())
        yield (metric.prometheus_name, *labels), number
