"""How cells of CSV are separated and quoted."""

from __future__ import annotations

import csv
from typing import Any, NamedTuple

import click

__all__ = ["QUOTES", "CsvDialect"]

QUOTES = ("doubled", "backslash", "none")
_PARAMETERS: dict[str, dict[str, Any]] = {
    "doubled": {"doublequote": True},
    "backslash": {"doublequote": False, "escapechar": "\\"},
    "none": {"quoting": csv.QUOTE_NONE, "quotechar": None},
}
_TAB = ("\\t", "tab")


class CsvDialect(NamedTuple):
    """The options that say how to read CSV, and how to write its rejected rows."""

    delimiter: str = ","
    quotes: str | None = None
    """One of `QUOTES`; None: doubled as in RFC 4180, and what may be a backslash dialect stops."""

    @classmethod
    def parse(cls, delimiter: str, quotes: str | None) -> CsvDialect:
        r"""Return the dialect that the options say; `\t` and `tab` are the character.

        Raises:
            click.UsageError: No CSV can have such a delimiter.
        """
        if delimiter.lower() in _TAB:
            delimiter = "\t"
        if len(delimiter) != 1:
            raise click.UsageError(r"--delimiter: must be one character, or \t")
        if delimiter in '"\\\r\n\0':
            raise click.UsageError(f"--delimiter {delimiter!r}: cannot stand between cells")
        return cls(delimiter, quotes)

    def reader_parameters(self) -> dict[str, Any]:
        """Return the arguments of `csv.reader`."""
        # RFC 4180 has no blank before a quote; a writer that puts one there means a quoted cell.
        blanks = self.delimiter != " " and self.quotes != "none"
        return {**self._common(), "strict": True, "skipinitialspace": blanks}

    def writer_parameters(self) -> dict[str, Any]:
        """Return the arguments of `csv.writer`."""
        # With a line end of \r\n it quotes a lone \r too.
        return {**self._common(), "lineterminator": "\r\n"}

    def _common(self) -> dict[str, Any]:
        return {"delimiter": self.delimiter, **_PARAMETERS[self.quotes or "doubled"]}

    def plain(self, text: str) -> str:
        """Return *text* as a cell that needs no quotes where there are none."""
        if self.quotes != "none":
            return text
        return " ".join(text.replace(self.delimiter, " ").split())

    def doubt(self, lines: list[str]) -> str | None:
        """Return why the row of these *lines* may end elsewhere, and the option that says it.

        Between tabs, spreadsheets write quoted cells of several lines, and databases such as MySQL
        write quotes as text, where each line is a row.
        """
        if self.quotes is not None:
            return None
        if self.delimiter == "\t" and len(lines) > 1:
            return (
                "its quotes hold a line end, or are text: --quotes doubled or --quotes none says "
                "which"
            )
        if self._may_escape("".join(lines)):
            return (
                'a quote behind a backslash, \\", ends a cell or is part of it: '
                "--quotes doubled or --quotes backslash says which"
            )
        return None

    def _may_escape(self, text: str) -> bool:
        # In RFC 4180 a quote behind a backslash ends the cell; MySQL, Spark and others write such a
        # quote as part of the cell, whose rest may look like rows of its own.
        if '\\"' not in text:
            return False
        position = 0
        while True:
            while self.delimiter != " " and text[position : position + 1] == " ":
                position += 1
            end = position
            if text[position : position + 1] == '"':
                end = _end_of_quoted(text, position)
                inside = text[position + 1 : end]
                if (len(inside) - len(inside.rstrip("\\"))) % 2:
                    return True
            found = text.find(self.delimiter, end)
            if found < 0:
                return False
            position = found + 1


def _end_of_quoted(text: str, begin: int) -> int:
    """Return where the quote is that ends the cell which begins with the quote at *begin*."""
    position = begin + 1
    while (found := text.find('"', position)) >= 0:
        if text[found + 1 : found + 2] != '"':
            return found
        position = found + 2
    return len(text)
