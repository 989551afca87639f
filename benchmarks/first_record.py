"""The first call of a process, for which threads are started and modules imported."""

from __future__ import annotations

import time
from functools import partial

from benchmarks import child
from benchmarks.clients import BUFFERING, LABELS, open_client
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, Measure, interleaved

_DEFAULT = "default"


def measure(plan: Plan) -> Figures:
    subjects: dict[str, Measure] = {
        name: partial(child.call, "benchmarks.first_record:first", name=name, url=plan.sink.prompt)
        for name in BUFFERING
    }
    subjects[_DEFAULT] = partial(
        child.call, "benchmarks.first_record:first_of_default_agent", url=plan.sink.prompt
    )
    return interleaved(subjects, plan.pick(3, 15))


def first(name: str, url: str) -> Figures:
    """Time the first and the second call of a client that is made already."""
    client = open_client(name, url)
    figures = _time(client.call, client.names)
    client.finish()
    client.close()
    return figures


def first_of_default_agent(url: str) -> Figures:
    """Time the first `meter_agent.record()`, which also reads settings and builds the agent."""
    import os

    import meter_agent  # each client is imported only where it is measured

    os.environ["METER_AGENT_SANDBOX_URL"] = url
    figures = _time("record('api_requests', 'cus_1', 1)", {"record": meter_agent.record})
    meter_agent.close()
    return figures


def _time(call: str, names: dict[str, object]) -> Figures:
    code = compile(call, "<call>", "exec")
    marks = [time.perf_counter()]
    for _ in range(2):
        exec(code, dict(names))
        marks.append(time.perf_counter())
    return {"first_us": (marks[1] - marks[0]) * 1e6, "second_us": (marks[2] - marks[1]) * 1e6}


def tables(figures: Figures) -> str:
    rows = [
        [
            "meter_agent, default agent built by it" if name == _DEFAULT else LABELS[name],
            number(each["first_us"]),
            number(each["second_us"]),
        ]
        for name, each in figures.items()
    ]
    return table(["", "first call µs", "second call µs"], rows)
