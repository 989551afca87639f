"""Those that are measured: the agent, what users would pick instead, and the floors.

Each module is imported only in the interpreter that measures it. `open_client(url, **options)`
returns a `Client`; the options are *capacity* (events that may wait, so that nothing is dropped),
*in_flight* (requests at a time, where the client can do that) and *spool* (a directory).
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

CUSTOMER = "cus_NciAYcXfLnqBoz"
EVENT = "api_requests"
BATCH = 100

LABELS = {
    "agent": "meter_agent",
    "agent_spool": "meter_agent, crash-safe",
    "deque": "bare append",
    "stripe_stream": "stripe SDK, stream of 100 in a loop",
    "stripe_single": "stripe SDK, one v1 event per call",
    "posthog": "PostHog",
    "segment": "Segment",
    "opentelemetry": "OpenTelemetry logs",
    "requests_json": "requests.post and json in a loop",
    "raw_socket": "raw socket and orjson in a loop",
}
"""What each client is called in tables."""

BUFFERING = ("agent", "agent_spool", "posthog", "segment", "opentelemetry")
"""Those that take an event and ship it in the background."""


class Client(Protocol):
    """Something that takes events and ships them."""

    call: str
    """The statement that hands over one event, as a user writes it."""
    names: dict[str, Any]
    """What the statement refers to."""

    def finish(self) -> None:
        """Return when everything handed over was answered."""

    def close(self) -> None:
        """End."""


def open_client(name: str, url: str, **options: Any) -> Client:
    """Open the client of that name, pointed at *url*."""
    client: Client = importlib.import_module(f"benchmarks.clients.{name}").open_client(
        url, **options
    )
    return client
