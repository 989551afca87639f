"""What a server sends without having been asked is the answer to no request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from urllib3.util import wait_for_read

from meter_agent._transport import Reply, Transport, TransportError
from meter_agent.sandbox import Sandbox
from tests.wire.front import Exchange, Front, assert_billed_once, real_agent
from tests.wire.servers import listening, read_request
from tests.wire.test_open_connection import https, tls

REFUSAL = b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"
STRAY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(connect_timeout_seconds=20.0, read_timeout_seconds=20.0)
    yield made
    made.close()


def post(transport: Transport, url: str) -> Reply:
    return transport.post(url, {}, b"{}", at_most_seconds=None)


def kept_sockets(transport: Transport) -> list[socket.socket]:
    """The sockets that the next request may use, with whomever they are kept."""
    adapter: Any = transport._adapter
    managers = [adapter.poolmanager, *adapter.proxy_manager.values()]
    pools = [pool for manager in managers for pool in manager.pools._container.values()]
    pooled = [kept.sock for pool in pools for kept in pool.pool.queue if kept is not None]
    opened = [connection._socket for connection in transport._open.values()]
    return [kept for kept in opened + pooled if kept is not None]


class Scripted:
    """Gives the next of *answers* to each request, and says something more before the last one."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self._more: SimpleQueue[bytes] = SimpleQueue()

    def __call__(self, connection: socket.socket, _request: bytes) -> None:
        connection.sendall(self._answers.pop(0))
        if len(self._answers) == 1:
            # In the thread that reads, too: a TLS connection is used by one thread at a time.
            connection.sendall(self._more.get(timeout=20))

    def say(self, more: bytes, transport: Transport) -> None:
        """Say *more* on the connection of the last answer, and wait until it is there."""
        self._more.put(more)
        (kept,) = kept_sockets(transport)
        assert wait_for_read(kept, timeout=20)


WAYS = {"kept by us": [PLAIN], "used by us": [PLAIN, PLAIN], "kept by urllib3": [CHUNKED]}


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "stray", [STRAY, STRAY[:20], b"\r\n", b"HTTP/1.1 408 Request Timeout\r\n\r\n"]
)
def test_bytes_that_came_before_a_request_are_not_its_answer(
    transport: Transport,
    monkeypatch: pytest.MonkeyPatch,
    over_tls: bool,
    way: str,
    stray: bytes,
) -> None:
    answers = WAYS[way]
    script = Scripted(*answers, REFUSAL)
    with listening(script, tls if over_tls else None) as server:
        url = https(server, monkeypatch) if over_tls else server.url
        for _ in answers[1:]:
            assert post(transport, url).status == 200
        assert post(transport, url).status == 200
        script.say(stray, transport)
        reply = post(transport, url)
        assert (reply.status, reply.body) == (503, b"no")
        assert server.connections == 2


def test_a_stray_answer_of_a_proxy_is_not_the_answer_to_the_next_request(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Scripted(PLAIN, REFUSAL)
    with listening(script) as proxy:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert post(transport, "http://stripe.invalid/v2/x").status == 200
        script.say(STRAY, transport)
        assert post(transport, "http://stripe.invalid/v2/x").status == 503
        assert proxy.connections == 2


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("requests_before", [0, 1], ids=["first request", "further request"])
@pytest.mark.parametrize("first", [PLAIN, CHUNKED, b"HTTP/1.1 204 No\r\n\r\n"])
@pytest.mark.parametrize("rest", [STRAY, STRAY[:9], b"HTTP/1.1 200 OK\r\nX: " + b"y" * 9000])
def test_what_comes_together_with_an_answer_closes_the_connection(  # noqa: PLR0917
    transport: Transport,
    monkeypatch: pytest.MonkeyPatch,
    over_tls: bool,
    requests_before: int,
    first: bytes,
    rest: bytes,
) -> None:
    answers = [PLAIN] * requests_before + [first + rest, REFUSAL]

    def serve(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(answers.pop(0))

    with listening(serve, tls if over_tls else None) as server:
        url = https(server, monkeypatch) if over_tls else server.url
        for _ in range(requests_before):
            post(transport, url)
        assert post(transport, url).status in {200, 204}
        assert kept_sockets(transport) == []
        assert post(transport, url).status == 503
        assert server.connections == 2


def test_a_connection_on_which_http_has_ended_is_closed(transport: Transport) -> None:
    answers = [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", PLAIN]

    def serve(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(answers.pop(0))

    with listening(serve) as server:
        assert post(transport, server.url).status == 101
        assert kept_sockets(transport) == []
        assert post(transport, server.url).status == 200
        assert server.connections == 2


@pytest.mark.parametrize(("early", "status"), [(REFUSAL, 503), (PLAIN, None)])
def test_before_the_whole_request_is_written_a_refusal_is_an_answer_and_a_success_is_none(
    transport: Transport, early: bytes, status: int | None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            read_request(connection)
            connection.sendall(PLAIN)
            connection.recv(1024)
            connection.sendall(early)
            connection.close()  # with bytes unread: a reset

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert post(transport, url).status == 200
        if status is None:
            with pytest.raises(TransportError, match="before the whole request") as raised:
                transport.post(url, {}, b"x" * 50_000_000, at_most_seconds=None)
            assert raised.value.maybe_accepted
        else:
            reply = transport.post(url, {}, b"x" * 50_000_000, at_most_seconds=None)
            assert reply.status == status
        thread.join(20)


def test_a_stray_success_does_not_count_a_refused_batch_as_delivered(sandbox: Sandbox) -> None:
    front = Front(sandbox, Exchange.serve, lambda exchange: exchange.say(503))
    with front.open() as server:
        agent = real_agent(server.url)
        assert agent.record("tokens", "cus_0", 1)
        assert agent.flush(20)
        front.batches[0].connection.sendall(STRAY)
        assert agent.record("tokens", "cus_1", 2)
        assert agent.flush(20)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 2)
    assert final.retries == 1
