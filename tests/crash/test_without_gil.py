"""What a build without the interpreter lock does, on one that has it.

Such a build says so by `sys._is_gil_enabled()`, which a script can answer for it before the package
is imported. Its appends are not one step: here an append gives the interpreter away halfway.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.crash.lives import agent, billed, wait_until_empty
from tests.process.scripts import run

WITHOUT_GIL = """
import mmap, sys, time

class TornMap(mmap.mmap):
    def write(self, data):
        if self.tell() + len(data) > len(self):
            raise ValueError("data out of range")
        half = len(data) // 2
        super().write(data[:half])
        time.sleep(0)
        super().write(data[half:])
        return len(data)

mmap.mmap = TornMap
sys._is_gil_enabled = lambda: False
"""

PRODUCE = """
def produce(first):
    for n in range(first, first + 500):
        assert agent.record("tokens", "cus_1", n)
threads = [threading.Thread(target=produce, args=(500 * n,)) for n in range(4)]
for thread in threads:
    thread.start()
"""
JOIN = """
for thread in threads:
    thread.join()
"""


def test_records_of_many_threads_do_not_mix_where_an_append_is_not_one_step(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    died = run(
        agent(tmp_path) + PRODUCE + JOIN + "os.kill(os.getpid(), signal.SIGKILL)\n",
        server.url,
        before=WITHOUT_GIL,
    )
    assert died.returncode == -9
    done = run(agent(tmp_path) + wait_until_empty(tmp_path), server.url)
    assert "meter_agent.spool_damaged" not in done.stderr
    assert billed(sandbox) == list(range(2000))


def test_a_child_is_not_held_up_by_a_lock_that_a_thread_of_its_parent_held(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    done = run(
        agent(tmp_path, 0.01)
        + PRODUCE
        + """
children = []
for n in range(8):
    if not (child := os.fork()):
        for m in range(10):
            assert agent.record("tokens", "cus_1", 100_000 + 10 * n + m)
        os._exit(not agent.flush(20))
    children.append(child)
ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
"""
        + JOIN
        + "assert agent.flush(20)\nprint(ends)\n",
        server.url,
        before=WITHOUT_GIL,
    )
    assert json.loads(done.stdout) == [0] * 8
    assert billed(sandbox) == [*range(2000), *range(100_000, 100_080)]
    assert sandbox.totals()["duplicates"] == 0


@pytest.mark.parametrize("before", ["", WITHOUT_GIL], ids=["with", "without"])
def test_the_lock_is_taken_only_where_there_is_no_interpreter_lock(
    server: SandboxServer, tmp_path: Path, before: str
) -> None:
    done = run(
        agent(tmp_path)
        + """
assert agent.record("tokens", "cus_1")
thread = threading.Thread(target=agent.record, args=("tokens", "cus_1"))
with agent._pipeline._buffer._lock:
    thread.start()
    thread.join(0.3 if "_is_gil_enabled" in vars(sys) and not sys._is_gil_enabled() else 20)
    print(thread.is_alive())
thread.join()
""",
        server.url,
        before=before,
    )
    assert done.stdout == f"{bool(before)}\n"
