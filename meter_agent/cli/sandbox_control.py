"""What a sandbox tells about itself under `/_sandbox/`."""

from __future__ import annotations

import json
from typing import Any

from meter_agent import Config
from meter_agent._reply import TransportError
from meter_agent._transport import Transport

__all__ = ["SandboxControlError", "is_sandbox", "read_control"]

_SECONDS = 10.0
_BYTES_MAX = 256 * 1024 * 1024
"""The totals have a line for each meter and customer."""


class SandboxControlError(Exception):
    """The sandbox does not tell; the message says why."""


def read_control(config: Config, name: str) -> dict[str, Any]:
    """Return the document `/_sandbox/{name}` of the sandbox of *config*.

    Raises:
        SandboxControlError: It cannot be reached, or is no sandbox.
    """
    url = f"{(config.sandbox_url or '').rstrip('/')}/_sandbox/{name}"
    transport = Transport(
        connect_timeout_seconds=config.connect_timeout_seconds,
        read_timeout_seconds=config.read_timeout_seconds,
    )
    try:
        reply = transport.get(url, {}, at_most_seconds=_SECONDS, body_bytes_max=_BYTES_MAX)
    except TransportError as error:
        raise SandboxControlError(str(error)) from None
    finally:
        transport.close()
    try:
        document = json.loads(reply.body)
    except ValueError:
        document = None
    if reply.status != 200 or not isinstance(document, dict):
        raise SandboxControlError(f"HTTP {reply.status} from {url}; is it a sandbox?")
    return document


def is_sandbox(config: Config) -> bool:
    """Return whether what answers at the *sandbox_url* of *config* is a sandbox."""
    try:
        read_control(config, "clock")
    except SandboxControlError:
        return False
    return True
