"""Meter event sessions: short-lived tokens for the stream."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Literal

__all__ = ["Session", "Sessions", "rfc3339"]

_REMEMBERED = 10_000
"""Older sessions are forgotten; their tokens become unknown instead of expired."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Session:
    """One token and its life."""

    id: str
    token: str
    created: float
    expires_at: float
    revoked: bool = False

    def to_json(self) -> dict[str, object]:
        """The `v2.billing.meter_event_session` object."""
        return {
            "id": self.id,
            "object": "v2.billing.meter_event_session",
            "authentication_token": self.token,
            "created": rfc3339(self.created),
            "expires_at": rfc3339(self.expires_at),
            "livemode": False,
        }


class Sessions:
    """Every session that was handed out. Sessions coexist: a new one leaves the others alone."""

    def __init__(self, life_seconds: float, random: Random) -> None:
        self._life = life_seconds
        self._random = random
        self._by_token: dict[str, Session] = {}

    def create(self, now: float) -> Session:
        """A new session that starts at *now*."""
        mark = f"{self._random.getrandbits(128):032x}"
        session = Session(f"mes_{mark[:16]}", f"token_{mark}", now, now + self._life)
        self._by_token[session.token] = session
        if len(self._by_token) > _REMEMBERED:
            del self._by_token[next(iter(self._by_token))]
        return session

    def standing(self, token: str, now: float) -> Literal["live", "expired", "unknown"]:
        """What *token* is worth at *now*; a revoked one counts as expired."""
        session = self._by_token.get(token)
        if session is None:
            return "unknown"
        return "expired" if session.revoked or now >= session.expires_at else "live"

    def revoke_all(self) -> None:
        """End every session that exists, as if its time had run out."""
        for session in self._by_token.values():
            session.revoked = True

    def clear(self) -> None:
        """Forget every session: their tokens become unknown."""
        self._by_token.clear()


def rfc3339(unix: float) -> str:
    """*unix* seconds as Stripe writes them: UTC, milliseconds, `Z`."""
    moment = _EPOCH + timedelta(milliseconds=math.floor(unix * 1000 + 0.5))
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
