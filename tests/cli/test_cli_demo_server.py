import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from meter_agent.cli.demo.server import SandboxProcess, SandboxProcessError
from tests.patience import PATIENCE_SECONDS

from .processes import first_line


def test_it_takes_faults_and_shows_totals() -> None:
    with SandboxProcess(seed=0, session_seconds=2) as sandbox:
        assert sandbox.post("faults", {"kind": "delay"}) == {"faults": [{"kind": "delay"}]}
        assert sandbox.get("totals") == {"accepted": 0, "duplicates": 0, "totals": {}}


def test_a_refused_control_is_told() -> None:
    with (
        SandboxProcess(seed=0, session_seconds=2) as sandbox,
        pytest.raises(SandboxProcessError, match=r"refused POST faults.*kind must be"),
    ):
        sandbox.post("faults", {"kind": "nonsense"})


def test_a_start_that_fails_brings_the_last_words() -> None:
    with pytest.raises(SandboxProcessError, match=r"did not start: .*must be more than 0"):
        SandboxProcess(seed=0, session_seconds=0)


def test_a_stopped_sandbox_does_not_answer() -> None:
    with SandboxProcess(seed=0, session_seconds=2) as sandbox:
        sandbox.stop()
        with pytest.raises(SandboxProcessError, match="does not answer"):
            sandbox.get("totals")


def test_kill_9_of_its_owner_ends_the_sandbox() -> None:
    code = (
        "from meter_agent.cli.demo.server import SandboxProcess\n"
        "sandbox = SandboxProcess(seed=0, session_seconds=2)\n"
        "print(sandbox.url, flush=True)\n"
        "input()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True
    ) as owner:
        address = urlsplit(first_line(owner, owner.stdout))
        owner_address = (address.hostname, address.port)
        with socket.create_connection(owner_address, timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(b"GET /_sandbox/totals HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            owner.send_signal(signal.SIGKILL)
            # The connection is kept alive for as long as the server lives.
            while connection.recv(4096):
                pass
