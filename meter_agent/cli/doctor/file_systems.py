"""Which file system a path is on, and whether it can be trusted with locks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["FileSystem", "file_system_of"]

_MOUNTS = Path("/proc/self/mountinfo")
_SHARED = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gpfs"}
    | {"lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs", "vboxsf", "virtiofs"}
)
"""Those that several hosts, or a host and its guests, may see at a time."""


class FileSystem(NamedTuple):
    """Where files are."""

    kind: str
    mount_point: str

    @property
    def shared(self) -> bool:
        """Whether processes of another host may be on it, whose locks are not seen here."""
        return self.kind in _SHARED


def file_system_of(path: Path, mounts: Path = _MOUNTS) -> FileSystem | None:
    """Return the file system that *path* is on; None where the system does not tell.

    Args:
        path: A file or directory; the last parts of it may be missing.
        mounts: A table in the form of Linux, proc(5).
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    found: FileSystem | None = None
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, source = left.split(" "), right.split(" ")
        if len(fields) < 5:
            continue
        # Blanks are written as octal numbers there.
        point = fields[4].replace("\\040", " ").replace("\\011", "\t")
        above = os.path.join(point, "")
        # The longest is the nearest; of two on the same point, the later covers the earlier.
        nearest = found is None or len(point) >= len(found.mount_point)
        if nearest and (real == point or real.startswith(above)):
            found = FileSystem(source[0], point)
    return found
