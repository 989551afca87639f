"""OpenTelemetry: an agent's ledger as instruments, read when they are observed.

Needs only the API; the application chooses SDK, readers and exporters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from meter_agent._agent import MeterAgent
from meter_agent._version import __version__
from meter_agent.integrations._metrics import METRICS, Kind, Merge, Metric, numbers, take_reading

try:
    from opentelemetry.metrics import (
        CallbackOptions,
        Meter,
        MeterProvider,
        Observation,
        get_meter,
    )
except ImportError as error:
    raise ImportError(
        "meter_agent.integrations.opentelemetry needs the package 'opentelemetry-api': "
        "pip install meter-agent[opentelemetry]"
    ) from error

__all__ = ["register"]

_Observe = Callable[[CallbackOptions], Iterable[Observation]]


def register(
    meter_provider: MeterProvider | None = None, *, agent: MeterAgent | None = None
) -> None:
    """Make the instruments for the metrics of an agent. Call it once.

    Args:
        meter_provider: None: the global one.
        agent: None: the default agent, whichever it is at the time of an observation.

    Example:
        >>> from meter_agent.integrations.opentelemetry import register
        >>> register()
    """
    meter = get_meter("meter_agent", __version__, meter_provider)
    for metric in METRICS:
        _make(meter, metric, agent)


def _make(meter: Meter, metric: Metric, agent: MeterAgent | None) -> None:
    create: Any = meter.create_observable_gauge
    if metric.kind is Kind.HISTOGRAM:
        # OpenTelemetry has no histogram that is observed instead of fed, and to feed it the sender
        # threads would have to wait for it. Two counters give the mean.
        create = meter.create_observable_counter
        count, total = _durations(metric, agent)
        create(f"{metric.name}.count", [count], "{request}", metric.help)
        create(f"{metric.name}.sum", [total], metric.unit, metric.help)
        return
    if metric.kind is Kind.COUNTER:
        create = meter.create_observable_counter
    elif metric.merge is Merge.SUM:
        create = meter.create_observable_up_down_counter
    create(metric.name, [_numbers(metric, agent)], metric.unit, metric.help)


def _numbers(metric: Metric, agent: MeterAgent | None) -> _Observe:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(number, {metric.label: label} if label else None)
            for label, number in numbers(metric, take_reading(agent)).items()
        ]

    return observe


def _durations(metric: Metric, agent: MeterAgent | None) -> tuple[_Observe, _Observe]:
    def count(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(metric.read(take_reading(agent)).count)]

    def total(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(metric.read(take_reading(agent)).total_seconds)]

    return count, total
