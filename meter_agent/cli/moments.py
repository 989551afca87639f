"""Moments as people and files write them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

__all__ = ["MomentError", "NoZoneError", "parse_moment", "parse_zone"]

# As `date -u`, PostgreSQL, Go and spreadsheets write UTC; Go with the offset before it.
_UTC_NAME = re.compile(r"\s*(?:[+-]00:?00)?\s*(?:UTC|GMT|Z)$", re.IGNORECASE)
_BLANK_BEFORE_OFFSET = re.compile(r"\s+(?=[+-][0-9]{2}:?[0-9]{2}$)")
_SECONDS = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?")
_SHOWN_CHARACTERS_MAX = 60


class MomentError(ValueError):
    """A text that names no moment; the message says why."""


class NoZoneError(MomentError):
    """It names no time zone, and none is given for such texts."""


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
        moment = datetime.fromisoformat(
            _BLANK_BEFORE_OFFSET.sub("", _UTC_NAME.sub("+00:00", text, count=1))
        )
    except ValueError:
        raise MomentError(
            f"{shown} is neither unix seconds nor a date and time such as 2026-01-31T12:15:00Z"
        ) from None
    return _unix_seconds(moment, zone, text)


def parse_zone(name: str) -> tzinfo:
    """Return the time zone called *name*, such as `UTC` or `Europe/Berlin`.

    Raises:
        MomentError: There is none; the message says so if this host has no zones at all.
    """
    if name.upper() in {"UTC", "GMT", "Z"}:
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    try:
        ZoneInfo("Europe/Berlin")
    except (KeyError, ValueError, OSError):
        raise MomentError(
            f"{name}: this host has no time zone database. Install it with `pip install tzdata` or "
            "the package tzdata of the system"
        ) from None
    raise MomentError(f"{name}: there is no such zone")


def _unix_seconds(moment: datetime, zone: tzinfo | None, text: str) -> float:
    if moment.utcoffset() is None:
        if zone is None:
            raise NoZoneError(
                f"{text[:_SHOWN_CHARACTERS_MAX]!r} names no time zone: add Z or an offset"
            )
        moment = moment.replace(tzinfo=zone)
        # PEP 495: the two differ where clocks are set back, and where they are set forward.
        if moment.replace(fold=0).utcoffset() != moment.replace(fold=1).utcoffset():
            raise MomentError(
                f"{text[:_SHOWN_CHARACTERS_MAX]!r} is there twice or never, for clocks change then"
                f" in {zone}: add an offset"
            )
    try:
        return moment.astimezone(UTC).timestamp()
    except OverflowError:
        raise MomentError(f"{text[:_SHOWN_CHARACTERS_MAX]!r} is out of the calendar") from None
