"""Pieces of the scripts of processes that share a spool, and what is seen of them from outside."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meter_agent.sandbox import Sandbox
from tests.patience import PATIENCE_SECONDS

__all__ = ["KILL", "Start", "agent", "billed", "killed", "segments", "wait_until_empty"]

Start = Callable[..., Any]

AGENT = """
agent = MeterAgent(sandbox_url=URL, spool_dir={spool!r}, flush_interval_seconds={interval})
"""
KILL = """
os.kill(os.getpid(), signal.SIGKILL)
"""


def agent(spool: Path, interval: float = 60.0) -> str:
    return AGENT.format(spool=str(spool), interval=interval)


def wait_until_empty(spool: Path) -> str:
    return f"""
import pathlib
while list(pathlib.Path({str(spool)!r}).glob("*.segment")):
    time.sleep(0.001)
"""


def killed(process: Any) -> None:
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == -signal.SIGKILL


def billed(sandbox: Sandbox) -> list[int]:
    return sorted(int(row["value"]) for row in sandbox.ledger(limit=None))


def segments(spool: Path) -> list[Path]:
    return sorted(spool.glob("*.segment"))
