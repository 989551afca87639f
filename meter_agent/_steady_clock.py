"""The wall clock, as far as the monotonic one bears it out.

A wall clock can be wrong for a moment: a bad time source, a virtual machine that resumes, a person.
One reading of it that says "a day has gone by" must not end events for good. The rule is:

- The wall clock is believed while it goes on as the monotonic clock does, with the time that the
  machine slept, and up to a minute beside it: clocks are corrected.
- A claim of more than that is in doubt. It is believed when the wall clock has kept to it for a
  minute of monotonic time. Until then time goes on as it was believed before.
- What the claim would make too late to be sent again waits while it is in doubt: to send it could
  bill it twice if the claim is true, and to give it up would lose it if it is not.
- What was first sent in another process is known by the wall clock alone, as it is believed at the
  moment of recovery.
"""

from __future__ import annotations

from typing import NamedTuple

from meter_agent._runtime import Runtime

__all__ = ["SteadyClock"]

CORRECTION_SECONDS_MAX = 60.0
BELIEVED_AFTER_SECONDS = 60.0


class _State(NamedTuple):
    """Replaced as a whole: of two threads that look at the same time, either is right."""

    offset: float
    """How far the wall clock is believed to be ahead of the monotonic one."""
    claim: float | None = None
    """How far it is ahead by its own account; None: as believed."""
    claimed_since: float = 0.0


class SteadyClock:
    """Tells unix seconds that no single reading of the wall clock can move.

    Args:
        runtime: Both clocks.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._state = _State(runtime.clock.time() - self._uptime())

    def time(self) -> float:
        """Return unix seconds as they are believed."""
        uptime = self._uptime()
        claim = self._runtime.clock.time() - uptime
        state = self._state
        if abs(claim - state.offset) <= CORRECTION_SECONDS_MAX:
            state = _State(claim)
        elif state.claim is None or abs(claim - state.claim) > CORRECTION_SECONDS_MAX:
            state = _State(state.offset, claim, uptime)
        elif uptime - state.claimed_since >= BELIEVED_AFTER_SECONDS:
            state = _State(claim)
        self._state = state
        return uptime + state.offset

    def ahead(self) -> float:
        """Return by how many seconds the wall clock claims to be ahead; 0 unless in doubt."""
        self.time()
        state = self._state
        return 0.0 if state.claim is None else max(0.0, state.claim - state.offset)

    def _uptime(self) -> float:
        return self._runtime.monotonic() + self._runtime.suspended()
