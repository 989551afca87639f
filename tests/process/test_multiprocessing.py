"""Children of `multiprocessing` deliver what they record, with no code of the application's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.process.scripts import run_file

METHODS = ["fork", "spawn", "forkserver"]

MAIN = """
import multiprocessing, os, sys, warnings
from concurrent.futures import ProcessPoolExecutor
import meter_agent

warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of fork beside threads

def work(name):
    return [meter_agent.record("tokens", name) for _ in range(40)] == [True] * 40

def fail():
    meter_agent.record("tokens", "child")
    sys.exit(7)

if __name__ == "__main__":
    os.environ["METER_AGENT_SANDBOX_URL"] = os.environ["SANDBOX"]
    os.environ["METER_AGENT_FLUSH_INTERVAL_SECONDS"] = "60"  # only the end of a process sends
    assert work("parent")
    context = multiprocessing.get_context(sys.argv[1])
"""

PROCESSES = """
    children = [context.Process(target=work, args=("child",)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
"""

POOL = """
    pool = context.Pool(2)
    assert all(pool.map(work, ["child"] * 3, chunksize=1))
    pool.close()
    pool.join()
"""

EXECUTOR = """
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        assert all(executor.map(work, ["child"] * 3))
"""

MAX_TASKS = """
    pool = context.Pool(1, maxtasksperchild=1)
    assert all(pool.map(work, ["child"] * 3, chunksize=1))
    pool.close()
    pool.join()
"""

EXIT_STATUS = """
    child = context.Process(target=fail)
    child.start()
    child.join()
    assert child.exitcode == 7, child.exitcode
"""


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


def customers(sandbox: Sandbox) -> Counter[str]:
    return Counter(entry["customer"] for entry in sandbox.ledger())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "parent",
    [PROCESSES, POOL, EXECUTOR],
    ids=["Process", "Pool", "ProcessPoolExecutor"],
)
def test_children_deliver_everything_and_nothing_of_their_parent(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, method: str, parent: str
) -> None:
    main = tmp_path / "main.py"
    main.write_text(MAIN + parent, encoding="utf-8")
    done = run_file(main, server.url, method)
    assert (done.returncode, done.stderr) == (0, "")
    assert customers(sandbox) == {"parent": 40, "child": 120}
    assert sandbox.totals()["duplicates"] == 0


def test_workers_that_are_replaced_after_each_task_deliver_before_they_go(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path
) -> None:
    main = tmp_path / "main.py"
    main.write_text(MAIN + MAX_TASKS, encoding="utf-8")
    done = run_file(main, server.url, "fork")
    assert (done.returncode, done.stderr) == (0, "")
    assert customers(sandbox) == {"parent": 40, "child": 120}


@pytest.mark.parametrize("method", METHODS)
def test_a_child_keeps_its_exit_status(
    sandbox: Sandbox, server: SandboxServer, tmp_path: Path, method: str
) -> None:
    main = tmp_path / "main.py"
    main.write_text(MAIN + EXIT_STATUS, encoding="utf-8")
    done = run_file(main, server.url, method)
    assert (done.returncode, done.stderr) == (0, "")
    assert customers(sandbox) == {"parent": 40, "child": 1}
