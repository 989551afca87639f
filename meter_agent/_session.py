"""One valid meter event session at a time, renewed early, one renewal at a time.

A session lives for `expires_at - created`, counted from the moment before it was asked for, on the
monotonic clock and on the wall clock, whichever has advanced more: the first is immune to clock
steps, the second goes on while a laptop sleeps or a container is frozen. No comparison is made
between the server's clock and ours.
"""

from __future__ import annotations

from collections.abc import Callable

from meter_agent._answer import Answer, Grant
from meter_agent._log import DEBUG, EventLog
from meter_agent._runtime import Runtime

__all__ = ["SessionCache"]

_LIFETIME_SECONDS_WITHOUT_DATES = 60.0
_LIFETIME_SECONDS_MIN = 1.25
_RENEW_AT_SHARE_OF_LIFE = 0.8
_RENEW_JITTER_SHARE = 0.05
_RENEW_AGAIN_SECONDS = 5.0


class _Session:
    __slots__ = ("began", "grant", "lifetime_seconds", "renew_after_seconds")

    def __init__(self, runtime: Runtime, grant: Grant, began: tuple[float, float]) -> None:
        self.grant = grant
        self.began = began
        lifetime = grant.lifetime_seconds
        if lifetime is None or lifetime <= 0:
            # Dates that make no sense: use the token for a while and let the server say expired.
            lifetime = _LIFETIME_SECONDS_WITHOUT_DATES
        # The floor keeps a server that grants milliseconds from being asked in a hot loop.
        self.lifetime_seconds = max(lifetime, _LIFETIME_SECONDS_MIN)
        jitter = (2 * runtime.random() - 1) * _RENEW_JITTER_SHARE
        self.renew_after_seconds = self.lifetime_seconds * (_RENEW_AT_SHARE_OF_LIFE + jitter)


class SessionCache:
    """Hands out the token of the current session to every sender."""

    def __init__(self, runtime: Runtime, *, log: EventLog) -> None:
        self._runtime = runtime
        self._log = log
        # Guards everything below; never held while a session is being opened.
        self._changed = runtime.condition()
        self._session: _Session | None = None
        self._opening = False
        self._openings = 0
        self._failure: Answer | None = None

    def token(self, open_session: Callable[[], Grant | Answer]) -> str | Answer:
        """Return a valid token, or the answer that says why there is none.

        One caller opens a session with *open_session*; the others wait for it and share its
        outcome, good or bad. While an early renewal is under way they use the session they have.
        """
        with self._changed:
            before = self._openings
            while True:
                age = self._age_seconds()
                if self._session and age < self._session.renew_after_seconds:
                    return self._session.grant.token
                if self._openings != before and self._failure is not None:
                    return self._failure
                if not self._opening:
                    self._opening = True
                    break
                if self._session and age < self._session.lifetime_seconds:
                    return self._session.grant.token
                self._changed.wait()
        return self._open(open_session)

    def drop(self, token: str) -> None:
        """Forget the session of *token* if it is still the current one."""
        with self._changed:
            if self._session and self._session.grant.token == token:
                self._session = None

    def _open(self, open_session: Callable[[], Grant | Answer]) -> str | Answer:
        began = self._runtime.clock.time(), self._runtime.monotonic()
        outcome: Grant | Answer | None = None
        try:
            outcome = open_session()
        finally:
            with self._changed:
                self._opening = False
                self._openings += 1
                result = self._kept(outcome, began)
                self._changed.notify_all()
        if isinstance(outcome, Grant):
            self._log.say(
                "meter_agent.session_opened",
                DEBUG,
                lifetime_seconds=outcome.lifetime_seconds,
            )
        assert result is not None  # noqa: S101 - None only while an exception passes through
        return result

    def _kept(
        self, outcome: Grant | Answer | None, began: tuple[float, float]
    ) -> str | Answer | None:
        if isinstance(outcome, Grant):
            self._session = _Session(self._runtime, outcome, began)
            self._failure = None
            return outcome.token
        session = self._session
        age = self._age_seconds()
        if session and age < session.lifetime_seconds:
            # An early renewal failed. The old token still serves; try again in a moment.
            session.renew_after_seconds = min(session.lifetime_seconds, age + _RENEW_AGAIN_SECONDS)
            return session.grant.token
        self._failure = outcome
        return outcome

    def _age_seconds(self) -> float:
        if self._session is None:
            return 0.0
        wall, monotonic = self._session.began
        return max(self._runtime.clock.time() - wall, self._runtime.monotonic() - monotonic)
