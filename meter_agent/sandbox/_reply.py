"""What goes out of the state machine: answers, and the record kept of each request."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Literal, TypeAlias

__all__ = ["Cut", "Reply", "RequestLog", "date_header", "json_reply"]

Cut: TypeAlias = Literal["before", "after", "truncate", "hang"]


@dataclass(frozen=True)
class Reply:
    """One answer, and how the door that delivers it has to misbehave."""

    status: int
    """HTTP status; 0 when there is no answer and the request had no effect."""

    headers: dict[str, str] = field(default_factory=dict)

    body: bytes = b""
    """The whole body, also when `cut` says that only half of it may leave."""

    delay_seconds: float = 0.0
    """How long the door waits before the answer; the effect has happened by then."""

    is_stripes: bool = True
    """False: it is the answer of something in between, which knows no `Request-Id`."""

    cut: Cut | None = None
    """How the connection ends:

    - `"before"`: reset, the request had no effect;
    - `"after"`: reset, the request had its effect;
    - `"truncate"`: half of the body, then closed;
    - `"hang"`: nothing is ever sent.
    """


@dataclass(frozen=True)
class RequestLog:
    """What is remembered of one request. It holds no key and no token."""

    at: float
    """Unix seconds by the sandbox's clock."""

    method: str
    path: str

    status: int
    """The status decided on, even if a reset kept it from leaving; 0 without any."""

    events: int
    """How many events the body held, whether they were taken in or not."""

    idempotency_key: str | None

    identifiers: tuple[str, ...]
    """The events' identifiers as sent, at most the first 100; events without one are left out."""

    authorization_kind: str
    """`none`, `unknown`, `api_key`, `session` or `expired_session`."""

    cut: Cut | None


def json_reply(status: int, document: object, headers: Mapping[str, str] | None = None) -> Reply:
    """A reply that carries *document* as JSON."""
    body = b"" if status in (204, 304) else _encode(document)
    return Reply(status, {"Content-Type": "application/json", **(headers or {})}, body)


def date_header(now: float) -> dict[str, str]:
    """The `Date` header at *now*; none for a moment that HTTP cannot write."""
    try:
        return {"Date": formatdate(now, usegmt=True)}
    except (OverflowError, OSError, ValueError):
        return {}


def _encode(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii")
