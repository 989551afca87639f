"""Text that nobody should read by accident."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Secret", "mask_address", "mask_keys", "shown"]

_KIND = re.compile(r"(?:Bearer )?[srp]k_(?:org_)?(?:(?:test|live)_)?")
# Compiled when they are first needed, and most agents never show a value. People paste keys into
# the wrong variable.
_KEY_ANYWHERE = r"([srp]k_(?:org_(?:(?:test|live)_)?|test_|live_))[\w-]+"
_SECRETS_IN_URL = r"(?<=['\"]).*@|(?<=[?#])[^'\"]+"
_SHOWN_CHARACTERS_MAX = 100


class Secret(str):
    """A str that shows its kind but not its content when it is printed as a part of something.

    Keys, tokens and the headers that carry them are held as this, so that a crash page or an error
    tracker that prints local variables, ours or those of the HTTP library, shows none of them. Some
    of them (rich, structlog) cut a long str before they ask for its repr: a part of a secret, and
    what it is put together with, is a secret as well.

    What makes a header of it has to give its text, and gives a plain str or bytes: formatting
    (f-strings, `%`), `str()`, `str.join`, `encode()`, and regular expressions.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        kind = _KIND.match(str.__str__(self))
        return f"'{kind.group() if kind else ''}***'"

    def __iter__(self) -> Iterator[str]:
        return map(type(self), str.__iter__(self))

    def __radd__(self, before: str) -> str:
        return type(self)(str.__add__(before, self))


def _keeping(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Secret, *args: Any, **options: Any) -> Any:
        made = method(self, *args, **options)
        if isinstance(made, str):
            return type(self)(made)
        if isinstance(made, list | tuple):
            return type(made)(map(type(self), made))
        return made  # NotImplemented

    return call


for _name in (
    *("__add__", "__getitem__", "__mul__", "__rmul__", "capitalize", "casefold", "center"),
    *("expandtabs", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix"),
    *("replace", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "strip"),
    *("swapcase", "title", "translate", "upper", "zfill"),
):
    setattr(Secret, _name, _keeping(getattr(str, _name)))


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
