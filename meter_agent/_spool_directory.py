"""The directory of the spool: making segments, and recovering those of dead processes.

Any number of processes share a directory, and nothing but the files in it tells them about each
other. What a segment will take is in its name from the moment the file exists, still empty: whoever
wants to make one puts its name there first and adds all names up afterwards, so that together they
never take more than *spool_bytes*. Two that reach for the last place at once may both draw back.

Events go to the destination in the header of their segment and to no other. Segments for another
one are left alone. Version 1 does not say for whom its events are. The rule is: an agent takes such
a segment while nothing in the directory is, or could be, somebody else's: no segment for another
destination, alive or not, and no living process that writes version 1. `spool replay` takes it in
any case: who runs that command has said with which settings.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from meter_agent._destination import NOT_SAID, Destination
from meter_agent._identifier import draw_prefix
from meter_agent._quarantine import Quarantine
from meter_agent._runtime import Runtime
from meter_agent._segment import Segment
from meter_agent._segment_lock import (
    Claim,
    claim,
    claim_file,
    claimed_for,
    lock,
    name_owner,
    this_process,
    unclaim,
)
from meter_agent._segment_name import (
    DestinationNotSaidError,
    ForeignDestinationError,
    ForeignSegmentError,
    check_destination,
    entries,
    length_in,
    name_of,
    prefix_in,
    segment_names,
)
from meter_agent._spool_files import allocate, file_identity, make_private, pieces
from meter_agent._spool_header import HEADER_BYTES, VERSION, Header, read_header

__all__ = ["SpoolDirectory", "SpoolFullError"]

_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_NAMES_TRIED = 10


class _AdoptedError(Exception):
    """Another process took a new file, still empty, for that of a dead process."""


class SpoolFullError(Exception):
    """The segments of all processes take as much as *spool_bytes* allows."""


class SpoolDirectory:
    """The segments of all processes in one directory.

    Args:
        path: The directory. It is made when it is missing, with mode 0700.
        bytes_max: What all segments and quarantined pieces together may take.
        runtime: Clocks and randomness.
        destination: Where the events are sent that are recorded here.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        bytes_max: int,
        runtime: Runtime,
        destination: Destination = NOT_SAID,
    ) -> None:
        self.path = Path(path)
        self._bytes_max = bytes_max
        self._runtime = runtime
        self._destination = destination
        self._quarantine = Quarantine(self.path, self._bytes_left)
        self.takes_version_1 = False
        """Whether a segment that does not say for whom it is, is taken in any case."""
        self._others_seen = False
        self._left_alone: dict[str, ForeignSegmentError] = {}
        self._told: set[str] = set()

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
        name = name_of(now, prefix, segment_bytes)
        path = self.path / name
        # Before the file is there: another agent of this process may be looking for orphans.
        keys = [claim(status, name, self._destination)]
        descriptor = segment = None
        try:
            descriptor = os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, mode=0o600)
            keys.append(claim_file(os.fstat(descriptor)))
            self._lock_new(descriptor)
            allocate(descriptor, segment_bytes)
            self._write_header(descriptor, segment_bytes, prefix, now)
            data = mmap.mmap(descriptor, segment_bytes)
            data.seek(HEADER_BYTES)
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

    def write_anew(self, segment: Segment) -> None:
        """Write *segment*, whose file is gone, to a new file of the same name, and go on in it.

        Its events keep their identifiers and their marks.

        Raises:
            SpoolFullError: *bytes_max* is used up.
            OSError: No file can be made here; the message says why.
        """
        assert segment.path is not None  # noqa: S101 - memory has no file that could be gone
        status = self.check()
        path = self.path / segment.path.name
        keys = [claim(status, path.name, self._destination)]
        descriptor = None
        try:
            descriptor = os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, mode=0o600)
            keys.append(claim_file(os.fstat(descriptor)))
            self._lock_new(descriptor)
            allocate(descriptor, segment.bytes)
            header = read_header(segment.read(0, HEADER_BYTES))
            if header is not None and header.version == VERSION:
                if not segment.is_copy:
                    inode, generation = file_identity(descriptor)
                    header = header._replace(inode=inode, generation=generation)
                os.pwrite(descriptor, header.to_bytes(), 0)
                name_owner(descriptor, this_process())
            else:
                os.pwrite(descriptor, segment.read(0, segment.records_at), 0)
            data = mmap.mmap(descriptor, segment.bytes)
            data[segment.records_at :] = segment.read(segment.records_at, segment.bytes)
            segment.move_to(path, data, descriptor, (*filter(None, keys),))
        except BaseException:
            if descriptor is not None and descriptor != segment.descriptor:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                os.close(descriptor)
                for key in filter(None, keys):
                    unclaim(key)
            raise

    def _write_header(self, descriptor: int, segment_bytes: int, prefix: bytes, now: float) -> None:
        header = Header(
            VERSION,
            segment_bytes,
            prefix,
            now,
            self._runtime.process_id(),
            *file_identity(descriptor),
            self._destination,
        )
        os.pwrite(descriptor, header.to_bytes(), 0)
        name_owner(descriptor, this_process())

    def _lock_new(self, descriptor: int) -> None:
        # Whoever adopts at this very moment takes the empty file for that of a dead process.
        if not lock(descriptor):
            raise _AdoptedError
        if self.bytes_reserved() > self._bytes_max:
            raise SpoolFullError

    def bytes_reserved(self) -> int:
        """Return what the segments of all processes and the quarantine take on the disk."""
        lengths = (length_in(entry.name) or 0 for entry in entries(self.path))
        return sum(lengths) + self._quarantine.bytes_taken()

    def _bytes_left(self) -> int:
        return self._bytes_max - self.bytes_reserved()

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
        make_private(self.path)
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

    def adopt(self) -> Iterator[tuple[Segment | None, list[str]]]:
        """Yield each segment whose process is dead, with what was damaged in it, told in words.

        From the moment it is yielded it belongs to this process. What is damaged has been copied to
        the quarantine; None in place of a segment: all of it was moved there. Empty files are
        deleted. Segments of a later version or for another destination are left alone.

        Raises:
            OSError: The directory cannot be read, or, after all others were adopted, a file in it.
        """
        status = self.check()
        troubles: list[OSError] = []
        self._left_alone = {}
        self._version_1: list[str] = []
        self._others_seen = False
        for name in self.names():
            adopted = self._try_to_adopt(status, name, troubles, not_said=self.takes_version_1)
            if adopted is not None:
                yield adopted
        # Version 1 comes last: whether it is taken depends on what else is here.
        for name in self._version_1 if not self._others_seen else ():
            adopted = self._try_to_adopt(status, name, troubles, not_said=True)
            if adopted is not None:
                yield adopted
        # A file that cannot be opened must not keep the events in the files behind it.
        for trouble in troubles:
            raise trouble

    def _try_to_adopt(
        self, status: os.stat_result, name: str, troubles: list[OSError], *, not_said: bool
    ) -> tuple[Segment | None, list[str]] | None:
        key = claim(status, name, self._destination)
        if key is None:
            destination = claimed_for(status, name)
            if destination is not None and not destination.agrees_with(self._destination):
                self._others_seen = True
            return None
        self._left_alone.pop(name, None)
        adopted = None
        try:
            adopted = self._adopt(name, key, not_said=not_said)
        except FileNotFoundError:
            pass  # its events have ended
        except ForeignSegmentError as error:
            self._left_alone[name] = error
            if isinstance(error, DestinationNotSaidError):
                self._version_1.append(name)
            elif isinstance(error, ForeignDestinationError):
                self._others_seen = True
        except OSError as error:
            troubles.append(error)
        finally:
            if adopted is None or adopted[0] is None:
                unclaim(key)
        return adopted

    def left_alone(self) -> list[str]:
        """Return which files were left alone, and why; each is told once."""
        new = {name: error for name, error in self._left_alone.items() if name not in self._told}
        self._told |= new.keys()
        return [f"{name}: {error}" for name, error in new.items()]

    def foreign(self) -> list[str]:
        """Return which segments are not sent because of their destination, and why."""
        kinds = ForeignDestinationError, DestinationNotSaidError
        left = self._left_alone.items()
        return [f"{name}: {error}" for name, error in left if isinstance(error, kinds)]

    def _adopt(
        self, name: str, key: Claim, *, not_said: bool
    ) -> tuple[Segment | None, list[str]] | None:
        path = self.path / name
        file_key = claim_file(os.stat(path, follow_symlinks=False))
        if file_key is None:
            return None  # a second name of one of ours
        adopted = None
        try:
            adopted = self._open_if_stale(path, (key, file_key), not_said=not_said)
        finally:
            if adopted is None or adopted[0] is None:
                unclaim(file_key)
        return adopted

    def _open_if_stale(
        self, path: Path, keys: tuple[Claim, ...], *, not_said: bool
    ) -> tuple[Segment | None, list[str]] | None:
        descriptor = os.open(path, _OPEN_FLAGS)
        segment: Segment | None = None
        try:
            # Before the lock: whose it is must find it free.
            header = read_header(os.pread(descriptor, HEADER_BYTES, 0))
            if header is not None:
                check_destination(header, self._destination, not_said=True)
            if not lock(descriptor):
                self._others_seen |= header is not None and header.version == 1
                return None
            # Its owner may have written it meanwhile.
            header = read_header(os.pread(descriptor, HEADER_BYTES, 0))
            if header is None:
                return self._keep_without_header(path, descriptor)
            check_destination(header, self._destination, not_said=not_said)
            segment = self._open(path, descriptor, header)
            segment.take_charge(descriptor, keys)
        finally:
            if segment is None or not segment.in_charge:
                os.close(descriptor)
        damages = [
            self._quarantine.keep(path.name, damage, segment.read(*damage), "no intact record")
            for damage in segment.count_recovered()
        ]
        return segment, damages

    def _open(self, path: Path, descriptor: int, header: Header) -> Segment:
        # Of one that somebody made longer, only what its maker allocated: it may be gigabytes.
        size = min(os.fstat(descriptor).st_size, header.segment_bytes)
        data = mmap.mmap(descriptor, size)
        segment = Segment(header.prefix, data, path=path, end=size, records_at=header.records_at)
        if header.version == VERSION:
            name_owner(descriptor, this_process())
            said = header.inode, header.generation
            segment.is_copy = said != file_identity(descriptor)
        return segment

    def _keep_without_header(self, path: Path, descriptor: int) -> tuple[None, list[str]] | None:
        # Nobody knows for whom its events are, nor their identifiers: the name says them as well,
        # but that of a copy may be another one, and its events would be billed a second time.
        if prefix_in(path.name) is None:
            raise ForeignSegmentError("neither its header nor its name is that of a segment")
        size = os.fstat(descriptor).st_size
        if not any(pieces(descriptor)):
            path.unlink(missing_ok=True)  # its process died while making it
            return None
        reason = "its header is damaged, and nobody knows the identifiers of its events"
        return None, [self._quarantine.keep_file(path, size, reason)]
