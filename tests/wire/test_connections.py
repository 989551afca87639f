"""Connections that are closed, slow or not trusted: whole agents, real sockets, honest books."""

from __future__ import annotations

import ssl
import threading
import time
from pathlib import Path
from socket import socket

import pytest

from meter_agent import MeterAgentError
from meter_agent.sandbox import Fault, Sandbox
from tests.wire.front import (
    Behaviour,
    Exchange,
    Front,
    assert_billed_once,
    real_agent,
    record,
)
from tests.wire.servers import reset

CERTIFICATES = Path(__file__).parent / "certificates"


def answer_and_hang_up(exchange: Exchange) -> None:
    exchange.serve()
    exchange.hang_up()


class ResetsSecondRequests:
    """Notices a request only to say that this connection was closed long ago."""

    def __init__(self) -> None:
        self._served: set[int] = set()

    def __call__(self, exchange: Exchange) -> None:
        port = exchange.connection.getpeername()[1]
        if port in self._served:
            reset(exchange.connection)
        else:
            self._served.add(port)
            exchange.serve()


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_kept_alive_connection_that_was_closed_costs_one_free_retry_and_no_wait(
    sandbox: Sandbox, how: str, hosts: int
) -> None:
    told: list[MeterAgentError] = []
    behave: Behaviour = answer_and_hang_up if how == "closed" else ResetsSecondRequests()
    front = Front(sandbox, behave=behave)
    with front.open() as server:
        settings = {"api_url": server.url} if hosts == 1 else {}
        # With such a back-off nobody would get past eight failures within 20 s.
        agent = real_agent(
            server.url,
            on_error=told.append,
            retry_base_seconds=3600.0,
            retry_max_seconds=3600.0,
            **settings,
        )
        for n in range(8):
            agent.record("tokens", "cus_1", n + 1)
            assert agent.flush(20)
        final = agent.close(20)
        assert server.connections >= 8
    assert_billed_once(sandbox, final, 8)
    assert (final.retries, final.last_error, told) == (0, None, [])


def test_only_the_first_retry_is_free(sandbox: Sandbox) -> None:
    def drop(exchange: Exchange) -> None:
        reset(exchange.connection)

    # The kept-alive connection is reset, and so is the fresh one behind it.
    front = Front(sandbox, Exchange.serve, drop, drop)
    with front.open() as server:
        agent = real_agent(server.url)
        for n in range(2):
            agent.record("tokens", "cus_1", n + 1)
            assert agent.flush(20)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 2)
    assert len(front.batches) == 4
    assert final.retries == 1


class Drip:
    """Sends an honest answer byte by byte, each within the read timeout."""

    def __init__(self, *, head_only: bool) -> None:
        self._head_only = head_only
        self.gone = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        reply = exchange.take_in()
        lines = [f"HTTP/1.1 {reply.status} OK", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(reply.body)}", "\r\n"]
        head = "\r\n".join(lines).encode()
        slow, rest = (head, reply.body) if self._head_only else (head + reply.body, b"")
        try:
            for place in range(len(slow)):
                exchange.connection.sendall(slow[place : place + 1])
                self.gone.wait(0.005)
            exchange.connection.sendall(rest)
        except OSError:
            self.gone.set()
            raise


@pytest.mark.parametrize("head_only", [True, False], ids=["headers", "everything"])
def test_an_answer_that_drips_is_read_to_its_end_and_billed_once(
    sandbox: Sandbox, head_only: bool
) -> None:
    front = Front(sandbox, Drip(head_only=head_only))
    with front.open() as server:
        agent = real_agent(server.url, read_timeout_seconds=0.5)
        record(agent, 1)
        assert agent.flush(20)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 1)
    assert final.requests == 1


