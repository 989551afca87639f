"""One batch on the wire: time from record to answer, and system calls, one request at a time.

Most system calls give the interpreter lock away, and beside a busy thread each of those waits for
it up to 5 ms. They are counted by strace, where that is installed and allowed: the difference
between two runs of different length, so that starting up does not count.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import child
from benchmarks.clients import BATCH, LABELS
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, Measure, interleaved

_CLIENTS = ("raw_socket", "agent", "requests_json", "stripe_stream")
_SHORT, _LONG = 20, 120
_WIRE = {"send", "sendto", "sendmsg", "write", "writev", "recv", "recvfrom", "recvmsg", "read"}
_WAIT = {"poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait"}
_LOCK = {"futex"}


def measure(plan: Plan) -> Figures:
    batches = plan.pick(100, 1000)
    subjects: dict[str, Measure] = {
        name: partial(_ship, plan.sink.prompt, name, batches * BATCH) for name in _CLIENTS
    }
    figures: Figures = {"time": interleaved(subjects, plan.pick(2, 5))}
    if shutil.which("strace"):
        figures["calls"] = {name: _system_calls(plan.sink.prompt, name) for name in _CLIENTS}
    return figures


def _ship(url: str, name: str, events: int, wrapper: tuple[str, ...] = ()) -> Figures:
    options: dict[str, Any] = {"in_flight": 1}
    return child.call(
        "benchmarks.throughput:ship", wrapper, name=name, url=url, events=events, options=options
    )


def _system_calls(url: str, name: str) -> dict[str, float] | None:
    with tempfile.TemporaryDirectory() as directory:
        runs = []
        for batches in (_SHORT, _LONG):
            summary = Path(directory, "summary")
            try:
                _ship(url, name, batches * BATCH, ("strace", "-f", "-c", "-o", str(summary)))
            except RuntimeError:
                return None  # a container may forbid it
            runs.append(_read(summary.read_text()))
    short, long = runs
    more = {call: (long[call] - short.get(call, 0)) / (_LONG - _SHORT) for call in long}
    return {
        "wire": sum(more.get(call, 0) for call in _WIRE),
        "wait": sum(more.get(call, 0) for call in _WAIT),
        "lock": sum(more.get(call, 0) for call in _LOCK),
        "all": sum(more.values()),
    }


def _read(summary: str) -> dict[str, int]:
    # % time, seconds, usecs/call, calls, errors (or nothing), syscall
    rows = [line.split() for line in summary.splitlines()]
    return {
        row[-1]: int(row[3])
        for row in rows
        if len(row) in {5, 6} and row[3].isdigit() and row[-1] != "total"
    }


def tables(figures: Figures) -> str:
    rows = []
    for name, each in figures["time"].items():
        calls = figures.get("calls", {}).get(name) or {}
        kinds = [number(calls.get(kind)) for kind in ("wire", "wait", "lock", "all")]
        micros = BATCH / each["events_per_second"] * 1e6
        rows.append([LABELS[name], number(micros), number(each["cpu_us"] * BATCH), *kinds])
    head = ["one batch of 100, one at a time", "µs", "CPU µs"]
    head += ["system calls: send and receive", "wait", "futex", "all"]
    return table(head, rows)
