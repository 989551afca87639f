"""How long the next process takes to deliver what a killed one left in its spool."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from functools import partial

from benchmarks import child
from benchmarks.markdown import number, table
from benchmarks.plan import Plan
from benchmarks.rounds import Figures, interleaved
from benchmarks.sinks import counts

EVENTS = 100_000
_PATIENCE_SECONDS = 120
_DYING = """
import os, signal, sys
from meter_agent import MeterAgent
agent = MeterAgent(sandbox_url=sys.argv[1], spool_dir=sys.argv[2], flush_interval_seconds=3600)
for n in range(int(sys.argv[3])):
    agent.record("api_requests", "cus_1", 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def measure(plan: Plan) -> Figures:
    subject = partial(_killed_and_recovered, plan.sink.hold, plan.sink.prompt)
    return interleaved({"recovery": subject}, plan.pick(1, 5))


def _killed_and_recovered(hold: str, prompt: str) -> Figures:
    with tempfile.TemporaryDirectory(prefix="meter-agent-bench-") as spool:
        words = [sys.executable, "-c", _DYING, hold, spool, str(EVENTS)]
        died = subprocess.run(words, env=child.environment(), check=False)
        if died.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the recorder ended with {died.returncode}")
        return child.call("benchmarks.recovery:recover", url=prompt, spool=spool)


def recover(url: str, spool: str) -> Figures:
    """Deliver everything in *spool* from this process; imports included."""
    from meter_agent import MeterAgent  # only in the process that measures it

    before = counts(url)["events"]
    began = time.perf_counter()
    agent = MeterAgent(sandbox_url=url, spool_dir=spool, max_events_per_second=1e6)
    while agent.stats().delivered < EVENTS:
        if time.perf_counter() > began + _PATIENCE_SECONDS:
            raise RuntimeError(f"not recovered: {agent.stats()}")
        time.sleep(0.005)
    seconds = time.perf_counter() - began
    arrived = counts(url)["events"] - before
    agent.close()
    if arrived != EVENTS:
        raise RuntimeError(f"{EVENTS} events were left, {arrived} arrived")
    return {"seconds": seconds}


def tables(figures: Figures) -> str:
    seconds = figures["recovery"]["seconds"]
    row = [f"{EVENTS:,} events of a killed process", number(seconds), number(EVENTS / seconds)]
    return table(["", "seconds until all are delivered", "events/s"], [row])
