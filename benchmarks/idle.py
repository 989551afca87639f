"""What a client does that has nothing to do: wake-ups and CPU time of its process."""

from __future__ import annotations

import json
import resource
import subprocess
import time

from benchmarks import child
from benchmarks.calls import Calls
from benchmarks.clients import BUFFERING, LABELS, open_client
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures

_SETTLE_SECONDS = 2.0


def measure(plan: Plan) -> Figures:
    seconds = plan.pick(4, 10)
    # All at the same time: they do nothing, so they do not disturb each other.
    processes = {
        name: subprocess.Popen(
            child.command("benchmarks.idle:rest", name=name, url=plan.sink.prompt, seconds=seconds),
            env=child.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in BUFFERING
    }
    figures = {}
    for name, process in processes.items():
        output = process.communicate(timeout=child.PATIENCE_SECONDS)[0]
        if process.returncode:
            raise RuntimeError(f"{name} did not come to rest")
        figures[name] = json.loads(output.splitlines()[-1])
    return figures


def rest(name: str, url: str, seconds: float) -> Figures:
    """Ship something, then do nothing in this process."""
    client = open_client(name, url)
    Calls(client).run(10)
    client.finish()
    time.sleep(_SETTLE_SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(seconds)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # One is this thread going to sleep.
    wakeups = after.ru_nvcsw - before.ru_nvcsw - 1
    return {"seconds": seconds, "wakeups": wakeups, "cpu_ms": cpu * 1000}


def tables(figures: Figures) -> str:
    rows = [
        [
            LABELS[name],
            number(each["wakeups"]),
            number(each["wakeups"] / each["seconds"]),
            number(each["cpu_ms"]),
        ]
        for name, each in figures.items()
    ]
    seconds = number(next(iter(figures.values()))["seconds"])
    return table([f"idle for {seconds} s", "wake-ups", "a second", "CPU ms"], rows)
