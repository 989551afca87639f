"""Identifiers that imports sent in the last day, and a digest of what was said under them.

Stripe counts an identifier once in at least 24 hours, whatever the meter, and drops the next event
that has it without a word. So usage that says something else under an identifier that was sent is
rejected here. The same usage once more, as from overlapping exports, may go out: Stripe drops it.

An identifier is noted before it is sent, and taken back if Stripe does not have it: a note too many
costs a rejected row, a note too few costs usage.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from meter_agent._event import format_timestamp
from meter_agent.cli.importing.row_mapper import Mapped

__all__ = ["UsedIdentifiers"]

_KEPT_SECONDS = 25 * 3600
_BUSY_SECONDS = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS used (
    identifier BLOB PRIMARY KEY, content BLOB NOT NULL, at REAL NOT NULL, file TEXT NOT NULL
) WITHOUT ROWID
"""


class UsedIdentifiers:
    """The identifiers of one destination. The file is made when one is to be noted.

    Args:
        path: A database.
        file: Name of the file that is imported.
    """

    def __init__(self, path: Path, file: str) -> None:
        self._path = path
        # The database takes UTF-8 only.
        self._file = file.encode(errors="replace").decode()
        self._database: sqlite3.Connection | None = None
        self._added: dict[str, bytes] = {}

    def claim(
        self, events: Iterable[Mapped], now: float, *, once_more: bool
    ) -> list[tuple[Mapped, str]]:
        """Note the identifiers of *events*; return those that Stripe would drop, and why.

        Args:
            events: What is about to be sent.
            now: When; the same time again for events that are resumed.
            once_more: Whether the same usage that was sent before is to be billed again.

        Raises:
            OSError: The database fails.
        """
        self._added.clear()
        own = [mapped for mapped in events if mapped.content is not None]
        if not own:
            return []
        with self._transaction(now) as database:
            return list(self._claimed(database, own, now, once_more))

    def _claimed(
        self, database: sqlite3.Connection, events: list[Mapped], now: float, once_more: bool
    ) -> Iterator[tuple[Mapped, str]]:
        for mapped in events:
            key = _digest(mapped)
            added = database.execute(
                "INSERT OR IGNORE INTO used VALUES (?, ?, ?, ?)",
                (key, mapped.content, now, self._file),
            )
            if added.rowcount:
                self._added[mapped.wire.identifier] = key
                continue
            content, at, file = database.execute(
                "SELECT content, at, file FROM used WHERE identifier = ?", (key,)
            ).fetchone()
            sent = (
                f"identifier {mapped.wire.identifier!r} was sent on {format_timestamp(at)} by the "
                f"import of {file}"
            )
            if content != mapped.content:
                yield mapped, f"{sent} with other usage: Stripe would count that one alone"
            elif once_more and at != now:
                yield mapped, f"{sent}: Stripe would not count it once more"

    def release(self, events: Iterable[Mapped], now: float) -> None:
        """Take back what `claim` has just noted of *events*: Stripe does not have them.

        Raises:
            OSError: The database fails.
        """
        keys = [
            (self._added.pop(mapped.wire.identifier),)
            for mapped in events
            if mapped.wire.identifier in self._added
        ]
        if keys:
            with self._transaction(now) as database:
                database.executemany("DELETE FROM used WHERE identifier = ?", keys)

    @contextlib.contextmanager
    def _transaction(self, now: float) -> Iterator[sqlite3.Connection]:
        try:
            if self._database is None:
                self._database = self._opened(now)
            # Other processes import other files.
            self._database.execute("BEGIN IMMEDIATE")
            with self._database:
                yield self._database
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}") from None

    def _opened(self, now: float) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode=0o600))
        database = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            database.execute(_SCHEMA)
            database.execute("DELETE FROM used WHERE at < ?", (now - _KEPT_SECONDS,))
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close the database."""
        database, self._database = self._database, None
        if database is not None:
            database.close()


def _digest(mapped: Mapped) -> bytes:
    return hashlib.blake2b(mapped.wire.identifier.encode(), digest_size=16).digest()
