"""How a process ends: by itself, by a signal, during an outage; in time, and with a count."""

from __future__ import annotations

import signal
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.process.scripts import finish, ledger, run, start, wait_for


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


def test_falling_off_the_end_delivers_everything(sandbox: Sandbox, server: SandboxServer) -> None:
    done = run(
        """
        agent = MeterAgent(sandbox_url=URL)
        for n in range(1000):
            agent.record("tokens", "cus_1", n)
        """,
        server.url,
    )
    assert done.returncode == 0
    assert sandbox.totals()["accepted"] == 1000
    assert "meter_agent.closed" in done.stderr
    assert "'delivered': 1000" in done.stderr


def test_an_agent_whose_name_is_gone_delivers_at_exit_too(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    run('MeterAgent(sandbox_url=URL).record("tokens", "cus_1")', server.url)
    assert sandbox.totals()["accepted"] == 1


def test_a_process_that_ends_while_an_answer_is_on_its_way_waits_for_it(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    """urllib3 closes the connections in its pools when the interpreter begins to end."""
    sandbox.add_fault(Fault("delay", seconds=0.4))
    done = run(
        """
        agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=0.01)
        for n in range(3):
            assert agent.record("tokens", "cus_1") and agent.flush(20)
        asked = agent.stats().requests
        assert agent.record("tokens", "cus_1")
        while agent.stats().requests == asked:
            time.sleep(0.001)
        """,
        server.url,
    )
    assert ledger(done)["delivered"] == 4
    assert sandbox.totals()["duplicates"] == 0


def test_sys_exit_and_an_exception_deliver_and_keep_their_status(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        MeterAgent(sandbox_url=URL).record("tokens", "cus_1")
        sys.exit(7)
        """,
        server.url,
    )
    assert done.returncode == 7
    assert sandbox.totals()["accepted"] == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=503),
        Fault("hang"),
        Fault("status", status=429, retry_after="3600"),
        Fault("hang", on="session"),
        Fault("delay", seconds=60),
        Fault("reset"),
    ],
    ids=["down", "hangs", "asks for an hour", "session hangs", "takes a minute", "resets"],
)
def test_exit_keeps_to_its_budget_and_says_what_is_left(
    sandbox: Sandbox, server: SandboxServer, fault: Fault
) -> None:
    sandbox.add_fault(fault)
    process = start(
        """
        agent = MeterAgent(sandbox_url=URL, shutdown_timeout_seconds=0.5)
        for n in range(300):
            agent.record("tokens", "cus_1", n)
        print("recorded")
        """,
        server.url,
    )
    wait_for(process, "recorded")
    began = time.monotonic()
    done = finish(process)
    assert time.monotonic() - began < 2.5
    assert done.returncode == 0
    final = ledger(done)
    assert (final["recorded"], final["delivered"], final["dead_lettered"]) == (300, 0, 0)
    assert set(final["dropped"]) <= {"shutdown"}


def test_two_agents_share_one_budget(sandbox: Sandbox, server: SandboxServer) -> None:
    sandbox.add_fault(Fault("hang"))
    process = start(
        """
        agents = [MeterAgent(sandbox_url=URL, shutdown_timeout_seconds=1.0) for _ in range(4)]
        for agent in agents:
            agent.record("tokens", "cus_1")
        print("recorded")
        """,
        server.url,
    )
    wait_for(process, "recorded")
    began = time.monotonic()
    finish(process)
    assert time.monotonic() - began < 3.0


def test_an_idle_agent_adds_nothing_to_the_exit_and_logs_nothing(server: SandboxServer) -> None:
    done = run("agent = MeterAgent(sandbox_url=URL)", server.url)
    assert (done.returncode, done.stderr) == (0, "")


def test_sigterm_without_a_handler_kills_as_ever(server: SandboxServer) -> None:
    process = start(
        """
        agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=60)
        agent.record("tokens", "cus_1")
        print("ready")
        wait_for_a_signal()
        """,
        server.url,
    )
    wait_for(process, "ready")
    process.terminate()
    assert finish(process).returncode == -signal.SIGTERM


def test_the_opt_in_sigterm_handler_delivers_and_keeps_the_exit_status(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    process = start(
        """
        agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=60, handle_sigterm=True)
        for n in range(150):
            agent.record("tokens", "cus_1")
        print("ready")
        wait_for_a_signal()
        """,
        server.url,
    )
    wait_for(process, "ready")
    process.terminate()
    assert finish(process).returncode == -signal.SIGTERM
    assert sandbox.totals()["accepted"] == 150


def test_a_second_sigterm_kills_at_once(sandbox: Sandbox, server: SandboxServer) -> None:
    sandbox.add_fault(Fault("hang"))
    process = start(
        """
        agent = MeterAgent(sandbox_url=URL, handle_sigterm=True, shutdown_timeout_seconds=60)
        agent.record("tokens", "cus_1")
        print("ready")
        while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            time.sleep(0.001)
        print("draining")  # two signals that arrive together would count as one
        wait_for_a_signal()
        """,
        server.url,
    )
    wait_for(process, "ready")
    process.terminate()
    wait_for(process, "draining")
    began = time.monotonic()
    process.terminate()
    assert finish(process).returncode == -signal.SIGTERM
    assert time.monotonic() - began < 10


def test_the_sigterm_handler_calls_the_one_before_it(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    process = start(
        """
        def leave(signum, frame):
            print("mine")
            sys.exit(3)
        signal.signal(signal.SIGTERM, leave)
        agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=60, handle_sigterm=True)
        agent.record("tokens", "cus_1")
        print("ready")
        wait_for_a_signal()
        """,
        server.url,
    )
    wait_for(process, "ready")
    process.terminate()
    done = finish(process)
    assert (done.returncode, done.stdout.strip()) == (3, "mine")
    assert sandbox.totals()["accepted"] == 1


def test_an_ignored_sigterm_stays_ignored_and_flushes(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    process = start(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=60, handle_sigterm=True)
        agent.record("tokens", "cus_1")
        os.kill(os.getpid(), signal.SIGTERM)
        while not agent.stats().delivered:
            pass
        print(agent.record("tokens", "cus_1"))
        """,
        server.url,
    )
    assert finish(process).stdout.strip() == "True"
    assert sandbox.totals()["accepted"] == 2


