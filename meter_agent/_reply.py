"""What comes back for a request: a complete answer, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["BODY_BYTES_MAX", "Reply", "TransportError", "Trouble", "too_long"]

BODY_BYTES_MAX = 64 * 1024
"""A server's answer is bounded here, not by the server: what is longer is not Stripe's."""

Trouble = Literal["tls", "proxy", "name", "connect", "timeout", "answer", "local"]
"""What went wrong: the certificate, the way through a proxy, looking the name up, connecting,
waiting, the answer itself, or something on this host, such as a CA bundle that is not there."""


class TransportError(Exception):
    """No complete answer came.

    Attributes:
        maybe_accepted: Whether the request may have reached the server.
        stale: Whether a kept-alive connection turned out to be closed.
        trouble: What went wrong, for advice.
    """

    def __init__(
        self,
        message: str,
        *,
        maybe_accepted: bool,
        stale: bool = False,
        trouble: Trouble = "answer",
    ) -> None:
        self.maybe_accepted = maybe_accepted
        self.stale = stale
        self.trouble: Trouble = trouble
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer; *body* holds at most 64 KiB of it."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """Looked up without regard to case."""
    body: bytes = field(repr=False)  # a session's holds its token


def too_long(status: int, limit: int = BODY_BYTES_MAX) -> TransportError:
    """Return the error of an answer over the limit."""
    return TransportError(f"HTTP {status} with a body over {limit} bytes", maybe_accepted=True)
