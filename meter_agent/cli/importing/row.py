"""One row of a file, and what every reader of rows offers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

__all__ = ["REASON_COLUMN", "ROW_CHARACTERS_MAX", "Row", "Rows", "UnreadableError"]

REASON_COLUMN = "rejected_because"
ROW_CHARACTERS_MAX = 16 * 1024 * 1024
"""Bound of one row of text: a prompt of a million tokens is about 4 MiB."""


class UnreadableError(Exception):
    """The rest of the file cannot be read; the message says from where on, and what to do."""


class Row(NamedTuple):
    """One row."""

    number: int
    """From 1, header and blank lines not counted: what identifiers derive from."""
    line: int
    """Where it ends in the file, for people."""
    cells: Mapping[str, Any]
    """By name of the column; nested objects by a path with dots."""
    original: Any
    """What a file of rejected rows has to hold of it."""
    problem: str | None = None
    """Why it cannot be read."""
    size: int = 0
    """About how many characters of memory it takes; 0: few."""


class Rows(Protocol):
    """The rows of a file, read once."""

    @property
    def format(self) -> str:
        """One of `FORMATS`."""

    @property
    def columns(self) -> list[str] | None:
        """Their names, in order, some perhaps empty or twice; None: each row has its own names."""

    @property
    def unit(self) -> str:
        """What `Row.line` counts."""

    @property
    def total(self) -> int:
        """How many rows there are; about, for text."""

    def advice(self, wanted: set[str]) -> str | None:
        """Return why one of *wanted* is not there, and the command that helps; None: unknown."""

    def __iter__(self) -> Iterator[Row]: ...

    def close(self) -> None:
        """Close the reader."""
