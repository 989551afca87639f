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

import enum
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

from meter_agent._printable import one_line
from meter_agent.exceptions import (
    AuthenticationError,
    EventRejectedError,
    RateLimitedError,
    SessionExpiredError,
    StreamError,
    StreamUnavailableError,
)

__all__ = [
    "ANSWERS",
    "RETRY_AFTER_SECONDS_MAX",
    "SAME_BYTES_AGAIN",
    "Answer",
    "Grant",
    "Rule",
    "Verdict",
    "judge",
    "parse_retry_after",
    "rule_of",
]

RETRY_AFTER_SECONDS_MAX = 300.0
_MESSAGE_CHARACTERS_MAX = 300


class Verdict(enum.Enum):
    """What to do about an answer."""

    ACCEPTED = enum.auto()
    """Stripe has the events."""

    RETRY = enum.auto()
    """Send the same bytes again, later."""

    RATE_LIMITED = enum.auto()
    """Send the same bytes again; every sender of the process waits."""

    SESSION_EXPIRED = enum.auto()
    """Open a new session, send the same bytes again."""

    UNAUTHORIZED = enum.auto()
    """The key or the token is refused; keep the events, try one new session, then ask slowly."""

    REJECTED = enum.auto()
    """The request is refused for what is in it: split."""

    TOO_LARGE = enum.auto()
    """The body is too large: split, and send smaller ones from now on."""

    DUPLICATE = enum.auto()
    """An event is already there: split; alone, it is delivered."""

    RESEND_WINDOW_OVER = enum.auto()
    """No answer at all: it has become too late to ask once more."""

    TOO_OLD = enum.auto()
    """No answer at all: some timestamps went out of Stripe's reach while the batch waited."""


_ERRORS: Mapping[Verdict, type[StreamError]] = {
    Verdict.RETRY: StreamUnavailableError,
    Verdict.RATE_LIMITED: RateLimitedError,
    Verdict.SESSION_EXPIRED: SessionExpiredError,
    Verdict.UNAUTHORIZED: AuthenticationError,
    Verdict.REJECTED: EventRejectedError,
    Verdict.TOO_LARGE: EventRejectedError,
    Verdict.DUPLICATE: EventRejectedError,
}

SAME_BYTES_AGAIN = frozenset(
    {Verdict.RETRY, Verdict.RATE_LIMITED, Verdict.SESSION_EXPIRED, Verdict.UNAUTHORIZED}
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, understood."""

    verdict: Verdict
    message: str = ""
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    retry_after_seconds: float = 0.0
    """The least time to wait before the next request."""
    maybe_accepted: bool = False
    """Whether the events of the request may be at Stripe although it has not said so: "ambiguous"
    in the documentation. An event with such an attempt never ends as refused."""
    is_stripes: bool = False
    """Whether Stripe itself said this, as far as can be known."""
    slowly: bool = False
    """Ask again rarely: nothing suggests that it will be different soon."""
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    """The JSON object of an accepted answer; a session's holds its token."""

    @property
    def refuses_key(self) -> bool:
        """Whether the API key is at fault: Stripe refuses it, or it cannot be read."""
        return self.verdict is Verdict.UNAUTHORIZED and (self.is_stripes or self.status is None)

    def error(self) -> StreamError:
        """Return this answer as the exception that *on_error* gets."""
        kind = _ERRORS[self.verdict]
        if self.verdict is Verdict.UNAUTHORIZED and not self.refuses_key:
            kind = StreamUnavailableError
        return kind(self.message, status=self.status, code=self.code, request_id=self.request_id)


@dataclass(frozen=True, slots=True)
class Grant:
    """A meter event session, as Stripe granted it."""

    token: str
    lifetime_seconds: float | None
    """`expires_at - created`, so that no clock but the server's is in it; None: nonsense dates."""

    def __repr__(self) -> str:
        return f"Grant(token='***', lifetime_seconds={self.lifetime_seconds})"


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
        "delivered. For a session, the body must hold a token as well, or it is asked for again",
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


def parse_retry_after(header: str | None, *, date: str | None = None, wall_time: float) -> float:
    """Return the seconds that a `Retry-After` header asks for, from 0 to 300.

    Seconds, fractions of them, and HTTP dates are understood. Anything else, and no header at all,
    is 0. Stripe does not document the header and its SDK ignores it; proxies send it.

    The clock of this host may be wrong by hours, so an HTTP date is compared with *date*, the
    `Date` header of the same answer, and with *wall_time* only where that is missing or no date.
    """
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        now = _unix_seconds(date)
        until = _unix_seconds(header)
        seconds = 0.0 if until is None else until - (wall_time if now is None else now)
    if math.isnan(seconds):
        return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)


def _unix_seconds(http_date: str | None) -> float | None:
    import email.utils  # noqa: PLC0415 - rare, and it drags in half of the email package

    try:
        parsed = email.utils.parsedate_to_datetime(http_date or "")
        # The form of asctime names no zone, and all HTTP dates are in universal time (RFC 9110,
        # section 5.6.7).
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
