"""SIGTERM to the first process of a container, whose default action the kernel ignores there."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.process.scripts import finish, ledger, start, wait_for

NEW_NAMESPACE = ("--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


@pytest.fixture(scope="module")
def as_init() -> list[str]:
    """A command in front of another one that becomes process 1 of a namespace of its own."""
    become_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *become_root, *NEW_NAMESPACE]
    tried = subprocess.run([*command, "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.fail(
            f"{' '.join(command)}: {tried.stderr.strip()}. These tests need the right to make a"
            " PID namespace: run them as root, or allow user namespaces"
            " (sysctl kernel.unprivileged_userns_clone=1)"
        )
    return command


def terminate(process: subprocess.Popen[str]) -> None:
    """Send SIGTERM to the one child of *process*, from outside of its namespace, as docker does."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    (child,) = map(int, children.split())
    os.kill(child, signal.SIGTERM)


def test_it_delivers_and_ends_with_the_status_of_sigterm(
    sandbox: Sandbox, server: SandboxServer, as_init: list[str]
) -> None:
    process = start(
        """
        agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=60, handle_sigterm=True)
        assert os.getpid() == 1
        for n in range(150):
            agent.record("tokens", "cus_1")
        print("ready")
        wait_for_a_signal()
        """,
        server.url,
        within=as_init,
    )
    wait_for(process, "ready")
    terminate(process)
    done = finish(process)
    assert done.returncode == 128 + signal.SIGTERM
    assert ledger(done)["delivered"] == 150
    assert sandbox.totals()["accepted"] == 150


def test_it_ends_in_time_while_requests_hang(
    sandbox: Sandbox, server: SandboxServer, as_init: list[str]
) -> None:
    sandbox.add_fault(Fault("hang"))
    process = start(
        """
        agent = MeterAgent(sandbox_url=URL, handle_sigterm=True, shutdown_timeout_seconds=1)
        agent.record("tokens", "cus_1")
        print("ready")
        wait_for_a_signal()
        """,
        server.url,
        within=as_init,
    )
    wait_for(process, "ready")
    began = time.monotonic()
    terminate(process)
    assert finish(process).returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 10


def test_a_second_sigterm_ends_it_at_once(
    sandbox: Sandbox, server: SandboxServer, as_init: list[str]
) -> None:
    sandbox.add_fault(Fault("hang"))
    process = start(
        """
        agent = MeterAgent(sandbox_url=URL, handle_sigterm=True, shutdown_timeout_seconds=60)
        agent.record("tokens", "cus_1")
        first = signal.getsignal(signal.SIGTERM)
        print("ready")
        while signal.getsignal(signal.SIGTERM) is first:
            time.sleep(0.001)
        print("draining")
        wait_for_a_signal()
        """,
        server.url,
        within=as_init,
    )
    wait_for(process, "ready")
    terminate(process)
    wait_for(process, "draining")
    began = time.monotonic()
    terminate(process)
    assert finish(process).returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 20


def test_sigterm_during_its_exit_drain_keeps_the_status_of_sigterm(
    sandbox: Sandbox, server: SandboxServer, as_init: list[str]
) -> None:
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
        within=as_init,
    )
    with suppress(ProcessLookupError):
        while not any(request.events for request in sandbox.requests):
            assert process.poll() is None
        terminate(process)
    done = finish(process)
    assert done.returncode == 128 + signal.SIGTERM
    assert ledger(done)["delivered"] == 1


def test_a_handler_before_ours_decides_on_the_status(
    sandbox: Sandbox, server: SandboxServer, as_init: list[str]
) -> None:
    process = start(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=60, handle_sigterm=True)
        agent.record("tokens", "cus_1")
        print("ready")
        wait_for_a_signal()
        """,
        server.url,
        within=as_init,
    )
    wait_for(process, "ready")
    terminate(process)
    done = finish(process)
    assert done.returncode == 3
    assert ledger(done)["delivered"] == 1
