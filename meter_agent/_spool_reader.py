"""Segments looked at from outside: what is in them, how far it has come, and who owns them.

Looking changes nothing and hinders nobody. Files are opened read-only, and no lock is taken, not
even for a moment.

A process that closes a file gives up every lock that it has on it. So the name of a segment is
claimed before it is opened: one of this very process is passed over, and nobody in this process
adopts one that is looked at.

The bytes are read and not mapped: what the disk cannot read is then an error that can be told, and
not the end of the process (SIGBUS).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meter_agent import _spool_format as form
from meter_agent._identifier import identifier_prefix
from meter_agent._segment_lock import claim, living_owner, unclaim
from meter_agent._segment_name import ForeignSegmentError, prefix_in, segment_names
from meter_agent._spool_header import HEADER_BYTES, VERSION, Header, read_header

__all__ = ["SegmentReading", "SpoolReader"]

_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_READINGS_MAX = 5
_BYTES_MAX = 64 * 1024 * 1024
"""Sixteen times the largest segment that this version makes."""
_MADE_AT = re.compile(r"[0-9]{13}(?=-)")
_LENGTH = re.compile(r"(?<=-)[0-9]{1,18}(?=\.segment$)")


@dataclass(frozen=True, slots=True)
class SegmentReading:
    """A segment as it was at one moment."""

    name: str
    file_bytes: int
    """Length of the file."""
    owner: int | None
    """The living process that writes to it or sends from it, 0 if it cannot be seen from here;
    None: it is an orphan."""
    header: Header | None
    """None: damaged, or not written yet."""
    prefix: bytes
    """The first bytes of the identifiers of its events."""
    records: tuple[form.Record, ...]
    damages: tuple[form.Damage, ...]
    unfinished: form.Damage | None
    """What its owner is just writing, unless it is damaged: then it looks the same later."""

    @property
    def made_at(self) -> float | None:
        """When it was made, in unix seconds, if its name or its header says so."""
        match = _MADE_AT.match(self.name)
        if match is not None:
            return int(match[0]) / 1000
        return None if self.header is None else self.header.created_at

    @property
    def bytes_missing(self) -> int:
        """How many bytes the file is too short."""
        match = _LENGTH.search(self.name)
        if match is not None:
            length = int(match[0])
        else:
            length = 0 if self.header is None else self.header.segment_bytes
        return max(0, length - self.file_bytes)

    def identifier(self, offset: int) -> str:
        """Return the identifier minted for the event at *offset*."""
        return f"{identifier_prefix(self.prefix)}{offset:012x}"


class SpoolReader:
    """The segments of all processes in one directory.

    Args:
        path: The directory; it is never made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Return the names of all segments, oldest first.

        Raises:
            OSError: The directory cannot be read.
        """
        return segment_names(self.path)

    def quarantined(self) -> int:
        """Return how many damaged pieces have been set aside."""
        return len(list(self.path.glob("quarantine/*.bytes")))

    def look(self, name: str) -> SegmentReading | None:
        """Return what is in a segment; None: it is gone, or belongs to this very process.

        Raises:
            OSError: It cannot be read.
            ForeignSegmentError: It is of a later version, or not ours.
        """
        key = claim(os.stat(self.path), name)
        if key is None:
            return None
        try:
            return self._look(name)
        finally:
            unclaim(key)

    def _look(self, name: str) -> SegmentReading | None:
        try:
            descriptor = os.open(self.path / name, _OPEN_FLAGS)
        except FileNotFoundError:
            return None
        try:
            reading = _read_segment(name, descriptor)
            # Deleted meanwhile: each of its events has ended, whatever was read.
            return reading if os.fstat(descriptor).st_nlink else None
        finally:
            os.close(descriptor)


def _read_segment(name: str, descriptor: int) -> SegmentReading:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    if status.st_size > _BYTES_MAX:
        raise OSError(f"it has {status.st_size} bytes, more than any segment")
    # Asked first: a process that dies while we read leaves nothing half written that was not
    # there before.
    owner = living_owner(descriptor)
    header = read_header(os.pread(descriptor, HEADER_BYTES, 0))
    prefix = _check(name, header)
    records_at = HEADER_BYTES if header is None else header.records_at

    def read() -> tuple[bytes, list[form.Record | form.Damage]]:
        data = _read_all(descriptor, status.st_size)
        return data, list(form.scan(data, records_at, len(data)))

    data, pieces, unfinished = _read_beside(read) if owner is not None else (*read(), None)
    return SegmentReading(
        name=name,
        file_bytes=len(data),
        owner=owner,
        header=read_header(data),
        prefix=prefix,
        records=tuple(piece for piece in pieces if isinstance(piece, form.Record)),
        damages=tuple(piece for piece in pieces if isinstance(piece, form.Damage)),
        unfinished=unfinished,
    )


def _check(name: str, header: Header | None) -> bytes:
    # The prefix of its identifiers.
    if header is not None and header.version > VERSION:
        raise ForeignSegmentError(
            f"it is of version {header.version}, and this package reads {VERSION}"
        )
    prefix = prefix_in(name) if header is None else header.prefix
    if prefix is None:
        raise ForeignSegmentError("neither its header nor its name is that of a segment")
    return prefix


def _read_beside(
    read: Callable[[], tuple[bytes, list[form.Record | form.Damage]]],
) -> tuple[bytes, list[form.Record | form.Damage], form.Damage | None]:
    # The owner writes while we read, page by page: a record can be missed in its first page and be
    # there in its second. What is damaged looks the same when it is read again.
    data, pieces = read()
    for _ in range(_READINGS_MAX - 1):
        damages = [piece for piece in pieces[:-1] if isinstance(piece, form.Damage)]
        if not damages:
            break
        data, pieces = read()
        if [piece for piece in pieces[:-1] if isinstance(piece, form.Damage)] == damages:
            break
    if pieces and isinstance(pieces[-1], form.Damage):
        return data, pieces[:-1], pieces[-1]
    return data, pieces, None


def _read_all(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := os.pread(descriptor, size - len(data), len(data))):
        data += piece
    return bytes(data)
