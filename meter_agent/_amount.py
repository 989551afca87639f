"""How much: numbers of every kind as the fixed-point text that Stripe takes.

One rule for each kind of number:

* A whole number of any type (`operator.index`), a `Decimal` and a numeric str are exact or refused:
  their author has chosen every digit.
* A float is rounded to 15 significant digits and 12 decimals, which is more than it means: one that
  was computed from a clock has 17 digits, and 1e-15 is no money. What rounds to nothing is 0.
* A numpy scalar is what it is: a whole number or a float. One of less than double precision stands
  for the shortest number that it can be told by, as a float does: `float32(0.1)` is 0.1.
* bool is no number, nor is what can still change: an array of one number, for example.

numpy is never imported: an object of its types exists only where it has been.
"""

from __future__ import annotations

import operator
import re
import sys
from datetime import datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any, Final, SupportsIndex, cast

from meter_agent._printable import is_a, safe_repr
from meter_agent.exceptions import InvalidEventError

__all__ = [
    "UNCHANGING_TYPES",
    "VALUE_DECIMALS_MAX",
    "VALUE_DIGITS_MAX",
    "as_bool",
    "as_float",
    "as_whole",
    "format_value",
    "unchanging",
]

VALUE_DIGITS_MAX: Final = 15
"""Stripe, changelog 2026-04-22.dahlia: more significant digits are rejected. Counted here over the
whole number, which is the stricter of the two readings."""

VALUE_DECIMALS_MAX: Final = 12
"""Not in Stripe's schema; two integrations in production report it as the limit."""

_KIND_RULE = (
    "must be an int, a Decimal, a numeric str such as '1.5', or a float;"
    " bool, NaN, infinities and other types are not amounts. Convert it before recording"
)
_LENGTH_RULE = (
    f"must be exact in {VALUE_DIGITS_MAX} digits, at most {VALUE_DECIMALS_MAX} of them decimals."
    " Round it before recording, for example with round(value, 6)"
)
_SIZE_RULE = (
    f"must be between -1e{VALUE_DIGITS_MAX} and 1e{VALUE_DIGITS_MAX},"
    f" because Stripe takes {VALUE_DIGITS_MAX} digits."
    " Record it in a larger unit, or as several events"
)

UNCHANGING_TYPES: Final = frozenset({int, float, str, Decimal, bool, type(None), datetime})
"""Of nearly all that is recorded; a quick answer for them."""

_LIMIT: Final = 10**VALUE_DIGITS_MAX
_FLOAT_LIMIT = 10.0**VALUE_DIGITS_MAX
# Below it the decimals are what is limited, from it on the digits.
_DECIMALS_LIMIT = 10.0 ** (VALUE_DIGITS_MAX - VALUE_DECIMALS_MAX)
_NUMERIC_CHARACTERS_MAX = 100
# A text, which `re` compiles and keeps when it is first needed: compiled here it would cost each
# import 1 ms, and most processes do not need it.
_NUMERIC = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# A context of our own: the application may have changed the precision or the traps of its own one,
# and a value that does not fit must raise instead of being rounded.
_EXACT = Context(prec=VALUE_DIGITS_MAX, traps=[Inexact, InvalidOperation])


def format_value(value: object) -> str:
    """Return *value* as the fixed-point string that Stripe gets.

    Examples:
        >>> format_value(Decimal("1.50"))
        '1.5'
        >>> format_value("1e3")
        '1000'
        >>> format_value(0.1 + 0.2)
        '0.3'

    Raises:
        InvalidEventError: It is not a number, or is none of 15 digits and 12 decimals.
    """
    if type(value) is int and -_LIMIT < value < _LIMIT:
        return str(value)
    if is_a(value, float):
        return _format_float(float.__float__(value), value)
    if is_a(value, Decimal):
        return _format_decimal(value, value)
    if is_a(value, str):
        return _format_text(str.__str__(value))
    whole = as_whole(value)
    if whole is not None:
        return _format_whole(whole)
    number = as_float(value)
    if number is not None:
        return _format_float(number, value)
    raise _invalid(value, _KIND_RULE)


