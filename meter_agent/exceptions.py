"""Every error of the package, grouped by what the caller does next.

::

    MeterAgentError
    ├── ConfigError (ValueError)         mend the settings, construct again
    ├── InvalidEventError (ValueError)   mend the event, record it again
    └── StreamError                      nothing to do: the agent acts on it by itself
        ├── StreamUnavailableError       temporary; the same bytes are sent again
        │   └── RateLimitedError         temporary; all senders back off
        ├── SessionExpiredError          a new session is opened, the batch sent again
        ├── AuthenticationError          mend the key or its permissions; events are kept
        └── EventRejectedError           Stripe refused the request for what is in it

`StreamError` and its kinds are never raised into product code. They are handed to *on_error*,
and their text is what `Stats.last_error` shows.

No error carries an API key or a session token, and all of them can be pickled, because Celery and
multiprocessing carry exceptions from one process to another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = [
    "AuthenticationError",
    "ConfigError",
    "EventRejectedError",
    "InvalidEventError",
    "MeterAgentError",
    "RateLimitedError",
    "SessionExpiredError",
    "StreamError",
    "StreamUnavailableError",
]


class MeterAgentError(Exception):
    """Base of every error that this package raises or reports."""


class ConfigError(MeterAgentError, ValueError):
    """One or more settings are wrong; the message lists all of them.

    Attributes:
        problems: One sentence for each wrong setting, with its variable, its value and the rule.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


class InvalidEventError(MeterAgentError, ValueError):
    """An event that may not be billed as it is.

    Attributes:
        field: The argument of `record()` that is wrong, for example `"value"`.
        value: A short printable form of what was given.
        rule: What the field has to be.
    """

    def __init__(self, field: str, value: str, rule: str) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        super().__init__(f"{field}={value} is invalid: {rule}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value, self.rule)


class StreamError(MeterAgentError):
    """A request to Stripe did not end in an accepted batch.

    Attributes:
        status: The HTTP status, or None when no complete answer came.
        code: Stripe's error code, or None.
        request_id: Stripe's `Request-Id` header, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.request_id = request_id
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_stream_error, (
            type(self),
            str(self),
            self.status,
            self.code,
            self.request_id,
        )


class StreamUnavailableError(StreamError):
    """Stripe could not be reached or could not answer; the same bytes will be sent again."""


class RateLimitedError(StreamUnavailableError):
    """Stripe asked for fewer requests (429); every sender of the agent backs off."""


class SessionExpiredError(StreamError):
    """The meter event session is over; the agent opens a new one."""


class AuthenticationError(StreamError):
    """Stripe refused the API key or its permissions (401, 403).

    Events are kept and the agent asks again slowly. Mend the key: with *api_key_file* a new key is
    read at the next attempt, without a restart.
    """


class EventRejectedError(StreamError):
    """Stripe refused a request for its content (400, 404, 413, 422)."""


def _rebuild_stream_error(
    kind: type[StreamError],
    message: str,
    status: int | None,
    code: str | None,
    request_id: str | None,
) -> StreamError:
    return kind(message, status=status, code=code, request_id=request_id)
