"""Lines on stdout and stderr, for people and for machines.

Nothing is printed in another way: what comes from files, headers, servers and file names is escaped
here, so that it cannot move the cursor of a terminal, hide text or forge a line.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from typing import Any, TextIO

from meter_agent._printable import one_line as printable

__all__ = ["Columns", "ago", "counted", "json_line", "print_json", "printable", "say"]

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
_USUAL_WIDTH = 80


def say(text: str = "", *, err: bool = False, indent: int = 2) -> None:
    """Print *text* as one line; on a terminal it is broken between words.

    Args:
        text: The line, of whatever origin.
        err: Print on stderr.
        indent: Of the lines that follow the first one on a terminal.
    """
    stream = sys.stderr if err else sys.stdout
    text = printable(text)
    width = _terminal_width(stream)
    if width is not None and len(text) > width:
        text = "\n".join(_broken(text, width, indent))
    _write(stream, text)


def _broken(text: str, width: int, indent: int) -> list[str]:
    indent = indent if indent < width // 2 else 2
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * indent,
        # A path or an identifier stays whole, so that it can be copied.
        break_long_words=False,
        break_on_hyphens=False,
    )


def _terminal_width(stream: TextIO | None) -> int | None:
    if stream is None or not stream.isatty():
        return None
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdigit() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL_WIDTH
    except OSError:
        return _USUAL_WIDTH


def _write(stream: TextIO | None, text: str) -> None:
    if stream is not None:
        stream.write(text + "\n")
        stream.flush()


class Columns:
    """A table that is printed as its rows come; nothing is held back to find out how wide it is.

    On a terminal, a row that does not fit goes on below, cell by cell and word by word.

    Args:
        **widths: Characters of each column; negative: flush right. What is wider pushes the rest.
    """

    def __init__(self, **widths: int) -> None:
        self._widths = widths
        self._begun = False

    def row(self, *cells: object) -> None:
        """Print a row, below the names of the columns if it is the first one."""
        if not self._begun:
            self._begun = True
            self._print([name.replace("_", " ").upper() for name in self._widths])
        self._print([str(cell) for cell in cells])

    def _print(self, cells: list[str]) -> None:
        padded = (
            cell.ljust(width) if width >= 0 else cell.rjust(-width)
            for cell, width in zip(map(printable, cells), self._widths.values(), strict=True)
        )
        say("  ".join(padded).rstrip(), indent=4)


def print_json(document: Any) -> None:
    """Print one line of JSON Lines."""
    _write(sys.stdout, json_line(document))


def json_line(document: Any) -> str:
    """Return one line of JSON Lines, in ASCII."""
    return json.dumps(document, separators=(",", ":")).replace("\x7f", "\\u007f")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return *number* with its noun: `1 event`, `2 events`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def ago(seconds: float | None) -> str:
    """Return an age in its largest unit."""
    if seconds is None:
        return "?"
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "0 s"
