"""The first delivery, and the close, of an agent beside threads that compute.

Such threads give the interpreter lock away every 5 ms, and each import, each lock and each wait of
the agent has to get it back from all of them.
"""

from __future__ import annotations

import os
import threading
import time
from functools import partial

from benchmarks import child
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, Measure, interleaved
from benchmarks.sinks import counts

EVENTS = 100
_CLOSE_SECONDS = 5.0
_BUILT = {"early": "agent built before", "late": "default agent, built by `record()`"}


def measure(plan: Plan) -> Figures:
    subjects: dict[str, Measure] = {}
    for built in _BUILT:
        for call, threads in (("flush", 4), ("close", 8)):
            subjects[f"{call} {built}"] = partial(
                child.call,
                "benchmarks.busy_threads:deliver",
                url=plan.sink.prompt,
                call=call,
                built=built,
                threads=threads,
            )
    return interleaved(subjects, plan.pick(3, 9))


def deliver(url: str, call: str, built: str, threads: int) -> Figures:
    """Record and flush or close at once, in this process; session and connections included."""
    os.environ["METER_AGENT_SANDBOX_URL"] = url
    import meter_agent  # only in the process that measures it

    if built == "early":
        meter_agent.get_agent()
    before = counts(url)["events"]
    for _ in range(threads):
        threading.Thread(target=_compute, daemon=True).start()
    for _ in range(EVENTS):
        meter_agent.record("api_requests", "cus_1", 1)
    began = time.perf_counter()
    if call == "flush":
        meter_agent.flush(60)
    else:
        meter_agent.close(_CLOSE_SECONDS)
    seconds = time.perf_counter() - began
    delivered = meter_agent.stats().delivered
    arrived = counts(url)["events"] - before
    if arrived != delivered:
        raise RuntimeError(f"{arrived} events arrived: {meter_agent.stats()}")
    return {"seconds": seconds, "delivered": delivered, "threads": threads}


def _compute() -> None:
    while True:
        pass


def tables(figures: Figures) -> str:
    rows = [
        [
            f"`{call}()` beside {each['threads']} threads that compute, {_BUILT[built]}",
            number(each["seconds"]),
            f"{each['delivered']} of {EVENTS}",
        ]
        for name, each in figures.items()
        for call, built in [name.split()]
    ]
    return table([f"{EVENTS} events recorded, then", "seconds", "delivered"], rows)
