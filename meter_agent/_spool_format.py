"""The records of a spool segment and their marks. See docs/reference/spool-format.md.

Numbers are little-endian. A segment is a header (`_spool_header.py`), then records without gaps,
then zeros up to the end of the file. Nothing that is written is ever moved, and nothing is
overwritten but the mark of a record and the owner in the header.

What is read here may have been damaged in any way. Nothing raises for that: what is not exactly as
it was written is not a record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple
from zlib import crc32

__all__ = [
    "MARK_AT",
    "NEVER_ATTEMPTED",
    "RECORD_HEAD",
    "RECORD_MAGIC",
    "RECORD_OVERHEAD_BYTES",
    "SETTLED",
    "Damage",
    "Record",
    "attempted_mark",
    "read_mark",
    "record_bytes",
    "scan",
    "write_mark",
]

# 0xFF is in no UTF-8 text, so that the body of a record never looks like the start of another.
RECORD_MAGIC = b"\xffMEv"
RECORD_HEAD = struct.Struct("<4sIQI")
RECORD_OVERHEAD_BYTES = RECORD_HEAD.size
MARK_AT = 8
"""Where in a record its mark is."""

_MARK = struct.Struct("<Q")
NEVER_ATTEMPTED = 0
SETTLED = int.from_bytes(b"\x5aSETTLE\xa5", "little")
_ATTEMPTED = 0xA7
_TIME_LIMIT = 1 << 32


class Record(NamedTuple):
    """One event in a segment."""

    offset: int
    """Where it begins; its identifier derives from this."""
    end: int
    body: bytes
    mark: int


class Damage(NamedTuple):
    """A stretch of a segment that is neither records nor zeros."""

    offset: int
    end: int


def record_bytes(data: mmap, offset: int, end: int) -> int | None:
    """Return the length of the record at *offset*, trusting its head; None: there is none."""
    if offset + RECORD_OVERHEAD_BYTES <= end:
        magic, length, _, _ = RECORD_HEAD.unpack_from(data, offset)
        if magic == RECORD_MAGIC and 0 < length <= end - offset - RECORD_OVERHEAD_BYTES:
            return RECORD_OVERHEAD_BYTES + int(length)
    return None


def scan(data: bytes | mmap, start: int, end: int) -> Iterator[Record | Damage]:
    """Yield what lies between *start* and *end*, in order.

    A damaged record ends where the next intact one begins. Zeros to the end are nothing.
    """
    offset = damaged_from = start
    while True:
        record = _record_at(data, offset, end)
        if record is None:
            offset = data.find(RECORD_MAGIC, offset + 1, end)
            if offset >= 0:
                continue
            offset = _end_of_content(data, damaged_from, end)
        if offset > damaged_from:
            yield Damage(damaged_from, offset)
        if record is None:
            return
        yield record
        offset = damaged_from = record.end


def _record_at(data: bytes | mmap, offset: int, end: int) -> Record | None:
    body_at = offset + RECORD_OVERHEAD_BYTES
    if body_at > end:
        return None
    magic, length, mark, checksum = RECORD_HEAD.unpack_from(data, offset)
    if magic != RECORD_MAGIC or not 0 < length <= end - body_at:
        return None
    body = data[body_at : body_at + length]
    if crc32(body) != checksum:
        return None
    return Record(offset, body_at + length, body, mark)


def _end_of_content(data: bytes | mmap, start: int, end: int) -> int:
    return start + len(data[start:end].rstrip(b"\0"))


def attempted_mark(unix_seconds: float) -> int:
    """Return the mark of an event that Stripe may have, first sent at that time."""
    seconds = min(max(0, int(unix_seconds)), _TIME_LIMIT - 1)
    return _checked(seconds | _ATTEMPTED << 32)


def read_mark(mark: int) -> float | None:
    """Return when the event was first sent, as unix seconds; None: never.

    A mark that cannot be read stands for the beginning of time: the event may have been sent, and
    nobody knows when. Only `SETTLED` is not to be asked.
    """
    if mark == NEVER_ATTEMPTED:
        return None
    low = mark & ((1 << 40) - 1)
    if low >> 32 == _ATTEMPTED and _checked(low) == mark:
        return float(low & (_TIME_LIMIT - 1))
    return 0.0


def _checked(low: int) -> int:
    return low | (crc32(low.to_bytes(5, "little")) & 0xFFFFFF) << 40


def write_mark(data: mmap, offset: int, mark: int) -> None:
    """Set the mark of the record at *offset*.

    A process that is killed meanwhile leaves the old mark or the new one. At worst, with a C
    library that copies eight bytes in pieces, it leaves a damaged one, which counts as sent.
    """
    # Not `pack_into`: it begins by writing zeros, and those say that the event was never sent.
    start = offset + MARK_AT
    data[start : start + _MARK.size] = _MARK.pack(mark)
