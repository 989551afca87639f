"""What an answer comes to: a verdict, and what else of it is of use to the agent."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meter_agent.exceptions import (
    AuthenticationError,
    EventRejectedError,
    RateLimitedError,
    SessionExpiredError,
    StreamError,
    StreamUnavailableError,
)

__all__ = ["SAME_BYTES_AGAIN", "Answer", "Grant", "Verdict"]


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
    """The JSON object of a 2xx; a session's holds its token."""

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
