"""Objects of the application as text for people: never raises, never takes long, never grows long.

What an application hands in may be anything: a proxy that raises when it is looked at, an int of a
megabyte, a str whose `__str__` is code. Here it is turned into something that a letter, an error
or a log line can carry.
"""

from __future__ import annotations

import reprlib
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import Any, TypeGuard, TypeVar

__all__ = ["is_a", "one_line", "printable", "safe_repr"]

_SHOWN_CHARACTERS_MAX = 200
_SHOWN_ITEMS_MAX = 50
_INT_SHOWN_LIMIT = 2**63
_DEFAULT_REPR = reprlib.Repr()
_DEFAULT_REPR.maxother = _DEFAULT_REPR.maxstring = _SHOWN_CHARACTERS_MAX

# What `str.isprintable` takes and nobody sees: the code points of Unicode's property
# Default_Ignorable_Code_Point in the categories L and M (fillers, variation selectors), and the
# Braille pattern without dots.
_UNSEEN = frozenset(
    map(
        chr,
        (
            *(0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
            *(*range(0x180B, 0x180E), 0x180F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)),
        ),
    )
)

_T = TypeVar("_T")


def is_a(value: object, kind: type[_T]) -> TypeGuard[_T]:
    """Whether *value* is a *kind*, without asking it."""
    # Not `isinstance`: that asks the value for its `__class__`, which runs code of the application
    # (proxies pretend there, and may raise).
    return issubclass(type(value), kind)


def one_line(text: str) -> str:
    """Return *text* with every character escaped that could forge a line or hide another one.

    For words that come from outside, a server's above all: line ends, escape sequences of a
    terminal, and characters that are invisible or turn the direction of the text around.
    """
    if text.isprintable() and (text.isascii() or _UNSEEN.isdisjoint(text)):
        return text
    return "".join(
        character
        if character.isprintable() and character not in _UNSEEN
        else character.encode("unicode_escape").decode()
        for character in text
    )


def printable(value: object) -> Any:
    """Return *value*, or a picture of it, for JSON."""
    if value is None or type(value) is bool:
        return value
    if type(value) is int and -_INT_SHOWN_LIMIT < value < _INT_SHOWN_LIMIT:
        return value
    if type(value) is float and value - value == 0:  # finite
        return value
    if is_a(value, str):
        return _cut(str.__str__(value))
    try:
        return _printable_object(value)
    except Exception:  # noqa: BLE001  code of the application
        return safe_repr(value)


def _printable_object(value: object) -> Any:
    if is_a(value, dict):
        pairs = list(islice(dict.items(value), _SHOWN_ITEMS_MAX))
        return {_cut(_text_or_repr(key)): _cut(_text_or_repr(item)) for key, item in pairs}
    if is_a(value, Decimal):
        return _cut(Decimal.__str__(value))
    if is_a(value, datetime):
        return _cut(datetime.isoformat(value))
    return safe_repr(value)


def _text_or_repr(value: object) -> str:
    return str.__str__(value) if is_a(value, str) else safe_repr(value)


def safe_repr(value: object) -> str:
    """Return a short repr, also of huge things and of those that refuse to have one."""
    if is_a(value, int) and not -_INT_SHOWN_LIMIT < int.__int__(value) < _INT_SHOWN_LIMIT:
        return f"<int of {int.bit_length(value)} bits>"
    if is_a(value, str):
        return _cut(repr(str.__str__(value)[: _SHOWN_CHARACTERS_MAX + 1]))
    try:
        text = str.__str__(_DEFAULT_REPR.repr(value))
    except (Exception, SystemExit):  # noqa: BLE001  code of the application
        text = object.__repr__(value)
    return _cut(text)


def _cut(text: str) -> str:
    text = text[: _SHOWN_CHARACTERS_MAX + 1].encode("utf-8", "backslashreplace").decode()
    if len(text) <= _SHOWN_CHARACTERS_MAX:
        return text
    return text[: _SHOWN_CHARACTERS_MAX - 1] + "…"
