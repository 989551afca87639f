"""Moments as people and files write them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, tzinfo

__all__ = ["MomentError", "parse_moment"]

_SECONDS = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?")
_SHOWN_CHARACTERS_MAX = 60


class MomentError(ValueError):
    """A text that names no moment; the message says why."""


def parse_moment(given: object, zone: tzinfo | None) -> float:
    """Return the unix seconds of *given*.

    Args:
        given: Unix seconds, as a number or a text; an ISO 8601 date and time; or a datetime.
        zone: The time zone of what names none; None: such a moment is refused.

    Raises:
        MomentError: It is none of these.

    Example:
        >>> parse_moment("2026-01-31T12:15:00Z", None)
        1769861700.0
    """
    if isinstance(given, datetime):
        return _unix_seconds(given, zone, str(given))
    text = str(given).strip()
    if _SECONDS.fullmatch(text) and not isinstance(given, bool):
        return float(text)
    shown = repr(text[:_SHOWN_CHARACTERS_MAX])
    if isinstance(given, float) and math.isfinite(given):
        raise MomentError(f"{shown} is no number of seconds since 1970")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise MomentError(
            f"{shown} is neither unix seconds nor a date and time such as 2026-01-31T12:15:00Z"
        ) from None
    return _unix_seconds(moment, zone, text)


def _unix_seconds(moment: datetime, zone: tzinfo | None, text: str) -> float:
    if moment.utcoffset() is None:
        if zone is None:
            raise MomentError(
                f"{text[:_SHOWN_CHARACTERS_MAX]!r} names no time zone: add Z or an offset, "
                "or give --timezone"
            )
        moment = moment.replace(tzinfo=zone)
    try:
        return moment.astimezone(UTC).timestamp()
    except OverflowError:
        raise MomentError(f"{text[:_SHOWN_CHARACTERS_MAX]!r} is out of the calendar") from None
