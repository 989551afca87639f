"""The header `Retry-After`: how long to wait before the next request."""

from __future__ import annotations

import math
from datetime import UTC

__all__ = ["RETRY_AFTER_SECONDS_MAX", "parse_retry_after"]

RETRY_AFTER_SECONDS_MAX = 300.0


def parse_retry_after(header: str | None, *, date: str | None = None, wall_time: float) -> float:
    """Return the seconds that a `Retry-After` header asks for, from 0 to 300.

    Seconds, fractions of them, and HTTP dates are understood. Anything else, and no header at all,
    is 0. Stripe does not document the header and its SDK ignores it; proxies send it.

    The clock of this host may be wrong by hours, so an HTTP date is compared with *date*, the
    `Date` header of the same answer, and with *wall_time* only where that is missing or no date.
    """
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        now = _unix_seconds(date)
        until = _unix_seconds(header)
        seconds = 0.0 if until is None else until - (wall_time if now is None else now)
    if math.isnan(seconds):
        return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)


def _unix_seconds(http_date: str | None) -> float | None:
    import email.utils  # noqa: PLC0415 - rare, and it drags in half of the email package

    try:
        parsed = email.utils.parsedate_to_datetime(http_date or "")
        # The form of asctime names no zone, and all HTTP dates are in universal time (RFC 9110,
        # section 5.6.7).
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
