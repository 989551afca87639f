import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import ReadTimeout
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from meter_agent.sandbox import Fault, Sandbox

from .client import API_KEY, SESSION, STREAM, event, headers, stream_body

URL = "https://meter-events.stripe.com" + STREAM


@pytest.fixture
def token(http: requests.Session) -> str:
    answer = http.post("https://api.stripe.com" + SESSION, headers=headers(API_KEY), data=b"{}")
    text: str = answer.json()["authentication_token"]
    return text


def test_a_request_is_answered_without_a_network(
    http: requests.Session, token: str, sandbox: Sandbox
) -> None:
    answer = http.post(URL, headers=headers(token), data=stream_body(event("a")))

    assert (answer.status_code, answer.reason, answer.json()) == (200, "OK", {})
    assert answer.headers["request-id"].startswith("req_")
    assert answer.url == URL
    assert answer.request.method == "POST"
    assert sandbox.ledger()[0]["identifier"] == "a"


def test_a_streamed_answer_can_be_read_raw(http: requests.Session, token: str) -> None:
    request = {"headers": headers(token), "data": stream_body(event())}
    with http.post(URL, stream=True, **request) as answer:  # type: ignore[arg-type]
        assert answer.raw.read(1) == b"{"
        assert answer.raw.read() == b"}"


@pytest.mark.parametrize("shape", ["bytes", "text", "file", "chunks"])
def test_a_body_may_come_in_any_shape_that_requests_knows(
    http: requests.Session, token: str, shape: str
) -> None:
    body = stream_body(event())

    def chunks() -> Iterator[bytes]:
        yield body[:5]
        yield body[5:]

    shapes: dict[str, Any] = {
        "bytes": body,
        "text": body.decode(),
        "file": io.BytesIO(body),
        "chunks": chunks(),
    }

    assert http.post(URL, headers=headers(token), data=shapes[shape]).status_code == 200


def test_header_values_may_be_bytes(http: requests.Session, token: str) -> None:
    raw = {name: value.encode() for name, value in headers(token).items()}

    assert http.post(URL, headers=raw, data=stream_body(event())).status_code == 200


@pytest.mark.parametrize(("when", "taken"), [("before", 0), ("after", 1)])
def test_a_reset_raises_what_a_reset_raises(
    http: requests.Session, token: str, sandbox: Sandbox, when: str, taken: int
) -> None:
    sandbox.add_fault(Fault("reset", when=when))  # type: ignore[arg-type]

    with pytest.raises(RequestsConnectionError) as caught:
        http.post(URL, headers=headers(token), data=stream_body(event()))

    (cause,) = caught.value.args
    assert isinstance(cause, ProtocolError)
    assert isinstance(cause.args[1], ConnectionResetError)
    assert cause.args[1].errno == 104
    assert caught.value.request is not None
    assert sandbox.totals()["accepted"] == taken


def test_a_truncated_answer_fails_while_it_is_read(
    http: requests.Session, token: str, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("truncate"))
    body = stream_body(event())

    with (
        http.post(URL, headers=headers(token), data=body, stream=True) as answer,
        pytest.raises(ProtocolError, match="more expected"),
    ):
        answer.raw.read()


def test_a_delay_within_the_timeout_is_slept_through(
    http: requests.Session, token: str, sandbox: Sandbox, naps: list[float]
) -> None:
    sandbox.add_fault(Fault("delay", seconds=2))

    answer = http.post(URL, headers=headers(token), data=stream_body(event()), timeout=2)

    assert (answer.status_code, naps) == (200, [2])


@pytest.mark.parametrize("timeout", [5, (60, 5)])
def test_a_delay_beyond_the_read_timeout_raises_after_the_effect(
    http: requests.Session,
    token: str,
    sandbox: Sandbox,
    naps: list[float],
    timeout: float | tuple[float, float],
) -> None:
    sandbox.add_fault(Fault("delay", seconds=6))

    with pytest.raises(ReadTimeout, match="read timeout=5") as caught:
        http.post(URL, headers=headers(token), data=stream_body(event()), timeout=timeout)

    assert isinstance(caught.value.args[0], ReadTimeoutError)
    assert naps == [5]
    assert sandbox.totals()["accepted"] == 1


def test_a_hang_lasts_as_long_as_the_read_timeout(
    http: requests.Session, token: str, sandbox: Sandbox, naps: list[float]
) -> None:
    sandbox.add_fault(Fault("hang"))

    with pytest.raises(ReadTimeout):
        http.post(URL, headers=headers(token), data=stream_body(event()), timeout=(1, 30))

    assert naps == [30]
    assert sandbox.totals()["accepted"] == 0


@pytest.mark.parametrize("timeout", [None, (5, None)])
def test_a_hang_without_a_read_timeout_lasts_for_ever(
    http: requests.Session,
    token: str,
    sandbox: Sandbox,
    naps: list[float],
    timeout: tuple[float, None] | None,
) -> None:
    sandbox.add_fault(Fault("hang"))

    with pytest.raises(ReadTimeout):
        http.post(URL, headers=headers(token), data=stream_body(event()), timeout=timeout)

    assert naps == [threading.TIMEOUT_MAX]


def test_a_status_that_nobody_named_has_no_reason(
    http: requests.Session, token: str, sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("status", status=599))

    answer = http.post(URL, headers=headers(token), data=stream_body(event()))

    assert (answer.status_code, answer.reason) == (599, "")


def test_the_controls_are_behind_this_door_too(http: requests.Session) -> None:
    assert http.get("https://any.where/_sandbox/totals").json()["accepted"] == 0
    assert http.get("https://any.where/_sandbox/ledger?limit=0").json() == {"events": []}
