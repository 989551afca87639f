"""What handing over one event costs the caller: quiet, with threads, and while shipping.

Quiet: the senders stay in requests that are never answered, so only the call is measured, in a
fresh process whose memory has not been touched. While shipping: 5 000 calls a second, a few every
millisecond, at a server that answers at once.
"""

from __future__ import annotations

from functools import partial

from benchmarks import child
from benchmarks.calls import Calls
from benchmarks.clients import BUFFERING, LABELS, open_client
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, interleaved

THREADS = (1, 4, 8)
PER_SECOND = 5_000
_PEERS = {"posthog", "segment", "opentelemetry"}
_PEER_CALLS_SHARE = 10


def measure(plan: Plan) -> Figures:
    names = ("deque", *BUFFERING)
    calls = plan.pick(100_000, 200_000)
    quiet = {
        name: partial(
            child.call,
            "benchmarks.record:quiet",
            name=name,
            url=plan.sink.hold,
            calls=calls // _PEER_CALLS_SHARE if name in _PEERS else calls,
        )
        for name in names
    }
    seconds = plan.pick(2, 5)
    busy = {
        name: partial(
            child.call, "benchmarks.record:busy", name=name, url=plan.sink.prompt, seconds=seconds
        )
        for name in names
    }
    return {
        "quiet": interleaved(quiet, plan.pick(2, 5)),
        "busy": interleaved(busy, plan.pick(1, 3)),
    }


def quiet(name: str, url: str, calls: int) -> Figures:
    """Measure in this process, with senders that are held."""
    capacity = calls * (len(THREADS) + 2)
    figures: Figures = {}
    client = open_client(name, url, capacity=capacity)
    made = Calls(client)
    # Single calls first, while the memory is untouched: that is where the slow ones are.
    figures |= made.percentiles(calls // 2)
    floor = Calls(open_client("deque", url))
    figures |= made.beside(floor, calls // 2)
    for threads in THREADS:
        rates = made.per_second_beside(floor, threads, calls)
        figures[f"per_second_{threads}"] = rates["per_second"]
        figures[f"per_second_{threads}_of_floor"] = rates["of_floor"]
    client.close()
    return figures


def busy(name: str, url: str, seconds: float) -> Figures:
    """Measure in this process, while events are shipped."""
    client = open_client(name, url)
    made = Calls(client)
    made.run(PER_SECOND // 10)
    client.finish()
    figures = made.paced(PER_SECOND, seconds)
    client.finish()
    client.close()
    return figures


def tables(figures: Figures) -> str:
    quiet, busy = figures["quiet"], figures["busy"]
    rows = [
        [
            LABELS[name],
            number(each["nanoseconds"]),
            number(each["of_floor"], "x"),
            *(number(each[column]) for column in ("p50", "p99", "p99_9", "max")),
            *(number(each[f"per_second_{threads}"]) for threads in THREADS),
        ]
        for name, each in quiet.items()
    ]
    head = ["one call", "ns", "floor", "p50 µs", "p99 µs", "p99.9 µs", "max µs"]
    head += [f"calls/s, {threads} thread{'s' * (threads > 1)}" for threads in THREADS]
    shipping = [
        [LABELS[name], *(number(each[column]) for column in ("p50", "p99", "p99_9", "max"))]
        for name, each in busy.items()
    ]
    return (
        "Senders held, nothing shipped:\n\n"
        + table(head, rows)
        + f"\nWhile {PER_SECOND:,} events a second are recorded and shipped:\n\n"
        + table(["one call", "p50 µs", "p99 µs", "p99.9 µs", "max µs"], shipping)
    )
