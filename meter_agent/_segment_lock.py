"""Who owns a segment: the locks on its file, and the process that is named in its header.

Three things prove an owner; each covers what the others cannot.

- A POSIX lock on byte 0. It ends with the process, however that ends, and a child of `fork` has no
  part in it. But it means nothing within the process, and it is lost when the process closes the
  file through any other descriptor, as a copy of the directory does.
- A lock of the open file description (OFD) on byte 1. Another descriptor of the same process
  conflicts with it and cannot end it. But a child of `fork` shares it, and holds it when its parent
  is dead.
- The process that is named in the header, by number, start time, boot and namespace: where only the
  second lock is held, it says whether the process that took it still lives.

So the rule is: **a segment is alive while another process holds the first lock or another
description holds the second; but where only the second is held, and the process in the header is
known to be dead, a forked child has it, and the segment is stale.** It is known to be dead when
boot and namespace are our own, and no process has this number and this start time. In another boot
(of another host) or namespace (of another container) nothing is known, and the locks decide.

Agents of one interpreter claim the name of a segment as well, before its file is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
from functools import lru_cache

from meter_agent._destination import Destination
from meter_agent._spool_header import HEADER_BYTES, OWNER_AT, Owner, owner_bytes, read_owner

__all__ = [
    "Claim",
    "claim",
    "claim_file",
    "claimed_for",
    "living_owner",
    "lock",
    "look_after_locks",
    "name_owner",
    "this_process",
    "unclaim",
]

Claim = tuple[int, int, int, str]
"""Process, device and inode of the directory, name; or of the file itself, without a name.

A child of `fork` has another process id.
"""

_claims: dict[Claim, list[Destination | None]] = {}

# `struct flock` of the platform.
_IS_DARWIN = sys.platform == "darwin"
_FLOCK = struct.Struct("qqihh" if _IS_DARWIN else "hhqqi0q")
_POSIX_AT, _DESCRIPTION_AT = 0, 1
# Linux 3.15. Where it is missing, or a file system refuses it, the other two proofs have to do.
_SET_DESCRIPTION_LOCK = getattr(fcntl, "F_OFD_SETLK", None)
_GET_DESCRIPTION_LOCK = getattr(fcntl, "F_OFD_GETLK", None)
_HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN}


# -- within this interpreter -----------------------------------------------------------------------


def claim(
    directory: os.stat_result, name: str, destination: Destination | None = None
) -> Claim | None:
    """Reserve the file *name* for the caller; None: another agent of this interpreter has it."""
    return _claim(directory, name, destination)


def claim_file(file: os.stat_result) -> Claim | None:
    """Reserve a file whatever its name; None: we have it, under another name perhaps.

    A backup that makes hard links gives a file a second name. To open and close it under that one
    would end the POSIX lock.
    """
    return _claim(file, "", None)


def _claim(status: os.stat_result, name: str, destination: Destination | None) -> Claim | None:
    key = _key(status, name)
    mine = [destination]
    # One step, so that of two threads one gets it.
    return key if _claims.setdefault(key, mine) is mine else None


def claimed_for(directory: os.stat_result, name: str) -> Destination | None:
    """Return where the agent sends that has claimed *name*; None: not known, or not claimed."""
    return _claims.get(_key(directory, name), [None])[0]


def _key(status: os.stat_result, name: str) -> Claim:
    return os.getpid(), status.st_dev, status.st_ino, name


def unclaim(key: Claim) -> None:
    """Let go of a name."""
    _claims.pop(key, None)


# -- between processes -----------------------------------------------------------------------------


def lock(descriptor: int) -> bool:
    """Take the locks of a segment; False: somebody alive has it, or it is gone."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _POSIX_AT)
    except OSError as error:
        if error.errno in _HELD_BY_ANOTHER:
            return False
        raise
    if not _lock_description(descriptor) and not _owner_is_dead(descriptor):
        return False
    # The owner may have removed the file between our opening and locking it.
    return os.fstat(descriptor).st_nlink > 0


