"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "meter-agent",
    "requests",
    "urllib3",
    "tenacity",
    "structlog",
    "stripe",
    "posthog",
    "segment-analytics-python",
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-http",
    "orjson",
    "msgspec",
    "uvloop",
)


def describe() -> dict[str, Any]:
    """Return processor, system, interpreter and packages; no name of a host or a user."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "switch_interval_seconds": sys.getswitchinterval(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float | None:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
    return round(pages / 2**30, 1)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
