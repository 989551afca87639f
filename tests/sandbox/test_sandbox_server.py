"""The sandbox on a real socket; faults are looked at from the other end of the wire."""

import asyncio
import json
import logging
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
import requests

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.app import create_app
from meter_agent.sandbox.server import SandboxServer, serve

from .client import STREAM, Client, event, headers, stream_body


class Wire:
    """One connection to the server, byte by byte."""

    def __init__(self, server: SandboxServer) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self._token = Client(server.sandbox).token
        self._socket = socket.create_connection((host, int(port)), timeout=10)

    def send(self, *events: dict[str, Any]) -> None:
        """Write a stream request."""
        body = stream_body(*events)
        lines = [f"POST {STREAM} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers(self._token).items()]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def read_until(self, ending: bytes) -> bytes:
        """Everything until *ending*."""
        answer = b""
        while not answer.endswith(ending):
            data = self._socket.recv(65_536)
            assert data, f"the connection ended behind {answer!r}"
            answer += data
        return answer

    def read_to_end(self) -> bytes:
        """Everything until the server closes."""
        return b"".join(iter(lambda: self._socket.recv(65_536), b""))

    @property
    def is_silent(self) -> bool:
        """Whether nothing came, not even an end."""
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@contextmanager
def wired(server: SandboxServer) -> Iterator[Wire]:
    wire = Wire(server)
    try:
        yield wire
    finally:
        wire.close()


def get(server: SandboxServer, path: str) -> Any:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"{server.url}/_sandbox/{path}", timeout=10).json()


def test_the_server_listens_on_loopback_and_answers(server: SandboxServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert get(server, "totals") == {"accepted": 0, "duplicates": 0, "totals": {}}
    assert get(server, "ledger?limit=1") == {"events": []}


def test_a_connection_is_kept_alive(server: SandboxServer) -> None:
    with wired(server) as wire:
        for number in range(3):
            wire.send(event(f"e{number}"))
            assert wire.read_until(b"\r\n\r\n{}").startswith(b"HTTP/1.1 200 OK\r\n")

    assert server.sandbox.totals()["accepted"] == 3


@pytest.mark.parametrize(("when", "taken"), [("before", 0), ("after", 1)])
def test_a_reset_is_a_tcp_reset(server: SandboxServer, when: str, taken: int) -> None:
    server.sandbox.add_fault(Fault("reset", when=when))  # type: ignore[arg-type]

    with wired(server) as wire:
        wire.send(event())
        with pytest.raises(ConnectionResetError):
            wire.read_to_end()

    assert server.sandbox.totals()["accepted"] == taken


def test_a_truncated_answer_promises_more_than_it_sends(server: SandboxServer) -> None:
    server.sandbox.add_fault(Fault("truncate"))

    with wired(server) as wire:
        wire.send(event())
        head, _, body = wire.read_to_end().partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 2" in head.lower()
    assert body == b"{"
    assert server.sandbox.totals()["accepted"] == 1


@pytest.mark.parametrize(("accept", "taken"), [(False, 0), (True, 1)])
def test_a_hang_says_nothing_while_others_are_answered(
    server: SandboxServer, accept: bool, taken: int
) -> None:
    server.sandbox.add_fault(Fault("hang", accept=accept, times=1))

    with wired(server) as wire:
        wire.send(event())
        while len(get(server, "requests")["requests"]) < 2:
            pass
        assert wire.is_silent

    assert server.sandbox.totals()["accepted"] == taken


def test_a_delay_holds_back_one_answer_and_blocks_no_other(server: SandboxServer) -> None:
    server.sandbox.add_fault(Fault("delay", seconds=3600, times=1))

    with wired(server) as wire:
        wire.send(event())
        while get(server, "totals")["accepted"] == 0:
            pass
        assert wire.is_silent


def test_a_delay_ends_with_the_answer(server: SandboxServer) -> None:
    server.sandbox.add_fault(Fault("delay", seconds=0.05))
    server.sandbox.add_fault(Fault("truncate"))

    with wired(server) as wire:
        started = time.monotonic()
        wire.send(event())
        assert wire.read_to_end().endswith(b"{")
        assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize("fault", [Fault("hang"), Fault("delay", seconds=3600)])
def test_stopping_cuts_off_what_hangs(sandbox: Sandbox, fault: Fault) -> None:
    sandbox.add_fault(fault)
    with SandboxServer(sandbox) as server, wired(server) as wire:
        wire.send(event())
        while len(get(server, "requests")["requests"]) < 2:
            pass
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 2
        assert wire.read_to_end() == b""


def test_disconnecting_cuts_off_what_hangs_and_takes_new_connections(
    server: SandboxServer,
) -> None:
    server.sandbox.add_fault(Fault("hang", times=1))
    with wired(server) as wire, wired(server) as idle:
        wire.send(event())
        while len(get(server, "requests")["requests"]) < 3:
            pass
        server.disconnect()
        assert (wire.read_to_end(), idle.read_to_end()) == (b"", b"")
    with wired(server) as wire:
        wire.send(event())
        assert wire.read_until(b"\r\n\r\n{}").startswith(b"HTTP/1.1 200 OK\r\n")


def test_stopping_twice_and_unstarted_does_no_harm() -> None:
    server = SandboxServer()
    server.disconnect()
    server.stop()
    server.stop()


def test_deliberate_faults_are_neither_logged_nor_printed(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    faults = ["reset", "truncate", "hang"]
    with caplog.at_level(logging.WARNING), SandboxServer(sandbox) as server:
        for number, kind in enumerate(faults):
            sandbox.add_fault(Fault(kind, times=1))  # type: ignore[arg-type]
            with wired(server) as wire:
                wire.send(event())
                while len(get(server, "requests")["requests"]) < 2 * number + 2:
                    pass

    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def outcome(session: requests.Session, url: str, sandbox: Sandbox) -> list[object]:
    """What a caller of requests can tell of one request."""
    try:
        answer = session.post(
            url + STREAM,
            headers=headers(Client(sandbox).token),
            data=stream_body(event()),
            timeout=(5, 0.1),
        )
    except requests.RequestException as error:
        cause = error.args[0]
        return [type(error), type(cause), [type(each) for each in cause.args]]
    return [answer.status_code, answer.reason, answer.headers["content-type"], answer.content]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("reset"),
        Fault("reset", when="after"),
        Fault("truncate"),
        Fault("hang"),
        Fault("delay", seconds=60),
        Fault("status", status=429, retry_after="1"),
        Fault("status", status=304),
        Fault("revoke"),
    ],
)
def test_requests_sees_the_same_through_the_adapter_and_the_network(
    server: SandboxServer, http: requests.Session, fault: Fault
) -> None:
    server.sandbox.add_fault(fault)
    with requests.Session() as session:
        session.trust_env = False
        over_http = outcome(session, server.url, server.sandbox)

    assert outcome(http, "https://meter-events.stripe.com", server.sandbox) == over_http


