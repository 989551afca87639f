"""Lines on stdout, for people and for machines."""

from __future__ import annotations

import json
from typing import Any

import click

from meter_agent._printable import one_line as printable

__all__ = ["Columns", "ago", "json_line", "print_json", "printable"]

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


class Columns:
    """A table that is printed as its rows come; nothing is held back to find out how wide it is.

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
        self._print([printable(str(cell)) for cell in cells])

    def _print(self, cells: list[str]) -> None:
        padded = (
            cell.ljust(width) if width >= 0 else cell.rjust(-width)
            for cell, width in zip(cells, self._widths.values(), strict=True)
        )
        click.echo("  ".join(padded).rstrip())


def print_json(document: Any) -> None:
    """Print one line of JSON Lines."""
    click.echo(json_line(document))


def json_line(document: Any) -> str:
    """Return one line of JSON Lines, in ASCII."""
    return json.dumps(document, separators=(",", ":"))


def ago(seconds: float | None) -> str:
    """Return an age in its largest unit."""
    if seconds is None:
        return "?"
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "0 s"
