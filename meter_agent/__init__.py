"""Usage metering for Stripe that lives inside a Python service.

Example:
    >>> import meter_agent
    >>> meter_agent.record("api_requests", "cus_123", 1)  # doctest: +SKIP
    True
"""

from typing import TYPE_CHECKING, Any

from meter_agent._agent import MeterAgent
from meter_agent._config import Config
from meter_agent._dead_letters import DeadLetter
from meter_agent._default import close, configure, flush, get_agent, health, record, stats
from meter_agent._health import Health
from meter_agent._ledger import RequestDurations, Stats
from meter_agent._version import __version__
from meter_agent.exceptions import (
    AuthenticationError,
    ConfigError,
    EventRejectedError,
    InvalidEventError,
    MeterAgentError,
    RateLimitedError,
    SessionExpiredError,
    StreamError,
    StreamUnavailableError,
)

if TYPE_CHECKING:
    from meter_agent._metered import MeteredCall, customer, metered

__all__ = [
    "AuthenticationError",
    "Config",
    "ConfigError",
    "DeadLetter",
    "EventRejectedError",
    "Health",
    "InvalidEventError",
    "MeterAgent",
    "MeterAgentError",
    "MeteredCall",
    "RateLimitedError",
    "RequestDurations",
    "SessionExpiredError",
    "Stats",
    "StreamError",
    "StreamUnavailableError",
    "__version__",
    "close",
    "configure",
    "customer",
    "flush",
    "get_agent",
    "health",
    "metered",
    "record",
    "stats",
]


def __getattr__(name: str) -> Any:
    # What is built on `record()` is imported when it is first used: most processes never do.
    if name in ("MeteredCall", "customer", "metered"):
        from meter_agent import _metered  # noqa: PLC0415

        globals().update({each: getattr(_metered, each) for each in _metered.__all__})
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
