"""Ends of a process on a bad day: slow, mute and unreachable servers, names without an answer."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.patience import PATIENCE_SECONDS
from tests.process.scripts import finish, ledger, run, start, wait_for
from tests.wire.servers import listening

BUDGET_SECONDS = 0.5
SPARE_SECONDS = 2.0
"""0.5 s of the agent's, the rest for a busy machine and the interpreter."""

RECORD_AND_END = f"""
agent = MeterAgent(sandbox_url=URL, shutdown_timeout_seconds={BUDGET_SECONDS})
for n in range(2500):
    assert agent.record("tokens", "cus_1", n)
print("recorded")
"""


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


def end_in_time(script: str, url: str, *, before: str = "") -> dict[str, object]:
    process = start(script, url, before=before)
    wait_for(process, "recorded")
    began = time.monotonic()
    done = finish(process)
    assert time.monotonic() - began < BUDGET_SECONDS + SPARE_SECONDS
    assert done.returncode == 0
    return ledger(done)


def test_a_slow_server_gets_everything_within_the_budget(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    sandbox.add_fault(Fault("delay", on="any", seconds=0.3))
    done = run(
        """
        agent = MeterAgent(sandbox_url=URL, shutdown_timeout_seconds=20)
        for n in range(1000):
            assert agent.record("tokens", "cus_1")
        """,
        server.url,
    )
    assert ledger(done)["delivered"] == 1000
    assert sandbox.totals()["accepted"] == 1000
    assert sandbox.totals()["duplicates"] == 0


def test_a_server_that_takes_connections_and_reads_nothing_holds_nobody_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        final = end_in_time(RECORD_AND_END, f"http://127.0.0.1:{port}")
    # The session never came: nothing can have been accepted.
    assert (final["uncertain"], final["dropped"]) == (0, {"shutdown": 2500})


def test_an_answer_that_drips_holds_nobody_up() -> None:
    def drip(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for _ in range(100):
            connection.sendall(b"X-More: 1\r\n")
            time.sleep(0.1)

    with listening(drip) as server:
        final = end_in_time(RECORD_AND_END, server.url)
    assert final["delivered"] == 0


def test_a_port_that_nobody_listens_on_holds_nobody_up() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        final = end_in_time(RECORD_AND_END, f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert (final["uncertain"], final["dropped"]) == (0, {"shutdown": 2500})


@pytest.mark.parametrize(
    "never", ["threading.Event().wait()", "libc.sleep(3600)"], ids=["in Python", "in C"]
)
def test_a_name_server_that_never_answers_holds_nobody_up(never: str) -> None:
    final = end_in_time(
        RECORD_AND_END.replace("print", "assert asked.wait(20); print"),
        "http://localhost:1",
        before=f"""
        import ctypes, socket, threading
        libc = ctypes.CDLL(None)
        asked = threading.Event()
        def stuck(*_arguments, **_options):
            asked.set()
            {never}
        socket.getaddrinfo = stuck
        """,
    )
    assert (final["uncertain"], final["dropped"]) == (0, {"shutdown": 2500})


def test_a_long_back_off_is_cut_short_for_one_more_try(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    sandbox.add_fault(Fault("status", status=503, times=1))
    process = start(
        """
        failed = threading.Event()
        agent = MeterAgent(
            sandbox_url=URL, shutdown_timeout_seconds=10, retry_base_seconds=3000,
            retry_max_seconds=3600, on_error=lambda error: failed.set(),
        )
        for n in range(250):
            assert agent.record("tokens", "cus_1")
        assert failed.wait(20)
        print("recorded")
        """,
        server.url,
    )
    wait_for(process, "recorded")
    began = time.monotonic()
    done = finish(process)
    assert time.monotonic() - began < 8
    assert ledger(done)["delivered"] == 250
    assert sandbox.totals()["accepted"] == 250


def test_a_thread_that_records_until_the_very_end_is_accounted_for(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        agent = MeterAgent(sandbox_url=URL)
        def produce():
            while True:
                for _ in range(100):
                    agent.record("tokens", "cus_1")
                time.sleep(0.001)
        threading.Thread(target=produce, daemon=True).start()
        while agent.stats().recorded < 1000:
            time.sleep(0.001)
        """,
        server.url,
    )
    assert done.returncode == 0
    final = ledger(done)
    assert final["delivered"] == sandbox.totals()["accepted"] >= 1000
    assert set(final["dropped"]) <= {"closed"}


def test_an_unhandled_exception_delivers_and_keeps_its_status_and_its_traceback(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    process = start(
        """
        MeterAgent(sandbox_url=URL).record("tokens", "cus_1")
        raise LookupError("of the application")
        """,
        server.url,
    )
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert err.count("Traceback") == 1
    assert "LookupError: of the application" in err
    assert sandbox.totals()["accepted"] == 1


def test_ctrl_c_during_the_drain_ends_the_wait_and_not_the_accounting(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    sandbox.add_fault(Fault("hang"))
    process = start(
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell ignores it
        agent = MeterAgent(sandbox_url=URL, shutdown_timeout_seconds=60)
        for n in range(250):
            assert agent.record("tokens", "cus_1")
        def tell():
            while not agent._pipeline._flusher.closing:
                time.sleep(0.001)
            print("draining")
        threading.Thread(target=tell, daemon=True).start()
        """,
        server.url,
    )
    wait_for(process, "draining")
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert time.monotonic() - began < 10
    lines = [line for line in err.splitlines() if line.startswith("meter_agent.closed")]
    assert len(lines) == 1
    assert "'recorded': 250" in lines[0]


def test_ctrl_c_during_the_drain_leaves_the_status_to_a_sigterm_before_it(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    sandbox.add_fault(Fault("hang"))
    process = start(
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell ignores it
        agent = MeterAgent(sandbox_url=URL, shutdown_timeout_seconds=60, handle_sigterm=True)
        handle = signal.getsignal(signal.SIGTERM)
        def handle_and_tell(*arguments):
            handle(*arguments)
            print("terminated")
        signal.signal(signal.SIGTERM, handle_and_tell)
        assert agent.record("tokens", "cus_1")
        def tell():
            while not agent._pipeline._flusher.closing:
                time.sleep(0.001)
            print("draining")
        threading.Thread(target=tell, daemon=True).start()
        """,
        server.url,
    )
    wait_for(process, "draining")
    process.send_signal(signal.SIGTERM)
    wait_for(process, "terminated")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == -signal.SIGTERM
    lines = [line for line in err.splitlines() if line.startswith("meter_agent.closed")]
    assert len(lines) == 1
    assert "'recorded': 1" in lines[0]
