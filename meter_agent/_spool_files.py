"""What a spool does with single files and directories, apart from what is in them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["allocate", "file_identity", "make_private", "pieces"]

_ZEROS_BYTES = 1 << 16
_GET_GENERATION = 0x80007601 | struct.calcsize("l") << 16  # FS_IOC_GETVERSION


def make_private(path: Path) -> None:
    """Make a directory and its parents for their owner alone, whatever the umask."""
    with contextlib.suppress(FileExistsError):
        try:
            os.mkdir(path, mode=0o700)
        except FileNotFoundError:
            make_private(path.parent)
            os.mkdir(path, mode=0o700)


def pieces(descriptor: int) -> Iterator[bytes]:
    """Yield the content of a file without zeros, piece by piece."""
    at = 0
    while piece := os.pread(descriptor, _ZEROS_BYTES, at):
        at += len(piece)
        yield piece.strip(b"\0")


def file_identity(descriptor: int) -> tuple[int, int]:
    """Return what tells a file from every copy of it: its number, and the generation of that.

    Numbers are given again: at once, on ext4. Where the file system does not tell the generation
    (overlayfs, NFS, macOS) it is 0, and a copy that got the number of the original looks like it.
    """
    generation = bytearray(8)
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, _GET_GENERATION, generation)
    return os.fstat(descriptor).st_ino, int.from_bytes(generation[:4], sys.byteorder)


def allocate(descriptor: int, size: int) -> None:
    """Give the file *size* bytes that are really there, before it is mapped.

    Blocks, not just a length: a write into a mapped hole on a full disk would kill the process.

    Raises:
        OSError: There is no space.
    """
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        if not isinstance(error, AttributeError) and error.errno not in _NO_FALLOCATE:
            raise
        for at in range(0, size, _ZEROS_BYTES):
            piece = bytes(min(_ZEROS_BYTES, size - at))
            if os.pwrite(descriptor, piece, at) < len(piece):
                raise OSError(f"no space for {size} bytes") from None


_NO_FALLOCATE = {22, 95}  # EINVAL, EOPNOTSUPP: the file system cannot
