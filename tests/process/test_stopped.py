"""A process that is stopped for longer than a token lives goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.process.scripts import finish, ledger, start, wait_for

SCRIPT = """
agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=0.01)
assert agent.record("tokens", "cus_1") and agent.flush(20)
resumed = []  # an event has a lock, which the interrupted thread may hold
signal.signal(signal.SIGCONT, lambda *_: resumed.append(True))
print("ready")
recorded = 1
while recorded < 1000 or not resumed:
    recorded += agent.record("tokens", "cus_1")
    time.sleep(0.0005)
print(recorded)
"""

WAIT = """
while not resumed:
    time.sleep(0.01)
recorded = 1
"""


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def sessions(sandbox: Sandbox) -> int:
    return sum(request.path.endswith("meter_event_session") for request in sandbox.requests)


@pytest.mark.parametrize("expired_status", [400, 401])
def test_a_token_that_expired_meanwhile_is_renewed_and_everything_billed_once(
    expired_status: int,
) -> None:
    sandbox = Sandbox(session_seconds=900, expired_status=expired_status)  # type: ignore[arg-type]
    with SandboxServer(sandbox) as server:
        process = start(SCRIPT, server.url)
        wait_for(process, "ready")
        stop(process)
        sandbox.advance(1000)
        process.send_signal(signal.SIGCONT)
        done = finish(process)
    assert done.returncode == 0
    recorded = int(done.stdout)
    assert ledger(done)["delivered"] == recorded
    assert sandbox.totals()["accepted"] == recorded
    assert sessions(sandbox) == 2


def test_a_token_that_expired_on_both_sides_is_renewed_before_it_is_used_again() -> None:
    sandbox = Sandbox(session_seconds=1.5)
    with SandboxServer(sandbox) as server:
        process = start(SCRIPT.replace("recorded = 1", WAIT), server.url)
        wait_for(process, "ready")
        stop(process)
        expired_at = sandbox.now() + 1.5
        while sandbox.now() < expired_at:
            time.sleep(0.05)  # the process must miss real time, on its own clocks
        process.send_signal(signal.SIGCONT)
        done = finish(process)
    recorded = int(done.stdout)
    assert ledger(done)["delivered"] == recorded
    assert sandbox.totals()["accepted"] == recorded
    assert not [request for request in sandbox.requests if request.status != 200]
    assert sessions(sandbox) >= 2


def test_a_process_that_is_stopped_with_requests_on_their_way_bills_them_once() -> None:
    sandbox = Sandbox(session_seconds=900)
    with SandboxServer(sandbox) as server:
        process = start(SCRIPT, server.url)
        wait_for(process, "ready")
        sandbox.add_fault(Fault("delay", seconds=0.3, times=20))
        answered = len(sandbox.requests)
        while len(sandbox.requests) == answered:
            time.sleep(0.005)
        stop(process)
        sandbox.advance(1000)
        process.send_signal(signal.SIGCONT)
        done = finish(process)
    recorded = int(done.stdout)
    assert ledger(done)["delivered"] == recorded
    assert sandbox.totals()["accepted"] == recorded
    assert sandbox.totals()["duplicates"] == 0
