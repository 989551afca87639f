"""How long `close()` takes when 100 000 events still wait."""

from __future__ import annotations

import time
from functools import partial

from benchmarks import child
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, Measure, interleaved
from benchmarks.sinks import FAR_SECONDS, counts

EVENTS = 100_000
_IN_FLIGHT = 8
_LABELS = {"prompt": "a server that answers at once", "far": "a server 50 ms away"}


def measure(plan: Plan) -> Figures:
    urls = {"prompt": plan.sink.prompt, "far": plan.sink.far}
    subjects: dict[str, Measure] = {
        name: partial(child.call, "benchmarks.drain:drain", url=url) for name, url in urls.items()
    }
    return interleaved(subjects, plan.pick(1, 3))


def drain(url: str) -> Figures:
    """Record and close at once, in this process; imports, session and connections included."""
    from meter_agent import MeterAgent  # only in the process that measures it

    before = counts(url)["events"]
    agent = MeterAgent(
        sandbox_url=url, max_in_flight=_IN_FLIGHT, max_events_per_second=1e6, buffer_events=EVENTS
    )
    for _ in range(EVENTS):
        agent.record("api_requests", "cus_1", 1)
    began = time.perf_counter()
    stats = agent.close(60)
    seconds = time.perf_counter() - began
    arrived = counts(url)["events"] - before
    if stats.delivered != EVENTS or arrived != EVENTS:
        raise RuntimeError(f"{arrived} events arrived: {stats}")
    return {"seconds": seconds}


def tables(figures: Figures) -> str:
    floors = {"prompt": None, "far": EVENTS / 100 / _IN_FLIGHT * FAR_SECONDS}
    rows = [
        [_LABELS[name], number(each["seconds"]), number(floors[name])]
        for name, each in figures.items()
    ]
    return table([f"`close()` with {EVENTS:,} waiting", "seconds", "floor of 8 in flight"], rows)
