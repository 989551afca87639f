"""What it costs to keep an event through `kill -9`, next to other ways to do it.

Alone, and beside a thread that computes, because that is where the difference is: a call that gives
the interpreter lock away waits up to 5 ms (`sys.getswitchinterval()`) to get it back.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import child
from benchmarks.calls import Calls
from benchmarks.clients import Client, open_client
from benchmarks.markdown import number, table
from benchmarks.neighbour import computing
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, interleaved, ratio

_CALLS = 20_000
_WAYS = {
    "deque": "bare append, in memory",
    "agent": "`record()`, in memory",
    "agent_spool": "`record()`, crash-safe",
    "os_write": "`os.write` of a JSON line",
    "sqlite": "SQLite insert, WAL, synchronous=NORMAL",
}


def measure(plan: Plan) -> Figures:
    ways = {
        way: partial(
            child.call,
            "benchmarks.crash_safe:way",
            name=way,
            url=plan.sink.hold,
            # One that waits 5 ms each time would take minutes.
            seconds=plan.pick(1, 3),
        )
        for way in _WAYS
    }
    return interleaved(ways, plan.pick(2, 7))


def way(name: str, url: str, seconds: float) -> Figures:
    """Measure one way in this process."""
    with tempfile.TemporaryDirectory(prefix="meter-agent-bench-") as directory:
        client = _open(name, url, directory)
        made = Calls(client)
        made.run(1)
        alone = made.percentiles(_CALLS, seconds)
        with computing():
            beside = made.percentiles(_CALLS, seconds)
        client.close()
    return {f"alone_{column}": each for column, each in alone.items()} | {
        f"beside_{column}": each for column, each in beside.items()
    }


def _open(name: str, url: str, directory: str) -> Client:
    if name == "os_write":
        return _Write(Path(directory, "events"))
    if name == "sqlite":
        return _Sqlite(Path(directory, "events.db"))
    return open_client(name, url)


class _Write:
    call = "record('api_requests', 'cus_NciAYcXfLnqBoz', 1)"

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.names: dict[str, Any] = {"record": self._record}

    def _record(self, name: str, customer: str, value: int) -> None:
        line = json.dumps([time.time_ns(), name, customer, value])
        os.write(self._descriptor, line.encode() + b"\n")

    def finish(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._descriptor)


class _Sqlite:
    call = "record('api_requests', 'cus_NciAYcXfLnqBoz', 1)"

    def __init__(self, path: Path) -> None:
        self._base = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=NORMAL")
        self._base.execute("CREATE TABLE events (at INTEGER, name TEXT, customer TEXT, value INT)")
        self.names: dict[str, Any] = {"record": self._record}

    def _record(self, name: str, customer: str, value: int) -> None:
        self._base.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?)", (time.time_ns(), name, customer, value)
        )

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self._base.close()


def tables(figures: Figures) -> str:
    columns = ("p50", "p99", "p99_9", "max")
    floor = figures["deque"]["alone_p50"]
    rows = [
        [
            label,
            number(figures[name]["alone_p50"]),
            number(ratio(figures[name]["alone_p50"], floor), "x"),
            number(figures[name]["alone_p99_9"]),
            *(number(figures[name][f"beside_{column}"]) for column in columns),
        ]
        for name, label in _WAYS.items()
    ]
    head = ["one call, µs, the clock included", "alone: p50", "floor", "p99.9"]
    head += ["beside a thread that computes: p50", "p99", "p99.9", "max"]
    return table(head, rows)
