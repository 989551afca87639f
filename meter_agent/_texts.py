"""Names, customers, identifiers and labels as the text that Stripe gets.

A name (event name, customer, identifier, payload key) is compared by Stripe character by character,
so one that looks right and is not is billed to nobody: characters that nobody sees, and blanks
around it, are refused here, where the application hears of it.

A label is a payload value. Whatever plain scalar the application has at hand has one text form:

==================  ================================================================
str                 itself
int, float,         the text that it would have as a *value*, so that 1, 1.0 and
Decimal, numpy      `Decimal("1.0")` are one label; a number that is none of 15
                    digits and 12 decimals has the text that Python gives it
bool                `true`, `false`
None                `null`: a key that is missing is an error at Stripe, for a meter
                    that bills by it (`missing_dimension_payload_keys`)
UUID                its 36 characters
==================  ================================================================
"""

from __future__ import annotations

import re
import sys
from decimal import Decimal
from typing import Any, Final

from meter_agent._amount import as_bool, as_float, as_whole, format_value
from meter_agent._printable import is_a, safe_repr
from meter_agent.exceptions import InvalidEventError

__all__ = [
    "NAME_CHARACTERS_MAX",
    "NAME_RULE",
    "PAYLOAD_VALUE_CHARACTERS_MAX",
    "is_name",
    "label_text",
    "name_fault",
    "plain",
    "text_of",
]

NAME_CHARACTERS_MAX: Final = 100
"""Stripe's v1 schema says so for `event_name` and `identifier`; v2 is silent, so it is kept."""

PAYLOAD_VALUE_CHARACTERS_MAX: Final = 500
"""Our own bound, Stripe documents none: the one it has for metadata values."""

NAME_RULE: Final = (
    f"must be a non-empty str of at most {NAME_CHARACTERS_MAX} characters, or a UUID,"
    " without control or invisible characters and without blanks around it"
)
_LABEL_RULE = (
    f"must be a str of at most {PAYLOAD_VALUE_CHARACTERS_MAX} characters without lone surrogates,"
    " or a number, bool, None or UUID"
)

# Texts, which `re` compiles and keeps when one is first needed.
# C0, DEL, C1, the two Unicode line ends, and halves of surrogate pairs, which UTF-8 cannot carry;
# then all of category Cf (format characters: zero-width and direction marks, soft hyphen, tags),
# and the letters and marks that are drawn as nothing.
_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_FORMAT = (
    "\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"
)
_DRAWN_AS_NOTHING = "\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0"
_UNFIT_FOR_A_NAME = f"[{_CONTROL}{_FORMAT}{_DRAWN_AS_NOTHING}]"
_SURROGATE = "[\ud800-\udfff]"
# A number of 500 digits has 1661 bits.
_LABEL_BITS_MAX = 1661


def is_name(text: str) -> bool:
    """Whether *text* may be an event name, a customer, an identifier or a payload key."""
    if not 0 < len(text) <= NAME_CHARACTERS_MAX:
        return False
    if text.isascii():  # nearly all are
        return text.isprintable() and text[0] != " " and text[-1] != " "
    return name_fault(text) is None


def name_fault(text: str) -> str | None:
    """Return what is wrong with a *text* that is no name, by its code point; None: nothing."""
    if not 0 < len(text) <= NAME_CHARACTERS_MAX:
        return f"it has {len(text)} characters"
    if text[0].isspace():
        return f"it begins with U+{ord(text[0]):04X}"
    if text[-1].isspace():
        return f"it ends with U+{ord(text[-1]):04X}"
    found = re.search(_UNFIT_FOR_A_NAME, text)
    return None if found is None else f"it has U+{ord(found[0]):04X}"


def text_of(value: object) -> str | None:
    """Return the text of a str or a `uuid.UUID`; None for anything else."""
    # `str.__str__` gives the text itself; `str()` of a `class Plan(str, Enum)` gives "Plan.PRO".
    if is_a(value, str):
        return str.__str__(value)
    uuid: Any = sys.modules.get("uuid")  # where it was never imported, there are none
    try:
        if uuid is not None and is_a(value, uuid.UUID):
            return str.__str__(uuid.UUID.__str__(value))
    except (Exception, SystemExit):  # noqa: BLE001  a subclass may be code of the application
        return None
    return None


def label_text(value: object, key: str) -> str:
    """Return *value* as the text of a label, as the module says.

    Raises:
        InvalidEventError: It is no plain scalar, or too long.
    """
    text = _label_text(value)
    # Line ends and the like are allowed here: JSON carries them, and losing money over a label
    # would be worse. Only what UTF-8 cannot carry is refused.
    if (
        text is None
        or len(text) > PAYLOAD_VALUE_CHARACTERS_MAX
        or re.search(_SURROGATE, text) is not None
    ):
        raise InvalidEventError(f"payload[{safe_repr(key)}]", safe_repr(value), _LABEL_RULE)
    return text


def plain(value: object) -> object:
    """Return *value* in its one form, if it is a UUID or a number of another type; or as it is.

    For people, and for those who record an event again that was refused for something else.
    """
    if value is None or type(value) in {bool, int, float, str, Decimal}:
        return value
    for form in (text_of, as_whole, as_float):
        plainly: object = form(value)
        if plainly is not None:
            return plainly
    return value


def _label_text(value: object) -> str | None:
    if value is None:
        return "null"
    text = text_of(value)
    if text is not None:
        return text
    truth = as_bool(value)
    if truth is not None:
        return "true" if truth else "false"
    return _number_text(value)


def _number_text(value: object) -> str | None:
    try:
        return format_value(value)
    except InvalidEventError:
        whole, number = as_whole(value), as_float(value)
    if whole is not None:
        return str(whole) if int.bit_length(whole) <= _LABEL_BITS_MAX else None
    if number is not None:
        return repr(number)
    return Decimal.__str__(value) if is_a(value, Decimal) else None