def test_an_answer_that_drips_holds_up_neither_the_other_senders_nor_close(
    sandbox: Sandbox,
) -> None:
    stop = threading.Event()

    def drip_for_ever(exchange: Exchange) -> None:
        exchange.take_in()
        exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not stop.wait(0.01):
            exchange.connection.sendall(b"z")

    front = Front(sandbox, drip_for_ever)
    with front.open() as server:
        agent = real_agent(server.url, max_in_flight=2, read_timeout_seconds=0.5)
        agent.record("tokens", "cus_1", 1)
        while not front.batches:
            pass
        for n in range(100):
            agent.record("tokens", "cus_1", n + 2)
        while agent.stats().delivered < 100:
            pass
        began = time.monotonic()
        final = agent.close(0.3)
        assert time.monotonic() - began < 5.0
        stop.set()
    assert (final.delivered, final.uncertain, final.in_flight) == (100, 1, 0)
    assert final.balanced
    assert len(sandbox.ledger()) == 101, "the one that is uncertain had in fact arrived"


def test_silence_is_a_timeout_and_the_batch_goes_again(sandbox: Sandbox) -> None:
    def swallow(exchange: Exchange) -> None:
        exchange.take_in()

    front = Front(sandbox, swallow)
    with front.open() as server:
        agent = real_agent(server.url, read_timeout_seconds=0.2)
        record(agent, 1)
        assert agent.flush(20)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 1)
    assert "Read timed out" in str(final.last_error)
    assert sandbox.totals()["duplicates"] == 1


def tls_context(name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / f"{name}.pem")
    return context


def test_a_certificate_that_nobody_vouches_for_gets_no_event_and_loses_none(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATES / "trusted.pem"))
    certificate = ["stranger"]
    refusals: list[MeterAgentError] = []

    def greet(connection: socket) -> socket:
        return tls_context(certificate[0]).wrap_socket(connection, server_side=True)

    def on_error(error: MeterAgentError) -> None:
        refusals.append(error)
        if len(refusals) == 3:
            seen.append(len(front.exchanges))
            certificate[0] = "trusted"

    seen: list[int] = []
    front = Front(sandbox)
    with front.open(greet) as server:
        agent = real_agent(server.url.replace("http:", "https:"), on_error=on_error)
        record(agent, 10)
        assert agent.flush(20)
        final = agent.close(20)
    assert seen == [0], "nothing was said to a stranger, not even the key"
    assert "certificate verify failed" in str(refusals[0])
    assert "certificate verify failed" in str(final.last_error)
    assert_billed_once(sandbox, final, 10)


def test_while_no_certificate_is_trusted_the_events_stay_and_the_statistics_say_why(
    sandbox: Sandbox,
) -> None:
    front = Front(sandbox)
    refused = threading.Event()

    def greet(connection: socket) -> socket:
        return tls_context("stranger").wrap_socket(connection, server_side=True)

    with front.open(greet) as server:
        agent = real_agent(
            server.url.replace("http:", "https:"), on_error=lambda _error: refused.set()
        )
        record(agent, 10)
        assert refused.wait(20)
        stats = agent.stats()
        assert (stats.delivered, stats.in_flight + stats.buffered) == (0, 10)
        assert "certificate verify failed" in str(stats.last_error)
        final = agent.close(0.2)
    assert front.exchanges == []
    assert final.dropped == {"shutdown": 10}
    assert final.balanced


@pytest.mark.parametrize("first", ["stranger", "plain text"])
def test_an_event_that_no_handshake_let_out_was_never_sent_and_may_be_refused(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATES / "trusted.pem"))
    speaks = [first]

    def greet(connection: socket) -> socket:
        if speaks[0] == "plain text":
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return connection
        return tls_context(speaks[0]).wrap_socket(connection, server_side=True)

    sandbox.add_fault(Fault("status", status=400, code="archived_meter"))
    with Front(sandbox).open() as api, Front(sandbox).open(greet) as events:
        agent = real_agent(
            events.url.replace("http:", "https:"),
            api_url=api.url,
            on_error=lambda _error: speaks.insert(0, "trusted"),
        )
        record(agent, 10)
        assert agent.flush(20)
        final = agent.close(20)
    assert final.retries >= 1
    assert (final.dead_lettered, final.uncertain) == (10, 0)
