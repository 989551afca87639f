"""What each answer means: a table, and properties of the header that proxies send."""

from __future__ import annotations

import json
import math
import pickle
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from meter_agent import exceptions
from meter_agent._answer import Answer, Verdict
from meter_agent._answer_table import ANSWERS, judge, rule_of
from meter_agent._retry_after import RETRY_AFTER_SECONDS_MAX, parse_retry_after
from meter_agent._transport import Reply
from meter_agent.sandbox._gateways import GATEWAY_ANSWERS

NOW = 1_795_000_000.0
HTML = b"<html><body>oops</body></html>"


def error(code: str | None = None, message: str = "no", type_: str | None = None) -> bytes:
    fields = {"code": code, "message": message, "type": type_}
    return json.dumps({"error": {k: v for k, v in fields.items() if v}}).encode()


def judged(status: int, body: bytes = b"{}", **headers: str) -> Answer:
    named = CaseInsensitiveDict({name.replace("_", "-"): text for name, text in headers.items()})
    return judge(status, named, body, host="stripe.test", wall_time=NOW)


JSON = {"Content-Type": "application/json"}
STRIPES = {"Request-Id": "req_1"}
EXPIRED = "billing_meter_event_session_expired"

TABLE: list[tuple[str, int, bytes, dict[str, str], Verdict, bool]] = [
    ("an empty object", 200, b"{}", JSON, Verdict.ACCEPTED, False),
    ("an empty object with spaces", 200, b" { }\n", JSON, Verdict.ACCEPTED, False),
    (
        "a character set",
        200,
        b"{}",
        {"Content-Type": "Application/JSON; charset=utf-8"},
        Verdict.ACCEPTED,
        False,
    ),
    ("another success", 202, b"{}", JSON, Verdict.ACCEPTED, False),
    ("no content with a Request-Id", 204, b"", STRIPES, Verdict.ACCEPTED, False),
    ("any body with a Request-Id", 200, b'{"a":1}', STRIPES, Verdict.ACCEPTED, False),
    ("an error with status 200 and a Request-Id", 200, error("x"), STRIPES, Verdict.RETRY, True),
    ("an empty object of unknown type", 200, b"{}", {}, Verdict.RETRY, True),
    ("an empty object as text", 200, b"{}", {"Content-Type": "text/plain"}, Verdict.RETRY, True),
    ("a queue's success", 200, b'{"status":"queued"}', JSON, Verdict.RETRY, True),
    ("no content", 204, b"", {}, Verdict.RETRY, True),
    ("a complete empty body", 200, b"", {"Content-Length": "0"}, Verdict.RETRY, True),
    ("an empty chunked body", 200, b"", {"Transfer-Encoding": "chunked"}, Verdict.RETRY, True),
    ("another request's id", 200, b"", {"X-Request-Id": "1"}, Verdict.RETRY, True),
    ("an empty Request-Id", 204, b"", {"Request-Id": ""}, Verdict.RETRY, True),
    ("an empty body of unknown length", 200, b"", {}, Verdict.RETRY, True),
    ("a page of HTML", 200, HTML, {}, Verdict.RETRY, True),
    ("half a JSON object", 200, b'{"a"', {}, Verdict.RETRY, True),
    ("a JSON list", 200, b"[]", {}, Verdict.RETRY, True),
    ("an error with status 200", 200, error("x"), {}, Verdict.RETRY, True),
    ("a redirect", 301, b"", {"Location": "http://evil.test"}, Verdict.RETRY, True),
    ("a temporary redirect", 307, b"", {}, Verdict.RETRY, True),
    ("a bad event", 400, error("invalid_fields"), {}, Verdict.REJECTED, False),
    (
        "a bad event, by type",
        400,
        error(type_="invalid_request_error"),
        {},
        Verdict.REJECTED,
        False,
    ),
    ("a refusal without a body", 400, b"", {}, Verdict.RETRY, True),
    ("a refusal with an empty object", 422, b"{}", {}, Verdict.RETRY, True),
    ("a refusal with a Request-Id alone", 400, b"{}", STRIPES, Verdict.RETRY, True),
    ("API Gateway's 400", 400, b'{"message":"Bad Request"}', JSON, Verdict.RETRY, True),
    ("FastAPI's 422", 422, b'{"detail":"x"}', JSON, Verdict.RETRY, True),
    ("a 404 with a message alone", 404, error(None, "no route"), JSON, Verdict.RETRY, True),
    ("OAuth's 400", 400, b'{"error":"invalid_request"}', JSON, Verdict.RETRY, True),
    ("an error with a code and no message", 400, error("x", ""), JSON, Verdict.RETRY, True),
    (
        "an error with a number for a code",
        404,
        b'{"error":{"code":404,"message":"no","status":"NOT_FOUND"}}',
        JSON,
        Verdict.RETRY,
        True,
    ),
    ("a proxy's 400", 400, HTML, {}, Verdict.RETRY, True),
    ("not found", 404, error("not_found"), {}, Verdict.REJECTED, False),
    ("a proxy's 404", 404, HTML, {}, Verdict.RETRY, True),
    ("a 404 without a word", 404, b"", {}, Verdict.RETRY, True),
    ("too large", 413, HTML, {}, Verdict.TOO_LARGE, False),
    ("unprocessable", 422, error("x"), {}, Verdict.REJECTED, False),
    ("a v2 duplicate", 400, error("duplicate_meter_event"), {}, Verdict.DUPLICATE, False),
    (
        "a v1 duplicate",
        400,
        error(None, "An event already exists with identifier abc.", "invalid_request_error"),
        {"Stripe-Should-Retry": "false"},
        Verdict.DUPLICATE,
        False,
    ),
    ("expired, as specified", 401, error(EXPIRED), {}, Verdict.SESSION_EXPIRED, False),
    ("expired, as tested", 400, error(EXPIRED), {}, Verdict.SESSION_EXPIRED, False),
    (
        "expired, by type",
        401,
        error("other", type_="temporary_session_expired"),
        {},
        Verdict.SESSION_EXPIRED,
        False,
    ),
    (
        "expired, do not retry",
        400,
        error(EXPIRED),
        {"Stripe-Should-Retry": "false"},
        Verdict.SESSION_EXPIRED,
        False,
    ),
    ("a wrong key", 401, error("api_key_invalid"), {}, Verdict.UNAUTHORIZED, False),
    ("forbidden", 403, error("permission_denied"), {}, Verdict.UNAUTHORIZED, False),
    ("forbidden by a gateway", 403, HTML, {}, Verdict.UNAUTHORIZED, True),
    (
        "an expired session that is not Stripe's",
        401,
        json.dumps({"error": {"code": EXPIRED}}).encode(),
        {},
        Verdict.UNAUTHORIZED,
        True,
    ),
    ("expired, with a status of its own", 422, error(EXPIRED), {}, Verdict.REJECTED, False),
    ("a request timeout", 408, b"", {}, Verdict.RETRY, True),
    ("a conflict", 409, error("idempotency_error"), {}, Verdict.RETRY, True),
    ("too early", 425, b"", {}, Verdict.RETRY, True),
    ("a rate limit", 429, error(None, type_="rate_limit"), {}, Verdict.RATE_LIMITED, False),
    ("an internal error", 500, error("api_error"), {}, Verdict.RETRY, True),
    ("unavailable", 503, HTML, {}, Verdict.RETRY, True),
    ("a status nobody knows", 599, b"", {}, Verdict.RETRY, True),
    ("a teapot", 418, error("x"), {}, Verdict.RETRY, True),
    ("retry, says Stripe", 400, error("x"), {"stripe-should-retry": "true"}, Verdict.RETRY, True),
    ("a size to try again", 413, HTML, {"stripe-should-retry": "true"}, Verdict.RETRY, True),
]


