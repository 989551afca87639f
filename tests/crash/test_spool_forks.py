"""Children that no hook of Python saw: they neither write to their parent's files nor hold them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.crash.lives import Start, agent, billed, segments, wait_until_empty
from tests.process.scripts import ledger, run, wait_for

# From a single thread, because such a fork copies the interpreter's own lock as it stands: the
# sender has ended before, and the next event would start another one.
FORK = """
import ctypes
libc = ctypes.PyDLL(None)
def end_the_sender():
    flusher = agent._pipeline._flusher
    flusher._stopped = True
    flusher._doorbell.ring()
    while [t for t in threading.enumerate() if t is not threading.current_thread()]:
        time.sleep(0.001)
    flusher._stopped = False
"""


def test_a_child_that_no_hook_saw_writes_to_a_file_of_its_own(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    done = run(
        agent(tmp_path)
        + FORK
        + """
for n in range(10): assert agent.record("tokens", "cus_1", n)
end_the_sender()
if not (child := libc.fork()):
    for n in range(100, 110): assert agent.record("tokens", "cus_1", n)
    os.kill(os.getpid(), signal.SIGKILL)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
for n in range(10, 20): assert agent.record("tokens", "cus_1", n)
print(agent.stats().recorded)
assert agent.flush(20)
""",
        server.url,
    )
    assert done.stdout == "20\n"
    assert ledger(done)["recorded"] == 20
    assert "damaged" not in done.stderr
    run(agent(tmp_path) + wait_until_empty(tmp_path), server.url)
    assert billed(sandbox) == [*range(20), *range(100, 110)]
    assert sandbox.totals()["duplicates"] == 0


def test_a_child_that_no_hook_saw_and_that_lives_on_in_silence_holds_no_file_of_its_dead_parent(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, start: Start
) -> None:
    parent = start(
        agent(tmp_path)
        + FORK
        + """
for n in range(10): assert agent.record("tokens", "cus_1", n)
end_the_sender()
if not libc.fork():
    print("child", flush=True)
    signal.pause()
signal.pause()
""",
        server.url,
    )
    wait_for(parent, "child")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    run(agent(tmp_path) + wait_until_empty(tmp_path), server.url)
    assert billed(sandbox) == list(range(10))
    assert segments(tmp_path) == []
