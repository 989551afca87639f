"""What OpenTelemetry observes, against the ledger it was read from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import meter_agent
from meter_agent import MeterAgent
from meter_agent._ledger import DropReason
from meter_agent.integrations._metrics import METRICS, Kind, Merge
from meter_agent.integrations.opentelemetry import register
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import MakeAgent

HISTOGRAMS = [metric for metric in METRICS if metric.kind is Kind.HISTOGRAM]


@pytest.fixture
def observe() -> Iterator[Any]:
    """Give a function that registers an agent and returns what one collection sees, by name."""
    providers: list[MeterProvider] = []

    def collect(agent: MeterAgent | None) -> dict[str, Any]:
        reader = InMemoryMetricReader()
        providers.append(provider_of(reader, agent))
        return collected(reader)

    yield collect
    for provider in providers:
        provider.shutdown()


def provider_of(reader: MetricReader, agent: MeterAgent | None) -> MeterProvider:
    provider = MeterProvider([reader], shutdown_on_exit=False)
    register(provider, agent=agent)
    return provider


def collected(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    return {
        metric.name: metric
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def number(metric: Any) -> float:
    (point,) = metric.data.data_points
    assert not point.attributes
    return float(point.value)


def test_a_collection_tells_the_ledger(
    make_agent: MakeAgent, sandbox: Sandbox, observe: Any
) -> None:
    sandbox.add_fault(Fault("status", status=503, times=2))
    agent = make_agent(buffer_events=10)
    while agent.record("tokens", "cus_1"):
        pass
    agent.flush(20)
    agent.record("tokens", "cus_1", "twelve")
    agent.flush(20)
    stats, seen = agent.stats(), observe(agent)
    expected = {
        "events.recorded": stats.recorded,
        "events.delivered": stats.delivered,
        "events.dead_lettered": 1,
        "events.uncertain": 0,
        "buffer.events": 0,
        "buffer.capacity_events": 10,
        "in_flight.events": 0,
        "requests": stats.requests,
        "retries": 2,
        "sessions": stats.sessions,
        "last_success.timestamp": stats.last_success_at,
        "request.duration.count": stats.requests,
        "request.duration.sum": stats.request_durations.total_seconds,
    }
    assert {name: number(seen[f"meter_agent.{name}"]) for name in expected} == expected
    points = seen["meter_agent.events.dropped"].data.data_points
    drops = {point.attributes["reason"]: point.value for point in points}
    assert drops == {reason.value: stats.dropped.get(reason.value, 0) for reason in DropReason}
    assert drops["overflow"] > 0


def test_what_adds_up_over_processes_and_what_only_grows_are_told_as_such(
    make_agent: MakeAgent, observe: Any
) -> None:
    agent = make_agent()
    agent.record("tokens", "cus_1")
    agent.flush(20)
    seen = observe(agent)
    for metric in METRICS:
        if metric.name not in seen:
            assert metric.kind is Kind.HISTOGRAM or "spool" in metric.name
            continue
        shown, data = seen[metric.name], seen[metric.name].data
        assert (shown.unit, shown.description) == (metric.unit, metric.help)
        assert getattr(data, "is_monotonic", False) == (metric.kind is Kind.COUNTER)
        adds_up = metric.kind is Kind.COUNTER or metric.merge is Merge.SUM
        assert hasattr(data, "is_monotonic") == adds_up


def test_the_prometheus_exporter_of_opentelemetry_makes_the_names_of_the_table(
    make_agent: MakeAgent, tmp_path: Any
) -> None:
    expected = {metric.prometheus_name for metric in METRICS if metric not in HISTOGRAMS} | {
        "meter_agent_request_duration_count_total",
        "meter_agent_request_duration_sum_seconds_total",
    }
    shown: set[str] = set()
    for settings in ({}, {"spool_dir": tmp_path}):
        agent = make_agent(**settings)
        agent.record("tokens", "cus_1")
        agent.flush(20)
        provider = provider_of(PrometheusMetricReader(), agent)
        text = generate_latest(REGISTRY).decode()
        provider.shutdown()
        families = text_string_to_metric_families(text)
        shown |= {
            family.name + ("_total" if family.type == "counter" else "")
            for family in families
            if family.name.startswith("meter_agent_")
        }
    assert shown == expected


def test_the_default_agent_is_looked_up_at_each_collection_and_never_built_by_one() -> None:
    reader = InMemoryMetricReader()
    provider = provider_of(reader, None)
    assert number(collected(reader)["meter_agent.events.recorded"]) == 0
    assert meter_agent._default.current_agent() is None
    for events in (1, 2):
        meter_agent.configure(disabled=True)
        for _ in range(events):
            meter_agent.record("tokens", "cus_1")
        assert number(collected(reader)["meter_agent.events.recorded"]) == events
    provider.shutdown()
