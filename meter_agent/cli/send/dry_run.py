"""The requests that would be made, made against a sandbox in this process and written down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from meter_agent import Config
from meter_agent._agent import build
from meter_agent._connection import open_stream
from meter_agent._event import MeterEvent, RecordedEvent
from meter_agent._ledger import Traffic
from meter_agent._runtime import SystemRuntime
from meter_agent.sandbox import Sandbox, SandboxAdapter

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

__all__ = ["requests_to_record", "requests_to_validate"]


def requests_to_record(config: Config, event: RecordedEvent) -> list[dict[str, Any]]:
    """Return the requests of an agent that records *event*: session and stream."""
    adapter = _WritingAdapter(config, event.event_name)
    agent = build(config, open_adapter=lambda: adapter)
    _, name, customer, value, timestamp, identifier, payload = event
    agent.record(name, customer, value, timestamp=timestamp, identifier=identifier, payload=payload)
    agent.close()
    return adapter.written


def requests_to_validate(config: Config, event: MeterEvent, name: str) -> list[dict[str, Any]]:
    """Return the request that has Stripe check *event* at once."""
    adapter = _WritingAdapter(config, name)
    stream = open_stream(
        config,
        SystemRuntime(),
        traffic=Traffic(),
        seconds_left=lambda: None,
        open_adapter=lambda: adapter,
    )
    stream.check(event.body)
    return adapter.written


class _WritingAdapter(SandboxAdapter):
    """A sandbox that takes everything. So the requests are those of the real code, to the byte."""

    def __init__(self, config: Config, event_name: str) -> None:
        default, keys_by_event = config.encoder_keys
        keys = keys_by_event.get(event_name, default)
        super().__init__(Sandbox(payload_keys={event_name: keys._asdict()}))
        self.written: list[dict[str, Any]] = []

    def send(self, request: PreparedRequest, *arguments: Any, **options: Any) -> Response:
        """Write *request* down, and answer it."""
        headers = {str(name): str(value) for name, value in request.headers.items()}
        headers["Authorization"] = _masked(request.headers["Authorization"])
        self.written.append(
            {
                "method": request.method,
                "url": request.url,
                "headers": headers,
                "body": json.loads(request.body or b"null"),
            }
        )
        return super().send(request, *arguments, **options)


def _masked(authorization: str) -> str:
    shown = repr(authorization).strip("'")  # a `Secret`, which tells its kind alone
    return "Bearer <session token>" if shown == "***" else shown
