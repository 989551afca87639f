"""What a web page in a browser on this host cannot do to a sandbox."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.app import create_app
from meter_agent.sandbox.server import SandboxServer
from tests.patience import PATIENCE_SECONDS

from .client import API_KEY, SESSION, headers

REBOUND = "attacker.example"


def ask(
    server: SandboxServer,
    path: str = "/_sandbox/totals",
    *,
    method: str = "GET",
    **more: str,
) -> tuple[int, Any]:
    """Status and document of an answer to a request with these headers and no others."""
    port = urlsplit(server.url).port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": f"127.0.0.1:{port}", **more}.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    "origin",
    [
        "https://attacker.example",
        "null",
        "http://localhost:3000",
        "http://127.0.0.1.attacker.example",
        "http://localhost@attacker.example",
        "file://",
        "http://localhost:wrong",
        "",
    ],
)
def test_a_page_of_another_origin_changes_nothing(server: SandboxServer, origin: str) -> None:
    server.sandbox.add_fault(Fault("status", status=503))
    more = {"Origin": origin, "Content-Type": "text/plain"}

    status, document = ask(server, "/_sandbox/reset", method="POST", **more)

    assert status == 403
    assert "web page" in document["error"]["message"]
    assert len(server.sandbox.faults) == 1


@pytest.mark.parametrize("path", [SESSION, "/_sandbox/totals", "/v1/billing/meters"])
def test_a_name_that_was_bound_to_this_host_by_its_own_server_is_refused(
    server: SandboxServer, path: str
) -> None:
    port = urlsplit(server.url).port
    for host in (f"{REBOUND}:{port}", REBOUND, "localhost.attacker.example", "10.0.0.1", ""):
        status, document = ask(server, path, Host=host, **_credentials())
        assert (host, status) == (host, 403)
        assert "Host" in document["error"]["message"]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_an_image_of_a_page_uses_up_no_fault(server: SandboxServer, site: str) -> None:
    server.sandbox.add_fault(Fault("status", status=503, times=1))
    more = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}

    assert ask(server, "/v1/billing/meters", **more)[0] == 403
    assert len(server.sandbox.faults) == 1


@pytest.mark.parametrize(
    ("site", "mode"), [("none", "navigate"), ("same-origin", "cors"), ("cross-site", "navigate")]
)
def test_a_link_to_the_sandbox_can_be_followed(server: SandboxServer, site: str, mode: str) -> None:
    assert ask(server, **{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode})[0] == 200


def test_a_refused_request_leaves_no_trace(server: SandboxServer) -> None:
    server.sandbox.add_fault(Fault("status", status=503, times=1))

    assert ask(server, SESSION, method="POST", Host=REBOUND, **_credentials())[0] == 403

    assert server.sandbox.requests == []
    assert len(server.sandbox.faults) == 1


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.8.9.10", "[::1]"])
@pytest.mark.parametrize("port", ["", ":80", ":12111"])
def test_names_of_loopback_are_its_own_at_any_port(
    server: SandboxServer, host: str, port: str
) -> None:
    # A published port of a container is another one than the sandbox listens on.
    assert ask(server, Host=f"{host}{port}")[0] == 200


def test_a_page_of_the_sandbox_itself_is_served(server: SandboxServer) -> None:
    port = urlsplit(server.url).port
    for origin in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert ask(server, Origin=origin)[0] == 200


def test_where_others_may_come_the_given_name_and_all_addresses_are_its_own(
    sandbox: Sandbox,
) -> None:
    with SandboxServer(sandbox, host="0.0.0.0", allow_remote=True) as server:
        assert ask(server, Host="0.0.0.0:12111")[0] == 200
        assert ask(server, Host=REBOUND)[0] == 403


@pytest.mark.parametrize(
    ("listening", "host", "status"),
    [
        ("192.0.2.2", "192.0.2.2:12111", 200),
        ("192.0.2.2", "stripe.test", 200),
        ("192.0.2.2", "STRIPE.test.:12111", 200),
        ("192.0.2.2", "localhost", 200),
        # The address of a machine in front of a container, which the container does not know: an
        # address is not looked up, so nobody else can have bound it to this host.
        ("192.0.2.2", "203.0.113.7:80", 200),
        ("192.0.2.2", "[2001:db8::1]:80", 200),
        ("192.0.2.2", "other.test", 403),
        ("127.0.0.1", "203.0.113.7", 403),
        (None, "stripe.test", 200),
        (None, "203.0.113.7", 403),
    ],
)
def test_the_address_of_a_connection_says_who_may_be_meant(
    sandbox: Sandbox, listening: str | None, host: str, status: int
) -> None:
    app = create_app(sandbox, hosts=["Stripe.test"])
    assert asyncio.run(_status(app, listening, host)) == status


def test_a_client_of_http_1_0_that_names_no_host_is_served(sandbox: Sandbox) -> None:
    assert asyncio.run(_status(create_app(sandbox), "127.0.0.1", None)) == 200


async def _status(app: Any, listening: str | None, host: str | None) -> int:
    """The status that *app* answers on a connection to the address *listening*."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/_sandbox/totals",
        "query_string": b"",
        "headers": [] if host is None else [(b"host", host.encode())],
        "server": None if listening is None else (listening, 12111),
    }
    await app(scope, receive, send)
    status: int = sent[0]["status"]
    return status


def _credentials() -> dict[str, str]:
    return {name: value for name, value in headers(API_KEY).items() if name != "Content-Type"}
