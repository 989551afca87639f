"""Every answer a network can give to a batch: whole agents, real sockets, honest books."""

from __future__ import annotations

import json
import socket

import pytest

from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox._gateways import GATEWAY_ANSWERS
from tests.wire.front import Behaviour, Exchange, Front, assert_billed_once, real_agent, record
from tests.wire.servers import answer, listening, reset

HTML = b"<html><body>Welcome to nginx!</body></html>"


def reset_before_acceptance(exchange: Exchange) -> None:
    reset(exchange.connection)


def reset_after_acceptance(exchange: Exchange) -> None:
    exchange.take_in()
    reset(exchange.connection)


def half_an_answer(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}")
    exchange.hang_up()


def half_a_header(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
    exchange.hang_up()


def a_request_id_and_half_a_header(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nRequest-Id: req_1\r\nContent-Le")
    exchange.hang_up()


def half_a_429_after_acceptance(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.connection.sendall(b"HTTP/1.1 429 Too Many")
    exchange.hang_up()


def a_bad_chunk(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.connection.sendall(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"
    )
    exchange.hang_up()


def a_missing_last_chunk(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
    exchange.hang_up()


def html_of_a_proxy(exchange: Exchange) -> None:
    exchange.say(200, HTML, "Content-Type: text/html")


def html_after_acceptance(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.say(200, HTML, "Content-Type: text/html")


def bad_gzip(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.say(200, b"not gzip", "Content-Encoding: gzip")


def nothing_and_the_end(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.say(200, length=False)


def not_http(exchange: Exchange) -> None:
    exchange.connection.sendall(b"220 mail.example ESMTP ready\r\n\r\n")
    exchange.hang_up()


TROUBLE: list[tuple[Behaviour, int, str]] = [
    (reset_before_acceptance, 0, "Connection"),
    (reset_after_acceptance, 10, "Connection"),
    (half_an_answer, 10, "broke off"),
    (half_a_header, 10, "IncompleteRead"),
    (a_request_id_and_half_a_header, 10, "IncompleteRead"),
    (half_a_429_after_acceptance, 10, "IncompleteRead"),
    (a_bad_chunk, 10, "broke off"),
    (a_missing_last_chunk, 10, "broke off"),
    (html_of_a_proxy, 0, "HTTP 200 from 127.0.0.1"),
    (html_after_acceptance, 10, "HTTP 200 from 127.0.0.1"),
    (bad_gzip, 10, "broke off"),
    (nothing_and_the_end, 10, "HTTP 200 from 127.0.0.1"),
    (not_http, 0, "Bad"),
]


@pytest.mark.parametrize(
    ("behaviour", "duplicates", "told"), TROUBLE, ids=[row[0].__name__ for row in TROUBLE]
)
def test_what_is_no_answer_is_asked_again_and_billed_once(
    sandbox: Sandbox, behaviour: Behaviour, duplicates: int, told: str
) -> None:
    front = Front(sandbox, behaviour, behaviour)
    with front.open() as server:
        agent = real_agent(server.url, flush_interval_seconds=60.0)
        record(agent, 10)
        assert agent.flush(20)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 10)
    assert (final.requests, final.retries) == (3, 2)
    assert sandbox.totals()["duplicates"] == 2 * duplicates
    assert final.last_error is not None
    assert told in final.last_error
    assert len({exchange.body for exchange in front.batches}) == 1


def empty_with_length(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.say(200, b"", "Request-Id: req_1")


def empty_and_chunked(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.connection.sendall(
        b"HTTP/1.1 200 OK\r\nRequest-Id: req_1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )


def no_content(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.connection.sendall(b"HTTP/1.1 204 No Content\r\nRequest-Id: req_1\r\n\r\n")


def an_empty_object_without_a_request_id(exchange: Exchange) -> None:
    exchange.take_in()
    exchange.say(200, b"{}", "Content-Type: application/json")


def after_a_100(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    exchange.serve()


@pytest.mark.parametrize(
    "behaviour",
    [
        empty_with_length,
        empty_and_chunked,
        no_content,
        an_empty_object_without_a_request_id,
        after_a_100,
    ],
)
def test_a_success_of_stripe_is_believed_at_once_whatever_its_body(
    sandbox: Sandbox, behaviour: Behaviour
) -> None:
    front = Front(sandbox, behaviour)
    with front.open() as server:
        agent = real_agent(server.url, flush_interval_seconds=60.0)
        record(agent, 10)
        assert agent.flush(20)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 10)
    assert (final.requests, final.retries, final.last_error) == (1, 0, None)
    assert sandbox.totals()["duplicates"] == 0


@pytest.mark.parametrize("taken_in", [False, True], ids=["stopped", "rewritten"])
@pytest.mark.parametrize("form", GATEWAY_ANSWERS)
def test_an_answer_of_a_gateway_settles_no_event_and_is_shown(
    sandbox: Sandbox, form: str, taken_in: bool
) -> None:
    sandbox.add_fault(Fault("gateway", form=form, accept=taken_in, times=2))
    with Front(sandbox).open() as server:
        agent = real_agent(server.url, flush_interval_seconds=60.0, retry_max_seconds=1.0)
        record(agent, 10)
        assert agent.flush(30)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 10)
    assert (final.dead_lettered, final.uncertain) == (0, 0)
    status = GATEWAY_ANSWERS[form].status
    assert f"HTTP {status} from 127.0.0.1" in str(final.last_error)
    assert "not in Stripe's form" in str(final.last_error)


def test_a_session_of_a_gateway_is_not_believed(sandbox: Sandbox) -> None:
    portal = Fault("gateway", on="session", form="portal-200", times=1)
    empty = Fault("status", on="session", status=200, times=1)
    sandbox.add_fault(portal)
    sandbox.add_fault(empty)
    with Front(sandbox).open() as server:
        agent = real_agent(server.url)
        record(agent, 10)
        assert agent.flush(20)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 10)
    assert final.sessions == 1


def test_a_session_is_known_by_its_object_where_a_proxy_removes_request_ids() -> None:
    session = {
        "object": "v2.billing.meter_event_session",
        "authentication_token": "token_1",
        "created": "2026-11-30T10:00:00.000Z",
        "expires_at": "2026-11-30T10:15:00.000Z",
    }

    def respond(connection: socket.socket, request: bytes) -> None:
        path = request.split(b" ", 2)[1]
        opens = path.endswith(b"meter_event_session")
        body = json.dumps(session).encode() if opens else b"{}"
        answer(connection, body)

    with listening(respond) as listener:
        agent = real_agent(listener.url)
        record(agent, 10)
        assert agent.flush(20)
        final = agent.close(20)
    assert (final.delivered, final.sessions, final.retries) == (10, 1, 0)


def test_a_session_is_asked_for_without_a_body(sandbox: Sandbox) -> None:
    front = Front(sandbox)
    sandbox.add_fault(Fault("status", status=401, times=1))  # a second session, on the open socket
    with front.open() as server:
        agent = real_agent(server.url)
        record(agent, 10)
        assert agent.flush(20)
        agent.close(20)
    sessions = [exchange for exchange in front.exchanges if not exchange.for_stream]
    assert len(sessions) == 2
    for exchange in sessions:
        names = {name.lower(): value for name, value in exchange.headers.items()}
        assert exchange.body == b""
        assert names["content-length"] == "0"
        assert "content-type" not in names
        assert "transfer-encoding" not in names


@pytest.mark.parametrize("taken_in", [False, True], ids=["refused", "taken in all the same"])
@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 507])
def test_a_status_that_says_later_is_asked_again_and_billed_once(
    sandbox: Sandbox, status: int, taken_in: bool
) -> None:
    def later(exchange: Exchange) -> None:
        if taken_in:
            exchange.take_in()
        exchange.say(status, HTML)

    front = Front(sandbox, later, later)
    with front.open() as server:
        agent = real_agent(server.url, flush_interval_seconds=60.0)
        record(agent, 10)
        assert agent.flush(20)
        final = agent.close(20)
    assert_billed_once(sandbox, final, 10)
    assert final.requests == 3
    assert sandbox.totals()["duplicates"] == (20 if taken_in else 0)
    assert f"HTTP {status} from 127.0.0.1" in str(final.last_error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_events_go_where_they_belong(
    sandbox: Sandbox, status: int
) -> None:
    with listening(lambda connection, _: answer(connection)) as elsewhere:

        def redirect(exchange: Exchange) -> None:
            exchange.say(status, b"", f"Location: {elsewhere.url}/v2/billing/meter_event_stream")

        front = Front(sandbox, redirect, redirect)
        with front.open() as server:
            agent = real_agent(server.url, flush_interval_seconds=60.0)
            record(agent, 10)
            assert agent.flush(20)
            final = agent.close(20)
        assert elsewhere.connections == 0
    assert_billed_once(sandbox, final, 10)
    assert (final.requests, final.splits) == (3, 0)
    assert f"HTTP {status} from 127.0.0.1" in str(final.last_error)
