"""What `import` costs a process that has imported nothing yet, bytecode being cached."""

from __future__ import annotations

from functools import partial

from benchmarks import child
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, interleaved, ratio

PACKAGES = {
    "meter_agent": "meter_agent",
    "requests": "requests",
    "stripe": "stripe",
    "posthog": "posthog",
    "segment": "segment.analytics",
    "opentelemetry": "opentelemetry.sdk._logs.export",
}
HEAVY = ("requests", "urllib3", "structlog", "tenacity", "ssl", "asyncio")
"""What the agent may import only when it is needed."""
_SCRIPT = """
import time
began = time.perf_counter()
import {package}
seconds = time.perf_counter() - began
import json, sys
print(json.dumps({{"ms": seconds * 1000, "modules": len(sys.modules),
    "heavy": [name for name in {heavy} if name in sys.modules]}}))
"""


def measure(plan: Plan) -> Figures:
    subjects = {name: partial(_import, package) for name, package in PACKAGES.items()}
    interleaved(subjects, 1)  # the first import writes the bytecode
    return interleaved(subjects, plan.pick(7, 21))


def _import(package: str) -> Figures:
    return child.script(_SCRIPT.format(package=package, heavy=HEAVY))


def tables(figures: Figures) -> str:
    stripe = figures["stripe"]["ms"]
    rows = [
        [
            f"`import {PACKAGES[name]}`",
            number(each["ms"]),
            number(ratio(each["ms"], stripe), "x"),
            ", ".join(each["heavy"]) or "none",
        ]
        for name, each in figures.items()
    ]
    head = ["", "ms", "of stripe", f"of {', '.join(HEAVY)}: loads"]
    return table(head, rows)
