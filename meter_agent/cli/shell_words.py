"""Rules of events and settings in the words of a shell, which has no types.

The rules stand in the core, in the words of Python, for those who call `record()`. A cell of a
file, an argument and a variable are texts: whoever reads of them needs no `str` and no `Decimal`.
"""

from __future__ import annotations

import re

__all__ = ["shell_words"]

_WORDS = {
    "an int, a Decimal, a numeric str such as '1.5', or a float;": "a number such as 5 or 0.25",
    " bool, NaN, infinities and other types are not amounts. Convert it before recording": "",
    " before recording, for example with round(value, 6)": "",
    "must be a non-empty str of at most 100 characters, or a UUID,": "must be 1 to 100 characters",
    "a str of at most 500 characters without lone surrogates,": "a text of at most 500 characters,",
    " or a number, bool, None or UUID": " or a number, true, false or null",
    "a datetime with a time zone, or unix seconds as int or float;": "a time with its zone",
    " a naive datetime is a guess, for example use datetime.now(timezone.utc)": "",
    " Pass customer and value as arguments of record()": " Name them by their own options",
    "a mapping from str to plain scalars, for example {'region': 'eu'}": "pairs of key and text",
    "the moment of recording": "now",
    " (str or PathLike of str)": "",
    " (in Python: a bool)": "",
}
_DECIMAL = re.compile(r"Decimal\('([^']*)'\)")


def shell_words(rule: str) -> str:
    """Return *rule*, a message about a value, without the types and calls of Python."""
    for python, shell in _WORDS.items():
        rule = rule.replace(python, shell)
    return _DECIMAL.sub(r"\1", rule)
