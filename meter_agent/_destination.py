"""For whom an event was recorded: it is sent there, and never anywhere else.

Two destinations are the same when all four fields are. Where a process hands its events over and
has no key, it does not say host and mode; the process that sends decides those, and only what is
said has to agree.

Two keys of one mode cannot be told apart: which account a key belongs to is not in the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["EMULATOR", "NOT_SAID", "Destination", "destination_of", "mode_of_key"]

EMULATOR, UNKNOWN = "emulator", "unknown"
# Stripe's secret (sk), restricted (rk) and organisation (sk_org) keys.
_KEY_MODE = re.compile(r"[a-z]+_(?:org_)?(?P<mode>live|test)_")
_FIELD_BYTES_MAX = 150


class Destination(NamedTuple):
    """Where events go, and in whose name."""

    host: str | None = None
    """Host name of the events URL, without its port; None: not said."""
    mode: str | None = None
    """`live`, `test`, `emulator`, or `unknown` where the key does not show it; None: not said."""
    account: str | None = None
    """`Stripe-Account`; None: none, which is a value like any other."""
    context: str | None = None
    """`Stripe-Context`; None: none, which is a value like any other."""

    def agrees_with(self, other: Destination) -> bool:
        """Whether what both say is the same."""
        said = zip(self[:2], other[:2], strict=True)
        return self[2:] == other[2:] and all(a == b for a, b in said if None not in {a, b})

    def to_document(self) -> dict[str, str]:
        """Return it ready for JSON: what is not said, or none, is not there."""
        return {name: text for name, text in self._asdict().items() if text is not None}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Destination:
        """Return what `to_document()` was made of."""
        texts = {name: document.get(name) for name in cls._fields}
        return cls(**{name: t if isinstance(t, str) else None for name, t in texts.items()})

    def __str__(self) -> str:
        where = f"{self.host or 'any host'} ({self.mode or 'any mode'})"
        names = (("Stripe-Account", self.account), ("Stripe-Context", self.context))
        return ", ".join((where, *(f"{name} {text}" for name, text in names if text is not None)))


NOT_SAID = Destination()
"""Of a process that sends nothing, or leaves it to the one that does."""


def destination_of(
    events_url: str, mode: str, *, account: str | None, context: str | None
) -> Destination:
    """Return the destination of a process with these settings."""
    from urllib.parse import urlsplit  # noqa: PLC0415 - only an agent with a spool needs it

    host = urlsplit(events_url).hostname
    return Destination(*map(_short, (host, mode, account, context)))


def mode_of_key(key: str) -> str:
    """Return `live` or `test`, as the beginning of the key shows it, else `unknown`."""
    match = _KEY_MODE.match(key)
    return UNKNOWN if match is None else match["mode"]


def _short(text: str | None) -> str | None:
    # Room in a header is limited, and texts are only compared: a long one stands there by its hash.
    if text is None or len(ascii(text)) <= _FIELD_BYTES_MAX:
        return text
    from hashlib import sha256  # noqa: PLC0415 - such long texts are rare

    return f"sha256:{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
