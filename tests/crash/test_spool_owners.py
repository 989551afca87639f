"""Who owns a segment where process ids and locks alone would say something else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meter_agent._segment_lock import living_owner, lock, name_owner, this_process
from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.crash.lives import KILL, Start, agent, billed, killed, segments, wait_until_empty
from tests.process.scripts import finish, run, wait_for
from tests.spool.owners import adopted_by_another_process, owner
from tests.spool.spools import Spool
from tests.virtual import VirtualRuntime

RECORD = "for n in range({0}, {0} + 100): assert agent.record('tokens', 'cus_1', n)\n"

# A process that another container would have: number 1 of a namespace of its own.
ALONE = ("unshare", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")))
NAMESPACE = (*ALONE, "--pid", "--fork", "--kill-child", "--mount-proc")


AS_PROCESS_1 = "assert os.getpid() == 1, 'unshare made no namespace of process ids'\n"


def test_after_a_restart_of_a_container_process_1_recovers_what_process_1_left(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    script = AS_PROCESS_1 + agent(tmp_path)
    # Where namespaces are refused, this fails with the words of unshare.
    first = run(script + RECORD.format(0) + "os._exit(7)\n", server.url, within=NAMESPACE)
    assert (first.returncode, first.stderr) == (7, "")
    run(script + wait_until_empty(tmp_path), server.url, within=NAMESPACE)
    assert billed(sandbox) == list(range(100))


def test_after_execv_a_process_recovers_what_it_left_before(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    after = f"""
import os, time
from meter_agent import MeterAgent
URL = {server.url!r}
{agent(spool)}{wait_until_empty(spool)}print(os.getpid())
"""
    before = f"""
{agent(spool)}{RECORD.format(0)}print(os.getpid(), flush=True)
os.execv(sys.executable, [sys.executable, "-c", {after!r}])
"""
    before_it, now = run(before, server.url).stdout.split()
    assert before_it == now
    assert billed(sandbox) == list(range(100))


SECOND_COPY = """
for name in [name for name in sys.modules if name.startswith("meter_agent")]:
    del sys.modules[name]
from meter_agent import MeterAgent as SecondMeterAgent
from meter_agent._agent import adopt
assert SecondMeterAgent is not MeterAgent
"""


def test_a_second_copy_of_the_package_in_a_process_leaves_the_segments_of_the_first_alone(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, start: Start
) -> None:
    # As two applications in one uWSGI or mod_wsgi process have it.
    killed(
        start(
            agent(tmp_path)
            + RECORD.format(0)
            + SECOND_COPY
            + agent(tmp_path).replace("agent = MeterAgent", "second = SecondMeterAgent")
            + f"""
while not adopt(second):
    pass
assert second.stats().recovered == 0
{RECORD.format(100)}{RECORD.format(200).replace("agent", "second")}{KILL}""",
            server.url,
        )
    )
    run(agent(tmp_path) + wait_until_empty(tmp_path), server.url)
    assert billed(sandbox) == list(range(300))


COPY = "import shutil\nshutil.copytree({0!r}, {0!r} + '.copy')\n"


@pytest.mark.parametrize("within", [(), NAMESPACE], ids=["here", "in a container"])
def test_a_process_that_copies_its_spool_keeps_its_segments(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, start: Start, within: tuple[str, ...]
) -> None:
    # Closing the copied file ends the POSIX lock of the process that copies it.
    spool = tmp_path / "spool"
    process = start(
        agent(spool)
        + RECORD.format(0)
        + COPY.format(str(spool))
        + f"""
print("copied", flush=True)
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.001)
{RECORD.format(100)}assert agent.flush(60)
""",
        server.url,
        within=within,
    )
    wait_for(process, "copied")
    assert adopted_by_another_process(spool) == 0
    (tmp_path / "go").touch()
    finish(process)
    assert billed(sandbox) == list(range(200))
    assert segments(spool) == []


def test_the_owner_takes_a_lock_that_it_lost_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    script = """
import fcntl, pathlib, sys
with next(pathlib.Path(sys.argv[1]).glob("*.segment")).open("r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
"""

    def may_be_locked() -> bool:
        command = [sys.executable, "-c", script, str(tmp_path)]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    runtime = VirtualRuntime()
    spool = Spool(tmp_path, runtime)
    spool.buffer.tend()
    assert spool.record("tokens", "cus_1", 1)
    (segment,) = segments(tmp_path)
    assert not may_be_locked()
    segment.open("rb").close()
    assert may_be_locked()
    runtime.advance(31.0)
    spool.buffer.tend()
    assert not may_be_locked()


def test_a_process_that_died_with_the_number_of_one_that_lives_is_dead(tmp_path: Path) -> None:
    # Its lock is held by a child, as after a fork that no hook saw.
    tmp_path.chmod(0o700)
    with owner(tmp_path) as process:
        (segment,) = segments(tmp_path)
        with segment.open("r+b") as file:
            assert living_owner(file.fileno()) == process.pid
        process.kill()
    holder = os.open(segment, os.O_RDWR)
    assert lock(holder)
    me = this_process()
    for named, alive in ((me, me.process_id), (me._replace(started=1), None)):
        name_owner(holder, named)
        with segment.open("r+b") as file:
            assert living_owner(file.fileno()) == alive
    name_owner(holder, me._replace(started=1, boot="another"))
    with segment.open("r+b") as file:
        assert living_owner(file.fileno()) == 0, "nothing is known of another boot"
    os.close(holder)
