"""Identifiers of a file that stand in it more than once; on disk, because a file may be long."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import NamedTuple

__all__ = ["Earlier", "Repetitions"]

_CACHE_KIBIBYTES = 32 * 1024


class Earlier(NamedTuple):
    """The row in which an identifier stood first."""

    row: int
    same: bool
    """Whether it said the same."""


class Repetitions:
    """Remembers identifiers and what was said under them. The database is deleted by closing it.

    Stripe counts an identifier once and tells nobody, so a second row that says something else
    would be lost without a trace.
    """

    def __init__(self) -> None:
        # An empty name is a temporary file without one.
        self._database = sqlite3.connect("", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}",
            "CREATE TABLE seen (identifier BLOB PRIMARY KEY, content BLOB, row INT) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement)

    def add(self, identifier: str, content: bytes, row: int) -> Earlier | None:
        """Note that *identifier* stands in *row*; returns where it stood before."""
        key = hashlib.blake2b(identifier.encode(errors="replace"), digest_size=16).digest()
        added = self._database.execute(
            "INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (key, content, row)
        )
        if added.rowcount:
            return None
        found = self._database.execute(
            "SELECT row, content FROM seen WHERE identifier = ?", (key,)
        ).fetchone()
        return Earlier(found[0], found[1] == content)

    def close(self) -> None:
        """Forget all of it."""
        self._database.close()
