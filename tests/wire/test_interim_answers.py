"""Answers with a status below 200 come before the answer and are not it; nothing is endless."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from meter_agent._transport import Reply, Transport, TransportError
from meter_agent.sandbox import Sandbox
from tests.wire.front import Exchange, Front, assert_billed_once, real_agent, record
from tests.wire.servers import answer, listening

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nContent-Length: 7\r\n\r\n"
UNKNOWN = b"HTTP/1.1 199\r\nX: y\r\n\r\n"
INTERIM = {
    "continue": CONTINUE,
    "processing": PROCESSING,
    "hints": HINTS,
    "unknown": UNKNOWN,
    "several": CONTINUE + PROCESSING * 5 + HINTS * 2 + UNKNOWN,
}
OK = b"HTTP/1.1 200 OK\r\nRequest-Id: r\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = CHUNKED_HEAD + b"2\r\n{}\r\n0\r\n\r\n"


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(connect_timeout_seconds=20.0, read_timeout_seconds=20.0)
    yield made
    made.close()


def post(transport: Transport, url: str) -> Reply:
    return transport.post(url, {}, b"{}", at_most_seconds=None)


@pytest.mark.parametrize("piece_bytes", [1_000_000, 5])
@pytest.mark.parametrize("final", [OK, CHUNKED], ids=["plain", "chunked"])
@pytest.mark.parametrize("interim", INTERIM)
def test_interim_answers_are_skipped(
    transport: Transport, interim: str, final: bytes, piece_bytes: int
) -> None:
    text = INTERIM[interim] + final

    def serve(connection: socket.socket, _request: bytes) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for begin in range(0, len(text), piece_bytes):
            connection.sendall(text[begin : begin + piece_bytes])

    with listening(serve) as server:
        for _ in range(4):
            reply = post(transport, server.url)
            assert (reply.status, reply.body) == (200, b"{}")
            assert reply.headers.get("Link") is None
        # They are no reason to open a connection for each request.
        assert server.connections == 1


@pytest.mark.parametrize("requests_before", [0, 1])
def test_101_is_an_answer_that_is_not_skipped(transport: Transport, requests_before: int) -> None:
    answers = [OK] * requests_before + [CONTINUE + b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK]

    def serve(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(answers.pop(0))

    with listening(serve) as server:
        for _ in range(requests_before):
            post(transport, server.url)
        assert post(transport, server.url).status == 101


def test_early_hints_before_every_answer_delay_no_event(sandbox: Sandbox) -> None:
    def hint_and_serve(exchange: Exchange) -> None:
        exchange.connection.sendall(HINTS)
        exchange.serve()

    with Front(sandbox, behave=hint_and_serve).open() as server:
        agent = real_agent(server.url)
        record(agent, 250)
        assert agent.flush(20)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 250)
    assert (final.retries, final.last_error) == (0, None)


TRAILERS = CHUNKED_HEAD + b"2\r\n{}\r\n0\r\n"
ENDLESS = {
    "continue": (b"", CONTINUE),
    "hints": (b"", HINTS),
    "a head": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "a header": (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    "a header of an interim answer": (b"HTTP/1.1 103 Early Hints\r\nX: ", b"y"),
    "a status line": (b"HTTP/1.1 200 ", b"O"),
    "a body": (b"HTTP/1.1 200 OK\r\n\r\n", b"{"),
    "chunks": (CHUNKED_HEAD, b"1\r\n{\r\n"),
    "a chunk extension": (CHUNKED_HEAD + b"2;", b"x"),
    "trailers": (TRAILERS, b"X: y\r\n"),
    "a trailer": (TRAILERS + b"X: ", b"y"),
}
FLOODED = {name: (head, again * (10_000 // len(again))) for name, (head, again) in ENDLESS.items()}


class Endless:
    """Answers so on every connection but on /warm-up; *sent* counts the bytes."""

    def __init__(self, head: bytes, again: bytes, every_seconds: float) -> None:
        self._head = head
        self._again = again
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self.sent = 0

    def __call__(self, connection: socket.socket, request: bytes) -> None:
        if b"/warm-up" in request:
            return answer(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(self._head)
        while not self._stop.wait(self._every_seconds):
            connection.sendall(self._again)
            self.sent += len(self._again)
        return None

    def stop(self) -> None:
        self._stop.set()


def post_endless(
    endless: Endless,
    warm_ups: int,
    read_timeout_seconds: float,
    at_most_seconds: float | None = None,
) -> TransportError:
    transport = Transport(connect_timeout_seconds=20.0, read_timeout_seconds=read_timeout_seconds)
    with listening(endless) as server:
        for _ in range(warm_ups):
            post(transport, server.url + "/warm-up")
        try:
            with pytest.raises(TransportError) as raised:
                transport.post(server.url, {}, b"{}", at_most_seconds=at_most_seconds)
            assert not transport._open, "a connection in the middle of an answer is of no use"
        finally:
            endless.stop()
            transport.close()
    return raised.value


@pytest.mark.parametrize("warm_ups", [0, 2], ids=["first request", "further request"])
@pytest.mark.parametrize("what", FLOODED)
def test_a_flood_is_read_up_to_a_limit_only(what: str, warm_ups: int) -> None:
    endless = Endless(*FLOODED[what], every_seconds=0.0)
    error = post_endless(endless, warm_ups, read_timeout_seconds=20.0)
    assert (error.maybe_accepted, error.stale) == (True, False)
    # Read are 192 KiB; the rest waits in the buffers of two sockets.
    assert endless.sent < 20_000_000


@pytest.mark.parametrize("warm_ups", [0, 2], ids=["first request", "further request"])
@pytest.mark.parametrize("what", ENDLESS)
def test_an_answer_that_drips_for_ever_ends_by_four_timeouts(what: str, warm_ups: int) -> None:
    endless = Endless(*ENDLESS[what], every_seconds=0.02)
    began = time.monotonic()
    error = post_endless(endless, warm_ups, read_timeout_seconds=0.5)
    assert (error.maybe_accepted, error.stale) == (True, False)
    # The timeout for silence alone would have ended nothing: two seconds are four of them.
    assert 2.0 <= time.monotonic() - began < 15.0


@pytest.mark.parametrize("warm_ups", [0, 2], ids=["first request", "further request"])
@pytest.mark.parametrize("what", ["a body", "hints"])
def test_an_answer_that_drips_ends_with_the_time_that_is_left_before_the_end(
    what: str, warm_ups: int
) -> None:
    endless = Endless(*ENDLESS[what], every_seconds=0.02)
    began = time.monotonic()
    error = post_endless(endless, warm_ups, read_timeout_seconds=20.0, at_most_seconds=1.0)
    assert error.maybe_accepted
    assert 1.0 <= time.monotonic() - began < 3.5