def test_sigterm_cannot_be_handled_from_another_thread_and_the_log_says_so(
    server: SandboxServer,
) -> None:
    done = run(
        """
        thread = threading.Thread(
            target=lambda: MeterAgent(sandbox_url=URL, handle_sigterm=True).close()
        )
        thread.start()
        thread.join()
        """,
        server.url,
    )
    assert "meter_agent.sigterm_not_handled" in done.stderr


NO_THREAD_AT_THE_EXIT = """
from meter_agent._runtime import SystemRuntime
start = SystemRuntime.start_thread
def refuse(self, target, name):
    if name == "meter-agent-sigterm":
        raise RuntimeError("can't create new thread at interpreter shutdown")
    start(self, target, name)
SystemRuntime.start_thread = refuse
"""


@pytest.mark.parametrize("before", ["", NO_THREAD_AT_THE_EXIT], ids=["a thread", "no thread"])
def test_sigterm_during_the_exit_drain_lets_it_finish_and_keeps_its_status(
    sandbox: Sandbox, server: SandboxServer, before: str
) -> None:
    """Python 3.12 starts no thread at that time, which the handler would like to have."""
    sandbox.add_fault(Fault("delay", seconds=1.0))
    process = start(
        """
        agent = MeterAgent(
            sandbox_url=URL,
            handle_sigterm=True,
            flush_interval_seconds=60,
            shutdown_timeout_seconds=20,
        )
        agent.record("tokens", "cus_1")
        """,
        server.url,
        before=before,
    )
    while not any(request.events for request in sandbox.requests):
        threading.Event().wait(0.01)
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.returncode == -signal.SIGTERM
    assert "'delivered': 1" in done.stderr
    assert sandbox.totals()["accepted"] == 1


LATE_AGENT = """
def build_another():
    while not first._pipeline._flusher.closing:
        time.sleep(0.001)
    late = MeterAgent(sandbox_url=URL, flush_interval_seconds=60)
    for n in range(10):
        assert late.record("late", "cus_1")
    print("recorded")
"""


@pytest.mark.parametrize("by_signal", [False, True], ids=["at exit", "after SIGTERM"])
def test_an_agent_that_is_built_while_another_one_drains_delivers_too(
    sandbox: Sandbox, server: SandboxServer, *, by_signal: bool
) -> None:
    sandbox.add_fault(Fault("delay", seconds=3.0, times=1))
    end = "print('ready'); thread.join(); time.sleep(180)" if by_signal else ""
    process = start(
        f"""
        first = MeterAgent(sandbox_url=URL, handle_sigterm=True, shutdown_timeout_seconds=60)
        {textwrap.indent(LATE_AGENT, " " * 8).strip()}
        first.record("tokens", "cus_1")
        thread = threading.Thread(target=build_another, daemon=True)
        thread.start()
        {end}
        """,
        server.url,
    )
    if by_signal:
        wait_for(process, "ready")
        process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert "recorded" in done.stdout
    assert done.returncode == (-signal.SIGTERM if by_signal else 0)
    assert sandbox.totals()["totals"] == {"tokens": {"cus_1": "1"}, "late": {"cus_1": "10"}}
