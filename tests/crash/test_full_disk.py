"""A disk without room: memory takes over, nothing is lost, and files are used again in time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.crash.disks import FullDisk, full_disk
from tests.crash.lives import billed
from tests.process.scripts import run

ROOT = Path(__file__).parents[2]

SCRIPT = """
import itertools, json, pathlib
sys.path.insert(0, {root!r})
from meter_agent import Config
from meter_agent._agent import build
from tests.virtual import ShiftedRuntime
spool = pathlib.Path({disk!r}, "spool")
runtime = ShiftedRuntime()

told = threading.Event()
class Ear(logging.Handler):
    def emit(self, record):
        if record.event == "meter_agent.spool_failed":
            told.set()
logging.getLogger().addHandler(Ear())  # behind the one that writes

def live():
    agent = build(
        Config(sandbox_url=URL, spool_dir=spool, flush_interval_seconds=3600), runtime=runtime
    )
    numbers = itertools.count()
    def record(count):
        for n in itertools.islice(numbers, count):
            assert agent.record("tokens", "cus_1", n)
    record(10)
    assert list(spool.glob("*.segment"))
    fill()
    record(5000)
    assert agent.flush(20)
    assert told.wait(20)
    full = agent.stats()
    assert not list(spool.glob("*.segment"))
    free()
    runtime.advance(5.0)
    while not list(spool.glob("*.segment")):
        record(1)
        assert agent.flush(20)
    before = agent.stats()
    record(50)
    after = agent.stats()
    assert (full.balanced, before.balanced, after.balanced) == (True, True, True)
    print(json.dumps({{
        "failures": full.spool_failures,
        "later": after.spool_failures - full.spool_failures,
        "delivered": before.delivered,
        "recorded": before.recorded,
        "left": after.buffered + after.in_flight,
        "dropped": dict(after.dropped),
    }}), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

child = os.fork()
if not child:
    live()
_, status = os.waitpid(child, 0)
print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
fill()
heir = MeterAgent(sandbox_url=URL, spool_dir=spool)
while list(spool.glob("*.segment")):
    time.sleep(0.001)
final = heir.close(20)
print(json.dumps([final.recovered, final.delivered, final.spool_failures, dict(final.dropped)]))
"""


@pytest.mark.parametrize("full", [full_disk()], ids=lambda full: full.name)
def test_a_disk_that_runs_full_and_is_freed_costs_nothing_and_neither_does_a_death_after_that(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, full: FullDisk
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    done = run(
        full.control(disk) + SCRIPT.format(root=str(ROOT), disk=str(disk)),
        server.url,
        within=full.within(disk),
    )
    assert done.returncode == 0, done
    life, death, heir = map(json.loads, done.stdout.splitlines())
    # SIGBUS would be another death. The disk was asked now and then, and not at every call.
    assert death == -9
    assert 1 <= life.pop("failures") <= 3
    recorded = life["recorded"]
    assert recorded > 5010
    assert life == {
        "later": 0,
        "delivered": recorded,
        "recorded": recorded,
        "left": 50,
        "dropped": {},
    }
    # What was recorded last waited in a file again, and is sent from a disk that is full.
    assert heir == [50, 50, 0, {}]
    (line,) = [text for text in done.stderr.splitlines() if "meter_agent.spool_failed" in text]
    assert full.complaint in line
    assert billed(sandbox) == list(range(recorded + 50))
    assert sandbox.totals()["duplicates"] == 0
