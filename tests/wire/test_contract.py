"""Requests as they leave, and the answers of the sandbox, against Stripe's own description.

`openapi-meter.json` is the part of Stripe's OpenAPI description (2026-09-30.endive, of
https://github.com/stripe/openapi) that is about meters, transcribed. openapi-core judges by it.
"""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from openapi_core import OpenAPI
from openapi_core.datatypes import RequestParameters
from openapi_core.exceptions import OpenAPIError

from meter_agent import Config
from meter_agent._answer import Grant, Verdict
from meter_agent._connection import open_stream
from meter_agent._ledger import Traffic
from meter_agent._runtime import SystemRuntime
from meter_agent._stream import MeterEventStream
from meter_agent.sandbox import Fault, Meter, Sandbox
from meter_agent.sandbox._reply import Reply
from tests.conftest import FAST
from tests.wire.front import API_KEY, Exchange, Front, assert_billed_once, real_agent, record

HOSTS = {"localhost": "https://api.stripe.com", "127.0.0.1": "https://meter-events.stripe.com"}
METHODS = {"get", "post"}


def load_description() -> dict[str, Any]:
    """Return Stripe's description, with error answers of which exactly one kind can be meant.

    It says *one of* the specific errors and the general one, but each specific error is a general
    one, too. Here the general one stands for every other code.
    """
    text = Path(__file__).with_name("openapi-meter.json").read_text()
    document: dict[str, Any] = json.loads(text)
    schemas = document["components"]["schemas"]
    for operation in operations(document).values():
        for content in operation["responses"]["default"]["content"].values():
            kinds = content["schema"].get("oneOf", [])
            codes = [
                code
                for kind in kinds
                for code in error_codes(schemas[kind["$ref"].rpartition("/")[2]])
            ]
            for place, kind in enumerate(kinds):
                if codes and kind["$ref"].endswith("/v2.error"):
                    other = {"properties": {"code": {"not": {"enum": codes}}}}
                    kinds[place] = {"allOf": [kind, {"properties": {"error": other}}]}
    return document


def operations(document: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method, path): item[method]
        for path, item in document["paths"].items()
        for method in METHODS & item.keys()
    }


def error_codes(schema: Mapping[str, Any]) -> list[str]:
    codes: list[str] = schema["properties"]["error"]["properties"]["code"].get("enum", [])
    return codes


DESCRIPTION = load_description()
OPERATIONS = operations(DESCRIPTION)
JUDGE = OpenAPI.from_dict(DESCRIPTION)


class Asked:
    """A request that came in over a socket, as openapi-core looks at one."""

    def __init__(self, exchange: Exchange) -> None:
        parts = urlsplit(exchange.path)
        self.host_url = HOSTS[exchange.headers["Host"].partition(":")[0]]
        self.path = parts.path
        self.method = exchange.method.lower()
        self.body = exchange.body
        self.content_type = exchange.headers.get("Content-Type", "")
        self.parameters = RequestParameters(
            query=dict(parse_qsl(parts.query)), header=exchange.headers
        )


class Answered:
    """An answer of the sandbox, as openapi-core looks at one."""

    def __init__(self, reply: Reply) -> None:
        self.status_code = reply.status
        self.data = reply.body
        self.headers = reply.headers
        self.content_type = reply.headers["Content-Type"]


def check_request(asked: Asked) -> None:
    JUDGE.validate_request(asked)
    if "requestBody" not in OPERATIONS[asked.method, asked.path]:
        # openapi-core looks at no body where none is described.
        assert asked.body == b""
        assert asked.parameters.header.get("Content-Length", "0") == "0"


