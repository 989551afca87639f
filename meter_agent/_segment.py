"""One segment of the spool: a mapped file, or a piece of memory where no file can be had.

A segment belongs to one process at a time; `_segment_lock.py` says how that is proved. Within an
interpreter, an agent claims the name of a segment before it makes or recovers it, and opens no file
whose name is claimed.

The process that owns a segment writes to it through the mapping. The pages are the kernel's: what
has been copied there survives the process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from meter_agent import _spool_format as form
from meter_agent._identifier import identifier_prefix
from meter_agent._segment_lock import Claim, look_after_locks, unclaim
from meter_agent._spool_header import HEADER_BYTES

__all__ = ["Segment"]

_GIL_IS_OFF = not getattr(sys, "_is_gil_enabled", lambda: True)()


class Segment:
    """Events on their way through one file, in the order of recording.

    Args:
        prefix: First bytes of the identifiers of its events.
        data: The mapped bytes.
        path: The file; None for a piece of memory.
        end: Up to where there may be records; None: as far as this process writes.
        records_at: Where the first record begins.
    """

    def __init__(
        self,
        prefix: bytes,
        data: mmap.mmap,
        *,
        path: Path | None = None,
        end: int | None = None,
        records_at: int = HEADER_BYTES,
    ) -> None:
        self._data = data
        self.records_at = records_at
        self.path = path
        self.bytes = len(data)
        self.recovered = end is not None
        """Whether another process has written it."""
        self.sealed = self.recovered
        """Nothing more is written here."""
        self.is_copy = False
        """Whether its file is a copy of the one that it was written to: of a backup, perhaps."""
        self.outlives = path is not None
        """Whether others will find it when this process is gone."""
        # Where the next one begins and how many came before it, in one store: a signal handler that
        # raises in the middle of the counting leaves the old state or the new one.
        self._counted = records_at, 0
        self._taken = records_at, 0
        self._perhaps_sent_through = records_at
        self._ended = 0
        self._prefix = identifier_prefix(prefix)
        self._end = end
        self._held: tuple[int | None, tuple[Claim, ...]] = None, ()

    def take_charge(self, descriptor: int, keys: tuple[Claim, ...]) -> None:
        """Hold the locked file from now on, and the claims on its name and on itself.

        One store, and `__init__` does not do it: whoever is interrupted before it closes the file
        himself, and whoever is interrupted after it must not.
        """
        self._held = descriptor, keys

    @property
    def in_charge(self) -> bool:
        """Whether `release()` will close the file."""
        return self.descriptor is not None

    @property
    def keys(self) -> tuple[Claim, ...]:
        """The claims that end with it."""
        return self._held[1]

    @property
    def descriptor(self) -> int | None:
        """The locked file; None: it has none, or was let go."""
        return self._held[0]

    def __del__(self) -> None:
        # Of one that nobody keeps: a signal handler may raise between its making and its use, and
        # even before it has its bytes.
        if hasattr(self, "_held"):
            self.release()

    @property
    def counted(self) -> int:
        """Events known to be in here; of another process's, those that had not ended."""
        return self._counted[1]

    @property
    def waiting(self) -> int:
        """Those of them that no sender has taken yet."""
        return self._counted[1] - self._taken[1]

    @property
    def open(self) -> int:
        """Those of them that have not ended."""
        return self._counted[1] - self._ended

    @property
    def may_be_given_up(self) -> bool:
        """Whether nothing of it is in flight, and nothing that waits may have reached Stripe."""
        nothing_in_flight = self.sealed and self.open == self.waiting
        return nothing_in_flight and self.taken_through >= self._perhaps_sent_through

    @property
    def taken_through(self) -> int:
        """Where the next event to be taken begins."""
        return self._taken[0]

    # -- writing -------------------------------------------------------------------------------

    def writer(self, lock: object) -> Callable[[bytes], int]:
        """Return what appends a record; it raises ValueError where there is no room.

        One C call that does not give the interpreter lock away, so that records never mix; *lock*
        takes its place where there is no interpreter lock.
        """
        if not _GIL_IS_OFF:
            return self._data.write

        def write(record: bytes) -> int:
            with lock:  # type: ignore[attr-defined]
                return self._data.write(record)

        return write

    def seal(self) -> None:
        """Let nothing more in, not even a write that was held up on its way to the mapping.

        Without this, a thread that a profiler stops between its look at the gate and its write
        could come when everything has been counted, and the file is about to go.
        """
        if self.sealed:
            return
        end = self._data.tell()
        self._data.seek(self.bytes)
        # What a handler wrote between these two is in there, intact.
        while step := form.record_bytes(self._data, end, self.bytes):
            end += step
        self._end = end
        self.sealed = True

    def written_through(self) -> int:
        """Return where the next record will begin."""
        return self._data.tell() if self._end is None else self._end

    @property
    def tell(self) -> Callable[[], int]:
        """What `written_through()` asks, for the hot path."""
        return self._data.tell

    # -- reading -------------------------------------------------------------------------------

    def count(self) -> None:
        """Look for records written since the last call."""
        through, events = self._counted
        end = self.written_through()
        while through < end:
            step = form.record_bytes(self._data, through, end)
            if step is None:
                # Somebody else has written into the file: on to where records can be read again.
                through = self._data.find(form.RECORD_MAGIC, through + 1, end)
                through = end if through < 0 else through
                continue
            through += step
            events += 1
        # A handler that interrupted this may have counted further.
        if through > self._counted[0]:
            self._counted = through, events

    def count_recovered(self) -> list[form.Damage]:
        """Look through a segment of another process; returns what is damaged in it."""
        damages: list[form.Damage] = []
        events, first = 0, self.written_through()
        for piece in form.scan(self._data, self.records_at, self.written_through()):
            if isinstance(piece, form.Damage):
                damages.append(piece)
            elif piece.mark != form.SETTLED:
                first = min(first, piece.offset)
                events += 1
                if piece.mark != form.NEVER_ATTEMPTED:
                    self._perhaps_sent_through = piece.end
        self._counted = self.written_through(), events
        self._taken = first, 0
        return damages

    def take(self, limit: int) -> list[form.Record]:
        """Return the next events that have not ended, at most *limit*."""
        taken: list[form.Record] = []
        through = end = self._counted[0]
        for piece in form.scan(self._data, self.taken_through, end):
            if isinstance(piece, form.Damage) or piece.mark == form.SETTLED:
                continue
            if len(taken) == limit:
                through = taken[-1].end if taken else self.taken_through
                break
            taken.append(piece)
        self._taken = through, self._taken[1] + len(taken)
        return taken

    def end(self, offset: int) -> None:
        """The event at *offset* has ended."""
        self.mark(offset, form.SETTLED)
        self._ended += 1

    def give_up_waiting(self) -> int:
        """Give up what waits, and return how much that was."""
        waiting = self.waiting
        self._taken = self._counted
        self._ended += waiting
        return waiting

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes between *start* and *end*."""
        return self._data[start:end]

    def oldest(self) -> form.Record | None:
        """Return the next event to be taken, and leave it where it is."""
        return next(self.waiting_records(), None)

    def waiting_records(self) -> Iterator[form.Record]:
        """Yield the events that wait, the oldest first, and leave them where they are."""
        for piece in form.scan(self._data, self.taken_through, self._counted[0]):
            if isinstance(piece, form.Record) and piece.mark != form.SETTLED:
                yield piece

    def identifier(self, offset: int) -> str:
        """Return the identifier minted for the event at *offset*."""
        return f"{self._prefix}{offset:012x}"

    def mark(self, offset: int, mark: int) -> None:
        """Note how far the event at *offset* has come."""
        form.write_mark(self._data, offset, mark)

    def sync(self) -> None:
        """Have the kernel write everything to the disk now.

        By `fsync`, which writes what was changed through the mapping as well, and gives the
        interpreter lock away meanwhile; `mmap.flush()` keeps it for as long as the disk takes.
        """
        descriptor = self.descriptor
        if descriptor is None:
            return
        try:
            os.fsync(descriptor)
        except OSError:
            # Its last event may have ended beside us, and the file is gone.
            if self.descriptor is not None:
                raise

    def look_whether_it_outlives(self) -> None:
        """Find out whether the file is still where others look for it. Errors are the caller's."""
        if self.descriptor is None or self.path is None:
            return
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            self.outlives = False
        else:
            self.outlives = os.path.samestat(named, os.fstat(self.descriptor))

    def is_gone(self) -> bool:
        """Whether its file has no name any more, so that nobody else will ever find it.

        One that was moved still has a name. Errors are the caller's.
        """
        descriptor = self.descriptor
        return descriptor is not None and not os.fstat(descriptor).st_nlink

    def move_to(
        self, path: Path, data: mmap.mmap, descriptor: int, keys: tuple[Claim, ...]
    ) -> None:
        """Go on in another file that has the same content. Only of one that is sealed."""
        before = self._data, self._held
        self._data, self.path, self.outlives = data, path, True
        self._held = descriptor, keys
        _let_go(*before)

    def look_after_locks(self) -> None:
        """Take the locks again: the application may have closed a copy of the file."""
        descriptor = self.descriptor
        if descriptor is not None:
            look_after_locks(descriptor)

    # -- the end -------------------------------------------------------------------------------

    def remove(self) -> None:
        """Delete the file: each of its events has ended. Errors are the caller's."""
        try:
            if self.path is not None:
                self.path.unlink(missing_ok=True)
        finally:
            self.release()

    def release(self) -> None:
        """Leave the file to whoever adopts it."""
        held, self._held = self._held, (None, ())
        _let_go(self._data, held)


def _let_go(data: mmap.mmap, held: tuple[int | None, tuple[Claim, ...]]) -> None:
    descriptor, keys = held
    # The POSIX lock ends with the first of these two, the other one with the last.
    data.close()
    if descriptor is not None:
        # Network file systems tell late errors here, and the descriptor is gone all the same.
        with contextlib.suppress(OSError):
            os.close(descriptor)
    for key in keys:
        unclaim(key)