def _lock_description(descriptor: int) -> bool:
    if _SET_DESCRIPTION_LOCK is None:
        return True
    try:
        fcntl.fcntl(descriptor, _SET_DESCRIPTION_LOCK, _question(_DESCRIPTION_AT))
    except OSError as error:
        return error.errno not in _HELD_BY_ANOTHER
    return True


def name_owner(descriptor: int, owner: Owner) -> None:
    """Write into a segment of ours who owns it. What cannot be written is left out."""
    # It is one of three proofs. A full disk cannot refuse it: its block is there.
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, owner_bytes(owner), OWNER_AT)


def look_after_locks(descriptor: int) -> None:
    """Take the locks of a segment of ours again: the application may have closed a copy of it.

    Errors are the caller's; a lock that another process has is none.
    """
    lock(descriptor)


def living_owner(descriptor: int) -> int | None:
    """Return the id of the process that owns a segment; None: no living process does.

    0 where that process cannot be seen, in another container. Claim its name before opening the
    file: what this interpreter owns is not found in every case.

    The kernel is only asked. Taking a lock and giving it back would answer that too, but a process
    that came to recover the segment at that moment would pass it over, and a process that is just
    making it would give it up.
    """
    process_id = _holder(descriptor, fcntl.F_GETLK, _POSIX_AT)
    if process_id is not None:
        return max(0, process_id)
    if _GET_DESCRIPTION_LOCK is None:
        return None
    try:
        if _holder(descriptor, _GET_DESCRIPTION_LOCK, _DESCRIPTION_AT) is None:
            return None
    except OSError:
        return None
    if _owner_is_dead(descriptor):
        return None
    owner = read_owner(os.pread(descriptor, HEADER_BYTES, 0))
    return owner.process_id if owner is not None and _is_near(owner) else 0


def _holder(descriptor: int, ask: int, at: int) -> int | None:
    answer = _FLOCK.unpack(fcntl.fcntl(descriptor, ask, _question(at)))
    if _IS_DARWIN:
        _, _, process_id, kind, _ = answer
    else:
        kind, _, _, _, process_id = answer
    return None if kind == fcntl.F_UNLCK else int(process_id)


def _question(at: int) -> bytes:
    # One byte from *at* on. The process has to be 0 for a lock of a description.
    if _IS_DARWIN:
        return _FLOCK.pack(at, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)


# -- processes -------------------------------------------------------------------------------------


def this_process() -> Owner:
    """Return who we are."""
    process_id = os.getpid()
    boot, namespace = _surroundings(process_id)
    started = None
    with contextlib.suppress(OSError):
        started = _start_of(process_id)
    return Owner(process_id, started, boot, namespace)


def _owner_is_dead(descriptor: int) -> bool:
    owner = read_owner(os.pread(descriptor, HEADER_BYTES, 0))
    if owner is None or owner.started is None or not _is_near(owner):
        return False
    try:
        return _start_of(owner.process_id) != owner.started
    except OSError:
        return False  # not to be seen from here


def _is_near(owner: Owner) -> bool:
    # Whether its number means a process that can be seen from here.
    surroundings = _surroundings(os.getpid())
    return None not in surroundings and surroundings == (owner.boot, owner.namespace)


@lru_cache(maxsize=1)
def _surroundings(process_id: int) -> tuple[str | None, int | None]:
    # Boot and namespace of this process, whose number is given because a child may have another.
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        # A /proc of another namespace would show other processes under our numbers.
        is_ours = os.readlink("/proc/self") == str(process_id)
        return boot, os.stat("/proc/self/ns/pid").st_ino if is_ours else None
    except OSError:
        return None, None


def _start_of(process_id: int) -> int | None:
    # In clock ticks since the boot; None: no such process. A zombie is one no more.
    try:
        with open(f"/proc/{process_id}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])
