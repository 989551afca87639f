"""What a `record()` costs that survives `kill -9`, next to other ways to keep an event.

Beside each caller runs a thread that only computes, because that is where the difference is: a call
that gives the interpreter lock away waits up to 5 ms (`sys.getswitchinterval()`) to get it back.
Each way gets its turns in between those of the others, in one run. Run it with `make bench`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from meter_agent import Config, MeterAgent
from meter_agent._agent import build
from meter_agent.sandbox import Sandbox, SandboxAdapter

CALLS = 20_000
SLOW_CALLS = 400
ROUNDS = 7
RECOVERED = 100_000

Record = Callable[[], object]


def main() -> None:
    print(f"one call, microseconds, {ROUNDS} rounds of {CALLS:,} calls ({SLOW_CALLS} of the slow)")
    print(f"{'':24}{'alone':>8}{'p99':>8}{'p99.9':>9}{'beside a thread':>18}{'p99':>9}{'p99.9':>9}")
    for name, alone, beside in _measure():
        quiet = f"{alone[0]:8.2f}{alone[1]:8.2f}{alone[2]:9.2f}"
        print(f"{name:24}{quiet}{beside[0]:18.2f}{beside[1]:9.2f}{beside[2]:9.2f}", flush=True)
    print(f"\nrecovery: {RECOVERED:,} events of a process that was killed")
    seconds = _recover()
    print(f"  all of them accepted by a sandbox in the process after {seconds:.2f} s")


def _measure() -> Iterator[tuple[str, list[float], list[float]]]:
    with tempfile.TemporaryDirectory() as directory:
        ways = {
            "bare append": (_append, CALLS),
            "record(), memory": (_in_memory, CALLS),
            "record(), spool": (_agent, CALLS),
            "os.write": (_os_write, SLOW_CALLS),
            "SQLite, WAL": (_sqlite, SLOW_CALLS),
        }
        times: dict[str, tuple[list[list[float]], list[list[float]]]] = {
            name: ([], []) for name in ways
        }
        for turn in range(ROUNDS):
            for name, (way, calls) in ways.items():
                path = Path(directory, f"{turn} {name}")
                path.mkdir()
                with way(path) as record:
                    times[name][0].append(_percentiles(record, calls))
                    with _computing():
                        times[name][1].append(_percentiles(record, calls))
        for name, (alone, beside) in times.items():
            yield name, _medians(alone), _medians(beside)


def _percentiles(record: Record, calls: int) -> list[float]:
    clock = time.perf_counter_ns
    laps = []
    for _ in range(calls):
        began = clock()
        record()
        laps.append(clock() - began)
    laps.sort()
    return [laps[int(calls * share)] / 1000 for share in (0.5, 0.99, 0.999)]


def _medians(rounds: list[list[float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


@contextmanager
def _computing() -> Iterator[None]:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _append(_path: Path) -> Iterator[Record]:
    append, now = deque[tuple[str, str, int, float]]().append, time.time
    yield lambda: append(("api_requests", "cus_123", 1, now()))


def _in_memory(_path: Path) -> AbstractContextManager[Record]:
    return _agent(None)


@contextmanager
def _agent(spool: Path | None) -> Iterator[Record]:
    hold = threading.Event()
    agent = build(
        Config(sandbox_url="http://127.0.0.1:1", spool_dir=spool, max_in_flight=1),
        open_adapter=lambda: SandboxAdapter(Sandbox(), sleep=lambda _seconds: hold.wait()),
    )
    record = agent.record
    record("api_requests", "cus_123", 1)
    try:
        yield lambda: record("api_requests", "cus_123", 1)
    finally:
        hold.set()
        agent.close(0)


@contextmanager
def _os_write(path: Path) -> Iterator[Record]:
    descriptor = os.open(path / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def record() -> None:
        line = json.dumps([time.time_ns(), "api_requests", "cus_123", 1])
        os.write(descriptor, line.encode() + b"\n")

    try:
        yield record
    finally:
        os.close(descriptor)


@contextmanager
def _sqlite(path: Path) -> Iterator[Record]:
    base = sqlite3.connect(path / "events.db", isolation_level=None, check_same_thread=False)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA synchronous=NORMAL")
    base.execute("CREATE TABLE events (at INTEGER, name TEXT, customer TEXT, value INTEGER)")
    insert = "INSERT INTO events VALUES (?, ?, ?, ?)"
    try:
        yield lambda: base.execute(insert, (time.time_ns(), "api_requests", "cus_123", 1))
    finally:
        base.close()


_DYING = """
import os, signal, sys
from meter_agent import MeterAgent
agent = MeterAgent(sandbox_url="http://127.0.0.1:1", spool_dir=sys.argv[1])
for n in range(int(sys.argv[2])):
    agent.record("api_requests", "cus_123", 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _recover() -> float:
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, "-c", _DYING, directory, str(RECOVERED)], check=False)
        sandbox = Sandbox()
        began = time.perf_counter()
        agent: MeterAgent = build(
            Config(
                sandbox_url="http://127.0.0.1:1", spool_dir=directory, max_events_per_second=1e6
            ),
            open_adapter=lambda: SandboxAdapter(sandbox),
        )
        while agent.stats().delivered < RECOVERED:
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        agent.close()
    return seconds


if __name__ == "__main__":
    main()