class Checked(Front):
    """A front of the sandbox where both sides of each exchange are checked."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox, behave=self._check)
        self.seen: list[tuple[str, str, int]] = []
        self.failures: list[Exception] = []

    def _check(self, exchange: Exchange) -> None:
        reply = exchange.take_in()
        asked = Asked(exchange)
        self.seen.append((asked.method, asked.path, reply.status))
        try:
            check_request(asked)
            JUDGE.validate_response(asked, Answered(reply))
        except (OpenAPIError, AssertionError) as error:
            self.failures.append(error)
        exchange.say(reply.status, reply.body, *(f"{k}: {v}" for k, v in reply.headers.items()))

    def assert_conforming(self) -> None:
        told = [f"{type(error).__name__}: {error}: {error.__cause__}" for error in self.failures]
        assert told == []


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox(meters=[Meter("tokens"), Meter("calls", value_key="count")])


@pytest.fixture
def checked(sandbox: Sandbox) -> Checked:
    return Checked(sandbox)


def test_the_events_of_an_agent_and_their_answers_conform(
    checked: Checked, sandbox: Sandbox
) -> None:
    with checked.open() as server:
        agent = real_agent(server.url, stripe_account="acct_1", stripe_context="ctx_1")
        record(agent, 250)
        assert agent.flush(20)
        agent.record(
            "tokens",
            "cus_1",
            Decimal("251.0"),
            timestamp=datetime.now(UTC) - timedelta(days=3),
            identifier=str(uuid.uuid4()),
            payload={"region": "eu", "tier": 1, "cached": True},
        )
        assert agent.flush(20)
        final = agent.close(20)
    checked.assert_conforming()
    assert_billed_once(sandbox, final, 251)
    # The first request on each connection, and further ones.
    assert [seen[1].rpartition("/")[2] for seen in checked.seen] == [
        "meter_event_session",
        *["meter_event_stream"] * 4,
    ]


@pytest.fixture
def stream(checked: Checked) -> Iterator[MeterEventStream]:
    with checked.open() as server:
        api_url = server.url.replace("127.0.0.1", "localhost")
        settings = {"sandbox_url": None, "api_url": api_url, "events_url": server.url}
        stream = open_stream(
            Config(**(FAST | settings | {"api_key": API_KEY})),
            SystemRuntime(),
            traffic=Traffic(),
            seconds_left=lambda: None,
        )
        yield stream
        stream.close()


def event(**fields: object) -> bytes:
    payload = {"stripe_customer_id": "cus_1", "value": "1"}
    return json.dumps({"event_name": "tokens", "payload": payload, **fields}).encode()


def token(stream: MeterEventStream) -> str:
    session = stream.open_session()
    assert isinstance(session, Grant)
    return session.token


def test_what_commands_ask_and_are_answered_conforms(
    checked: Checked, stream: MeterEventStream
) -> None:
    for identifier in ("a", "b"):
        assert stream.check(event(identifier=identifier)).verdict is Verdict.ACCEPTED
    page = stream.list_meters()
    assert page.body is not None
    assert [meter["event_name"] for meter in page.body["data"]] == ["calls", "tokens"]
    assert stream.list_meters(page.body["data"][0]["id"]).verdict is Verdict.ACCEPTED
    assert isinstance(stream.open_session(), Grant)
    assert isinstance(stream.open_session(), Grant)
    checked.assert_conforming()
    assert [seen[2] for seen in checked.seen] == [200] * 6


def expire(sandbox: Sandbox, stream: MeterEventStream) -> None:
    used = token(stream)
    sandbox.revoke_sessions()
    stream.send(used, [event()])


def repeat(_sandbox: Sandbox, stream: MeterEventStream) -> None:
    stream.check(event(identifier="a"))
    stream.check(event(identifier="a"))


def fail(status: int) -> Callable[[Sandbox, MeterEventStream], None]:
    def act(sandbox: Sandbox, stream: MeterEventStream) -> None:
        sandbox.add_fault(Fault("status", status=status, on="any"))
        stream.open_session()
        stream.send("token", [event()])
        stream.check(event())
        stream.list_meters()

    return act


REFUSALS: dict[str, tuple[Callable[[Sandbox, MeterEventStream], object], int]] = {
    "an expired session": (expire, 401),
    "a token that never was one": (lambda _, stream: stream.send("none", [event()]), 401),
    "too many events": (lambda _, stream: stream.send(token(stream), [event()] * 101), 400),
    "an event without a value": (
        lambda _, stream: stream.check(event(payload={"stripe_customer_id": "cus_1"})),
        400,
    ),
    "an event without a customer": (
        lambda _, stream: stream.check(event(payload={"value": "1"})),
        400,
    ),
    "an event whose value is none": (
        lambda _, stream: stream.check(
            event(payload={"stripe_customer_id": "cus_1", "value": "many"})
        ),
        400,
    ),
    "an event of no meter": (lambda _, stream: stream.check(event(event_name="none")), 400),
    "an identifier again": (repeat, 400),
    **{f"a fault {status}": (fail(status), status) for status in (400, 401, 403, 409, 429, 500)},
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_of_the_sandbox_conform(
    sandbox: Sandbox, checked: Checked, stream: MeterEventStream, refusal: str
) -> None:
    act, status = REFUSALS[refusal]
    act(sandbox, stream)
    checked.assert_conforming()
    assert checked.seen[-1][2] == status


BAD_REQUESTS: dict[str, tuple[str, str, bytes]] = {
    "a body for a session": ("localhost", "/v2/billing/meter_event_session", b"{}"),
    "a number for a value": (
        "127.0.0.1",
        "/v2/billing/meter_event_stream",
        b'{"events":[{"event_name":"tokens","payload":{"value":1}}]}',
    ),
    "a date of another form": (
        "127.0.0.1",
        "/v2/billing/meter_event_stream",
        b'{"events":[{"event_name":"tokens","payload":{},"timestamp":"yesterday"}]}',
    ),
    "events of another name": ("127.0.0.1", "/v2/billing/meter_event_stream", b'{"event":[]}'),
    "the host of sessions": ("localhost", "/v2/billing/meter_event_stream", b'{"events":[]}'),
    "a path that is not described": ("localhost", "/v2/billing/meters", b""),
}


@pytest.mark.parametrize("bad", BAD_REQUESTS)
def test_the_judge_refuses_requests_that_do_not_conform(sandbox: Sandbox, bad: str) -> None:
    host, path, body = BAD_REQUESTS[bad]
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:1\r\nAuthorization: Bearer x\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket() as unused:
        asked = Asked(Exchange(unused, head.encode() + body, sandbox))
    with pytest.raises((OpenAPIError, AssertionError)):
        check_request(asked)


def test_the_judge_refuses_an_answer_that_mixes_the_kinds_of_errors(sandbox: Sandbox) -> None:
    with socket.socket() as unused:
        head = b"POST /v2/billing/meter_event_stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        asked = Asked(Exchange(unused, head, sandbox))
    error = {"code": "billing_meter_event_session_expired", "message": "x", "type": "other"}
    body = json.dumps({"error": error}).encode()
    reply = Reply(401, {"Content-Type": "application/json"}, body)
    with pytest.raises(OpenAPIError):
        JUDGE.validate_response(asked, Answered(reply))
