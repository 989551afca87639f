"""Usage metering for Stripe that lives inside a Python service.

Example:
    >>> import meter_agent
    >>> meter_agent.record("api_requests", "cus_123", 1)  # doctest: +SKIP
    True
"""

from meter_agent._agent import MeterAgent
from meter_agent._config import Config
from meter_agent._dead_letters import DeadLetter
from meter_agent._default import close, configure, flush, get_agent, record, stats
from meter_agent._ledger import Stats
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

__all__ = [
    "AuthenticationError",
    "Config",
    "ConfigError",
    "DeadLetter",
    "EventRejectedError",
    "InvalidEventError",
    "MeterAgent",
    "MeterAgentError",
    "RateLimitedError",
    "SessionExpiredError",
    "Stats",
    "StreamError",
    "StreamUnavailableError",
    "__version__",
    "close",
    "configure",
    "flush",
    "get_agent",
    "record",
    "stats",
]
