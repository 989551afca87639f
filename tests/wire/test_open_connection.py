"""Further requests on an open connection: the same on the wire as the first, in fewer steps."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from urllib3.util import wait_for_read

from meter_agent import _open_connection
from meter_agent._bounded_response import Bounds
from meter_agent._transport import BODY_BYTES_MAX, Reply, Transport, TransportError
from tests.wire.servers import Listener, answer, listening, read_request

CERTIFICATES = Path(__file__).parent / "certificates"
NO_HEADERS: dict[str, str] = {}
LOOKED_UP = ("Request-Id", "Retry-After", "Stripe-Should-Retry", "Content-Type", "x-none")


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(connect_timeout_seconds=5.0, read_timeout_seconds=5.0)
    yield made
    made.close()


def post(
    transport: Transport,
    url: str,
    body: bytes = b'{"events":[]}',
    headers: dict[str, str] = NO_HEADERS,
) -> Reply:
    return transport.post(url, headers, body, at_most_seconds=None)


def post_anew(transport: Transport, url: str) -> Reply:
    with suppress(TransportError):
        return post(transport, url)
    return post(transport, url)  # the other end was closed with the answer before


def is_open(transport: Transport) -> bool:
    return bool(transport._open)


def wait_until_readable(transport: Transport) -> None:
    (connection,) = transport._open.values()
    assert wait_for_read(connection._socket, timeout=20)


def tls(connection: socket.socket) -> socket.socket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "trusted.pem")
    return context.wrap_socket(connection, server_side=True)


def https(server: Listener, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATES / "trusted.pem"))
    return server.url.replace("http:", "https:") + "/v2/x"


def test_a_further_request_says_what_the_first_has_said(transport: Transport) -> None:
    headers = {"Authorization": "Bearer t", "User-Agent": "meter-agent/1", "Stripe-Version": "x"}
    with listening(lambda connection, _: answer(connection)) as server:
        for _ in range(3):
            post(transport, server.url + "/v2/x", headers=headers)
            assert is_open(transport)
        heads = [request.partition(b"\r\n\r\n")[0] for request in server.requests]
        first, second, third = (head.decode().split("\r\n") for head in heads)
    assert first[0] == second[0] == "POST /v2/x HTTP/1.1"
    # requests adds that the connection is to be kept, which HTTP/1.1 means anyway.
    assert {line.lower() for line in second} == {
        line.lower() for line in first if line != "Connection: keep-alive"
    }
    assert second == third
    assert all(request.endswith(b'\r\n\r\n{"events":[]}') for request in server.requests)


class Counting(socket.socket):
    """A socket that counts the calls in which the interpreter lock is given away."""

    calls: list[str]

    def send(self, *arguments: Any) -> int:
        self.calls.append("send")
        return super().send(*arguments)

    def recv(self, *arguments: Any) -> bytes:
        self.calls.append("recv")
        return super().recv(*arguments)


def test_a_request_is_one_look_one_write_one_wait_and_one_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def wait(awaited: Any, timeout: float) -> bool:
        calls.append("wait" if timeout else "look")
        return wait_for_read(awaited, timeout=timeout)

    monkeypatch.setattr(_open_connection, "wait_for_read", wait)
    with listening(lambda connection, _: answer(connection)) as server:
        with Counting() as counted:
            counted.calls = calls
            counted.connect(("127.0.0.1", server.port))
            connection = _open_connection.OpenConnection(_Owner(counted), "h")
            for _ in range(5):
                assert connection.is_open
                bounds = Bounds(20.0, 20.0, 1000)
                reply, again = connection.post("/", {}, b"x" * 18_000, bounds)
                assert (reply.status, again) == (200, True)
        assert len(server.requests) == 5
    assert calls == ["look", "send", "wait", "recv"] * 5


class _Owner:
    """What urllib3 is for a socket."""

    def __init__(self, owned: socket.socket) -> None:
        self.sock = owned


HEAD = b"HTTP/1.1 200 OK\r\nRequest-Id: req_1\r\n"
ANSWERS = {
    "plain": HEAD + b"Content-Length: 2\r\n\r\n{}",
    "names in capitals": b"HTTP/1.1 429 No\r\nREQUEST-ID: r\r\nretry-after: 2\r\n"
    b"CONTENT-LENGTH: 2\r\n\r\n{}",
    "no reason": b"HTTP/1.1 500\r\nContent-Length: 2\r\n\r\n{}",
    "a header twice": HEAD + b"Request-Id: req_2\r\nContent-Length: 2\r\n\r\n{}",
    "no space behind the colon": HEAD + b"Retry-After:3\r\nContent-Length:2\r\n\r\n{}",
    "an empty header": HEAD + b"Retry-After:\r\nContent-Length: 2\r\n\r\n{}",
    "a folded header": HEAD + b"Retry-After: 3\r\n 4\r\nContent-Length: 2\r\n\r\n{}",
    "not ascii": HEAD + b"Content-Type: \xe9\r\nContent-Length: 2\r\n\r\n{}",
    "line feeds alone": b"HTTP/1.1 200 OK\nRequest-Id: r\nContent-Length: 2\n\n{}",
    "no body": b"HTTP/1.1 204 No Content\r\nRequest-Id: r\r\n\r\n",
    "an empty body": HEAD + b"Content-Length: 0\r\n\r\n",
    "in chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    "chunks and a trailer": HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n0\r\nRetry-After: 9\r\n\r\n",
    "compressed": HEAD
    + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(gzip.compress(b"{}"))
    + gzip.compress(b"{}"),
    "continue first": b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}",
    "closing": HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}",
    "an older version": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "until the end": b"HTTP/1.0 200 OK\r\nRequest-Id: r\r\n\r\n{}",
    "a long body": HEAD + b"Content-Length: 60000\r\n\r\n" + b"x" * 60_000,
    "many headers": HEAD
    + b"".join(b"X-%d: %s\r\n" % (n, b"v" * 400) for n in range(90))
    + b"Content-Length: 2\r\n\r\n{}",
    "a body over the limit": HEAD
    + b"Content-Length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1)
    + b"x" * (BODY_BYTES_MAX + 1),
    "chunks over the limit": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + (b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 3,
    "a body cut short": HEAD + b"Content-Length: 100\r\n\r\n{}",
    "a head cut short": HEAD + b"Content-Len",
    "a bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "too many headers": HEAD + b"X: y\r\n" * 200 + b"Content-Length: 2\r\n\r\n{}",
    "an endless head": HEAD + b"X: " + b"y" * 300_000,
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length that is none": HEAD + b"Content-Length: many\r\n\r\n{}",
    "two codings": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n",
    "no HTTP": b"220 mail.example ESMTP ready\r\n\r\n",
}


def outcome(transport: Transport, url: str) -> tuple[object, ...]:
    try:
        reply = post(transport, url)
    except TransportError as error:
        return "no answer", error.maybe_accepted
    return reply.status, reply.body, [reply.headers.get(name) for name in LOOKED_UP]


@pytest.mark.parametrize("piece_bytes", [1_000_000, 7])
@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_means_the_same_to_the_first_and_to_a_further_request(
    what: str, piece_bytes: int
) -> None:
    text = ANSWERS[what]
    if len(text) > 5000:
        piece_bytes = max(piece_bytes, 5000)

    def serve(connection: socket.socket, request: bytes) -> None:
        if b"/warm-up" in request:
            return answer(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for begin in range(0, len(text), piece_bytes):
            connection.sendall(text[begin : begin + piece_bytes])
        return connection.shutdown(socket.SHUT_WR)

    outcomes = []
    with listening(serve) as server:
        for warm_ups in (0, 2):
            transport = Transport(connect_timeout_seconds=5.0, read_timeout_seconds=5.0)
            for _ in range(warm_ups):
                post(transport, server.url + "/warm-up")
            assert is_open(transport) == bool(warm_ups)
            outcomes.append(outcome(transport, server.url))
            assert is_open(transport) or what != "plain"
            # Whatever it was, the next one is understood again.
            assert post_anew(transport, server.url + "/warm-up").status == 200
            transport.close()
    assert outcomes[0] == outcomes[1]


def test_an_open_connection_outlives_what_urllib3_closes_at_the_exit(
    transport: Transport,
) -> None:
    with listening(lambda connection, _: answer(connection)) as server:
        post(transport, server.url)
        adapter: Any = transport._adapter
        for pool in list(adapter.poolmanager.pools._container.values()):
            pool.close()
        post(transport, server.url)
        assert (server.connections, len(server.requests)) == (1, 2)


def test_a_transport_that_is_closed_closes_its_open_connections(transport: Transport) -> None:
    with listening(lambda connection, _: answer(connection)) as server:
        post(transport, server.url)
        (connection,) = transport._open.values()
        transport.close()
        assert connection._socket.fileno() == -1


def test_what_nobody_asked_for_is_not_taken_for_the_next_answer(transport: Transport) -> None:
    def twice(connection: socket.socket, request: bytes) -> None:
        if request.endswith(b"{}"):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1" * 2)
        else:
            answer(connection, b"2")

    with listening(twice) as server:
        post(transport, server.url)
        assert post(transport, server.url, b"{}").body == b"1"
        assert post(transport, server.url).body == b"2"
        assert server.connections == 2


@pytest.mark.parametrize("over_tls", [False, True])
def test_a_connection_that_was_closed_while_idle_is_opened_anew_and_nothing_is_sent_twice(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, over_tls: bool
) -> None:
    def answer_and_close(connection: socket.socket, _request: bytes) -> None:
        answer(connection)
        connection.shutdown(socket.SHUT_RDWR)

    with listening(answer_and_close, tls if over_tls else None) as server:
        url = https(server, monkeypatch) if over_tls else server.url
        for _ in range(3):
            assert post(transport, url).status == 200
            wait_until_readable(transport)
        assert (server.connections, len(server.requests)) == (3, 3)


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nX: y", "a\rX: y", "a\0", "é"])
def test_no_header_can_smuggle_in_another(transport: Transport, value: str) -> None:
    with listening(lambda connection, _: answer(connection)) as server:
        post(transport, server.url)
        assert is_open(transport)
        with pytest.raises(TransportError, match="Authorization") as raised:
            post(transport, server.url, headers={"Authorization": value})
        assert len(server.requests) == 1
    assert not raised.value.maybe_accepted
    assert value not in str(raised.value)


def test_silence_ends_by_the_timeout_and_may_mean_accepted() -> None:
    transport = Transport(connect_timeout_seconds=5.0, read_timeout_seconds=5.0)

    def serve(connection: socket.socket, request: bytes) -> None:
        if b"/first" in request:
            answer(connection)

    with listening(serve) as server:
        post(transport, server.url + "/first")
        with pytest.raises(TransportError, match=r"0\.05") as raised:
            transport.post(server.url, {}, b"{}", at_most_seconds=-1.0)
    assert (raised.value.maybe_accepted, raised.value.stale) == (True, False)
    transport.close()


def test_a_server_that_stops_reading_ends_by_the_timeout() -> None:
    transport = Transport(connect_timeout_seconds=5.0, read_timeout_seconds=0.1)
    let_go = threading.Event()

    def stall(connection: socket.socket, _request: bytes) -> None:
        answer(connection)
        let_go.wait(20)

    with listening(stall) as server:
        post(transport, server.url)
        assert is_open(transport)
        with pytest.raises(TransportError, match="Write timed out") as raised:
            post(transport, server.url, b"x" * 50_000_000)
        let_go.set()
    assert (raised.value.maybe_accepted, raised.value.stale) == (True, False)
    transport.close()


@pytest.mark.parametrize("size", [1, 18_000, 3_000_000])
def test_bodies_of_any_size_go_over_tls_on_one_connection(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    with listening(lambda connection, _: answer(connection, b"y" * 50_000), tls) as server:
        url = https(server, monkeypatch)
        for n in range(5):
            reply = post(transport, url, bytes([65 + n]) * size)
            assert reply.body == b"y" * 50_000
            assert is_open(transport)
        assert server.connections == 1
        bodies = [request.partition(b"\r\n\r\n")[2] for request in server.requests]
    assert bodies == [bytes([65 + n]) * size for n in range(5)]


def test_a_tls_connection_that_the_server_closes_instead_of_an_answer_is_told_apart(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[bytes] = []

    def answer_every_other(connection: socket.socket, request: bytes) -> None:
        answered.append(request)
        if len(answered) % 2:
            answer(connection)
        else:
            connection.shutdown(socket.SHUT_RDWR)

    with listening(answer_every_other, tls) as server:
        url = https(server, monkeypatch)
        post(transport, url)
        with pytest.raises(TransportError) as raised:
            post(transport, url)
        assert (raised.value.stale, raised.value.maybe_accepted) == (True, True)
        assert post(transport, url).status == 200


def test_a_tunnel_through_a_proxy_is_used_again(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    tunnels: list[bytes] = []

    def tunnel(connection: socket.socket) -> socket.socket:
        tunnels.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return tls(connection)

    with listening(lambda connection, _: answer(connection), tunnel) as proxy:
        https(proxy, monkeypatch)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        for _ in range(4):
            assert post(transport, "https://stripe.test:9/v2/x").status == 200
            assert is_open(transport)
        assert len(tunnels) == 1
        assert tunnels[0].startswith(b"CONNECT stripe.test:9 HTTP/1.")
        assert {request.split(b"\r\n")[0] for request in proxy.requests} == {b"POST /v2/x HTTP/1.1"}


def test_a_proxy_without_a_tunnel_gets_every_request_from_requests(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(lambda connection, _: answer(connection)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        for _ in range(3):
            post(transport, "http://stripe.invalid/v2/x")
            assert not is_open(transport)
        assert {request.split(b"\r\n")[0] for request in proxy.requests} == {
            b"POST http://stripe.invalid/v2/x HTTP/1.1"
        }
        assert proxy.connections == 1
