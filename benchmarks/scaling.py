"""What follows from the figures of a run for the limits that an application meets as it grows."""

from __future__ import annotations

from benchmarks.markdown import number, table
from benchmarks.neighbour import blocked_per_10_000
from benchmarks.rounds import Figures
from benchmarks.sinks import FAR_SECONDS

ACCOUNT_EVENTS_PER_SECOND = 10_000
"""Stripe's limit for the meter event stream of a live account."""

_DEFAULT_IN_FLIGHT = 8
_SESSION_SECONDS = 900 * 0.8


def tables(measurements: dict[str, Figures]) -> str:
    """Return each limit with its formula and the figure of this run."""
    quiet = measurements["record"]["quiet"]["agent"]
    shipped = measurements["throughput"]["prompt"]["agent"]
    beside = measurements["neighbour"]["prompt"]["agent"]
    waiting = measurements["memory"]["100000"]["agent"]["bytes_per_event"]
    one = 100 / FAR_SECONDS
    core = 1e6 / shipped["cpu_us"]
    rows = [
        ["recording, one thread", "1 / time of a call",
         f"{number(1e9 / quiet['nanoseconds'])} calls/s"],
        ["recording, 8 threads", "the interpreter lock",
         f"{number(quiet['per_second_8'])} calls/s"],
        ["one request in flight, 50 ms away", "batch / round trip", f"{number(one)} events/s"],
        [f"{_DEFAULT_IN_FLIGHT} requests in flight (the default), 50 ms away",
         "max_in_flight × batch / round trip", f"{number(_DEFAULT_IN_FLIGHT * one)} events/s"],
        ["one process, a server that answers at once", "measured",
         f"{number(shipped['events_per_second'])} events/s"],
        ["one process, beside a thread that computes", "measured",
         f"{number(beside['events_per_second'])} events/s"],
        ["one core", "1 / CPU time of an event", f"{number(core)} events/s"],
        ["a Stripe account", "Stripe's limit", f"{number(ACCOUNT_EVENTS_PER_SECOND)} events/s"],
        ["… and what of a core that takes", "limit × CPU time of an event",
         f"{ACCOUNT_EVENTS_PER_SECOND / core:.0%}"],
        ["… and what of a busy thread's time, all in one process", "measured",
         f"{blocked_per_10_000(beside):.0%}"],
        ["sessions", "one per process in 80 % of 15 minutes",
         f"{number(1000 / _SESSION_SECONDS)}/s for 1 000 processes"],
        ["memory in an outage, full default buffer", "buffer_events × bytes each, texts beside it",
         f"{number(waiting * 100_000 / 1e6)} MB"],
    ]  # fmt: skip
    return table(["limit", "how it is found", "figure"], rows, left=2)