@pytest.mark.parametrize(
    ("status", "body", "headers", "verdict", "maybe"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_each_answer_has_its_meaning(
    status: int, body: bytes, headers: dict[str, str], verdict: Verdict, maybe: bool
) -> None:
    answer = judged(status, body, **headers)
    assert (answer.verdict, answer.maybe_accepted) == (verdict, maybe)


@pytest.mark.parametrize("status", [500, 503, 409, 429])
def test_an_answer_that_advises_against_a_retry_is_asked_again_slowly(status: int) -> None:
    assert judged(status, stripe_should_retry="false").slowly
    assert not judged(status).slowly


def test_each_row_of_the_table_decides_about_some_answer() -> None:
    decided = {
        rule_of(status, CaseInsensitiveDict(headers), body).answer
        for _, status, body, headers, *_ in TABLE
    }
    assert decided == {rule.answer for rule in ANSWERS}


@pytest.mark.parametrize("form", GATEWAY_ANSWERS)
def test_no_answer_of_a_gateway_settles_an_event(form: str) -> None:
    reply = GATEWAY_ANSWERS[form]
    headers = CaseInsensitiveDict(reply.headers)
    answer = judge(reply.status, headers, reply.body, host="h", wall_time=NOW)
    assert not answer.is_stripes
    assert answer.verdict in {Verdict.RETRY, Verdict.UNAUTHORIZED, Verdict.TOO_LARGE}
    assert answer.maybe_accepted or answer.verdict is Verdict.TOO_LARGE


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_stripes_by_its_error_alone_and_not_by_its_headers(status: int) -> None:
    assert judged(status, error("x")).is_stripes
    assert not judged(status, b"{}", request_id="req_1").is_stripes


def test_an_answer_of_somebody_else_says_so() -> None:
    answer = judged(400, b'{"message":"Bad Request"}')
    assert answer.message == (
        "HTTP 400 from stripe.test: Bad Request; the answer is not in Stripe's form, a gateway or "
        "proxy may have given it"
    )
    assert "not in Stripe's form" in judged(204).message


def test_a_gateway_that_wants_credentials_is_not_reported_as_a_refused_key() -> None:
    assert type(judged(403, HTML).error()) is exceptions.StreamUnavailableError
    assert judged(403, error("permission_denied")).refuses_key
    assert not judged(403, HTML).refuses_key


def test_refused_credentials_are_asked_again_slowly() -> None:
    assert judged(401, error("x")).slowly
    assert not judged(401, error(EXPIRED)).slowly


def test_an_answer_tells_status_host_code_words_and_request() -> None:
    answer = judged(400, error("invalid_fields", "value is wrong"), request_id="req_1")
    assert answer.message == "HTTP 400 from stripe.test (invalid_fields): value is wrong"
    assert (answer.status, answer.code, answer.request_id) == (400, "invalid_fields", "req_1")
    assert "without a JSON body" in judged(503, HTML).message


def test_an_answer_does_not_show_its_body_which_may_hold_a_token() -> None:
    body = b'{"authentication_token":"hidden"}'
    assert "hidden" not in repr(judged(200, body))
    assert "hidden" not in repr(Reply(200, {"X-Token": "hidden"}, body))


def test_what_the_server_says_is_cut_to_a_readable_length() -> None:
    assert len(judged(400, error("x" * 10_000, "y" * 100_000)).message) < 1000


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\r\nERROR forged", "a\\r\\nERROR forged"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("\u2028next", "\\u2028next"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("cus\u200b_1", "cus\\u200b_1"),
        ("\ud800", "\\ud800"),
        ("größe 日本", "größe 日本"),
    ],
)
def test_words_of_a_server_are_one_line_without_control_and_invisible_characters(
    raw: str, shown: str
) -> None:
    answer = judged(400, error(raw, raw), request_id=raw)
    assert (answer.code, answer.request_id) == (shown, shown)
    assert answer.message == f"HTTP 400 from stripe.test ({shown}): {shown}"


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"error": "text"}',
        b'{"error": {"code": 7, "message": [1]}}',
        b'{"error": {"type": null}}',
    ],
)
def test_an_error_body_of_any_form_is_judged_without_an_exception(body: bytes) -> None:
    assert judged(500, body).verdict is Verdict.RETRY


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        (Verdict.RETRY, exceptions.StreamUnavailableError),
        (Verdict.RATE_LIMITED, exceptions.RateLimitedError),
        (Verdict.SESSION_EXPIRED, exceptions.SessionExpiredError),
        (Verdict.UNAUTHORIZED, exceptions.AuthenticationError),
        (Verdict.REJECTED, exceptions.EventRejectedError),
    ],
)
def test_an_answer_becomes_the_error_that_says_what_to_do(
    verdict: Verdict, kind: type[exceptions.StreamError]
) -> None:
    answer = Answer(verdict, "m", status=400, code="c", request_id="r", is_stripes=True)
    raised = answer.error()
    assert type(raised) is kind
    again = pickle.loads(pickle.dumps(raised))
    assert (type(again), str(again), again.status, again.code, again.request_id) == (
        kind,
        "m",
        400,
        "c",
        "r",
    )


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("7", 7.0),
        ("1.5", 1.5),
        (" 2 ", 2.0),
        ("0", 0.0),
        ("-5", 0.0),
        ("86400", RETRY_AFTER_SECONDS_MAX),
        ("1e400", RETRY_AFTER_SECONDS_MAX),
        ("nan", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("Mon, 99 Foo 2026 99:99:99 GMT", 0.0),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW - 30, usegmt=True), 0.0),
        (formatdate(NOW + 9999, usegmt=True), RETRY_AFTER_SECONDS_MAX),
    ],
)
def test_retry_after_is_read_as_seconds_or_date_and_clamped(
    header: str | None, seconds: float
) -> None:
    assert parse_retry_after(header, wall_time=NOW) == seconds


