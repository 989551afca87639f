"""The transport on real sockets: what it sends, what it survives, what it refuses to do."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator

import pytest
import urllib3

from meter_agent._answer import Answer, Verdict
from meter_agent._bounded_response import read_body
from meter_agent._ledger import Traffic
from meter_agent._runtime import SystemRuntime
from meter_agent._stream import MeterEventStream
from meter_agent._transport import (
    BODY_BYTES_MAX,
    Reply,
    Transport,
    TransportError,
    _network_adapter,
)
from meter_agent._version import __version__
from tests.wire.servers import Listener, answer, listening, reset


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = Transport(connect_timeout_seconds=5.0, read_timeout_seconds=5.0)
    yield made
    made.close()


def post(transport: Transport, url: str, **headers: str) -> Reply:
    return transport.post(url, headers, b'{"events":[]}', at_most_seconds=None)


def test_a_request_carries_what_it_was_given_and_nothing_else(transport: Transport) -> None:
    with listening(lambda connection, _: answer(connection)) as server:
        post(transport, server.url + "/v2/x", Authorization="Bearer t")
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v2/x HTTP/1.1"
    names = {line.split(":")[0] for line in lines[1:]}
    assert names == {"Host", "Authorization", "Content-Type", "Content-Length", "Accept"} | (
        names & {"Accept-Encoding", "User-Agent", "Connection"}
    )
    assert "Content-Type: application/json" in lines
    assert body == b'{"events":[]}'


def test_requests_share_one_kept_alive_connection(transport: Transport) -> None:
    with listening(lambda connection, _: answer(connection)) as server:
        for _ in range(20):
            assert post(transport, server.url).status == 200
        assert server.connections == 1


def test_a_redirect_is_an_answer_and_is_not_followed(transport: Transport) -> None:
    with listening(lambda connection, _: answer(connection)) as elsewhere:
        location = f"Location: {elsewhere.url}/stolen"
        with listening(
            lambda connection, _: answer(connection, b"", "307 Temporary Redirect", location)
        ) as server:
            assert post(transport, server.url, Authorization="Bearer secret").status == 307
        assert elsewhere.requests == []


def test_cookies_are_not_kept(transport: Transport) -> None:
    with listening(
        lambda connection, _: answer(connection, b"{}", "200 OK", "Set-Cookie: a=b; Path=/")
    ) as server:
        post(transport, server.url)
        post(transport, server.url)
        assert b"cookie" not in server.requests[1].lower()


def test_netrc_does_not_replace_the_credentials(
    transport: Transport, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = f"{tmp_path}/netrc"
    with open(netrc, "w", encoding="utf-8") as file:
        file.write("machine 127.0.0.1 login intruder password password\n")
    monkeypatch.setenv("NETRC", netrc)
    with listening(lambda connection, _: answer(connection)) as server:
        post(transport, server.url, Authorization="Bearer token")
        assert b"Authorization: Bearer token" in server.requests[0]


def test_the_environment_can_name_a_proxy(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(lambda connection, _: answer(connection)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert post(transport, "http://stripe.invalid/v2/x").status == 200
        assert proxy.requests[0].startswith(b"POST http://stripe.invalid/v2/x HTTP/1.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_host_is_never_asked_through_a_proxy(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with listening(lambda connection, _: answer(connection)) as server:
        assert post(transport, server.url.replace("127.0.0.1", host)).status == 200


def test_no_proxy_is_honoured(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "stripe.test")
    assert transport.way("http://stripe.test/v2/x").proxy is None
    assert transport.way("http://other.test/v2/x").proxy == "http://127.0.0.1:1"


def test_the_environment_can_name_a_ca_bundle(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent/ca.pem")
    with pytest.raises(TransportError, match=r"/nonexistent/ca\.pem") as raised:
        post(transport, "https://127.0.0.1:1/")
    assert not raised.value.maybe_accepted


def test_a_refused_connection_was_surely_not_accepted(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(TransportError) as raised:
        post(transport, f"http://127.0.0.1:{port}/")
    assert not raised.value.maybe_accepted
    assert not raised.value.stale


def test_urllib3_retries_nothing_behind_our_back() -> None:
    retries = _network_adapter().max_retries  # type: ignore[attr-defined]
    assert (retries.total, retries.read) == (0, False)


def test_an_unknown_host_was_surely_not_accepted(transport: Transport) -> None:
    with pytest.raises(TransportError) as raised:
        post(transport, "http://stripe.invalid/")
    assert not raised.value.maybe_accepted


def test_a_silent_server_may_have_accepted() -> None:
    transport = Transport(connect_timeout_seconds=5.0, read_timeout_seconds=0.05)
    with (
        listening(lambda _connection, _request: None) as server,
        pytest.raises(TransportError) as raised,
    ):
        post(transport, server.url)
    assert raised.value.maybe_accepted
    transport.close()


def test_the_last_moments_cut_the_read_timeout(transport: Transport) -> None:
    with (
        listening(lambda _connection, _request: None) as server,
        pytest.raises(TransportError, match=r"0\.05"),
    ):
        transport.post(server.url, {}, b"{}", at_most_seconds=-1.0)


def test_a_reset_may_have_been_accepted_and_is_not_stale_on_a_fresh_connection(
    transport: Transport,
) -> None:
    with (
        listening(lambda connection, _: reset(connection)) as server,
        pytest.raises(TransportError) as raised,
    ):
        post(transport, server.url)
    assert raised.value.maybe_accepted
    assert not raised.value.stale


class ClosesAfter:
    """Answers *count* requests of each connection, then closes it when the next one comes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.served: dict[int, int] = {}

    def __call__(self, connection: socket.socket, _request: bytes) -> None:
        key = connection.getpeername()[1]
        self.served[key] = self.served.get(key, 0) + 1
        if self.served[key] > self.count:
            reset(connection)
        else:
            answer(connection)


