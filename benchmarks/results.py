"""One run: all measurements, with the machine they were made on, as JSON."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, cast

from benchmarks.plan import Plan
from benchmarks.rounds import Figures

STORED = Path(__file__).parent / "results" / "full.json"
"""The run that the documentation shows."""

MEASUREMENTS = (
    "record",
    "nanoseconds",
    "crash_safe",
    "throughput",
    "neighbour",
    "wire",
    "encoding",
    "memory",
    "import_time",
    "first_record",
    "busy_threads",
    "idle",
    "process_exit",
    "drain",
    "recovery",
)
_FULL_ONLY = {"nanoseconds"}


def names(*, quick: bool) -> list[str]:
    """Return what is measured in this mode."""
    return [name for name in MEASUREMENTS if not (quick and name in _FULL_ONLY)]


class Measurement(Protocol):
    """A module that measures."""

    def measure(self, plan: Plan) -> Figures:
        """Return the figures."""

    def tables(self, figures: Figures) -> str:
        """Return them as Markdown."""


def measurement(name: str) -> Measurement:
    """Return the module of that name."""
    return cast("Measurement", importlib.import_module(f"benchmarks.{name}"))


def tables(results: dict[str, Any], names: Iterable[str] = MEASUREMENTS) -> dict[str, str]:
    """Return the tables of each measurement that was made."""
    made = results["measurements"]
    return {name: measurement(name).tables(made[name]) for name in names if name in made}


def machine(results: dict[str, Any]) -> str:
    """Return a sentence about where and how it was measured."""
    found, sink = results["machine"], results["sink"]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    mode = "quick" if results["quick"] else "full"
    return (
        f"Measured {found['date']} in the {mode} mode ({results['seconds'] / 60:.0f} minutes) on "
        f"{found['cores']} cores of {found['processor']}, {found['memory_gib']} GiB, "
        f"{found['system']}, {found['python']}.\n"
        f"The sink ({sink['loop']}) answers {sink['requests_per_second']:,.0f} requests of 100 "
        f"events a second, {sink['requests_per_second'] / 10_000:.1f} million events.\n"
        f"Packages: {packages}.\n"
    )


def save(results: dict[str, Any], path: Path) -> None:
    """Write *results*, with five digits of each number and a line for each measurement."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = _rounded(results)
    made = rounded.pop("measurements")
    lines = [f'  "{name}": {json.dumps(figures)}' for name, figures in made.items()]
    head = json.dumps(rounded, indent=1)[:-2]
    path.write_text(f'{head},\n "measurements": {{\n' + ",\n".join(lines) + "\n }\n}\n")


def load(path: Path) -> dict[str, Any]:
    """Read what `save()` wrote."""
    return dict(json.loads(path.read_text()))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return value
