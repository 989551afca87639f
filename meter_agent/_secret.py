"""Text that nobody should read by accident."""

from __future__ import annotations

import re

__all__ = ["Secret", "mask_address", "mask_keys", "shown"]

_KIND = re.compile(r"(?:Bearer )?[srp]k_(?:org_)?(?:(?:test|live)_)?")
# Compiled when they are first needed, and most agents never show a value. People paste keys into
# the wrong variable.
_KEY_ANYWHERE = r"([srp]k_(?:org_(?:(?:test|live)_)?|test_|live_))[\w-]+"
_SECRETS_IN_URL = r"(?<=['\"]).*@|(?<=[?#])[^'\"]+"
_SHOWN_CHARACTERS_MAX = 100


class Secret(str):
    """A str that tells its kind but not its content when it is printed as a part of something.

    Keys, tokens and the headers that carry them are held as this, so that a crash page or an error
    tracker that prints local variables, ours or those of the HTTP library, shows none of them.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        kind = _KIND.match(self)
        return f"'{kind.group() if kind else ''}***'"


def mask_keys(text: str) -> str:
    """Return *text* with the content of every API key in it hidden."""
    return re.sub(_KEY_ANYWHERE, r"\1***", text)


def mask_address(text: str) -> str:
    """Return *text* with user, query and fragment of an address in it hidden.

    The address is in quotes, for that is how its beginning and end are known.
    """
    return re.sub(_SECRETS_IN_URL, "***", text)


def shown(value: object, *, is_address: bool = False) -> str:
    """Return a short repr in which no secret can be read, whatever *value* is."""
    if isinstance(value, Secret):
        return repr(value)
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  code of the application, or an int too long to print
        text = object.__repr__(value)
    # Masked before it is cut, so that no cut leaves a part of a key that is no longer recognised.
    text = mask_keys(text)
    if is_address:
        text = mask_address(text)
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[: _SHOWN_CHARACTERS_MAX - 1] + "…"
