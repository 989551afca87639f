"""What a scrape tells, against the ledger it was read from."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import meter_agent
from meter_agent import RequestDurations, Stats
from meter_agent._ledger import DropReason
from meter_agent.integrations._metrics import METRICS
from meter_agent.integrations.prometheus import register
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import Hold, MakeAgent
from tests.metrics.scrapes import Samples, fetch, samples_of, serving
from tests.patience import PATIENCE_SECONDS

NAMES = {metric.prometheus_name: metric for metric in METRICS}


def dropped(samples: Samples) -> dict[str, float]:
    """Return the drops that were counted, by reason."""
    name = "meter_agent_events_dropped_total"
    return {label: n for (found, label), n in samples.items() if found == name and n}


def assert_tells(samples: Samples, stats: Stats) -> None:
    """The scrape says what *stats* says, in every number but the durations."""
    expected = {
        "events_recorded_total": stats.recorded,
        "events_recovered_total": stats.recovered,
        "events_delivered_total": stats.delivered,
        "events_dead_lettered_total": stats.dead_lettered,
        "events_uncertain_total": stats.uncertain,
        "buffer_events": stats.buffered,
        "in_flight_events": stats.in_flight,
        "in_flight_requests": stats.in_flight_requests,
        "requests_total": stats.requests,
        "retries_total": stats.retries,
        "sessions_total": stats.sessions,
        "splits_total": stats.splits,
        "spool_quarantined_total": stats.quarantined,
        "spool_failures_total": stats.spool_failures,
        "dead_letters_failures_total": stats.dead_letter_failures,
    }
    assert {name: samples[f"meter_agent_{name}", ""] for name in expected} == expected
    assert dropped(samples) == stats.dropped


def test_a_scrape_tells_the_ledger(make_agent: MakeAgent, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("status", status=503, times=3))
    sandbox.add_fault(Fault("poison", match={"customer": "cus_bad"}))
    agent = make_agent(buffer_events=50, flush_interval_seconds=60)
    with serving(agent) as url:
        for _ in range(3):
            while agent.record("tokens", "cus_1"):
                pass
            agent.flush(20)
            agent.record("tokens", "cus_1")
            agent.record("tokens", "cus_bad")
            agent.record("tokens", "cus_1", "twelve")
            agent.flush(20)
        agent.close()
        agent.record("tokens", "cus_1")
        stats = agent.stats()
        samples = samples_of(fetch(url))
    assert min(stats.delivered, stats.dead_lettered, stats.retries, stats.splits) > 0
    assert stats.dropped.keys() == {"overflow", "closed"}
    assert_tells(samples, stats)
    assert samples["meter_agent_buffer_capacity_events", ""] == 50
    assert samples["meter_agent_last_success_timestamp_seconds", ""] == stats.last_success_at


def test_a_scrape_tells_of_events_and_requests_that_are_on_their_way(
    make_agent: MakeAgent, sandbox: Sandbox, hold: Hold
) -> None:
    sandbox.add_fault(Fault("delay", seconds=1, times=1))
    agent = make_agent(sleep=hold, max_in_flight=1)
    agent.record("tokens", "cus_1")
    hold.wait()
    agent.record("tokens", "cus_1")
    with serving(agent) as url:
        samples = samples_of(fetch(url))
        assert_tells(samples, agent.stats())
        assert samples["meter_agent_in_flight_requests", ""] == 1
        assert samples["meter_agent_in_flight_events", ""] == 1
        assert samples["meter_agent_buffer_events", ""] == 1
        assert samples["meter_agent_oldest_event_age_seconds", ""] > 0
        hold.release()
        agent.flush(20)
        samples = samples_of(fetch(url))
        assert samples["meter_agent_in_flight_requests", ""] == 0
        assert samples["meter_agent_oldest_event_age_seconds", ""] == 0


def test_the_ledger_adds_up_in_every_scrape_under_load(
    make_agent: MakeAgent, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("status", status=503, probability=0.1))
    agent = make_agent(buffer_events=500, overflow="drop_oldest")
    done = threading.Event()

    def produce() -> None:
        while not done.is_set():
            agent.record("tokens", "cus_1")

    producers = [threading.Thread(target=produce) for _ in range(2)]
    with serving(agent) as url:
        for thread in producers:
            thread.start()
        scrapes = [samples_of(fetch(url)) for _ in range(20)]
        done.set()
        for thread in producers:
            thread.join()
    for samples in scrapes:
        at = {name.removeprefix("meter_agent_"): n for (name, label), n in samples.items()}
        ended = at["events_delivered_total"] + at["events_dead_lettered_total"]
        ended += at["events_uncertain_total"] + sum(dropped(samples).values())
        held = at["buffer_events"] + at["in_flight_events"]
        assert at["events_recorded_total"] + at["events_recovered_total"] == ended + held


def test_the_scrape_has_the_names_kinds_and_texts_of_the_table_and_no_other(
    make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path
) -> None:
    shown = set()
    for settings in ({}, {"spool_dir": tmp_path}):
        agent = make_agent(**settings)
        agent.record("tokens", "cus_1")
        agent.flush(20)
        with serving(agent) as url:
            for family in text_string_to_metric_families(fetch(url)):
                name = family.name + ("_total" if family.type == "counter" else "")
                if family.samples:
                    shown.add(name)
                assert (family.type, family.documentation) == (NAMES[name].kind, NAMES[name].help)
    assert shown == set(NAMES)


def test_no_label_has_a_customer_or_an_event_in_it(make_agent: MakeAgent) -> None:
    agent = make_agent()
    for n in range(5):
        agent.record(f"event_{n}", f"cus_{n}", identifier=f"id-{n}")
    agent.flush(20)
    with serving(agent) as url:
        text = fetch(url)
    labels = [
        sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    assert {name for label in labels for name in label} == {"reason", "le"}
    assert {label["reason"] for label in labels if "reason" in label} == set(DropReason)
    assert not any(word in text for word in ("cus_", "event_0", "id-0"))


def test_a_rate_of_drops_has_the_zero_before_the_first(make_agent: MakeAgent) -> None:
    with serving(make_agent()) as url:
        samples = samples_of(fetch(url))
    for reason in DropReason:
        assert samples["meter_agent_events_dropped_total", reason] == 0


def test_the_histogram_counts_every_request_in_all_buckets_that_hold_it(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    durations = RequestDurations(counts=(1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4), total_seconds=99.5)
    stats = dataclasses.replace(Stats(), request_durations=durations)
    agent = make_agent()
    monkeypatch.setattr(agent._pipeline, "stats", lambda: stats)
    with serving(agent) as url:
        samples = samples_of(fetch(url))
    name = "meter_agent_request_duration_seconds"
    buckets = {label: n for (found, label), n in samples.items() if found == f"{name}_bucket"}
    assert buckets["0.01"] == 1
    assert buckets["0.025"] == buckets["30.0"] == 3
    assert buckets["+Inf"] == samples[f"{name}_count", ""] == 7
    assert samples[f"{name}_sum", ""] == 99.5


def test_with_a_spool_its_bytes_are_the_room_and_before_a_success_there_is_no_time_of_it(
    make_agent: MakeAgent, tmp_path: Path
) -> None:
    agent = make_agent(spool_dir=tmp_path, spool_bytes=1024 * 1024, flush_interval_seconds=60)
    agent.record("tokens", "cus_1")
    with serving(agent) as url:
        samples = samples_of(fetch(url))
    taken = sum(path.stat().st_size for path in tmp_path.glob("*.segment"))
    assert samples["meter_agent_spool_used_bytes", ""] == taken > 0
    assert samples["meter_agent_spool_capacity_bytes", ""] == 1024 * 1024
    assert ("meter_agent_buffer_capacity_events", "") not in samples
    assert ("meter_agent_last_success_timestamp_seconds", "") not in samples


def test_the_default_agent_is_looked_up_at_each_scrape_and_never_built_by_one() -> None:
    with serving() as url:
        assert samples_of(fetch(url))["meter_agent_events_recorded_total", ""] == 0
        assert meter_agent._default.current_agent() is None
        for events in (1, 2):
            meter_agent.configure(disabled=True)
            for _ in range(events):
                meter_agent.record("tokens", "cus_1")
            assert dropped(samples_of(fetch(url))) == {"disabled": events}


def test_two_agents_have_a_registry_each_and_one_registry_takes_one(make_agent: MakeAgent) -> None:
    one, other = make_agent(), make_agent()
    one.record("tokens", "cus_1")
    with serving(one) as first, serving(other) as second:
        recorded = [
            samples_of(fetch(url))["meter_agent_events_recorded_total", ""]
            for url in (first, second)
        ]
    assert recorded == [1, 0]
    registry = CollectorRegistry()
    register(registry, agent=one)
    with pytest.raises(ValueError, match="meter_agent_events_recorded"):
        register(registry, agent=other)


@pytest.mark.parametrize(
    ("module", "missing", "install"),
    [
        ("prometheus", "prometheus_client", "pip install meter-agent[prometheus]"),
        ("opentelemetry", "opentelemetry.metrics", "pip install meter-agent[opentelemetry]"),
    ],
)
def test_without_its_package_an_integration_says_what_to_install(
    module: str, missing: str, install: str
) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None\nimport meter_agent.integrations.{module}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1
    assert install in done.stderr
