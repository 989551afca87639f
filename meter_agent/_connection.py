"""A way to Stripe as the settings have it: addresses, headers, key and timeouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from meter_agent._config import Config
from meter_agent._ledger import Traffic
from meter_agent._runtime import Runtime

if TYPE_CHECKING:
    from requests.adapters import BaseAdapter

    from meter_agent._stream import MeterEventStream

__all__ = ["open_stream"]


def open_stream(
    config: Config,
    runtime: Runtime,
    *,
    traffic: Traffic,
    seconds_left: Callable[[], float | None],
    open_adapter: Callable[[], BaseAdapter] | None = None,
) -> MeterEventStream:
    """Return the endpoints of *config*, for one thread. Nothing is connected yet.

    Args:
        config: The settings.
        runtime: Clocks.
        traffic: Counts requests and sessions.
        seconds_left: How long a request may take; None while nothing presses.
        open_adapter: Makes the requests adapter that sends; None for the real network.
    """
    from meter_agent._stream import MeterEventStream  # noqa: PLC0415 - see `Pipeline`
    from meter_agent._transport import Transport  # noqa: PLC0415

    return MeterEventStream(
        runtime,
        transport=Transport(
            connect_timeout_seconds=config.connect_timeout_seconds,
            read_timeout_seconds=config.read_timeout_seconds,
            open_adapter=open_adapter,
        ),
        session_url=config.session_url,
        stream_url=config.stream_url,
        event_url=config.event_url,
        meters_url=config.meters_url,
        read_api_key=config.read_api_key,
        headers=_stripe_headers(config),
        traffic=traffic,
        seconds_left=seconds_left,
    )


def _stripe_headers(config: Config) -> dict[str, str]:
    headers = {
        "Stripe-Version": config.stripe_version,
        "Stripe-Account": config.stripe_account,
        "Stripe-Context": config.stripe_context,
    }
    return {name: value for name, value in headers.items() if value}
