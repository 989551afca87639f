"""The names of segments, and which files of a directory are segments of ours."""

from __future__ import annotations

import os
import re
from pathlib import Path

from meter_agent._destination import Destination
from meter_agent._identifier import PREFIX_BYTES
from meter_agent._spool_header import VERSION, Header

__all__ = [
    "DestinationNotSaidError",
    "ForeignDestinationError",
    "ForeignSegmentError",
    "check_destination",
    "entries",
    "length_in",
    "name_of",
    "prefix_in",
    "segment_names",
]

_NAME = re.compile(r"(?P<at>[0-9]{13})-(?P<prefix>[0-9a-f]{20})-(?P<bytes>[0-9]+)\.segment")


class ForeignSegmentError(Exception):
    """A file that is left alone; the message says why."""


class ForeignDestinationError(ForeignSegmentError):
    """Its events were recorded for somebody else."""


class DestinationNotSaidError(ForeignSegmentError):
    """It is of version 1, which does not say for whom its events were recorded."""


def name_of(unix_seconds: float, prefix: bytes, segment_bytes: int) -> str:
    """Return the name of a new segment."""
    return f"{max(0, int(unix_seconds * 1000)):013d}-{prefix.hex()}-{segment_bytes}.segment"


def length_in(name: str) -> int | None:
    """Return how long a segment of this name is or will be; None: it is not the name of one."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match["bytes"])


def prefix_in(name: str) -> bytes | None:
    """Return the prefix in the name of a segment; None: it is not the name of one."""
    match = _NAME.fullmatch(name)
    prefix = bytes.fromhex(match["prefix"]) if match is not None else b""
    return prefix if len(prefix) == PREFIX_BYTES else None


def check_destination(header: Header, mine: Destination, *, not_said: bool) -> None:
    """See that the events of a segment may be sent to *mine*.

    *not_said*: whether a segment of version 1, which does not say it, is taken.

    Raises:
        ForeignSegmentError: It is to be left alone.
    """
    if header.version > VERSION:
        raise ForeignSegmentError(
            f"it is of version {header.version}, and this package reads {VERSION}"
        )
    if header.destination is None:
        if not not_said:
            raise DestinationNotSaidError(
                "it is of version 1, which does not say for whom its events are, and others use "
                "this directory as well: `meter-agent spool replay`, with the settings of the "
                "service that wrote it, sends them"
            )
    elif not header.destination.agrees_with(mine):
        raise ForeignDestinationError(
            f"its events are for {header.destination}, and this process sends to {mine}"
        )


def segment_names(path: Path) -> list[str]:
    """Return the names of all segments in the directory at *path*, oldest first."""
    return sorted(entry.name for entry in entries(path) if entry.name.endswith(".segment"))


def entries(path: Path) -> list[os.DirEntry[str]]:
    """Return what is in the directory at *path*."""
    with os.scandir(path) as found:
        return list(found)
