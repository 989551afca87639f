"""Events end to end: from the first `record()` until the answer to the last event has come.

Connections, sessions and imports are there before the clock starts. CPU time is that of the whole
process, user and system. What the sink counted is compared with what was recorded.
"""

from __future__ import annotations

import resource
import time
from functools import partial

from benchmarks import child
from benchmarks.calls import Calls
from benchmarks.clients import BATCH, LABELS, open_client
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, Measure, interleaved, ratio
from benchmarks.sinks import FAR_SECONDS, counts

IN_FLIGHT = (1, 4, 8, 16, 32)
AT_ONCE = {
    "raw_socket": 100_000,
    "agent": 100_000,
    "agent_spool": 100_000,
    "requests_json": 30_000,
    "stripe_stream": 20_000,
    "opentelemetry": 20_000,
    "segment": 5_000,
    "posthog": 5_000,
    "stripe_single": 300,
}
"""Clients, and how many events in the quick mode."""
_SINGLE = 20
"""Events per second and request that are possible 50 ms away."""


def measure(plan: Plan) -> Figures:
    larger = plan.pick(1, 3)
    prompt: dict[str, Measure] = {
        name: partial(_ship, plan.sink.prompt, name, events * larger)
        for name, events in AT_ONCE.items()
    }
    in_flight: dict[str, Measure] = {
        str(n): partial(_ship, plan.sink.prompt, "agent", AT_ONCE["agent"] * larger, in_flight=n)
        for n in IN_FLIGHT
    }
    return {
        "prompt": interleaved(prompt, plan.pick(2, 5)),
        "prompt_in_flight": interleaved(in_flight, plan.pick(1, 3)),
        "far": interleaved(_far(plan), plan.pick(1, 2)),
    }


def _far(plan: Plan) -> dict[str, Measure]:
    seconds = plan.pick(2, 3)
    ceiling = BATCH / FAR_SECONDS
    subjects: dict[str, Measure] = {}
    for n in IN_FLIGHT:
        events = int(n * ceiling * seconds)
        subjects[f"agent {n}"] = partial(_ship, plan.sink.far, "agent", events, in_flight=n)
    for name, n in (("raw_socket", 16), ("requests_json", 16), ("stripe_stream", 16)):
        events = int(n * ceiling * seconds / 2)
        subjects[f"{name} {n}"] = partial(_ship, plan.sink.far, name, events, in_flight=n)
    if plan.quick:
        return subjects
    events = int(ceiling * seconds)
    for name in ("stripe_stream", "opentelemetry", "segment", "posthog"):
        subjects[f"{name} 1"] = partial(_ship, plan.sink.far, name, events)
    subjects["stripe_single 1"] = partial(_ship, plan.sink.far, "stripe_single", _SINGLE * seconds)
    return subjects


def _ship(url: str, name: str, events: int, in_flight: int | None = None) -> Figures:
    options = {} if in_flight is None else {"in_flight": in_flight}
    return child.call(
        "benchmarks.throughput:ship", name=name, url=url, events=events, options=options
    )


def ship(name: str, url: str, events: int, options: dict[str, int]) -> Figures:
    """Ship *events* from this process."""
    client = open_client(name, url, capacity=2 * events, **options)
    calls = Calls(client)
    calls.run(min(events, 3 * BATCH * options.get("in_flight", 1)))
    client.finish()
    before = counts(url)["events"]
    used, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    calls.run(events)
    client.finish()
    seconds = time.perf_counter() - began
    now = resource.getrusage(resource.RUSAGE_SELF)
    arrived = counts(url)["events"] - before
    client.close()
    if arrived != events:
        raise RuntimeError(f"{name}: {events} events were recorded, {arrived} arrived")
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return {"events_per_second": events / seconds, "cpu_us": cpu / events * 1e6}


def tables(figures: Figures) -> str:
    sdk = figures["prompt"]["stripe_stream"]
    rows = [
        [
            LABELS[name],
            number(each["events_per_second"]),
            number(ratio(each["events_per_second"], sdk["events_per_second"]), "x"),
            number(each["cpu_us"]),
            number(ratio(each["cpu_us"], sdk["cpu_us"]), "x"),
        ]
        for name, each in figures["prompt"].items()
    ]
    head = ["a server that answers at once", "events/s", "of stripe SDK", "CPU µs/event"]
    flights = [
        [n, number(each["events_per_second"]), number(each["cpu_us"])]
        for n, each in figures["prompt_in_flight"].items()
    ]
    far = [_far_row(*subject) for subject in figures["far"].items()]
    return "\n".join(
        [
            table([*head, "of stripe SDK"], rows),
            table(["meter_agent, requests in flight", "events/s", "CPU µs/event"], flights),
            table(
                ["a server 50 ms away", "in flight", "events/s", "of what is possible", "CPU µs"],
                far,
            ),
        ]
    )


def _far_row(subject: str, figures: Figures) -> list[str]:
    name, n = subject.split()
    ceiling = int(n) * (1 if name == "stripe_single" else BATCH) / FAR_SECONDS
    share = figures["events_per_second"] / ceiling
    return [
        LABELS[name],
        n,
        number(figures["events_per_second"]),
        # OpenTelemetry's batches are larger than ours.
        "–" if name == "opentelemetry" else f"{share:.0%}",
        number(figures["cpu_us"]),
    ]
