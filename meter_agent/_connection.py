"""A way to Stripe as the settings have it: addresses, headers, key and timeouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from meter_agent._config import Config
from meter_agent._destination import EMULATOR, NOT_SAID, Destination, destination_of, mode_of_key
from meter_agent._ledger import Traffic
from meter_agent._runtime import Runtime
from meter_agent.exceptions import ConfigError

if TYPE_CHECKING:
    from requests.adapters import BaseAdapter

    from meter_agent._stream import MeterEventStream

__all__ = ["destination_in", "open_stream"]


def destination_in(config: Config) -> Destination:
    """Return for whom events are recorded under the settings of *config*.

    Raises:
        ConfigError: The file with the key has become unreadable.
    """
    if config.disabled:
        return NOT_SAID  # nothing is recorded
    mode = EMULATOR if config.sandbox_url is not None else mode_of_key(config.read_api_key())
    return destination_of(
        config.stream_url, mode, account=config.stripe_account, context=config.stripe_context
    )


def open_stream(
    config: Config,
    runtime: Runtime,
    *,
    traffic: Traffic,
    seconds_left: Callable[[], float | None],
    open_adapter: Callable[[], BaseAdapter] | None = None,
    mode: str | None = None,
) -> MeterEventStream:
    """Return the endpoints of *config*, for one thread. Nothing is connected yet.

    Args:
        config: The settings.
        runtime: Clocks.
        traffic: Counts requests and sessions.
        seconds_left: How long a request may take; None while nothing presses.
        open_adapter: Makes the requests adapter that sends; None for the real network.
        mode: That of the events that wait on disk, which no key of another one may send.
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
        read_api_key=lambda: _key_of_mode(config, mode),
        headers=_stripe_headers(config),
        traffic=traffic,
        seconds_left=seconds_left,
    )


def _key_of_mode(config: Config, mode: str | None) -> str:
    # A key file may have been replaced since by one of the other mode.
    key = config.read_api_key()
    if mode is None or config.sandbox_url is not None or mode_of_key(key) == mode:
        return key
    problem = (
        f"METER_AGENT_API_KEY_FILE={config.api_key_file}: holds a {mode_of_key(key)} key now, "
        f"and the events that wait were recorded for {mode}: put the right key there, or restart"
    )
    raise ConfigError([problem])


def _stripe_headers(config: Config) -> dict[str, str]:
    headers = {
        "Stripe-Version": config.stripe_version,
        "Stripe-Account": config.stripe_account,
        "Stripe-Context": config.stripe_context,
    }
    return {name: value for name, value in headers.items() if value}
