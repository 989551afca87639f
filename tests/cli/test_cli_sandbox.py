import json
import signal
import socket
import subprocess

import pytest

from meter_agent import MeterAgent
from tests.patience import PATIENCE_SECONDS

from .processes import command, fetch, first_line, run, started


def test_the_url_is_data_and_how_to_use_it_is_talk() -> None:
    with started("sandbox", "--port", 0) as process:
        url = first_line(process, process.stdout)
        talk = first_line(process, process.stderr)
        assert url.startswith("http://127.0.0.1:")
        assert f"METER_AGENT_SANDBOX_URL={url}" in talk


def test_an_agent_delivers_to_the_url_that_was_printed() -> None:
    with started("sandbox", "--port", 0) as process:
        url = first_line(process, process.stdout)
        with MeterAgent(sandbox_url=url) as agent:
            agent.record("api_requests", "cus_123", 3)
        totals = json.loads(fetch(f"{url}/_sandbox/totals"))
    assert totals["totals"] == {"api_requests": {"cus_123": "3"}}


def test_ctrl_c_ends_the_sandbox_without_a_complaint() -> None:
    with started("sandbox", "--port", 0) as process:
        fetch(f"{first_line(process, process.stdout)}/_sandbox/totals")
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert talk.count("\n") == 1


def test_with_stop_on_eof_the_end_of_stdin_ends_the_sandbox() -> None:
    with started("sandbox", "--port", 0, "--stop-on-eof", stdin=subprocess.PIPE) as process:
        first_line(process, process.stdout)
        process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0


def test_with_stop_on_eof_the_end_of_stdin_counts_even_where_sigint_is_ignored() -> None:
    # As a shell does with its background jobs.
    shell = "trap '' INT; exec \"$@\""
    done = subprocess.run(
        ["sh", "-c", shell, "sh", *command("sandbox", "--port", 0, "--stop-on-eof")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0


def test_a_port_in_use_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = run("sandbox", "--port", port)
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    assert outcome.stderr == (
        f"meter-agent sandbox: cannot listen on 127.0.0.1:{port}: Address already in use;"
        " --port 0 takes any that is free\n"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "example.com"])
def test_a_host_beyond_loopback_is_refused_unless_allowed(host: str) -> None:
    outcome = run("sandbox", "--host", host, "--port", 0)
    assert outcome.returncode == 2
    assert f"{host} is not a loopback address" in outcome.stderr
    assert "--allow-remote" in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_a_host_beyond_loopback_is_served_when_allowed() -> None:
    with started("sandbox", "--host", "0.0.0.0", "--port", 0, "--allow-remote") as process:
        url = first_line(process, process.stdout)
        answer = fetch(f"{url.replace('0.0.0.0', '127.0.0.1')}/_sandbox/totals")
    assert json.loads(answer)["accepted"] == 0


def test_meters_are_named_on_the_command_line() -> None:
    with started("sandbox", "--port", "0", "--meter", "tokens", "--meter", "seats") as process:
        url = first_line(process, process.stdout)
        meters = json.loads(fetch(f"{url}/_sandbox/meters"))["meters"]
    assert [meter["event_name"] for meter in meters] == ["seats", "tokens"]
