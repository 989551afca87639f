"""The disk of a simulated world: trouble on it, and what is found in the files of its spool."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast
from unittest.mock import patch

from meter_agent import _segment_lock, _segment_supply, _spool_directory
from meter_agent import _spool_format as form
from meter_agent._destination import NOT_SAID, Destination
from meter_agent._identifier import identifier_prefix
from meter_agent._runtime import Runtime
from meter_agent._segment import Segment
from meter_agent._spool_body import InvalidRecord, decode
from meter_agent._spool_directory import SpoolDirectory
from meter_agent._spool_header import HEADER_BYTES, Header

__all__ = ["Disk", "Found", "SimulatedDirectory", "installed", "number_in"]


class Found(NamedTuple):
    """A record in a file."""

    file: str
    offset: int
    end: int
    number: int
    identifier: str
    mark: int

    @property
    def settled(self) -> bool:
        return self.mark == form.SETTLED


class Disk:
    """The files of all lives of an application."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fails = False

    def records(self) -> list[Found]:
        """Every intact record in every segment."""
        return [found for file in sorted(self.path.glob("*.segment")) for found in _read(file)]

    def damages(self) -> int:
        """How many damaged pieces the segments have."""
        return sum(
            isinstance(piece, form.Damage)
            for file in self.path.glob("*.segment")
            for piece in _scan(file.read_bytes())
        )

    def bytes_taken(self) -> int:
        # Asked after each event, so without the comfort of `Path`.
        taken = 0
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                taken += entry.stat().st_size if entry.is_file() else _bytes_below(entry.path)
        return taken

    def spoil(self, random: Random) -> Found | None:
        """Change a byte of one record, in its body or in its mark; returns what it was."""
        records = self.records()
        if not records:
            return None
        found = random.choice(records)
        body_at = found.offset + form.RECORD_OVERHEAD_BYTES
        if found.settled or random.random() < 0.5:
            at = body_at + int(random.random() * (found.end - body_at))
        else:
            at = found.offset + form.MARK_AT + int(random.random() * 8)
        with (self.path / found.file).open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ (1 << int(random.random() * 8))]))
        return found


def _bytes_below(path: str) -> int:
    with os.scandir(path) as entries:
        return sum(entry.stat().st_size for entry in entries)


def number_in(body: bytes) -> int:
    """The number of the event in *body*, which is its value."""
    event = decode(body)
    return int(event.event["value"] if isinstance(event, InvalidRecord) else cast("Any", event[3]))


def _scan(data: bytes) -> Iterator[form.Record | form.Damage]:
    return form.scan(cast("Any", data), HEADER_BYTES, len(data))


def _read(file: Path) -> Iterator[Found]:
    prefix = identifier_prefix(bytes.fromhex(file.name.split("-")[1]))
    for piece in _scan(file.read_bytes()):
        if isinstance(piece, form.Record):
            yield Found(
                file.name,
                piece.offset,
                piece.end,
                number_in(piece.body),
                f"{prefix}{piece.offset:012x}",
                piece.mark,
            )


class SimulatedDirectory(SpoolDirectory):
    """Remembers the segments that a process has opened, and fails with the disk."""

    def __init__(
        self,
        disk: Disk,
        path: str,
        bytes_max: int,
        runtime: Runtime,
        destination: Destination = NOT_SAID,
    ) -> None:
        super().__init__(path, bytes_max, runtime, destination)
        self.segments: list[Segment] = []
        self._disk = disk

    def check(self) -> os.stat_result:
        if self._disk.fails:
            raise OSError("the disk fails")
        return super().check()

    def make_segment(self, segment_bytes: int) -> Segment:
        segment = super().make_segment(segment_bytes)
        self.segments.append(segment)
        return segment

    def _open(self, path: Path, descriptor: int, header: Header) -> Segment:
        segment = super()._open(path, descriptor, header)
        self.segments.append(segment)
        return segment

    def let_go(self) -> None:
        """What the kernel does when the process dies: the locks end, the files stay."""
        for segment in self.segments:
            segment.release()
        close_files(self.path.glob("*.segment"))
        _segment_lock._claims.clear()


def close_files(paths: Iterable[Path]) -> None:
    """Close what a thread that was killed while it made or recovered a segment has open.

    The descriptor and its lock are in a frame that stays. Its number stays taken, because that
    frame closes it later.
    """
    files = {(file.stat().st_dev, file.stat().st_ino) for file in paths}
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the directory that was just listed, for one
            status = os.fstat(number)
            if (status.st_dev, status.st_ino) in files:
                _unlock(number)
                os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


def _unlock(descriptor: int) -> None:
    # A mapping of the file keeps the second lock, also without any descriptor.
    if _segment_lock._SET_DESCRIPTION_LOCK is not None:
        whole = _segment_lock._FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(descriptor, _segment_lock._SET_DESCRIPTION_LOCK, whole)


@contextmanager
def installed(disk: Disk, segment_bytes_min: int) -> Iterator[None]:
    """Let agents find *disk* in the place of the machine's; its files are gone afterwards."""
    make_directory = partial(SimulatedDirectory, disk)
    with (
        patch.object(_spool_directory, "SpoolDirectory", make_directory),
        patch.object(_segment_supply, "SEGMENT_BYTES_MIN", segment_bytes_min),
    ):
        try:
            yield
        finally:
            shutil.rmtree(disk.path, ignore_errors=True)
