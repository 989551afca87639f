"""What waiting events take of the memory, and of the garbage collector's time.

The texts of all events are the same objects, so what is counted is what the client adds to them:
private memory of the process (without mapped files), before and after, with the senders held.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks import child
from benchmarks.calls import Calls
from benchmarks.clients import LABELS, open_client
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, Measure, interleaved
from benchmarks.sinks import counts

_CLIENTS = ("deque", "agent", "agent_spool", "opentelemetry", "segment", "posthog")
_PATIENCE_SECONDS = 20
_SMALL, _LARGE = 100_000, 1_000_000


def measure(plan: Plan) -> Figures:
    small = _CLIENTS[: plan.pick(4, 6)]
    large = tuple(name for name in small[: plan.pick(2, 4)] if name != "agent_spool")
    return {
        str(_SMALL): interleaved(_subjects(plan, small, _SMALL), plan.pick(1, 2)),
        str(_LARGE): interleaved(_subjects(plan, large, _LARGE), plan.pick(1, 2)),
    }


def _subjects(plan: Plan, names: tuple[str, ...], events: int) -> dict[str, Measure]:
    return {
        name: partial(
            child.call, "benchmarks.memory:hold", name=name, url=plan.sink.hold, events=events
        )
        for name in names
    }


def hold(name: str, url: str, events: int) -> Figures:
    """Let *events* wait in this process."""
    import psutil  # only in the process that is measured

    def private() -> int:
        memory = psutil.Process().memory_info()
        return int(memory.rss - getattr(memory, "shared", 0))

    client = open_client(name, url, capacity=events + 10_000)
    calls = Calls(client)
    before = counts(url)["requests"]
    calls.run(1000)
    if name != "deque":
        _wait_for_requests(url, before)
    gc.collect()
    began, began_at = private(), time.perf_counter()
    with _collections() as pauses:
        calls.run(events)
    seconds = time.perf_counter() - began_at
    figures = {
        "bytes_per_event": (private() - began) / events,
        "longest_pause_ms": max(pauses, default=0.0) * 1000,
        "pauses": len(pauses),
        "paused": sum(pauses) / seconds,
    }
    client.close()
    return figures


def _wait_for_requests(url: str, before: int) -> None:
    # Until the senders hang in their requests, and have imported what they need for that.
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while counts(url)["requests"] == before and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)


@contextmanager
def _collections() -> Iterator[list[float]]:
    pauses: list[float] = []
    began = 0.0

    def note(phase: str, _info: dict[str, Any]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            pauses.append(time.perf_counter() - began)

    gc.callbacks.append(note)
    try:
        yield pauses
    finally:
        gc.callbacks.remove(note)


def tables(figures: Figures) -> str:
    shown = []
    for events, clients in figures.items():
        rows = [
            [
                LABELS[name],
                number(each["bytes_per_event"]),
                number(each["longest_pause_ms"]),
                number(each["pauses"]),
                f"{each['paused']:.1%}",
            ]
            for name, each in clients.items()
        ]
        head = [f"{int(events):,} events wait", "bytes each", "longest collection ms"]
        shown.append(table([*head, "collections", "of the time"], rows))
    return "\n".join(shown)
