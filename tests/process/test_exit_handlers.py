"""Events of exit handlers: nobody knows in which order they run, and no event may depend on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.process.scripts import ledger, run

NO_THREADS = """
import threading
def refuse(self):
    raise RuntimeError("can't create new thread at interpreter shutdown")
"""
"""Python 3.12's way at the exit of the interpreter, on every version."""


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


@pytest.mark.parametrize("threads", ["threads", "no threads"])
def test_the_first_event_of_all_in_an_exit_handler_is_delivered(
    sandbox: Sandbox, server: SandboxServer, threads: str
) -> None:
    done = run(
        f"""
        import atexit
        def late():
            if {threads == "no threads"}:
                threading.Thread.start = refuse
            print([meter_agent.record("late", "cus_1") for _ in range(150)] == [True] * 150)
        atexit.register(late)
        os.environ["METER_AGENT_SANDBOX_URL"] = URL
        """,
        server.url,
        before=NO_THREADS,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True")
    assert ledger(done)["delivered"] == 150
    assert sandbox.totals()["accepted"] == 150


@pytest.mark.parametrize("threads", ["threads", "no threads"])
@pytest.mark.parametrize("program", ["", "sys.exit()"], ids=["imported before", "imported there"])
def test_the_first_event_of_all_in_an_exit_handler_that_runs_last_is_delivered(
    sandbox: Sandbox, server: SandboxServer, threads: str, program: str
) -> None:
    before = f"""
import atexit, os, sys
{NO_THREADS}
def late():
    if {threads == "no threads"}:
        threading.Thread.start = refuse
    import meter_agent
    print([meter_agent.record("late", "cus_1") for _ in range(3)], meter_agent.stats().delivered)
atexit.register(late)
os.environ["METER_AGENT_SANDBOX_URL"] = os.environ["SANDBOX"]
{program}
"""
    done = run("", server.url, before=before)
    assert (done.returncode, done.stdout.strip()) == (0, "[True, True, True] 3")
    assert done.stderr == ""
    assert sandbox.totals()["accepted"] == 3


def test_events_of_late_exit_handlers_share_one_budget_and_are_accounted_for(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    sandbox.add_fault(Fault("status", status=503))
    done = run(
        """
        MeterAgent(sandbox_url=URL).close()
        """,
        server.url,
        before="""
        import atexit, os, time
        def late():
            agent = MeterAgent(sandbox_url=URL, shutdown_timeout_seconds=0.5)
            began = time.monotonic()
            print([agent.record("late", "cus_1") for _ in range(4)])
            print(time.monotonic() - began < 1.5, agent.stats().balanced, agent.stats().in_flight)
        atexit.register(late)
        """,
    )
    assert done.stdout.splitlines() == ["[True, False, False, False]", "True True 0"]


def test_an_event_of_an_exit_handler_after_the_drain_is_delivered_by_a_new_agent(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        MeterAgent(sandbox_url=URL).record("tokens", "cus_1")
        os.environ["METER_AGENT_SANDBOX_URL"] = URL
        """,
        server.url,
        before="""
        import atexit
        atexit.register(lambda: print(meter_agent.record("late", "cus_1")))
        """,
    )
    assert done.stdout.strip() == "True"
    assert sandbox.totals()["totals"] == {"tokens": {"cus_1": "1"}, "late": {"cus_1": "1"}}


def test_threads_that_outlive_the_main_thread_record_at_the_usual_price(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    sandbox.add_fault(Fault("delay", seconds=0.5))
    done = run(
        """
        def work():
            threading.main_thread().join()
            agent = MeterAgent(sandbox_url=URL)
            began = time.monotonic()
            for _ in range(50):
                assert agent.record("tokens", "cus_1")
            print(time.monotonic() - began < 0.5)
        threading.Thread(target=work).start()
        """,
        server.url,
    )
    assert done.stdout.strip() == "True"
    assert ledger(done)["delivered"] == 50
