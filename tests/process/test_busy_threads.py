"""Beside threads that compute: the agent delivers, and `close()` keeps its limit.

What is measured is the time that the process computed, all of its threads together. While threads
compute that is the time that passed, and it does not grow with the load of the machine.
"""

from __future__ import annotations

import ast
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.process.scripts import DEFAULT_AGENT, finish, run, start, wait_for

BUILT_BEFORE = "agent = MeterAgent(sandbox_url=URL)"
BUILT_BY_RECORD = "agent = meter_agent"
BUSY = """
def compute():
    while True:
        pass
for _ in range(8):
    threading.Thread(target=compute, daemon=True).start()
"""
CLOSE = """
for n in range(100):
    assert agent.record("tokens", "cus_1")
began = time.process_time()
final = agent.close({timeout})
seconds = time.process_time() - began
print((seconds, final.delivered, final.dropped_total, sys.getswitchinterval()), flush=True)
os._exit(0)
"""

when_built = pytest.mark.parametrize(
    "build", [BUILT_BEFORE, BUILT_BY_RECORD], ids=["built before them", "built by record()"]
)


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def close_beside_busy_threads(build: str, url: str, timeout: float) -> Any:
    script = "\n".join([build, BUSY, CLOSE.format(timeout=timeout)])
    process = start(script, url, before=DEFAULT_AGENT)
    return ast.literal_eval(finish(process, timeout=120).stdout)


@when_built
def test_close_delivers_beside_threads_that_compute(
    sandbox: Sandbox, server: SandboxServer, build: str
) -> None:
    seconds, delivered, _, switch_interval = close_beside_busy_threads(build, server.url, 60)
    assert delivered == 100
    assert sandbox.totals()["totals"] == {"tokens": {"cus_1": "100"}}
    assert seconds < 5.5
    assert switch_interval == 0.005


@when_built
def test_close_keeps_its_limit_beside_threads_that_compute(silent: str, build: str) -> None:
    seconds, _, dropped, _ = close_beside_busy_threads(build, silent, 1)
    assert dropped == 100
    assert seconds < 1.5


WATCH_IMPORTS = """
imported = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        imported.append(name)
sys.meta_path.insert(0, Watch())
"""
RECORD_AND_CLOSE = """
agent.record("tokens", "cus_1")
agent.record("tokens", "cus_1", True)  # invalid: a dead letter
assert agent.flush(20)
assert agent.health().alive
assert agent.close(20).delivered == 1
assert imported == [], imported
assert "structlog" not in sys.modules
"""


@pytest.mark.parametrize(
    "build",
    [
        BUILT_BEFORE,
        "agent = meter_agent.configure(sandbox_url=URL)",
        "agent = meter_agent.get_agent()",
    ],
    ids=["MeterAgent", "configure", "get_agent"],
)
def test_once_an_agent_is_built_nothing_is_imported_any_more(
    server: SandboxServer, build: str
) -> None:
    done = run(build + WATCH_IMPORTS + RECORD_AND_CLOSE, server.url, before=DEFAULT_AGENT)
    assert done.returncode == 0, done.stderr


def test_the_first_record_of_the_default_agent_leaves_the_imports_to_the_sender(
    server: SandboxServer,
) -> None:
    done = run(
        """
        importers = {}
        class Watch:
            def find_spec(self, name, path=None, target=None):
                importers[name] = threading.current_thread().name
        sys.meta_path.insert(0, Watch())
        meter_agent.record("tokens", "cus_1")
        assert meter_agent.flush(20)
        assert importers["requests"] == "meter-agent-sender", importers
        assert "MainThread" not in importers.values(), importers
        """,
        server.url,
        before=DEFAULT_AGENT,
    )
    assert done.returncode == 0, done.stderr


def test_close_keeps_its_limit_while_a_sender_is_in_the_middle_of_an_import(
    server: SandboxServer,
) -> None:
    process = start(
        """
        reached = threading.Event()
        class Halt:
            def find_spec(self, name, path=None, target=None):
                if name == "requests":
                    reached.set()
                    threading.Event().wait()
                assert threading.current_thread() is not threading.main_thread(), name
        sys.meta_path.insert(0, Halt())
        meter_agent.record("tokens", "cus_1")
        assert reached.wait(20)
        final = meter_agent.close(0.5)
        assert final.dropped == {"shutdown": 1}
        print("closed")
        os._exit(0)
        """,
        server.url,
        before=DEFAULT_AGENT,
    )
    wait_for(process, "closed")
    assert finish(process).returncode == 0
