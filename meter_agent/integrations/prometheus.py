"""Prometheus: an agent's ledger as metrics, read when it is scraped.

With `PROMETHEUS_MULTIPROC_DIR` set (gunicorn and others with several processes), prometheus_client
knows no collectors, only files in that directory. The agent's numbers are then written there, every
few seconds and when an agent closes, and the usual `MultiProcessCollector` finds them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

from meter_agent._agent import MeterAgent
from meter_agent.integrations._metrics import (
    METRICS,
    Kind,
    Metric,
    Reading,
    buckets,
    numbers,
    take_reading,
)

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "meter_agent.integrations.prometheus needs the package 'prometheus-client': "
        "pip install meter-agent[prometheus]"
    ) from error

from meter_agent.integrations._prometheus_files import PUBLISH_SECONDS, publish_to_files

__all__ = ["register"]

_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


def register(
    registry: CollectorRegistry = REGISTRY,
    *,
    agent: MeterAgent | None = None,
    publish_seconds: float = PUBLISH_SECONDS,
) -> None:
    """Show the metrics of an agent in *registry*.

    Call it once per process, or once before the process forks.

    Args:
        registry: Where; not used with `PROMETHEUS_MULTIPROC_DIR`.
        agent: None: the default agent, whichever it is at the time of a scrape.
        publish_seconds: With `PROMETHEUS_MULTIPROC_DIR`: how often the numbers are written, by a
            thread of its own. Otherwise not used.

    Raises:
        ValueError: It was called before, or *publish_seconds* is not above zero.
        OSError: The directory of `PROMETHEUS_MULTIPROC_DIR` is not there, or not writable.

    Example:
        >>> from meter_agent.integrations.prometheus import register
        >>> register()
    """
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        publish_to_files(agent, publish_seconds)
    else:
        registry.register(_AgentCollector(agent))


class _AgentCollector(Collector):
    def __init__(self, agent: MeterAgent | None) -> None:
        self._agent = agent

    def describe(self) -> Iterator[_Family]:
        """Name the metrics, so that nothing is read when the collector is registered."""
        return map(_family, METRICS)

    def collect(self) -> Iterator[_Family]:
        """Read the agent."""
        reading = take_reading(self._agent)
        return (_filled(metric, reading) for metric in METRICS)


def _family(metric: Metric) -> _Family:
    if metric.kind is Kind.HISTOGRAM:
        return HistogramMetricFamily(metric.family, metric.help)
    make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    return make(metric.family, metric.help, labels=[metric.label] if metric.label else [])


def _filled(metric: Metric, reading: Reading) -> _Family:
    family = _family(metric)
    if isinstance(family, HistogramMetricFamily):
        durations = metric.read(reading)
        names, counts = zip(*buckets(durations).items(), strict=True)
        so_far = zip(names, itertools.accumulate(counts), strict=True)
        family.add_metric([], list(so_far), durations.total_seconds)
        return family
    for label, number in numbers(metric, reading).items():
        family.add_metric([label] if label else [], number)
    return family
