"""Two hundred short lives in one small directory."""

from __future__ import annotations

import json
from pathlib import Path

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.crash.lives import billed, segments
from tests.process.scripts import run

WORKERS = 200
EVENTS = 20
SPOOL_BYTES = 1024 * 1024

SCRIPT = """
import json, mmap, pathlib
from meter_agent import _sender, _spool, _stream  # once for all workers
from meter_agent._agent import adopt
from meter_agent._transport import preload
preload()
spool = pathlib.Path({spool!r})
workers = {workers}
notes = mmap.mmap(-1, 3 * 8 * (workers + 2))  # which outlive a worker
note = memoryview(notes).cast("Q", (workers + 2, 3))
RECORDED, MADE, TAKEN = range(3)

# The disk is measured by whoever has just taken a piece of it, when alone its use can have grown.
allocate = os.posix_fallocate

def sizes():
    return {{entry.name: entry.stat().st_size for entry in spool.glob("*.segment")}}

def bytes_taken():
    try:
        before, after = sizes(), sizes()
    except FileNotFoundError:
        return bytes_taken()  # one has gone meanwhile
    # What is in both looks was there in between, all of it at once: names are not used again.
    return sum(before[name] for name in before.keys() & after.keys())

def allocate_and_measure(descriptor, offset, size):
    allocate(descriptor, offset, size)
    note[me, MADE] += 1
    note[me, TAKEN] = max(bytes_taken(), note[me, TAKEN])

os.posix_fallocate = allocate_and_measure

def work():
    agent = MeterAgent(sandbox_url=URL, spool_dir=spool, spool_bytes={spool_bytes})
    delivers = me > 30 and me % 8 == 0 or me >= workers
    while delivers and not adopt(agent):
        pass
    for n in range({events}):
        if not agent.record("tokens", "cus_1", {events} * me + n):
            break
        note[me, RECORDED] += 1
    if not delivers:
        os.kill(os.getpid(), signal.SIGKILL)
    final = agent.close(20)
    assert final.balanced and not final.buffered and not final.spool_failures, final
    os._exit(0)

ends = []
def wait():
    living.remove(child := os.wait()[0])
living = set()
# Two come when the others are gone: one to deliver what they left, one for whom there is room.
for me in range(workers + 2):
    while len(living) >= (4 if me < workers else 1):
        wait()
    child = os.fork()
    if not child:
        work()
    living.add(child)
while living:
    wait()
print(json.dumps(note.tolist()))
"""


def test_two_hundred_short_workers_share_one_mebibyte_and_lose_nothing(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    script = SCRIPT.format(
        spool=str(spool), workers=WORKERS, events=EVENTS, spool_bytes=SPOOL_BYTES
    )
    done = run(script, server.url)
    notes = json.loads(done.stdout)
    recorded, made, taken = zip(*notes, strict=True)
    # The first thirty leave more behind than the directory may hold, and it is filled to the brim.
    assert max(taken) == SPOOL_BYTES
    assert set(made) == {0, 1}, "nothing is prepared that is not wanted"
    assert sum(recorded) > 0.2 * WORKERS * EVENTS, "room is made, again and again"
    assert recorded[WORKERS + 1] == EVENTS, "there is room again"
    held = [EVENTS * worker + n for worker, count in enumerate(recorded) for n in range(count)]
    assert billed(sandbox) == held
    assert segments(spool) == []
