"""The directory of the spool: making segments, adopting those of dead processes, keeping damage.

Any number of processes share a directory, and nothing but the files in it tells them about each
other. What a segment will take is in its name from the moment the file exists, still empty: whoever
wants to make one puts its name there first and adds all names up afterwards, so that together they
never take more than *spool_bytes*. Two that reach for the last place at once may both draw back.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from meter_agent import _spool_format as form
from meter_agent._identifier import PREFIX_BYTES, draw_prefix
from meter_agent._runtime import Runtime
from meter_agent._segment import Claim, Segment, claim, claim_file, lock, unclaim

__all__ = [
    "ForeignSegmentError",
    "SpoolDirectory",
    "SpoolFullError",
    "allocate",
    "identify",
    "segment_names",
]

_NAME = re.compile(r"(?P<at>[0-9]{13})-(?P<prefix>[0-9a-f]{20})-(?P<bytes>[0-9]+)\.segment")
_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_NAMES_TRIED = 10
_ZEROS_BYTES = 1 << 16


class _AdoptedError(Exception):
    """Another process took a new file, still empty, for that of a dead process."""


class SpoolFullError(Exception):
    """The segments of all processes take as much as *spool_bytes* allows."""


class ForeignSegmentError(Exception):
    """A file that only looks like a segment of ours; the message ends "left alone: ..."."""


class SpoolDirectory:
    """The segments of all processes in one directory.

    Args:
        path: The directory. It is made when it is missing, with mode 0700.
        bytes_max: What all segments and quarantined pieces together may take.
        runtime: Clocks and randomness.
    """

    def __init__(self, path: str | os.PathLike[str], bytes_max: int, runtime: Runtime) -> None:
        self.path = Path(path)
        self._bytes_max = bytes_max
        self._runtime = runtime
        self._left_alone: dict[str, str] = {}

    # -- making --------------------------------------------------------------------------------

    def make_segment(self, segment_bytes: int) -> Segment:
        """Return a new segment, locked, with all of its blocks allocated.

        Raises:
            SpoolFullError: *bytes_max* is used up.
            OSError: No file can be made here; the message says why.
        """
        for _ in range(_NAMES_TRIED):
            with contextlib.suppress(_AdoptedError):
                return self._make_segment(segment_bytes)
        raise OSError("other processes adopted each segment while it was made")

    def _make_segment(self, segment_bytes: int) -> Segment:
        status = self.check()
        prefix = draw_prefix(self._runtime)
        now = self._runtime.clock.time()
        name = f"{max(0, int(now * 1000)):013d}-{prefix.hex()}-{segment_bytes}.segment"
        path = self.path / name
        # Before the file is there: another agent of this process may be looking for orphans.
        keys = [claim(status, name)]
        descriptor = segment = None
        try:
            descriptor = os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, mode=0o600)
            keys.append(claim_file(os.fstat(descriptor)))
            self._lock_new(descriptor)
            allocate(descriptor, segment_bytes)
            header = form.Header(
                form.VERSION, segment_bytes, prefix, now, self._runtime.process_id()
            )
            os.pwrite(descriptor, header.to_bytes(), 0)
            data = mmap.mmap(descriptor, segment_bytes)
            data.seek(form.HEADER_BYTES)
            segment = Segment(prefix, data, path=path)
            segment.take_charge(descriptor, (*filter(None, keys),))
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            if segment is not None and segment.in_charge:
                segment.release()
            elif descriptor is not None:
                os.close(descriptor)
            for key in filter(None, keys):
                unclaim(key)
            raise
        else:
            return segment

    def _lock_new(self, descriptor: int) -> None:
        # Whoever adopts at this very moment takes the empty file for that of a dead process.
        if not lock(descriptor):
            raise _AdoptedError
        if self.bytes_reserved() > self._bytes_max:
            raise SpoolFullError

    def bytes_reserved(self) -> int:
        """Return what the segments of all processes and the quarantine take on the disk."""
        total = 0
        for entry in _entries(self.path):
            match = _NAME.fullmatch(entry.name)
            if match is not None:
                total += int(match["bytes"])
            elif entry.name == "quarantine":
                total += sum(_size(piece) for piece in _entries(Path(entry.path)))
        return total

    def sync(self) -> None:
        """Have the kernel write the names of the files to the disk now."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def check(self) -> os.stat_result:
        """Make the directory if it is missing, and see that it is nobody else's.

        Raises:
            OSError: It cannot be made, or others may write to it.
        """
        with contextlib.suppress(FileExistsError):
            os.makedirs(self.path, mode=0o700)
        status = os.stat(self.path)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(f"{self.path} is not a directory")
        if status.st_uid != os.geteuid():
            raise PermissionError(
                f"{self.path} belongs to user {status.st_uid} and not to {os.geteuid()}, who runs "
                "this process. Name a directory of its own, below this one if need be"
            )
        if status.st_mode & _WRITABLE_BY_OTHERS:
            raise PermissionError(
                f"others may write to {self.path} (mode {stat.S_IMODE(status.st_mode):04o}). "
                f"Run: chmod 700 {self.path}"
            )
        return status

    # -- adopting ------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of all segments, oldest first."""
        return segment_names(self.path)

    def adopt(self) -> Iterator[tuple[Segment, list[str]]]:
        """Yield each segment whose process is dead, with what was damaged in it, told in words.

        From the moment it is yielded it belongs to this process. What is damaged has been copied to
        the quarantine. Empty files are deleted, and segments of a later version left alone.

        Raises:
            OSError: The directory cannot be read, or, after all others were adopted, a file in it.
        """
        status = self.check()
        trouble: OSError | None = None
        for name in self.names():
            if name in self._left_alone or (key := claim(status, name)) is None:
                continue
            adopted = None
            try:
                adopted = self._adopt(name, key)
            except FileNotFoundError:
                continue  # its events have ended
            except OSError as error:
                # A file that cannot be opened must not keep the events in the files behind it.
                trouble = trouble or error
            finally:
                if adopted is None:
                    unclaim(key)
            if adopted is not None:
                yield adopted
        if trouble is not None:
            raise trouble

    def left_alone(self) -> list[str]:
        """Return which files were left alone, and why; each is told once."""
        told = [reason for reason in self._left_alone.values() if reason]
        self._left_alone = dict.fromkeys(self._left_alone, "")
        return told

    def _adopt(self, name: str, key: Claim) -> tuple[Segment, list[str]] | None:
        path = self.path / name
        file_key = claim_file(os.stat(path, follow_symlinks=False))
        if file_key is None:
            return None  # a second name of one of ours
        segment = None
        try:
            segment = self._open_if_orphan(path, (key, file_key))
        finally:
            if segment is None:
                unclaim(file_key)
        if segment is None:
            return None
        damages = [
            self._quarantine(path.name, damage, segment.read(*damage), "no intact record")
            for damage in segment.count_recovered()
        ]
        return segment, damages

    def _open_if_orphan(self, path: Path, keys: tuple[Claim, ...]) -> Segment | None:
        descriptor = os.open(path, _OPEN_FLAGS)
        segment = None
        try:
            if lock(descriptor):
                segment = self._open(path, descriptor)
            if segment is not None:
                segment.take_charge(descriptor, keys)
        finally:
            if segment is None or not segment.in_charge:
                os.close(descriptor)
        return segment

    def _open(self, path: Path, descriptor: int) -> Segment | None:
        size = os.fstat(descriptor).st_size
        if size < form.HEADER_BYTES and _prefix_of(path.name) is not None:
            path.unlink(missing_ok=True)  # its process died while making it
            return None
        try:
            prefix = identify(path.name, os.pread(descriptor, form.HEADER_BYTES, 0))
        except ForeignSegmentError as error:
            self._left_alone[path.name] = f"{path.name}: {error}"
            return None
        data = mmap.mmap(descriptor, size)
        return Segment(prefix, data, path=path, end=size)

    # -- quarantine ----------------------------------------------------------------------------

    def _quarantine(self, name: str, damage: form.Damage, data: bytes, reason: str) -> str:
        told = f"{name}: {reason} in bytes {damage.offset} to {damage.end}"
        folder = self.path / "quarantine"
        facts = {"segment": name, "offset": damage.offset, "end": damage.end, "reason": reason}
        why = json.dumps(facts).encode() + b"\n"
        try:
            if self.bytes_reserved() + len(data) + len(why) > self._bytes_max:
                return f"{told}; not kept, the spool is full"
            folder.mkdir(mode=0o700, exist_ok=True)
            stem = f"{name.removesuffix('.segment')}-{damage.offset}"
            _write(folder / f"{stem}.bytes", data)
            _write(folder / f"{stem}.json", why)
        except OSError as error:
            return f"{told}; not kept: {error}"
        return f"{told}; kept in {folder}"


def segment_names(path: Path) -> list[str]:
    """Return the names of all segments in the directory at *path*, oldest first."""
    return sorted(e.name for e in _entries(path) if e.name.endswith(".segment"))


def identify(name: str, head: bytes) -> bytes:
    """Return the first bytes of the identifiers in a segment, from its *head* or else its *name*.

    Raises:
        ForeignSegmentError: It is to be left alone.
    """
    header = form.read_header(head)
    if header is not None and header.version > form.VERSION:
        raise ForeignSegmentError(
            f"it is of version {header.version}, and this package reads {form.VERSION}"
        )
    prefix = header.prefix if header is not None else _prefix_of(name)
    if prefix is None:
        raise ForeignSegmentError("neither its header nor its name is that of a segment")
    return prefix


def _prefix_of(name: str) -> bytes | None:
    match = _NAME.fullmatch(name)
    prefix = bytes.fromhex(match["prefix"]) if match is not None else b""
    return prefix if len(prefix) == PREFIX_BYTES else None


def _entries(path: Path) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return list(entries)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode=0o600)
    with open(descriptor, "wb") as file:
        file.write(data)


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
