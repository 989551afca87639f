"""A thread that only computes: its load, and what it notices of somebody else's work.

*Blocked* is the share of the time in which the thread could not run, by the processor's count of
its time: what the senders took of the interpreter lock, and what the machine took of us. The same
thread alone shows the second part.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Self

from benchmarks import child
from benchmarks.calls import Calls
from benchmarks.clients import LABELS, open_client
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, Measure, interleaved, ratio
from benchmarks.sinks import counts

STALL_SECONDS = 0.001
EVENTS = {
    "raw_socket": 400_000,
    "agent": 300_000,
    "agent_spool": 200_000,
    "requests_json": 60_000,
    "stripe_stream": 30_000,
    "opentelemetry": 50_000,
    "segment": 30_000,
    "posthog": 20_000,
}
"""Clients, and more events than any of them ships in a second."""


class Neighbour:
    """A running thread that computes, and its diary."""

    def __init__(self) -> None:
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._cpu_seconds = 0.0
        self._seconds = 0.0
        self._stalls = 0

    def _compute(self) -> None:
        clock, over = time.perf_counter, self._ends.is_set
        began, cpu = clock(), time.thread_time()
        last = began
        while not over():
            sum(range(500))
            now = clock()
            if now - last > STALL_SECONDS:
                self._stalls += 1
            last = now
        self._seconds = clock() - began
        self._cpu_seconds = time.thread_time() - cpu

    def figures(self) -> Figures:
        """Return what share of its time it could not run, and how often for over 1 ms."""
        return {
            "blocked": 1 - self._cpu_seconds / self._seconds,
            "stalls_per_second": self._stalls / self._seconds,
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._ends.set()
        self._thread.join()


@contextmanager
def computing() -> Iterator[None]:
    """Have a thread compute within the block."""
    with Neighbour():
        yield


def measure(plan: Plan) -> Figures:
    names = [name for name in EVENTS if not plan.quick or name not in {"segment", "posthog"}]
    seconds = plan.pick(1, 2)
    subjects: dict[str, Measure] = {
        "nobody": partial(child.call, "benchmarks.neighbour:alone", seconds=seconds)
    }
    for name in names:
        subjects[name] = partial(
            child.call, "benchmarks.neighbour:beside", name=name, url=plan.sink.prompt,
            events=EVENTS[name] * seconds, seconds=seconds,
        )  # fmt: skip
    return {"prompt": interleaved(subjects, plan.pick(2, 5))}


def alone(seconds: float) -> Figures:
    """Compute beside a thread that sleeps."""
    with Neighbour() as neighbour:
        time.sleep(seconds)
    return neighbour.figures() | {"events_per_second": 0.0}


def beside(name: str, url: str, events: int, seconds: float) -> Figures:
    """Compute beside a client that ships as fast as it can, out of a full buffer."""
    client = open_client(name, url, capacity=2 * events)
    calls = Calls(client)
    calls.run(1000)
    client.finish()
    calls.run(events)
    # Whatever the client does to ship, it does it in its own threads or in this one.
    threading.Thread(target=client.finish, daemon=True).start()
    shipped, began = counts(url)["events"], time.perf_counter()
    with Neighbour() as neighbour:
        time.sleep(seconds)
        took = time.perf_counter() - began
        shipped = counts(url)["events"] - shipped
    if shipped >= events:
        raise RuntimeError(f"{name} shipped all {events} events; the rest of the time was idle")
    return neighbour.figures() | {"events_per_second": shipped / took}


def blocked_per_10_000(figures: Figures) -> float:
    """Return the share of time blocked for each 10 000 events a second."""
    return float(figures["blocked"] / figures["events_per_second"] * 10_000)


def tables(figures: Figures) -> str:
    prompt = figures["prompt"]
    naive = prompt["requests_json"]
    rows = []
    for name, each in prompt.items():
        label = "no client at all" if name == "nobody" else LABELS[name]
        row = [label, "–", "–", f"{each['blocked']:.1%}", "–", "–"]
        if name != "nobody":
            per = blocked_per_10_000(each)
            row[1] = number(each["events_per_second"])
            row[2] = number(ratio(each["events_per_second"], naive["events_per_second"]), "x")
            row[4] = f"{per:.1%}"
            row[5] = number(ratio(per, blocked_per_10_000(naive)), "x")
        rows.append([*row, number(each["stalls_per_second"])])
    return table(
        ["flat out beside a thread that computes", "events/s", "of requests", "blocked",
         "blocked per 10 000 events/s", "of requests", "stalls > 1 ms per s"],
        rows,
    )  # fmt: skip
