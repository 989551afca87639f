"""A disk that a process can fill to the last byte and that gets its space back: a real one.

A file system of one MiB is the real thing: the kernel answers ENOSPC, and a mapped page without a
block behind it would be SIGBUS. Mounting one takes no privileges where a user may have namespaces
of its own, and is seen by the process in them alone; root does it there too, so that nothing is
left mounted. Where namespaces are refused (seccomp in some containers, AppArmor on some desktops),
a limit on the size of files stands in: the kernel refuses blocks all the same, by another number.

Rejected: filling /dev/shm or another file system that is there, which takes it from everybody else;
/dev/full, in which no file can be made; a loop device or a quota, which want privileges.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["FullDisk", "full_disk"]

_ALONE = ("unshare", "--user", "--map-root-user", "--mount")
_MOUNT = 'mount -t tmpfs -o size=1m,mode=700 none "$0" && exec "$@"'

_FILLS_IT = """
FILLER = {disk!r} + "/filler"
def fill():
    left = os.statvfs({disk!r})
    descriptor = os.open(FILLER, os.O_WRONLY | os.O_CREAT, 0o600)
    os.posix_fallocate(descriptor, 0, left.f_bfree * left.f_frsize)
    os.close(descriptor)
def free():
    os.unlink(FILLER)
"""
_LIMITS_FILES = """
import resource
def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
def free():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
"""


class FullDisk(NamedTuple):
    """How a process of its own comes to a disk that it can fill."""

    name: str
    complaint: str
    """What the kernel says when the disk is full."""

    def within(self, disk: Path) -> tuple[str, ...]:
        """The command that gives the command behind it this disk at *disk*, a directory."""
        return (*_ALONE, "sh", "-c", _MOUNT, str(disk)) if self is TMPFS else ()

    def control(self, disk: Path) -> str:
        """The text of `fill()` and `free()`, for a script that runs within."""
        return _FILLS_IT.format(disk=str(disk)) if self is TMPFS else _LIMITS_FILES


TMPFS = FullDisk("tmpfs", "No space left on device")
LIMIT = FullDisk("limit on files", "File too large")


def full_disk() -> FullDisk:
    """Return the best that this machine grants."""
    mounts = [*_ALONE, "sh", "-c", "mount -t tmpfs -o size=1m none /tmp"]
    try:
        return (
            LIMIT if subprocess.run(mounts, capture_output=True, check=False).returncode else TMPFS
        )
    except FileNotFoundError:
        return LIMIT