def test_a_body_beyond_the_limit_is_refused_over_http() -> None:
    sandbox = Sandbox(max_body_bytes=1000)
    with SandboxServer(sandbox) as server, requests.Session() as session:
        session.trust_env = False
        answer = session.post(
            server.url + STREAM,
            headers=headers(Client(sandbox).token),
            data=b" " * 500_000,
            timeout=10,
        )

    assert answer.status_code == 413


def test_a_body_that_comes_in_many_pieces_is_read_whole(server: SandboxServer) -> None:
    payload = {"stripe_customer_id": "cus_1", "value": "1", "note": "x" * 500_000}

    with wired(server) as wire:
        wire.send(event(payload=payload))
        wire.read_until(b"\r\n\r\n{}")

    assert server.sandbox.ledger()[0]["payload"] == payload


def test_a_port_in_use_is_told_in_one_line(server: SandboxServer) -> None:
    port = int(server.url.rpartition(":")[2])

    with pytest.raises(OSError, match=rf"^cannot listen on 127.0.0.1:{port}: Address already"):
        serve(port=port)
    with pytest.raises(OSError, match="cannot listen"):
        SandboxServer(port=port)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.com", ""])
def test_only_loopback_is_served_unless_allowed(host: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        serve(host=host)
    with pytest.raises(ValueError, match="loopback"):
        SandboxServer(host=host)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="port"):
        serve(port=port)


def test_another_host_is_served_when_allowed() -> None:
    with SandboxServer(host="0.0.0.0", allow_remote=True) as server:
        port = server.url.rpartition(":")[2]
        server.url = f"http://127.0.0.1:{port}"
        assert get(server, "totals")["accepted"] == 0


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2"])
def test_other_names_of_loopback_are_served(host: str) -> None:
    with SandboxServer(host=host) as server:
        assert get(server, "totals")["accepted"] == 0


def test_serve_answers_until_it_is_interrupted_and_ends_in_silence() -> None:
    code = (
        "from meter_agent.sandbox.server import serve\n"
        "serve(port=0, ready=lambda url: print(url, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(url + "/_sandbox/totals", timeout=10).json()["accepted"] == 0

    process.send_signal(signal.SIGINT)

    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0


async def call(app: Any, path: str) -> list[Any]:
    """What *app* sends to an ASGI server that offers no connection."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": stream_body(event()), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST" if path == STREAM else "GET",
        "path": f"/stripe{path}",
        "root_path": "/stripe",
        "query_string": b"",
        "headers": [],
    }
    await app(scope, receive, send)
    return sent


def test_the_application_works_under_a_prefix_of_another_server(sandbox: Sandbox) -> None:
    start, body = asyncio.run(call(create_app(sandbox), "/_sandbox/totals"))

    assert start["status"] == 200
    assert json.loads(body["body"])["accepted"] == 0


def test_a_server_that_offers_no_connection_is_told_of_a_reset(sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("reset"))

    with pytest.raises(ConnectionResetError):
        asyncio.run(call(create_app(sandbox), STREAM))


def test_an_application_makes_its_own_sandbox_when_given_none() -> None:
    assert isinstance(create_app().state.sandbox, Sandbox)


def test_the_date_header_is_that_of_the_sandboxs_own_clock() -> None:
    with SandboxServer() as server:
        server.sandbox.advance(3600)
        now = server.sandbox.now()
        with build_opener(ProxyHandler({})).open(f"{server.url}/_sandbox/clock") as answer:
            dates = answer.headers.get_all("Date")
    assert len(dates) == 1
    assert abs(parsedate_to_datetime(dates[0]).timestamp() - now) < 60
