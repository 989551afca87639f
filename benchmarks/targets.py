"""What is aimed at, and whether a run got there.

A *target* is an absolute figure for the machine that it was set on (2 cores of an AMD EPYC, Python
3.11). A *gate* is a ratio to something measured in the same run, so it holds on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.busy_threads import EVENTS
from benchmarks.import_time import HEAVY
from benchmarks.markdown import number, table
from benchmarks.neighbour import blocked_per_10_000
from benchmarks.rounds import Figures
from benchmarks.sinks import FAR_SECONDS


@dataclass(frozen=True)
class Verdict:
    """One line of the table; None where there is no such limit."""

    what: str
    target: str
    gate: str
    measured: str
    target_met: bool | None
    gate_met: bool | None


def judge(measurements: dict[str, Figures]) -> list[Verdict]:
    """Return the verdicts about what was measured; what was left out is left out."""
    return [
        verdict
        for name, check in _CHECKS.items()
        if name in measurements
        for verdict in check(measurements[name])
    ]


def _record(figures: Figures) -> Iterator[Verdict]:
    floor, agent = figures["quiet"]["deque"], figures["quiet"]["agent"]
    spool, busy = figures["quiet"]["agent_spool"], figures["busy"]["agent"]
    micros, times = agent["nanoseconds"] / 1000, agent["of_floor"]
    yield Verdict(
        "`record()`, median, 1 thread", "≤ 0.30 µs", "≤ 3x bare append",
        f"{number(micros)} µs, {number(times, 'x')}", micros <= 0.30, times <= 3,
    )  # fmt: skip
    slow, times = agent["p99_9"], agent["p99_9"] / floor["p99_9"]
    yield Verdict(
        "`record()`, p99.9, 1 thread", "≤ 30 µs", "≤ 1.5x bare append",
        f"{number(slow)} µs, {number(times, 'x')}", slow <= 30, times <= 1.5,
    )  # fmt: skip
    yield Verdict(
        "`record()`, p99 and p99.9, while shipping 5 000/s", "≤ 25 and ≤ 40 µs", "–",
        f"{number(busy['p99'])} and {number(busy['p99_9'])} µs",
        busy["p99"] <= 25 and busy["p99_9"] <= 40, None,
    )  # fmt: skip
    rate, times = agent["per_second_8"], agent["per_second_8_of_floor"]
    yield Verdict(
        "calls a second, 8 threads", "≥ 1 200 000", "≥ 0.6x bare append",
        f"{number(rate)}, {number(times, 'x')}", rate >= 1.2e6, times >= 0.6,
    )  # fmt: skip
    micros, times = spool["nanoseconds"] / 1000, spool["of_floor"]
    yield Verdict(
        "crash-safe `record()`, median", "≤ 1.2 µs", "≤ 9x bare append",
        f"{number(micros)} µs, {number(times, 'x')}", micros <= 1.2, times <= 9,
    )  # fmt: skip


def _crash_safe(figures: Figures) -> Iterator[Verdict]:
    slow = figures["agent_spool"]["beside_p99_9"]
    yield Verdict(
        "crash-safe `record()`, p99.9, beside a thread that computes", "≤ 100 µs", "–",
        f"{number(slow)} µs", slow <= 100, None,
    )  # fmt: skip


def _throughput(figures: Figures) -> Iterator[Verdict]:
    agent, sdk = figures["prompt"]["agent"], figures["prompt"]["stripe_stream"]
    rate, times = (
        agent["events_per_second"],
        agent["events_per_second"] / sdk["events_per_second"],
    )
    yield Verdict(
        "end to end, a server that answers at once", "≥ 120 000 events/s",
        "≥ 5x the stripe SDK's stream", f"{number(rate)}, {number(times, 'x')}",
        rate >= 120_000, times >= 5,
    )  # fmt: skip
    micros, times = agent["cpu_us"], agent["cpu_us"] / sdk["cpu_us"]
    yield Verdict(
        "CPU per event, record to answer", "≤ 7 µs", "≤ 1/6 of the stripe SDK's",
        f"{number(micros)} µs, {number(times, 'x')}", micros <= 7, times <= 1 / 6,
    )  # fmt: skip
    ceiling = 100 / FAR_SECONDS
    shares = [figures["far"][f"agent {n}"]["events_per_second"] / n / ceiling for n in (8, 16, 32)]
    met = min(shares) >= 0.95
    yield Verdict(
        "end to end, 50 ms away, 8 / 16 / 32 in flight", "≥ 0.95 × N × 2 000 events/s", "the same",
        " / ".join(f"{share:.2f}" for share in shares), met, met,
    )  # fmt: skip


def _neighbour(figures: Figures) -> Iterator[Verdict]:
    agent, naive = figures["prompt"]["agent"], figures["prompt"]["requests_json"]
    rate, times = (
        agent["events_per_second"],
        agent["events_per_second"] / naive["events_per_second"],
    )
    yield Verdict(
        "shipped beside a thread that computes", "≥ 10 000 events/s", "≥ 3x requests and json",
        f"{number(rate)}, {number(times, 'x')}", rate >= 10_000, times >= 3,
    )  # fmt: skip
    share = blocked_per_10_000(agent)
    times = share / blocked_per_10_000(naive)
    yield Verdict(
        "that thread blocked, per 10 000 events/s", "≤ 8 %", "≤ 1/3 of requests and json",
        f"{share:.1%}, {number(times, 'x')}", share <= 0.08, times <= 1 / 3,
    )  # fmt: skip


def _memory(figures: Figures) -> Iterator[Verdict]:
    small, large = figures["100000"]["agent"], figures["1000000"]["agent"]
    yield Verdict(
        "memory per buffered event, without its texts", "≤ 170 bytes", "–",
        number(small["bytes_per_event"]), small["bytes_per_event"] <= 170, None,
    )  # fmt: skip
    pause = large["longest_pause_ms"]
    yield Verdict(
        "longest automatic collection, 1 000 000 waiting", "≤ 1 ms", "–",
        f"{number(pause)} ms", pause <= 1, None,
    )  # fmt: skip


def _import_time(figures: Figures) -> Iterator[Verdict]:
    agent = figures["meter_agent"]
    times = agent["ms"] / figures["stripe"]["ms"]
    loaded = ", ".join(name for name in agent["heavy"] if name in HEAVY)
    yield Verdict(
        "`import meter_agent`", "≤ 40 ms; no requests, structlog, ssl, asyncio",
        "≤ 1/3 of `import stripe`",
        f"{number(agent['ms'])} ms, {number(times, 'x')}; loads {loaded or 'none'}",
        agent["ms"] <= 40 and not loaded, times <= 1 / 3,
    )  # fmt: skip


def _first_record(figures: Figures) -> Iterator[Verdict]:
    millis = figures["agent"]["first_us"] / 1000
    default = figures["default"]["first_us"] / 1000
    yield Verdict(
        "first `record()` of a process, in the caller", "≤ 1 ms", "–",
        f"{number(millis)} ms; {number(default)} ms where it also builds the default agent",
        millis <= 1 and default <= 1, None,
    )  # fmt: skip


def _busy_threads(figures: Figures) -> Iterator[Verdict]:
    early, late = (figures[f"flush {built}"]["seconds"] for built in ("early", "late"))
    met = max(early, late) <= 1.5
    yield Verdict(
        "first delivery beside 4 threads that compute", "≤ 1.5 s", "the same",
        f"{number(early)} s; {number(late)} s where `record()` also builds the default agent",
        met, met,
    )  # fmt: skip
    ends = [figures[f"close {built}"] for built in ("early", "late")]
    seconds, delivered = max(e["seconds"] for e in ends), min(e["delivered"] for e in ends)
    met = seconds <= 5.5 and delivered == EVENTS
    yield Verdict(
        "`close(5)` beside 8 threads that compute", f"≤ 5.5 s, {EVENTS} of {EVENTS} delivered",
        "the same", f"{number(seconds)} s, {number(delivered)} of {EVENTS}", met, met,
    )  # fmt: skip


def _idle(figures: Figures) -> Iterator[Verdict]:
    wakeups = max(figures[name]["wakeups"] for name in ("agent", "agent_spool"))
    yield Verdict(
        f"idle for {number(figures['agent']['seconds'])} s", "no wake-ups", "the same",
        number(wakeups), wakeups == 0, wakeups == 0,
    )  # fmt: skip


def _process_exit(figures: Figures) -> Iterator[Verdict]:
    added = figures["agent"]["ms"] - figures["without"]["ms"]
    yield Verdict(
        "exit with an empty buffer", "≤ 5 ms added", "–", f"{number(added)} ms", added <= 5, None
    )  # fmt: skip


_CHECKS: dict[str, Callable[[Figures], Iterator[Verdict]]] = {
    "record": _record,
    "crash_safe": _crash_safe,
    "throughput": _throughput,
    "neighbour": _neighbour,
    "memory": _memory,
    "import_time": _import_time,
    "first_record": _first_record,
    "busy_threads": _busy_threads,
    "idle": _idle,
    "process_exit": _process_exit,
}


def tables(measurements: dict[str, Figures]) -> str:
    """Return the table of all targets."""
    words = {True: "yes", False: "**no**", None: "–"}
    rows = [
        [
            verdict.what,
            verdict.target,
            verdict.gate,
            verdict.measured,
            words[verdict.target_met],
            words[verdict.gate_met],
        ]
        for verdict in judge(measurements)
    ]
    return table(["", "target", "gate", "measured", "target met", "gate met"], rows, left=6)
