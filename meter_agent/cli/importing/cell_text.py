"""What spreadsheets do to the texts of cells, so that the text is no longer what was meant.

A rejected row costs a question; a guess costs money. So a text that two programs write for two
different things is an error here, unless an option says which one it is.
"""

from __future__ import annotations

import re

__all__ = ["CellError", "check_name", "may_be_rounded", "plain_number"]

# What a cell of a spreadsheet shows of a long number, with two digits of exponent or more, and the
# six digits of printf's %g, which awk uses. Programs write 1.5e+20 or 1.5E20.
_ROUNDED = re.compile(r"[+-]?[0-9](?:(?:[.,][0-9]+)?E|[.,][0-9]{5}e)\+[0-9]{2,}")
# A name never was a number on purpose; pandas and JavaScript write a small e.
_ROUNDED_NAME = re.compile(_ROUNDED.pattern, re.IGNORECASE)
_NOTHING = frozenset(
    ("nan", "none", "null", "nil", "undefined", "n/a", "#n/a", "#name?", "#ref!", "#value!")
)
"""What programs write where there is no name: many rows have it, and mean none."""
_IN_QUOTES = re.compile(r"=?\".*\"|'.*'", re.DOTALL)
_GROUPED_BY_POINTS = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3})+")
_WITH_DECIMAL_COMMA = re.compile(r"[+-]?(?:[0-9]+|[1-9][0-9]{0,2}(?:\.[0-9]{3})+)(?:,[0-9]+)?")
_INTEGER = re.compile(r"[1-9][0-9]{15,99}")
_DOUBLE_EXACT_MAX = 2**53
_DOUBLE_DIGITS = 17
_SPREADSHEET_DIGITS = 15


class CellError(ValueError):
    """A text that may not be what was meant; the message says why."""


def check_name(text: str) -> str:
    """Return *text*, a customer, an identifier or an event name, if it can be meant so.

    Raises:
        CellError: It was a number that a spreadsheet rounded, it says that there is none, or it
            has quotes of another dialect.
    """
    if text.lower() in _NOTHING:
        raise CellError(f"{text!r} looks like a missing one, which names nobody")
    if _ROUNDED_NAME.fullmatch(text):
        raise CellError(
            f"{text!r} looks rounded by a spreadsheet, so that different ones are the same: "
            "export that column as text"
        )
    if _IN_QUOTES.fullmatch(text):
        raise CellError(f"{text!r} is in quotes that are not those of CSV: export it without them")
    return text


def may_be_rounded(text: str) -> bool:
    """Whether *text* may have been another integer, which a program rounded.

    Spreadsheets keep 15 digits. JavaScript and jq before 1.7 keep what a double does.
    """
    if not _INTEGER.fullmatch(text):
        return False
    digits = len(text.rstrip("0"))
    return digits <= _SPREADSHEET_DIGITS or (
        digits <= _DOUBLE_DIGITS and int(text) > _DOUBLE_EXACT_MAX
    )


def plain_number(text: str, decimal: str | None, delimiter: str) -> str:
    """Return the number *text* with a decimal point and without grouping.

    Args:
        text: As it is in the file.
        decimal: What stands before decimals: `.` or `,`; None: a point, if nothing else is likely.
        delimiter: What stands between cells. Where commas are decimal, it is another one.

    Raises:
        CellError: It may be something else.
    """
    if _ROUNDED.fullmatch(text):
        raise CellError(
            f"{text!r} looks rounded by a spreadsheet: export the column with all of its digits"
        )
    if decimal == ",":
        if not _WITH_DECIMAL_COMMA.fullmatch(text):
            raise CellError(f"{text!r} is no number with a decimal comma")
        return text.replace(".", "").replace(",", ".")
    if decimal is None and delimiter != "," and _GROUPED_BY_POINTS.fullmatch(text):
        raise CellError(
            f"{text!r} may have a decimal point or points between thousands: --decimal . or "
            "--decimal , says which"
        )
    if decimal is None and "," in text:
        raise CellError(
            f"{text!r} has a comma: write it without commas between thousands or, if it is a "
            "decimal comma, say --decimal ,"
        )
    return text