def test_a_kept_alive_connection_that_was_closed_is_told_apart(transport: Transport) -> None:
    with listening(ClosesAfter(1)) as server:
        post(transport, server.url)
        with pytest.raises(TransportError) as raised:
            post(transport, server.url)
        assert raised.value.stale
        assert post(transport, server.url).status == 200


def test_an_answer_cut_short_is_no_answer(transport: Transport) -> None:
    def cut(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}")
        connection.close()

    with listening(cut) as server, pytest.raises(TransportError, match="broke off") as raised:
        post(transport, server.url)
    assert raised.value.maybe_accepted


def test_a_body_that_ends_before_its_length_is_no_answer_to_any_version_of_urllib3() -> None:
    # Before version 2, it says so only if it is told to.
    cut = urllib3.HTTPResponse(
        io.BytesIO(b"{}"),
        headers={"Content-Length": "100"},
        preload_content=False,
        enforce_content_length=False,
    )
    with pytest.raises(urllib3.exceptions.IncompleteRead):
        read_body(cut, BODY_BYTES_MAX)


def test_a_bad_chunk_is_no_answer(transport: Transport) -> None:
    def garble(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")
        connection.close()

    with listening(garble) as server, pytest.raises(TransportError) as raised:
        post(transport, server.url)
    assert raised.value.maybe_accepted


def test_something_that_is_not_http_is_no_answer(transport: Transport) -> None:
    def babble(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"220 mail.example ESMTP ready\r\n\r\n")
        connection.close()

    with listening(babble) as server, pytest.raises(TransportError):
        post(transport, server.url)


def test_an_endless_answer_is_read_up_to_a_limit_only(transport: Transport) -> None:
    sent = threading.Event()

    def flood(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            for _ in range(1000):
                connection.sendall(b"x" * 1_000_000)
        except OSError:
            sent.set()

    with listening(flood) as server:
        with pytest.raises(TransportError, match=str(BODY_BYTES_MAX)):
            post(transport, server.url)
        assert sent.wait(20), "the server was read to the end"


def test_a_server_that_does_not_speak_tls_is_no_answer() -> None:
    transport = Transport(connect_timeout_seconds=0.3, read_timeout_seconds=0.3)
    with (
        listening(lambda connection, _: answer(connection)) as server,
        pytest.raises(TransportError),
    ):
        post(transport, server.url.replace("http:", "https:"))
    transport.close()


# -- the stream on top of it ---------------------------------------------------------------------


def stream_to(server: Listener, transport: Transport, traffic: Traffic) -> MeterEventStream:
    return MeterEventStream(
        SystemRuntime(),
        transport=transport,
        session_url=server.url + "/v2/billing/meter_event_session",
        event_url=server.url + "/v2/billing/meter_events",
        meters_url="http://127.0.0.1:1/v1/billing/meters",
        stream_url=server.url + "/v2/billing/meter_event_stream",
        read_api_key=lambda: "sk_test_key",
        headers={"Stripe-Version": "2026-10-28.endive"},
        traffic=traffic,
        seconds_left=lambda: None,
    )


def test_a_stale_connection_gets_one_immediate_retry_and_no_more(transport: Transport) -> None:
    traffic = Traffic()
    with listening(ClosesAfter(1)) as server:
        stream = stream_to(server, transport, traffic)
        for _ in range(4):
            assert stream.send("token", [b"{}"]).verdict is Verdict.ACCEPTED
        assert server.connections == 4
    with listening(lambda connection, _: reset(connection)) as server:
        stream = stream_to(server, transport, traffic)
        assert stream.send("token", [b"{}"]).verdict is Verdict.RETRY
        assert server.connections == 1


def test_each_credential_goes_to_its_own_endpoint_only(transport: Transport) -> None:
    with listening(lambda connection, _: answer(connection)) as server:
        stream = stream_to(server, transport, Traffic())
        stream.open_session()
        stream.send("the_token", [b'{"a":1}', b'{"b":2}'])
        stream.check(b'{"c":3}')
        session, events, single = server.requests
    assert b"Bearer sk_test_key" in session
    assert b"Bearer the_token" in events
    assert b"sk_test_key" not in events
    assert session.endswith(b"\r\n\r\n")
    assert events.endswith(b'\r\n\r\n{"events":[{"a":1},{"b":2}]}')
    assert b"Bearer sk_test_key" in single
    assert b"Idempotency-Key" not in single
    assert single.startswith(b"POST /v2/billing/meter_events HTTP/1.1\r\n")
    assert single.endswith(b'\r\n\r\n{"c":3}')
    for request in (session, events, single):
        assert f"User-Agent: meter-agent/{__version__}".encode() in request
        assert b"Stripe-Version: 2026-10-28.endive" in request


def test_a_server_that_repeats_a_secret_does_not_get_it_into_the_message(
    transport: Transport,
) -> None:
    def echo(connection: socket.socket, _request: bytes) -> None:
        answer(connection, b'{"error":{"message":"bad token the_token or sk_test_key"}}', "400 No")

    with listening(echo) as server:
        stream = stream_to(server, transport, Traffic())
        assert "the_token" not in stream.send("the_token", [b"{}"]).message
        session = stream.open_session()
        assert "sk_test_key" not in repr(session)


def test_a_secret_at_the_place_where_the_message_is_cut_does_not_leak_either(
    transport: Transport,
) -> None:
    def echo(connection: socket.socket, _request: bytes) -> None:
        words = b"x" * 295 + b"sk_test_key and the_token"
        answer(connection, b'{"error":{"message":"' + words + b'"}}', "400 No")

    with listening(echo) as server:
        stream = stream_to(server, transport, Traffic())
        session = stream.open_session()
        assert isinstance(session, Answer)
        assert "sk_te" not in session.message


def test_a_lost_answer_is_not_forgotten_by_the_free_retry_behind_it(
    transport: Transport,
) -> None:
    seen: list[bytes] = []

    def lose_then_limit(connection: socket.socket, request: bytes) -> None:
        seen.append(request)
        if len(seen) == 1:
            answer(connection)
        elif len(seen) == 2:
            reset(connection)  # it may have been taken in
        else:
            answer(connection, b"{}", "429 Slow down")

    with listening(lose_then_limit) as server:
        stream = stream_to(server, transport, Traffic())
        stream.send("token", [b"{}"])
        limited = stream.send("token", [b"{}"])
    assert limited.verdict is Verdict.RATE_LIMITED
    assert limited.maybe_accepted


def test_an_answer_lost_behind_a_proxy_may_have_been_accepted(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(lambda connection, _: connection.close()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(TransportError) as raised:
            post(transport, "http://stripe.invalid/v2/x")
        assert len(proxy.requests) == 1
    assert raised.value.maybe_accepted


def test_a_proxy_that_cannot_be_reached_surely_passed_nothing_on(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(TransportError) as raised:
        post(transport, "http://stripe.invalid/v2/x")
    assert not raised.value.maybe_accepted


def test_the_idempotency_key_depends_on_the_body_alone(transport: Transport) -> None:
    def key(request: bytes) -> bytes:
        return next(line for line in request.split(b"\r\n") if line.startswith(b"Idempotency-Key"))

    with listening(lambda connection, _: answer(connection)) as server:
        stream = stream_to(server, transport, Traffic())
        stream.send("token_1", [b'{"a":1}', b'{"b":2}'])
        stream.send("token_2", [b'{"a":1}', b'{"b":2}'])
        stream.send("token_2", [b'{"a":1}'])
        first, second, third = map(key, server.requests)
    assert first == second != third


def test_a_key_that_cannot_be_read_is_an_answer_and_not_an_exception(
    transport: Transport,
) -> None:
    def unreadable() -> str:
        raise OSError("no such file")

    with listening(lambda connection, _: answer(connection)) as server:
        stream = stream_to(server, transport, Traffic())
        stream._read_api_key = unreadable
        result = stream.open_session()
        assert not isinstance(result, str)
        assert getattr(result, "verdict", None) is Verdict.UNAUTHORIZED
        assert server.requests == []
