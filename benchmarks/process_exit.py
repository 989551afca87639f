"""What a client adds to the end of a process that has nothing left to send.

From the last statement of the program until the process is gone, seen from outside, over a process
that has imported and used the same packages without an agent.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

from benchmarks import child
from benchmarks.clients import BUFFERING, LABELS
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, Measure, interleaved

_WITHOUT = """
import threading, meter_agent, requests, tenacity
thread = threading.Thread(target=requests.post, args=({url!r},), kwargs=dict(data=b"{{}}"))
thread.start()
thread.join()
"""
_WITH = """
from benchmarks.clients import open_client
client = open_client({name!r}, {url!r})
exec(client.call, dict(client.names))
client.finish()
"""
_LAST = """
import time
print(time.monotonic(), flush=True)
"""


def measure(plan: Plan) -> Figures:
    url = plan.sink.prompt
    subjects: dict[str, Measure] = {"without": partial(_end, _WITHOUT.format(url=url))}
    for name in BUFFERING:
        subjects[name] = partial(_end, _WITH.format(name=name, url=url))
    return interleaved(subjects, plan.pick(3, 15))


def _end(script: str) -> Figures:
    with subprocess.Popen(
        [sys.executable, "-c", script + _LAST],
        env=child.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdout is None:
            raise RuntimeError("no pipe")
        said = process.stdout.read()  # until the process closes it, by ending
        code = process.wait()
        ended = time.monotonic()
    if code:
        raise RuntimeError(f"it ended with {code}: {said}")
    return {"ms": (ended - float(said)) * 1000}


def tables(figures: Figures) -> str:
    floor = figures["without"]["ms"]
    rows = [
        [
            "requests, no client" if name == "without" else LABELS[name],
            number(each["ms"]),
            "–" if name == "without" else number(each["ms"] - floor),
        ]
        for name, each in figures.items()
    ]
    return table(["end of a process, buffer empty", "ms", "added ms"], rows)
