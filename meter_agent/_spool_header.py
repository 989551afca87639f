"""The header of a segment: what it is, for whom its events are, and which process owns it.

See docs/reference/spool-format.md. Numbers are little-endian. The first 64 bytes are the same in
all versions, so that every version reads the version; they and the destination never change. The
owner is written anew when a segment gets another one.

What is read here may have been damaged in any way. Nothing raises for that.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from mmap import mmap
from typing import Any, NamedTuple
from zlib import crc32

from meter_agent._destination import Destination

__all__ = [
    "HEADER_BYTES",
    "OWNER_AT",
    "VERSION",
    "Header",
    "Owner",
    "owner_bytes",
    "read_header",
    "read_owner",
]

VERSION = 2
HEADER_BYTES = 1024
"""Where the records of a segment of this version begin."""
VERSION_1_HEADER_BYTES = 64

# As in PNG: a byte beyond ASCII shows a channel of 7 bits, the line end a transfer as text.
_MAGIC = b"\x89MTRSP\r\n"
_START = struct.Struct("<8sHHIQ10s6xdQI")
_START_CRC = struct.Struct("<I")
_BLOCK_HEAD = struct.Struct("<HxxI")
_DESTINATION_AT, _DESTINATION_BYTES = 64, 704
OWNER_AT, _OWNER_BYTES = 768, 256


class Header(NamedTuple):
    """What a segment says about itself."""

    version: int
    segment_bytes: int
    """Length of the file."""
    prefix: bytes
    """The first 10 bytes of the identifiers of its events."""
    created_at: float
    """Unix seconds."""
    process_id: int
    """Who made it. For people to read: process ids are used again."""
    inode: int = 0
    """The number of the file that it was written to; 0: not said."""
    generation: int = 0
    """How often that number had been given to a file; 0: not said."""
    destination: Destination | None = None
    """For whom its events are; None: version 1, which does not say it."""

    @property
    def records_at(self) -> int:
        """Where its records begin."""
        return VERSION_1_HEADER_BYTES if self.version == 1 else HEADER_BYTES

    def to_bytes(self) -> bytes:
        """Return the header as it stands at the beginning of the file, without an owner."""
        start = _START.pack(
            _MAGIC,
            self.version,
            self.records_at,
            self.process_id,
            self.segment_bytes,
            self.prefix,
            self.created_at,
            self.inode,
            self.generation,
        )
        header = start + _START_CRC.pack(crc32(start))
        if self.destination is not None:
            header += _block(self.destination.to_document(), _DESTINATION_BYTES)
        return header.ljust(self.records_at, b"\0")


def read_header(data: bytes | mmap) -> Header | None:
    """Return the header, or None where it is damaged or of something else.

    Of a later version it holds the fields that are the same in all versions.
    """
    start = data[: _START.size]
    if len(data) < VERSION_1_HEADER_BYTES or start[:8] != _MAGIC:
        return None
    if _START_CRC.unpack_from(data, _START.size)[0] != crc32(start):
        return None
    _, version, _, process_id, segment_bytes, prefix, created_at, *file = _START.unpack(start)
    header = Header(version, segment_bytes, prefix, created_at, process_id, *file)
    if version != VERSION:
        return header
    said = _read_block(data, _DESTINATION_AT, _DESTINATION_BYTES)
    return None if said is None else header._replace(destination=Destination.from_document(said))


class Owner(NamedTuple):
    """The process that writes to a segment or sends from it, as no other process ever was."""

    process_id: int
    """Its number in its own namespace."""
    started: int | None
    """When the kernel started it, in clock ticks since the boot; None: not known."""
    boot: str | None = None
    """The boot of the machine, a UUID; None: not known."""
    namespace: int | None = None
    """The namespace in which *process_id* is its number; None: not known."""


def owner_bytes(owner: Owner) -> bytes:
    """Return what stands at `OWNER_AT` of a segment of *owner*."""
    return _block(owner._asdict(), _OWNER_BYTES)


def read_owner(data: bytes | mmap) -> Owner | None:
    """Return who owns a segment; None: it is not said, or damaged."""
    header = read_header(data)
    if header is None or header.version != VERSION:
        return None
    said = _read_block(data, OWNER_AT, _OWNER_BYTES)
    try:
        return None if said is None else Owner(**said)
    except TypeError:
        return None


def _block(document: Mapping[str, Any], size: int) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    block = _BLOCK_HEAD.pack(len(text), crc32(text)) + text
    if len(block) > size:
        raise ValueError(f"a header has {size} bytes for this, not {len(block)}")
    return block.ljust(size, b"\0")


def _read_block(data: bytes | mmap, at: int, size: int) -> dict[str, Any] | None:
    if len(data) < at + size:
        return None
    length, checksum = _BLOCK_HEAD.unpack_from(data, at)
    text_at = at + _BLOCK_HEAD.size
    text = data[text_at : text_at + length]
    if length > size - _BLOCK_HEAD.size or crc32(text) != checksum:
        return None
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
