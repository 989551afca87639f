"""What each answer of Stripe means: pure functions from status, headers and body to a verdict.

Sources: `BillingMeterEventSession` and `MeterEventStream` in Stripe's OpenAPI description for the
shapes, the error table of the official SDKs for the classes. The session-expired error is declared
with status 401 but appears as 400 in the SDKs' own tests, so it is told by `type` and `code`.

Where the contract leaves a choice, the reading taken is the one that can neither lose an event nor
bill it twice: what may have been accepted is sent again under the same identifiers, and what looks
like a proxy speaking in Stripe's place is never taken for Stripe's word.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    "RETRY_AFTER_SECONDS_MAX",
    "SAME_BYTES_AGAIN",
    "Answer",
    "Grant",
    "Verdict",
    "judge",
    "parse_retry_after",
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
    """Whether the events of the request may be at Stripe all the same."""
    slowly: bool = False
    """Ask again rarely: nothing suggests that it will be different soon."""
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    """The JSON object of an accepted answer; a session's holds its token."""

    def error(self) -> StreamError:
        """Return this answer as the exception that *on_error* gets."""
        return _ERRORS[self.verdict](
            self.message, status=self.status, code=self.code, request_id=self.request_id
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """A meter event session, as Stripe granted it."""

    token: str
    lifetime_seconds: float | None
    """`expires_at - created`, so that no clock but the server's is in it; None: nonsense dates."""

    def __repr__(self) -> str:
        return f"Grant(token='***', lifetime_seconds={self.lifetime_seconds})"


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
    if 200 <= status < 300:
        return _judge_success(status, headers, body, parsed, host)
    error = _error_of(parsed)
    code, kind = _text(error.get("code")), _text(error.get("type"))
    verdict, maybe_accepted = _verdict(status, parsed, error, body)
    slowly = verdict is Verdict.UNAUTHORIZED
    should_retry = headers.get("Stripe-Should-Retry", "").strip().lower()
    if should_retry == "true" and verdict not in SAME_BYTES_AGAIN:
        # What it refuses in words it may hold in part; see `_delivery`.
        verdict, maybe_accepted = Verdict.RETRY, verdict is not Verdict.TOO_LARGE
    elif should_retry == "false" and verdict in {Verdict.RETRY, Verdict.RATE_LIMITED}:
        slowly = True
    if "session_expired" in f"{kind} {code}":
        verdict, maybe_accepted, slowly = Verdict.SESSION_EXPIRED, False, False
    return Answer(
        verdict,
        message=_message(status, host, code, error, parsed),
        status=status,
        code=code,
        request_id=_text(headers.get("Request-Id")),
        retry_after_seconds=parse_retry_after(
            headers.get("Retry-After"), date=headers.get("Date"), wall_time=wall_time
        ),
        maybe_accepted=maybe_accepted,
        slowly=slowly,
    )


def _judge_success(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    parsed: Mapping[str, Any] | None,
    host: str,
) -> Answer:
    request_id = _text(headers.get("Request-Id"))
    # An empty body is complete when the answer says so; one that merely ends may have been cut.
    complete_and_empty = not body and (
        status == 204
        or headers.get("Content-Length", "").strip() == "0"
        or "chunked" in headers.get("Transfer-Encoding", "").lower()
    )
    if complete_and_empty or (parsed is not None and "error" not in parsed):
        return Answer(Verdict.ACCEPTED, status=status, request_id=request_id, body=parsed or {})
    return Answer(
        Verdict.RETRY,
        message=f"HTTP {status} from {host} whose body is not Stripe's; is a proxy answering?",
        status=status,
        request_id=request_id,
        maybe_accepted=True,
    )


def _verdict(
    status: int, parsed: Mapping[str, Any] | None, error: Mapping[str, Any], body: bytes
) -> tuple[Verdict, bool]:
    # The second value: may Stripe have taken the events in before it answered so?
    if status == 429:
        return Verdict.RATE_LIMITED, False
    if status in {401, 403}:
        return Verdict.UNAUTHORIZED, False
    if status == 413:
        return Verdict.TOO_LARGE, False
    if status in {400, 422} and (parsed is not None or not body):
        return (Verdict.DUPLICATE if _is_duplicate(error) else Verdict.REJECTED), False
    if status == 404 and error:
        return Verdict.REJECTED, False
    # 408, 409, 425, 5xx; and everything that Stripe does not say: 1xx, 3xx, a 400 or 404 in HTML.
    return Verdict.RETRY, True


def _is_duplicate(error: Mapping[str, Any]) -> bool:
    # v2 says it by code; v1 only by message, without any code (langfuse#16292).
    return error.get("code") == "duplicate_meter_event" or (
        "already exists with identifier" in str(error.get("message"))
    )


def _message(
    status: int,
    host: str,
    code: str | None,
    error: Mapping[str, Any],
    parsed: Mapping[str, Any] | None,
) -> str:
    text = f"HTTP {status} from {host}"
    if code:
        text += f" ({code})"
    if said := _text(error.get("message")):
        text += f": {said}"
    elif parsed is None:
        text += " without a JSON body"
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
        return email.utils.parsedate_to_datetime(http_date or "").timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
