"""What commands ask of a transport: a GET, the way that it takes, and what went wrong with it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from meter_agent._reply import TransportError, Trouble
from meter_agent._transport import Transport, Way
from tests.wire.servers import listening

CERTIFICATES = Path(__file__).parent / "certificates"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd"


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Iterator[Transport]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    made = Transport(connect_timeout_seconds=5, read_timeout_seconds=5)
    yield made
    made.close()


def test_a_get_has_no_body_and_no_content_type(transport: Transport) -> None:
    with listening(lambda connection, _: connection.sendall(ANSWER)) as server:
        reply = transport.get(f"{server.url}/x?a=b", {"A": "b"}, at_most_seconds=None)
        assert (reply.status, reply.body) == (200, b"abcd")
        (request,) = server.requests
    assert request.startswith(b"GET /x?a=b HTTP/1.1\r\n")
    assert b"A: b\r\n" in request
    assert b"content-" not in request.lower()


def test_a_get_between_posts_neither_breaks_nor_mixes_with_the_kept_connection(
    transport: Transport,
) -> None:
    with listening(lambda connection, _: connection.sendall(ANSWER)) as server:
        for _ in range(2):
            assert transport.post(server.url, {}, b"{}", at_most_seconds=None).body == b"abcd"
            assert transport.get(server.url, {}, at_most_seconds=None).body == b"abcd"
        methods = [request.split(b" ")[0] for request in server.requests]
    assert methods == [b"POST", b"GET"] * 2


def test_a_get_reads_as_much_as_it_is_told_to(transport: Transport) -> None:
    with listening(lambda connection, _: connection.sendall(ANSWER)) as server:
        assert transport.get(server.url, {}, at_most_seconds=None, body_bytes_max=4).body == b"abcd"
        with pytest.raises(TransportError, match="over 3 bytes"):
            transport.get(server.url, {}, at_most_seconds=None, body_bytes_max=3)


def test_the_way_names_proxy_and_certificates_and_no_password(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:word@proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/ca.pem")
    through = Way(proxy="http://***@proxy.test:3128", ca_bundle="/ca.pem")
    assert transport.way("https://api.stripe.com/v2/x") == through
    assert transport.way("https://localhost/v2/x").proxy is None
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert transport.way("https://api.stripe.com/v2/y").ca_bundle is None


def trouble_of(transport: Transport, url: str) -> Trouble:
    with pytest.raises(TransportError) as raised:
        transport.get(url, {}, at_most_seconds=0.3)
    return raised.value.trouble


def stranger(connection: socket.socket) -> socket.socket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "stranger.pem")
    return context.wrap_socket(connection, server_side=True)


def test_what_went_wrong_is_told_in_a_word(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trouble_of(transport, "http://127.0.0.1:1") == "connect"
    with listening(lambda *_: None) as silent:
        assert trouble_of(transport, silent.url) == "timeout"
    with listening(lambda connection, _: connection.shutdown(socket.SHUT_RDWR)) as rude:
        assert trouble_of(transport, rude.url) == "answer"
    with listening(lambda *_: None, stranger) as server:
        https = server.url.replace("http:", "https:")
        assert trouble_of(transport, https) == "tls"
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent.pem")
        assert trouble_of(transport, f"{https}/other") == "local"
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert trouble_of(transport, "http://stripe.test") == "proxy"


@pytest.mark.parametrize("urllib3_has_a_class_for_it", [True, False])
def test_a_name_that_is_not_known_is_told_apart(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, urllib3_has_a_class_for_it: bool
) -> None:
    if not urllib3_has_a_class_for_it:  # as before its version 2
        monkeypatch.delattr(urllib3.exceptions, "NameResolutionError", raising=False)
        assert trouble_of(transport, "http://127.0.0.1:1") == "connect"

    def unknown(*_arguments: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert trouble_of(transport, "http://stripe.test") == "name"
