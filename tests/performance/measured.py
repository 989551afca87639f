"""What the tests here measure, each in a process of its own that no coverage tool slows down.

Ratios are of the best of many short laps that take turns: whatever else the machine does can only
make a lap slower, and the best one of each side saw none of it.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from meter_agent import MeterAgent

LAPS = 300
CALLS = 100
EVENTS = 20_000
BATCHES = 20
LINE = {"send", "sendall", "sendmsg", "recv", "recv_into", "recvmsg", "poll", "select"}
"""Calls of C functions that may give the interpreter lock away to the network."""


def call_ratio() -> dict[str, float]:
    return {"ratio": _ratio_to_append(None)}


def crash_safe_call_ratio() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        return {"ratio": _ratio_to_append(directory)}


def _ratio_to_append(spool: str | None) -> float:
    agent = _held_agent(spool_dir=spool)
    record = agent.record
    append, now = deque[tuple[str, str, int, float]]().append, time.time

    def recording() -> None:
        for _ in range(CALLS):
            record("api_requests", "cus_123", 1)

    def appending() -> None:
        for _ in range(CALLS):
            append(("api_requests", "cus_123", 1, now()))

    recorded, appended = [], []
    for _ in range(LAPS):
        recorded.append(_seconds(recording))
        appended.append(_seconds(appending))
    if agent.stats().recorded != LAPS * CALLS + 1:
        raise RuntimeError("record() did not take every event")
    agent.close(0)
    return min(recorded) / min(appended)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def waiting_events() -> dict[str, float]:
    agent = _held_agent()
    agent.record("api_requests", "cus_123", 1)
    gc.collect()
    tracked = len(gc.get_objects())
    gc.disable()
    tracemalloc.start()
    before = gc.get_count()[0]
    for _ in range(EVENTS):
        agent.record("api_requests", "cus_123", 1)
    counted = gc.get_count()[0] - before
    statistics = tracemalloc.take_snapshot().statistics("filename")
    gc.enable()
    gc.collect()  # untracks what refers to nothing that could be part of a cycle
    tracked = len(gc.get_objects()) - tracked
    agent.close(0)
    return {
        "bytes": sum(each.size for each in statistics) / EVENTS,
        "blocks": sum(each.count for each in statistics) / EVENTS,
        "tracked": tracked / EVENTS,
        "counted": counted / EVENTS,
    }


def line_calls() -> dict[str, Any]:
    """Count the calls that a sender thread makes to the network for a batch."""
    counts: Counter[str] = Counter()

    def profile(_frame: object, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ in LINE:
            counts[called.__name__] += 1

    threading.setprofile(profile)
    with MeterAgent(sandbox_url=os.environ["SANDBOX"], max_in_flight=1) as agent:
        agent.record("api_requests", "cus_123", 1)
        agent.flush(30)
        before = counts.copy()
        for _ in range(BATCHES * 100):
            agent.record("api_requests", "cus_123", 1)
        agent.flush(30)
        made = counts - before
        requests = agent.stats().requests - 1
    return {"requests": requests, "calls": {name: n / requests for name, n in made.items()}}


def _held_agent(**settings: Any) -> MeterAgent:
    """Return an agent whose only sender waits for an answer that never comes."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    agent = MeterAgent(
        sandbox_url=f"http://127.0.0.1:{port}",
        max_in_flight=1,
        flush_interval_seconds=0.001,
        **settings,
    )
    agent.record("api_requests", "cus_123", 1)
    connection, _ = listener.accept()
    connection.recv(65536)
    _open.extend((listener, connection))
    return agent


_open: list[socket.socket] = []

if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()), flush=True)
    os._exit(0)
