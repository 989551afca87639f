"""The figures of a run as plots, SVG that is the same for the same figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.clients import BATCH, LABELS
from benchmarks.markdown import number
from benchmarks.neighbour import blocked_per_10_000
from benchmarks.rounds import Figures
from benchmarks.sinks import FAR_SECONDS
from benchmarks.throughput import IN_FLIGHT

_OURS, _OTHERS, _FLOOR = "#2f6f9f", "#b8b8b8", "#6f6f6f"
_FLOORS = {"deque", "raw_socket"}

mpl.use("svg")
mpl.rcParams |= {
    "svg.hashsalt": "meter_agent",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(measurements: dict[str, Figures], directory: Path) -> Iterator[Path]:
    """Write the plots into *directory*."""
    directory.mkdir(exist_ok=True)
    throughput = measurements["throughput"]
    quiet = _column(measurements["record"]["quiet"], "nanoseconds")
    yield _bars(directory / "record.svg", "one record(), ns, one thread", quiet)
    cpu = _column(throughput["prompt"], "cpu_us")
    yield _bars(directory / "cpu.svg", "CPU time of one event, record to answer, µs", cpu)
    blocked = {
        name: 100 * blocked_per_10_000(each)
        for name, each in measurements["neighbour"]["prompt"].items()
        if name != "nobody"
    }
    title = "a busy thread is blocked, % of its time for each 10 000 events/s"
    yield _bars(directory / "blocked.svg", title, blocked)
    yield _in_flight(directory / "in_flight.svg", throughput["far"])
    yield _tails(directory / "crash_safe.svg", measurements["crash_safe"])


def _column(subjects: dict[str, Figures], column: str) -> dict[str, float]:
    return {name: figures[column] for name, figures in subjects.items()}


def _bars(path: Path, title: str, values: dict[str, float]) -> Path:
    names = sorted(values, key=lambda name: -values[name])
    figure, axes = _figure(0.9 + 0.3 * len(names))
    axes.barh([LABELS[name] for name in names], [values[n] for n in names], color=_colors(names))
    for place, name in enumerate(names):
        axes.text(values[name], place, f" {number(values[name])}", va="center")
    axes.set_xscale("log")
    axes.set_title(title, loc="left", fontsize=10)
    return _save(figure, path)


def _colors(names: list[str]) -> list[str]:
    return [
        _OURS if name.startswith("agent") else _FLOOR if name in _FLOORS else _OTHERS
        for name in names
    ]


def _in_flight(path: Path, far: dict[str, Figures]) -> Path:
    figure, axes = _figure(3.6)
    ceiling = [n * BATCH / FAR_SECONDS for n in IN_FLIGHT]
    axes.plot(IN_FLIGHT, ceiling, color=_FLOOR, linestyle=":", label="all that is possible")
    agent = [far[f"agent {n}"]["events_per_second"] for n in IN_FLIGHT]
    axes.plot(IN_FLIGHT, agent, color=_OURS, marker="o", label="meter_agent")
    for subject, figures in far.items():
        name, n = subject.split()
        if name != "agent":
            rate = figures["events_per_second"]
            axes.plot(int(n), rate, color=_OTHERS, marker="s")
            axes.annotate(f" {LABELS[name].partition(',')[0]}", (int(n), rate), fontsize=7)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(IN_FLIGHT, [str(n) for n in IN_FLIGHT])
    axes.set_xlabel("requests in flight")
    axes.set_title("events a second, a server 50 ms away", loc="left", fontsize=10)
    axes.legend(frameon=False)
    return _save(figure, path)


def _tails(path: Path, ways: dict[str, Figures]) -> Path:
    labels = {
        "deque": "bare append",
        "agent": "record(), in memory",
        "agent_spool": "record(), crash-safe",
        "os_write": "os.write",
        "sqlite": "SQLite",
    }
    columns = {"p50": "o", "p99": "^", "p99_9": "s", "max": "x"}
    figure, axes = _figure(2.6)
    for place, name in enumerate(reversed(labels)):
        values = [ways[name][f"beside_{column}"] for column in columns]
        axes.plot([values[0], values[-1]], [place, place], color=_OTHERS, zorder=1)
        for value, marker in zip(values, columns.values(), strict=True):
            axes.scatter(value, place, marker=marker, color=_colors([name])[0], zorder=2, s=22)
    axes.set_yticks(range(len(labels)), list(reversed(labels.values())))
    axes.set_xscale("log")
    title = "one call beside a thread that computes, µs: p50 ●, p99 ▲, p99.9 ■, longest ×"
    axes.set_title(title, loc="left", fontsize=10)
    return _save(figure, path)


def _figure(height: float) -> tuple[Any, Axes]:
    figure = Figure(figsize=(7.2, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    return path