@pytest.mark.parametrize("clock_is_off_by", [-86_400, -20, 0, 20, 86_400])
def test_a_dated_retry_after_is_compared_with_the_date_of_its_answer(clock_is_off_by: int) -> None:
    date = formatdate(NOW, usegmt=True)
    retry_after = formatdate(NOW + 30, usegmt=True)
    wall_time = NOW + clock_is_off_by
    assert parse_retry_after(retry_after, date=date, wall_time=wall_time) == 30.0
    answer = judge(
        503, {"Retry-After": retry_after, "Date": date}, b"", host="h", wall_time=wall_time
    )
    assert answer.retry_after_seconds == 30.0


@pytest.mark.parametrize("form", ["%a %b %d %H:%M:%S %Y", "%A, %d-%b-%y %H:%M:%S GMT"])
def test_the_obsolete_forms_of_a_date_are_in_universal_time_too(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        retry_after = time.strftime(form, time.gmtime(NOW + 30))
        assert parse_retry_after(retry_after, wall_time=NOW) == 30.0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("date", [None, "", "yesterday", "Mon, 99 Foo 2026 99:99:99 GMT"])
def test_a_dated_retry_after_without_a_date_to_compare_it_with_is_read_against_the_own_clock(
    date: str | None,
) -> None:
    retry_after = formatdate(NOW + 30, usegmt=True)
    assert parse_retry_after(retry_after, date=date, wall_time=NOW) == 30.0


_HEADERS = st.one_of(st.text(), st.floats().map(str), st.integers().map(str))


@given(_HEADERS, _HEADERS)
def test_retry_after_never_raises_and_stays_within_its_bounds(header: str, date: str) -> None:
    seconds = parse_retry_after(header, date=date, wall_time=NOW)
    assert 0.0 <= seconds <= RETRY_AFTER_SECONDS_MAX
    assert not math.isnan(seconds)


@given(st.integers(100, 599), st.binary(max_size=200), st.dictionaries(
    st.sampled_from(["Retry-After", "Stripe-Should-Retry", "Request-Id", "Content-Length"]),
    st.text(max_size=20),
))  # fmt: skip
def test_no_answer_makes_the_judge_raise_and_only_success_is_accepted(
    status: int, body: bytes, headers: dict[str, Any]
) -> None:
    answer = judge(status, CaseInsensitiveDict(headers), body, host="h", wall_time=NOW)
    assert answer.verdict is not Verdict.ACCEPTED or 200 <= status < 300


@pytest.mark.parametrize("code", ["duplicate_meter_event", "payload_invalid_value"])
def test_a_refusal_that_shall_be_tried_again_may_have_been_taken_in_part(code: str) -> None:
    body = error(code)
    answer = judge(400, {"Stripe-Should-Retry": "true"}, body, host="h", wall_time=0.0)
    assert (answer.verdict, answer.maybe_accepted) == (Verdict.RETRY, True)
