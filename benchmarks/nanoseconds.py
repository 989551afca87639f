"""The call once more, by pyperf: a cross-check of our own clock work.

pyperf calibrates and repeats in fresh processes, but one subject after the other, so on a machine
that changes its speed its ratios are worth less than those of `record`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import child
from benchmarks.calls import Calls
from benchmarks.clients import LABELS, open_client
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, ratio

_CLIENTS = ("deque", "agent", "agent_spool")


def measure(plan: Plan) -> Figures:
    return {name: _measure(plan, name) for name in _CLIENTS}


def _measure(plan: Plan, name: str) -> Figures:
    import pyperf

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "result.json")
        words = [sys.executable, "-m", "benchmarks.nanoseconds", "--quiet", "-o", str(path)]
        words += ["-w", "1", "-n", "3", "-p", str(plan.pick(3, 8))]
        words += ["--inherit-environ", "BENCH_CLIENT,BENCH_URL"]
        environment = child.environment(BENCH_CLIENT=name, BENCH_URL=plan.sink.hold)
        subprocess.run(words, env=environment, check=True, capture_output=True)
        benchmark = pyperf.Benchmark.load(str(path))
    return {
        "nanoseconds": benchmark.median() * 1e9,
        "deviation": benchmark.median_abs_dev() * 1e9,
        "values": benchmark.get_nvalue(),
    }


def _worker() -> None:
    import os

    import pyperf

    name, url = os.environ["BENCH_CLIENT"], os.environ["BENCH_URL"]

    def run(loops: int) -> float:
        # A client of its own each time, with room for all of them.
        client = open_client(name, url, capacity=loops + 1000)
        calls = Calls(client)
        calls.run(1)
        began = time.perf_counter()
        calls.run(loops)
        seconds = time.perf_counter() - began
        client.close()
        return seconds

    pyperf.Runner().bench_time_func(name, run)


def tables(figures: Figures) -> str:
    floor = figures["deque"]["nanoseconds"]
    rows = [
        [
            LABELS[name],
            number(each["nanoseconds"]),
            number(each["deviation"]),
            number(ratio(each["nanoseconds"], floor), "x"),
        ]
        for name, each in figures.items()
    ]
    return table(["one call, by pyperf", "ns, median", "± ns, median deviation", "floor"], rows)


if __name__ == "__main__":
    _worker()
