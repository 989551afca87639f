"""Tests of applications that bill: what would be sent, without Stripe.

`recording()`
    Events are checked as in production and kept in memory, at once and without a thread.
`sandbox()`
    Events take the whole way, over HTTP to a local Stripe that can be made to fail.
`offline()`
    Neither: agents that could reach Stripe are refused.

With pytest the first two are the fixtures `meter_events` and `meter_sandbox`, and the third is the
option `meter_agent_offline`. Nothing here needs pytest; `sandbox()` needs the extra `sandbox`.

Example:
    >>> import meter_agent
    >>> from meter_agent.testing import recording
    >>> with recording() as events:
    ...     meter_agent.record("api_requests", "cus_123", 3)
    True
    >>> events.total("api_requests", customer="cus_123")
    Decimal('3')
"""

from meter_agent.testing._events import Event, Events
from meter_agent.testing._guard import RefusedError, offline
from meter_agent.testing._recording import RecordedEvents, recording
from meter_agent.testing._sandbox import LeftBehindError, MeterSandbox, sandbox

__all__ = [
    "Event",
    "Events",
    "LeftBehindError",
    "MeterSandbox",
    "RecordedEvents",
    "RefusedError",
    "offline",
    "recording",
    "sandbox",
]
