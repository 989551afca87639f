"""Kill a process that records, start the next one, and compare the books at the end."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

from meter_agent import MeterAgent
from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.crash import recorder

__all__ = ["Report", "run_rounds"]

_LIFE_SECONDS_MAX = 0.03
_DRAIN_SECONDS = 120.0


@dataclass(frozen=True)
class Report:
    """What came of all rounds."""

    rounds: int
    recorded: int
    """Events whose `record()` had returned True."""
    delivered: int
    lost: int
    doubled: int
    """Events that were billed twice, under two identifiers."""
    invented: int
    """Events that were billed and never recorded."""
    resent: int
    """Events that were sent again with the same identifier, and billed once."""
    left: int
    """Files that were left in the spool."""

    @property
    def clean(self) -> bool:
        """Whether the books agree to the last event."""
        return not (self.lost or self.doubled or self.invented or self.left)


def run_rounds(rounds: int, *, seed: int, directory: Path, cut: bool) -> Report:
    """Let *rounds* processes record and be killed, each after a moment drawn from *seed*.

    Args:
        rounds: How many.
        seed: Draws the moments.
        directory: For the spool.
        cut: The server takes in three of ten batches and cuts the connection before its answer.
    """
    random = Random(seed)
    sandbox = Sandbox()
    if cut:
        sandbox.add_fault(Fault("reset", when="after", probability=0.3))
    spool = directory / "spool"
    counters: list[int] = []
    with SandboxServer(sandbox) as server:
        for life in range(rounds):
            counters += _live_and_die(server.url, directory, life, random)
        heir = MeterAgent(
            sandbox_url=server.url,
            spool_dir=spool,
            retry_base_seconds=0.01,
            retry_max_seconds=0.05,
        )
        deadline = time.monotonic() + _DRAIN_SECONDS
        while any(spool.glob("*.segment")) and time.monotonic() < deadline:
            time.sleep(0.01)
        heir.close()
    return _compare(rounds, counters, sandbox, spool)


def _live_and_die(url: str, directory: Path, life: int, random: Random) -> list[int]:
    log = directory / f"{life}.log"
    log.write_bytes(bytes(8 * recorder.THREADS))
    process = subprocess.Popen(
        [sys.executable, recorder.__file__, url, directory / "spool", log, str(life)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.write(b"go\n")
        process.stdin.flush()
        time.sleep(random.random() * _LIFE_SECONDS_MAX)
        process.kill()
    return list(struct.unpack(f"={recorder.THREADS}Q", log.read_bytes()))


def _compare(rounds: int, counters: list[int], sandbox: Sandbox, spool: Path) -> Report:
    billed = Counter(int(row["value"]) for row in sandbox.ledger(limit=None))
    certain, possible = set[int](), set[int]()
    for index, count in enumerate(counters):
        first = index * recorder.NUMBERS + 1
        certain.update(range(first, first + count))
        # The process may have died between the append and the note of it.
        possible.add(first + count)
    return Report(
        rounds=rounds,
        recorded=len(certain),
        delivered=len(billed),
        lost=len(certain - billed.keys()),
        doubled=sum(times - 1 for times in billed.values()),
        invented=len(billed.keys() - certain - possible),
        resent=sandbox.totals()["duplicates"],
        left=len(list(spool.glob("*.segment"))),
    )
