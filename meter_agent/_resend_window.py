"""Until when events may be sent: the resend window, and the age that Stripe accepts.

An event that Stripe may have is sent again only within the resend window, counted from its first
attempt on the wall clock and on the monotonic clock, whichever has advanced more. What the wall
clock alone says is believed when it has kept to it for a minute: see `SteadyClock`.
"""

from __future__ import annotations

from collections.abc import Sequence

from meter_agent._answer import Answer, Verdict
from meter_agent._batch import Batch
from meter_agent._event import TIMESTAMP_PAST_SECONDS_MAX, MeterEvent
from meter_agent._runtime import Runtime
from meter_agent._steady_clock import SteadyClock

__all__ = ["ResendWindow"]


class ResendWindow:
    """Says of the events of a batch whether they may still be sent.

    Args:
        runtime: Clocks.
        seconds: How long after its first attempt an event that may have been accepted is sent
            again.
        clock: The wall clock, without its jumps.
    """

    def __init__(self, runtime: Runtime, seconds: float, clock: SteadyClock) -> None:
        self._runtime = runtime
        self._seconds = seconds
        self._clock = clock

    def horizon(self) -> float:
        """Return the oldest timestamp that Stripe accepts, in wall seconds."""
        return self._clock.time() - TIMESTAMP_PAST_SECONDS_MAX

    def too_late(self, batch: Batch, part: Sequence[MeterEvent]) -> Answer | None:
        """Return why *part* cannot be sent as it is; None: it can.

        To be asked after each wait, which may have been long: for the turn, for a session.
        """
        if self.past(batch, part):
            return self._over()
        horizon = self.horizon()
        if batch.oldest_timestamp < horizon and any(event.timestamp < horizon for event in part):
            return Answer(Verdict.TOO_OLD)
        return None

    def in_doubt(self, batch: Batch, part: Sequence[MeterEvent]) -> Answer | None:
        """Return why *part* has to wait until the wall clock is certain; None: it has not."""
        ahead = self._clock.ahead() if batch.attempted else 0.0
        if not ahead or not self.past(batch, part, ahead=ahead):
            return None
        return Answer(
            Verdict.RETRY,
            message=(
                f"the wall clock has jumped ahead by {ahead:.0f} s: what Stripe may have is not "
                "sent again until the clock has kept to that for a minute, or is right again"
            ),
        )

    def allows(self, batch: Batch, part: Sequence[MeterEvent]) -> bool:
        """Whether *part* may be sent now."""
        return not (self.too_late(batch, part) or self.in_doubt(batch, part))

    def past(
        self, batch: Batch, part: Sequence[MeterEvent], *, ahead: float = 0.0
    ) -> list[MeterEvent]:
        """Return the events of *part* that Stripe may have and whose window is over.

        *ahead* is added to the wall clock.
        """
        if not batch.attempted:
            return []
        wall, monotonic = self._clock.time() + ahead, self._runtime.monotonic()

        def is_past(event: MeterEvent) -> bool:
            began = batch.attempted[id(event)]
            return max(wall - began[0], monotonic - began[1]) >= self._seconds

        return [event for event in batch.attempted_of(part) if is_past(event)]

    def _over(self) -> Answer:
        return Answer(
            Verdict.RESEND_WINDOW_OVER,
            message=(
                f"Stripe may have this event, and its first attempt is over {self._seconds:g} s "
                "ago: sent again, it could be billed twice"
            ),
        )
