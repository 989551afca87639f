"""What the values of a setting are like: how a variable is read, and what is accepted.

A variable is read more strictly than Python reads its literals, and a value handed in by keyword is
accepted by the same rule.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from meter_agent._event import NAME_CHARACTERS_MAX, PayloadKeys, is_name
from meter_agent._secret import Secret

__all__ = [
    "ADDRESS",
    "API_VERSION",
    "BOOL",
    "FILE",
    "HEADER",
    "KEY",
    "PAYLOAD_KEY",
    "PAYLOAD_KEYS",
    "Kind",
    "is_header_text",
    "is_loopback",
    "number",
    "one_of",
    "or_unset",
    "whole_number",
]

_FIRST_V2_VERSION = "2024-09-30"

# A whitelist instead of `urlsplit`: nothing that two URL parsers could read differently gets
# through, and the import costs nothing.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?:/[A-Za-z0-9._~%/-]*)?"
)
_LOOPBACK = re.compile(r"localhost|127(?:\.(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}|\[::1\]")
_HEADER_TEXT = re.compile(r"[!-~]{1,1000}")
_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\.[a-z0-9_]+")
# Not compiled before a variable is read: the import would pay for it.
_WHOLE_NUMBER = r"[+-]?[0-9]{1,18}"
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_BOOLS = {"1": True, "true": True, "yes": True, "on": True}
_BOOLS |= {"0": False, "false": False, "no": False, "off": False}


class Kind(NamedTuple):
    """What the values of a setting are like."""

    rule: str
    """Ends the sentence "this setting ..."; shown in errors and in the reference."""
    parse: Callable[[str], Any]
    """Reads an environment variable; raises ValueError."""
    accepts: Callable[[Any], bool]
    """Whether the value keeps the rule."""


def _parse_bool(text: str) -> bool:
    try:
        return _BOOLS[text.lower()]
    except KeyError:
        raise ValueError from None


def _parse_int(text: str) -> int:
    # Stricter than `int`, which takes "1_000" and digits of every script.
    if re.fullmatch(_WHOLE_NUMBER, text) is None:
        raise ValueError
    return int(text)


def _parse_float(text: str) -> float:
    if re.fullmatch(_NUMBER, text) is None:
        raise ValueError
    return float(text)


def _parse_payload_keys(text: str) -> Any:
    import json  # noqa: PLC0415  one setting, rarely used

    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError from None


def _between(value: object, low: float, high: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and low <= value <= high  # type: ignore[operator]  # false for NaN


def whole_number(low: int, high: int) -> Kind:
    """Return the kind of whole numbers in these bounds, both included."""
    return Kind(
        f"must be a whole number from {low} to {high}",
        _parse_int,
        lambda value: isinstance(value, int) and _between(value, low, high),
    )


def number(low: float, high: float) -> Kind:
    """Return the kind of numbers in these bounds, both included."""
    return Kind(
        f"must be a number from {low:.10g} to {high:.10g}",
        _parse_float,
        lambda value: _between(value, low, high),
    )


def one_of(*choices: str) -> Kind:
    """Return the kind of a few words."""
    return Kind(
        f"must be one of {', '.join(choices)}",
        str,
        lambda value: isinstance(value, str) and value in choices,
    )


def or_unset(kind: Kind) -> Kind:
    """Return the same kind that also takes None."""
    return kind._replace(accepts=lambda value: value is None or kind.accepts(value))


def is_header_text(value: object) -> bool:
    """Whether it is printable ASCII without blanks: no second header can be smuggled in."""
    return isinstance(value, str) and _HEADER_TEXT.fullmatch(value) is not None


def is_loopback(url: str) -> bool:
    """Whether an address that is accepted leads to this host."""
    match = _URL.match(url)
    return match is not None and _LOOPBACK.fullmatch(match["host"]) is not None


def _is_url(value: object) -> bool:
    match = _URL.fullmatch(value) if isinstance(value, str) else None
    if match is None or not 0 < int(match["port"] or 443) < 65_536:
        return False
    return match["scheme"] == "https" or _LOOPBACK.fullmatch(match["host"]) is not None


def _is_path(value: object) -> bool:
    # Absolute since it was stored, where that was possible.
    return isinstance(value, str) and os.path.isabs(value) and "\0" not in value


def _is_version(value: object) -> bool:
    return (
        isinstance(value, str)
        and _VERSION.fullmatch(value) is not None
        and value >= _FIRST_V2_VERSION
    )


def _is_payload_key(value: object) -> bool:
    return isinstance(value, str) and is_name(value)


def _is_payload_keys(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_payload_key(event_name)
        and isinstance(keys, dict)
        and keys.keys() <= set(PayloadKeys._fields)
        and all(map(_is_payload_key, keys.values()))
        for event_name, keys in value.items()
    )


BOOL = Kind(
    "must be 1, true, yes, on, 0, false, no or off (in Python: a bool)",
    _parse_bool,
    lambda value: isinstance(value, bool),
)
KEY = Kind(
    "must be printable ASCII without spaces, whether it comes from here or from STRIPE_API_KEY",
    Secret,
    is_header_text,
)
HEADER = Kind("must be printable ASCII without spaces", str, is_header_text)
ADDRESS = Kind(
    "must be an https:// address without user, query and fragment"
    " (http:// only to 127.0.0.1, [::1] or localhost)",
    str,
    _is_url,
)
FILE = Kind(
    "must be a path (str or PathLike of str), absolute, or relative to a working directory that"
    " exists; ~ and ~user at its beginning only of users that exist",
    str,
    _is_path,
)
API_VERSION = Kind(
    f"must look like 2026-10-28.endive and be {_FIRST_V2_VERSION} or later", str, _is_version
)
PAYLOAD_KEY = Kind(
    f"must be 1 to {NAME_CHARACTERS_MAX} characters, without control or invisible characters and"
    " without blanks around them",
    str,
    _is_payload_key,
)
PAYLOAD_KEYS = Kind(
    "must map event names to an object with customer_key, value_key or both,"
    ' for example {"tokens": {"value_key": "count"}}',
    _parse_payload_keys,
    _is_payload_keys,
)
