"""Other processes on the same spool."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.patience import PATIENCE_SECONDS

_SCRIPT = """
import sys
from meter_agent import MeterAgent
from meter_agent._agent import adopt
agent = MeterAgent(
    sandbox_url="http://127.0.0.1:9", spool_dir=sys.argv[1], flush_interval_seconds=3600,
    shutdown_timeout_seconds=0,
)
while not adopt(agent):  # what it finds when it starts; the next look is in 30 s
    pass
for n in range(int(sys.argv[2])):
    assert agent.record("tokens", "cus_1", n)
print("recorded", flush=True)
for line in sys.stdin:
    print(agent.record("tokens", "cus_1", 1), flush=True)
"""

_HEIR = """
import sys
from meter_agent import MeterAgent
from meter_agent._agent import adopt
agent = MeterAgent(sandbox_url="http://127.0.0.1:9", spool_dir=sys.argv[1])
while not adopt(agent):
    pass
print(agent.close(0).recovered)
"""


@contextmanager
def owner(spool: Path, events: int = 10) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds *events* in *spool*; a line to it records one more."""
    with subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(spool), str(events)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "recorded\n"
            yield process
        finally:
            process.kill()


def record_one(process: subprocess.Popen[str]) -> bool:
    """Have the owner record one more event; say whether it was taken."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline() == "True\n"


def adopted_by_another_process(spool: Path) -> int:
    """Have a process adopt what it can, and return how many events that were."""
    done = subprocess.run(
        [sys.executable, "-c", _HEIR, str(spool)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return int(done.stdout)
