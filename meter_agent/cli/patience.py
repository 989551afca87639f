"""When a command stops waiting for a server that takes nothing.

An agent tries for ever, for it has the time of a service. A command has somebody who waits for it.
"""

from __future__ import annotations

import time

from meter_agent import AuthenticationError, MeterAgentError, Stats
from meter_agent.cli.exit_codes import ExitCode

__all__ = ["GaveUpError", "Patience", "settled"]

_REFUSALS = 2
"""A refusal may be that of a session that just ended. The next one is about the key."""


class GaveUpError(Exception):
    """The work ends here; the message says why."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Patience:
    """Ends a wait in which nothing is delivered.

    Args:
        seconds: How long nothing may be delivered.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._refusals = 0
        self._last_error: MeterAgentError | None = None
        self._progress = -1
        self._since = 0.0

    def hear(self, error: MeterAgentError) -> None:
        """Take note of a failed request; called in sender threads."""
        self._last_error = error
        if isinstance(error, AuthenticationError):
            self._refusals += 1

    def check(self, stats: Stats) -> None:
        """Look how far the agent is.

        Raises:
            GaveUpError: It makes no progress.
        """
        now = time.monotonic()
        if settled(stats) != self._progress:
            self._progress, self._since = settled(stats), now
            self._refusals = 0
            return
        if self._refusals >= _REFUSALS:
            raise GaveUpError(f"the key is refused: {self._last_error}", ExitCode.AUTHENTICATION)
        if now - self._since >= self._seconds:
            # Where Stripe refuses every event of a name, no request fails, and the rest waits.
            error = self._last_error or stats.last_error
            why = f": {error}" if error is not None else ""
            raise GaveUpError(
                f"nothing was delivered for {self._seconds:g} s{why}", ExitCode.UNREACHABLE
            )


def settled(stats: Stats) -> int:
    """Return how many events have ended."""
    return stats.delivered + stats.dead_lettered + stats.uncertain