def as_whole(value: object) -> int | None:
    """Return the int that *value* is, whatever its type; None if it is no whole number."""
    if is_a(value, int):
        return None if type(value) is bool else int.__int__(value)
    try:
        # What cannot be hashed can be changed: by the time it is sent it may be another number.
        # Early versions of numpy take their bool for an index.
        if type(value).__hash__ is None or _is_numpy(value, "bool_"):
            return None
        return int.__int__(operator.index(cast("SupportsIndex", value)))
    except (Exception, SystemExit):  # noqa: BLE001  code of the application
        return None


def unchanging(value: object) -> object:
    """Return the int that *value* is now, if it is of a type that may be changed; or *value*.

    An event is checked and formatted after the call that recorded it. A tensor of one number, for
    example, can be hashed and is a whole number, and the next step of its owner adds to it.
    """
    whole = None if type(value) in UNCHANGING_TYPES else as_whole(value)
    return value if whole is None else whole


def as_float(value: object) -> float | None:
    """Return the float that *value* is, a numpy one included; None if it is none."""
    if is_a(value, float):
        return float.__float__(value)
    try:
        if _is_numpy(value, "floating"):
            # Not `str()`, which the application may have configured.
            numpy: Any = sys.modules["numpy"]
            return float(numpy.format_float_scientific(value, unique=True))
    except (Exception, SystemExit):  # noqa: BLE001  somebody else's numpy
        return None
    return None


def as_bool(value: object) -> bool | None:
    """Return the bool that *value* is, a numpy one included; None if it is none."""
    if type(value) is bool:
        return value
    try:
        return bool(value) if _is_numpy(value, "bool_") else None
    except (Exception, SystemExit):  # noqa: BLE001  somebody else's numpy
        return None


def _is_numpy(value: object, kind: str) -> bool:
    # Asked of the module only about objects that claim to be from there.
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and is_a(value, getattr(numpy, kind))


def _invalid(value: object, rule: str) -> InvalidEventError:
    return InvalidEventError("value", safe_repr(value), rule)


def _format_whole(number: int) -> str:
    # Compared before it is printed: printing a huge int takes quadratic time, or raises ValueError.
    if not -_LIMIT < number < _LIMIT:
        raise _invalid(number, _SIZE_RULE)
    return str(number)


def _format_float(number: float, given: object) -> str:
    if number - number != 0:  # NaN, infinities
        raise _invalid(given, _KIND_RULE)
    if -_DECIMALS_LIMIT < number < _DECIMALS_LIMIT:
        text = f"{number:.{VALUE_DECIMALS_MAX}f}".rstrip("0").rstrip(".")
        return "0" if text == "-0" else text
    # Compared after rounding as well: 999999999999999.96 becomes 1e+15.
    text = f"{number:.{VALUE_DIGITS_MAX}g}"
    if "e" in text or not -_FLOAT_LIMIT < number < _FLOAT_LIMIT:
        raise _invalid(given, _SIZE_RULE)
    return text


def _format_text(text: str) -> str:
    if text.isascii() and text.isdigit() and len(text) <= VALUE_DIGITS_MAX and text[0] != "0":
        return text
    # Bounded before it is matched. No number that fits needs a hundred characters.
    if len(text) > _NUMERIC_CHARACTERS_MAX or re.fullmatch(_NUMERIC, text) is None:
        raise _invalid(text, _KIND_RULE)
    try:
        return _format_decimal(_EXACT.create_decimal(text), text)
    except (Inexact, InvalidOperation):
        raise _invalid(text, _LENGTH_RULE) from None


def _format_decimal(number: Decimal, given: object) -> str:
    # Unbound methods, because a subclass may have overridden them.
    if not Decimal.is_finite(number):
        raise _invalid(given, _KIND_RULE)
    if not Decimal.__bool__(number):
        return "0"  # -0 and 0E+5 too
    # The exponent first: writing out 1E+999999 would take a megabyte.
    if Decimal.adjusted(number) >= VALUE_DIGITS_MAX:
        raise _invalid(given, _SIZE_RULE)
    if Decimal.adjusted(number) < -VALUE_DECIMALS_MAX:
        raise _invalid(given, _LENGTH_RULE)
    try:
        text = format(_EXACT.normalize(number), "f")
    except Inexact:
        raise _invalid(given, _LENGTH_RULE) from None
    if len(text.partition(".")[2]) > VALUE_DECIMALS_MAX:
        raise _invalid(given, _LENGTH_RULE)
    return text
