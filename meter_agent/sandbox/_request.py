"""One request at a door, read as far as it can be read."""

import json
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from meter_agent.sandbox._errors import StripeError
from meter_agent.sandbox._events import MAX_EVENTS
from meter_agent.sandbox._reply import Reply, RequestLog

__all__ = [
    "EVENT_PATH",
    "METERS_PATH",
    "SESSION_PATH",
    "STREAM_PATH",
    "Request",
    "check_headers",
    "log_of",
    "read_body",
]

SESSION_PATH = "/v2/billing/meter_event_session"
STREAM_PATH = "/v2/billing/meter_event_stream"
EVENT_PATH = "/v2/billing/meter_events"
METERS_PATH = "/v1/billing/meters"


@dataclass
class Request:
    """One request, read as far as it can be read."""

    at: float
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    document: Any = None
    malformed: str | None = None
    authorization_kind: str = "none"
    token: str = field(default="", repr=False)

    @property
    def idempotency_key(self) -> str | None:
        return self.headers.get("idempotency-key")

    @property
    def raw_events(self) -> list[Any]:
        if self.path == EVENT_PATH:
            return [] if self.document is None else [self.document]
        events = self.document.get("events") if isinstance(self.document, dict) else None
        return events if isinstance(events, list) else []

    @property
    def identifiers(self) -> tuple[str, ...]:
        sent = (raw.get("identifier") for raw in self.raw_events if isinstance(raw, dict))
        return tuple(islice((each for each in sent if isinstance(each, str)), MAX_EVENTS))


def read_body(request: Request, max_bytes: int) -> None:
    """Read the body as JSON if it may be looked at, or note why it cannot be."""
    if not request.body or len(request.body) > max_bytes:
        return
    try:
        request.document = json.loads(request.body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        request.malformed = str(error)


def check_headers(request: Request) -> None:
    """What every v2 request must say about itself."""
    if not request.headers.get("stripe-version"):
        text = "The Stripe-Version header is required on v2 endpoints."
        raise StripeError(400, "stripe_version_required", text)
    if not request.body and request.path == SESSION_PATH:
        return  # Stripe declares no body for this one.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise StripeError(400, "invalid_content_type", "The Content-Type must be application/json.")
    if request.malformed is not None or not request.body:
        text = f"The request body is not JSON: {request.malformed or 'it is empty'}"
        raise StripeError(400, "invalid_json", text)


def log_of(request: Request, reply: Reply) -> RequestLog:
    """What is remembered of *request*."""
    return RequestLog(
        at=request.at,
        method=request.method,
        path=request.path,
        status=reply.status,
        events=len(request.raw_events),
        idempotency_key=request.idempotency_key,
        identifiers=request.identifiers,
        authorization_kind=request.authorization_kind,
        cut=reply.cut,
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
