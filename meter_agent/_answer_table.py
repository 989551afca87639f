"""What each answer means: pure functions from status, headers and body to a verdict.

`ANSWERS` is the one place that says so; the reference page of the answers is made from it.

Between the agent and Stripe there may be gateways, proxies and portals that answer by themselves,
so each row of the table asks first whose answer it is (see `_Evidence`): only Stripe's own word
settles an event. Whatever is not Stripe's is retried. Stripe may have taken the events in behind a
rewritten answer, so it counts as ambiguous, with two exceptions: 413 and 429 refuse a request
before it is passed on.

Sources: `BillingMeterEventSession` and `MeterEventStream` in Stripe's OpenAPI description for the
shapes, the error table of the official SDKs for the classes. The session-expired error is declared
with status 401 but appears as 400 in the SDKs' own tests, so `type` and `code` decide.

Where the contract leaves a choice, the reading taken is the one that can neither lose an event nor
bill it twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meter_agent._answer import Answer, Verdict
from meter_agent._printable import one_line
from meter_agent._retry_after import parse_retry_after

__all__ = ["ANSWERS", "Rule", "judge", "rule_of"]

_MESSAGE_CHARACTERS_MAX = 300


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What an answer shows."""

    status: int
    is_stripes: bool
    """A 2xx is Stripe's if its body is `{}` with `application/json`, or if it carries a
    `Request-Id`. Any other answer is Stripe's if its body has an object `error` with a string
    `message` and a string `code` or `type`; a `Request-Id` is not required there."""
    has_error: bool
    """Whether the body is a JSON object with an `error`."""
    code: str | None
    type: str | None
    says_duplicate: bool
    should_retry: str
    """The header `Stripe-Should-Retry`, in lower case."""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_stripes_refusal(self) -> bool:
        return self.is_stripes and self.status in {400, 404, 422}


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: which answers it is about, and what follows from them."""

    answer: str
    """Which answers, in words (Markdown, for the documentation)."""
    action: str
    """What the agent does, in words."""
    applies: Callable[[_Evidence], bool]
    verdict: Verdict
    maybe_accepted: bool = False
    """Whether Stripe may have taken the events in before this was answered."""
    slowly: bool = False


ANSWERS: tuple[Rule, ...] = (
    Rule(
        "2xx from Stripe: the body is `{}` with `application/json`, or a `Request-Id` is there; "
        "and no `error` in it",
        "delivered. For a session, the body must hold a token as well, or it is asked for again; "
        "its `object` counts as the `Request-Id`, which some proxies remove",
        lambda seen: seen.is_success and seen.is_stripes and not seen.has_error,
        Verdict.ACCEPTED,
    ),
    Rule(
        "any other 2xx: empty, 204, another JSON object, HTML",
        "the same bytes again",
        lambda seen: seen.is_success,
        Verdict.RETRY,
        maybe_accepted=True,
    ),
    Rule(
        "400 or 401 from Stripe whose `type` or `code` says that the session has expired",
        "this token is dropped if it is still the current one, one sender opens a session, and the "
        "same bytes go again at once; a second time in a row: back off",
        lambda seen: (
            seen.is_stripes
            and seen.status in {400, 401}
            and "session_expired" in f"{seen.type} {seen.code}"
        ),
        Verdict.SESSION_EXPIRED,
    ),
    Rule(
        "429 from anybody",
        "the same bytes again; every sender of the process waits, at least for `Retry-After`",
        lambda seen: seen.status == 429,
        Verdict.RATE_LIMITED,
    ),
    Rule(
        "401 or 403 from Stripe",
        "one new session at once, then asked slowly: at most once a second, and ever more rarely",
        lambda seen: seen.status in {401, 403} and seen.is_stripes,
        Verdict.UNAUTHORIZED,
        slowly=True,
    ),
    Rule(
        "401 or 403 from somebody else",
        "as above; the key is not reported as refused",
        lambda seen: seen.status in {401, 403},
        Verdict.UNAUTHORIZED,
        maybe_accepted=True,
        slowly=True,
    ),
    Rule(
        "400, 404 or 422 from Stripe, or 413, with `Stripe-Should-Retry: true`",
        "the same bytes again",
        lambda seen: (
            (seen.is_stripes_refusal or seen.status == 413) and seen.should_retry == "true"
        ),
        Verdict.RETRY,
        maybe_accepted=True,
    ),
    Rule(
        "413 from anybody",
        "sent in two halves, and smaller bodies from now on. A single event: a dead letter if "
        "Stripe says so; kept and tried rarely if somebody else does",
        lambda seen: seen.status == 413,
        Verdict.TOO_LARGE,
    ),
    Rule(
        "400, 404 or 422 from Stripe that says `already exists with identifier` or "
        "`duplicate_meter_event`",
        "sent in two halves until the event is alone; then it is delivered",
        lambda seen: seen.is_stripes_refusal and seen.says_duplicate,
        Verdict.DUPLICATE,
    ),
    Rule(
        "any other 400, 404 or 422 from Stripe",
        "sent in two halves until the bad event is alone; then it is a dead letter with Stripe's "
        "code and message, or `uncertain` if an earlier attempt was ambiguous",
        lambda seen: seen.is_stripes_refusal,
        Verdict.REJECTED,
    ),
    Rule(
        "408, 409, 425, 5xx from anybody",
        "the same bytes again",
        lambda seen: seen.status in {408, 409, 425} or seen.status >= 500,
        Verdict.RETRY,
        maybe_accepted=True,
    ),
    Rule(
        "anything else: 400, 404 or 422 without Stripe's `error`, a redirect (never followed), 101",
        "the same bytes again",
        lambda _: True,
        Verdict.RETRY,
        maybe_accepted=True,
    ),
)
"""The first row that applies decides. `Stripe-Should-Retry: false` on what is retried does not give
the event up: it is asked again slowly."""


def judge(
    status: int, headers: Mapping[str, str], body: bytes, *, host: str, wall_time: float
) -> Answer:
    """Say what an answer means.

    Args:
        status: The HTTP status.
        headers: The response headers; looked up case-insensitively by their mapping.
        body: The body, perhaps cut at the reading limit.
        host: Who answered, for the message.
        wall_time: Unix seconds now, for a `Retry-After` that is a date.
    """
    parsed = _json_object(body)
    error = _error_of(parsed)
    seen = _evidence(status, headers, parsed, error)
    rule = _rule_for(seen)
    request_id = _text(headers.get("Request-Id"))
    if rule.verdict is Verdict.ACCEPTED:
        return Answer(
            rule.verdict, status=status, request_id=request_id, is_stripes=True, body=parsed or {}
        )
    retried = rule.verdict in {Verdict.RETRY, Verdict.RATE_LIMITED}
    return Answer(
        rule.verdict,
        message=_message(status, host, seen, error, parsed),
        status=status,
        code=seen.code,
        request_id=request_id,
        retry_after_seconds=parse_retry_after(
            headers.get("Retry-After"), date=headers.get("Date"), wall_time=wall_time
        ),
        maybe_accepted=rule.maybe_accepted,
        is_stripes=seen.is_stripes,
        slowly=rule.slowly or (retried and seen.should_retry == "false"),
        body=parsed if seen.is_success and not seen.has_error else None,
    )


def rule_of(status: int, headers: Mapping[str, str], body: bytes) -> Rule:
    """Return the row of the table that decides about an answer."""
    parsed = _json_object(body)
    return _rule_for(_evidence(status, headers, parsed, _error_of(parsed)))


def _rule_for(seen: _Evidence) -> Rule:
    return next(rule for rule in ANSWERS if rule.applies(seen))


def _evidence(
    status: int,
    headers: Mapping[str, str],
    parsed: Mapping[str, Any] | None,
    error: Mapping[str, Any],
) -> _Evidence:
    code, type_ = _text(error.get("code")), _text(error.get("type"))
    message = _text(error.get("message")) or ""
    if 200 <= status < 300:
        media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        is_empty_object = parsed is not None and not parsed and media_type == "application/json"
        is_stripes = is_empty_object or _text(headers.get("Request-Id")) is not None
    else:
        is_stripes = bool(message and (code or type_))
    return _Evidence(
        status=status,
        is_stripes=is_stripes,
        has_error=parsed is not None and "error" in parsed,
        code=code,
        type=type_,
        # v2 says it by code; v1 by message and without any code (langfuse#16292).
        says_duplicate=(
            code == "duplicate_meter_event" or "already exists with identifier" in message
        ),
        should_retry=headers.get("Stripe-Should-Retry", "").strip().lower(),
    )


def _message(
    status: int,
    host: str,
    seen: _Evidence,
    error: Mapping[str, Any],
    parsed: Mapping[str, Any] | None,
) -> str:
    text = f"HTTP {status} from {host}"
    if seen.code:
        text += f" ({seen.code})"
    said = _text(error.get("message")) or _text(parsed.get("message") if parsed else None)
    if said:
        text += f": {said}"
    elif parsed is None:
        text += " without a JSON body"
    if not seen.is_stripes or seen.is_success:
        text += "; the answer is not in Stripe's form, a gateway or proxy may have given it"
    return text


def _json_object(body: bytes) -> Mapping[str, Any] | None:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _error_of(parsed: Mapping[str, Any] | None) -> Mapping[str, Any]:
    error = parsed.get("error") if parsed else None
    return error if isinstance(error, dict) else {}


def _text(value: object) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    # A server may say anything, and what it says goes into log lines and onto terminals.
    return one_line(value[:_MESSAGE_CHARACTERS_MAX])[:_MESSAGE_CHARACTERS_MAX]
