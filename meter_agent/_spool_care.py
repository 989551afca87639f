"""What senders do for the files of the spool now and then, so that `record()` need not.

They adopt what dead processes left, make the next segment before it is needed, leave memory when
the disk is well again, notice files that somebody deleted, and sync.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from meter_agent._health import Problem
from meter_agent._runtime import Runtime
from meter_agent._segment import Segment
from meter_agent._segment_line import SegmentLine
from meter_agent._segment_supply import SegmentSupply
from meter_agent._spool_directory import SpoolDirectory, SpoolFullError
from meter_agent._spool_header import HEADER_BYTES
from meter_agent._spool_troubles import SpoolTroubles
from meter_agent._written_line import WrittenLine

__all__ = ["ADOPT_SECONDS", "SpoolCare"]

ADOPT_SECONDS = 30.0
_TELL_DELETION_SECONDS = 600.0
_ADOPTED_SEGMENTS_MAX = 64  # at a time, with two descriptors each


class SpoolCare:
    """One sender at a time does it.

    Args:
        runtime: Clocks.
        directory: Where the files are.
        own: What this process writes.
        adopted: What it takes over.
        supply: Makes segments.
        troubles: Gets to know what fails.
        sync_seconds: Longest time between two syncs to the disk; 0: left to the kernel.
        progress: Returns something else whenever an event or its mark may have changed.
        is_open: Whether the buffer still takes events.
        is_sealed: Whether it has counted what is left in it.
    """

    def __init__(
        self,
        runtime: Runtime,
        directory: SpoolDirectory,
        *,
        own: WrittenLine,
        adopted: SegmentLine,
        supply: SegmentSupply,
        troubles: SpoolTroubles,
        sync_seconds: float,
        progress: Callable[[], object],
        is_open: Callable[[], bool],
        is_sealed: Callable[[], bool],
    ) -> None:
        self._runtime = runtime
        self._directory = directory
        self._own = own
        self._adopted = adopted
        self._supply = supply
        self._troubles = troubles
        self._sync_seconds = sync_seconds
        self._progress = progress
        self._is_open = is_open
        self._is_sealed = is_sealed

    def start_over(self, lock: Any) -> None:
        """Begin anew, as in a new process. *lock* is that of the buffer."""
        self._lock = lock
        self.adoptions = 0
        """How often orphans have been looked for."""
        self.quarantined = 0
        """Damaged places found in adopted files."""
        self._left_behind = False
        self._nothing_left = False
        self._foreign: list[str] = []
        self._deleted_at = float("-inf")
        self._looked_at = self._synced_at = float("-inf")
        self._synced: object = self._progress()
        self._counted_before = 0
        # A deque, because `del` is one step.
        self._turn = deque([True])

    def tend(self) -> None:
        """Do what is due."""
        try:
            del self._turn[0]
        except IndexError:
            return  # another sender does it
        try:
            now = self._runtime.monotonic()
            if now >= self._look_due_at():
                self._looked_at = now
                self._adopt()
                self.adoptions += 1
                self._look_after_own()
            if self._is_open():
                self._leave_memory()
                self._prepare()
            if self._sync_seconds and now >= self._synced_at + self._sync_seconds:
                self._synced_at = now
                self._sync()
        finally:
            self._turn.append(True)
            self._troubles.tell()

    def due_at(self) -> float:
        """Return when `tend()` has something to do again, on the monotonic clock."""
        due_at = self._look_due_at()
        if self._sync_seconds and self._progress() != self._synced:
            due_at = min(due_at, self._synced_at + self._sync_seconds)
        current = self._own.current
        if current is not None and current.path is None:
            due_at = min(due_at, self._supply.rests_until)
        return due_at

    def _look_due_at(self) -> float:
        if self._left_behind and len(self._adopted) < _ADOPTED_SEGMENTS_MAX // 2:
            return float("-inf")
        return self._looked_at + ADOPT_SECONDS

    def problems(self) -> dict[Problem, str]:
        """Return what the last look at the directory found wrong, in words."""
        problems: dict[Problem, str] = {}
        path = self._directory.path
        if foreign := self._foreign:
            found = f"{len(foreign)} in {path}; {foreign[0]}"
            problems[Problem.FOREIGN_EVENTS] = f"segments are left alone, {found}"
        if self._runtime.monotonic() < self._deleted_at + _TELL_DELETION_SECONDS:
            problems[Problem.SPOOL_DELETED] = f"somebody deletes files in {path} while in use"
        return problems

    # -- what dead processes left --------------------------------------------------------------

    def recover_all(self) -> bool:
        """Look now, also for segments of version 1; False: there may be more, ask again."""
        self._directory.takes_version_1 = True
        self._nothing_left = False
        self._looked_at = float("-inf")
        self.tend()
        return self._nothing_left

    def _adopt(self) -> None:
        self._left_behind = False
        takes_all = self._directory.takes_version_1
        found = self._adopted.added
        try:
            self._adopt_segments()
        except Exception as error:  # noqa: BLE001 - whatever ails the disk, sending goes on
            self._troubles.failed(error)
        for reason in self._directory.left_alone():
            self._troubles.note("meter_agent.spool_file_left_alone", error=reason)
        self._foreign = self._directory.foreign()
        nothing_found = not self._left_behind and self._adopted.added == found
        self._nothing_left = takes_all and nothing_found

    def _adopt_segments(self) -> None:
        if len(self._adopted) >= _ADOPTED_SEGMENTS_MAX:
            self._left_behind = True
            return
        for segment, damages in self._directory.adopt():
            with self._lock:
                if self._is_sealed():
                    if segment is not None:
                        segment.release()
                    return
                self.quarantined += len(damages)
                if segment is not None:
                    self._adopted.add(segment)
                    if segment.open:
                        self._troubles.note("meter_agent.spool_recovered", events=segment.open)
                for damage in damages:
                    self._troubles.note("meter_agent.spool_damaged", error=damage)
                self._adopted.clear_away()
                if len(self._adopted) >= _ADOPTED_SEGMENTS_MAX:
                    self._left_behind = True
                    return

    # -- what this process writes --------------------------------------------------------------

    def _look_after_own(self) -> None:
        with self._lock:
            self._look_after_locks()
            # The prepared one first: the current one may have to be replaced by it.
            if self._is_deleted(self._own.prepared):
                self._own.prepared = None
            if self._is_deleted(self._own.current) and self._is_open():
                self._own.begin(HEADER_BYTES, self._lock)
            self.write_anew()
            # Nothing since the last look, and nothing waits: others may need the room.
            self._own.count()
            if self._own.counted == self._counted_before and self._own.give_back_current():
                self._own.drop_prepared()
            self._counted_before = self._own.counted

    def write_anew(self) -> None:
        """Write events to new files whose files somebody deleted. The lock of the buffer is held.

        They are still mapped, and would be lost at the end of the process. A file that was moved
        away is left to whoever has it now.
        """
        for segment in (*self._own.segments, *self._adopted.segments):
            if segment.path is None or not segment.sealed or not segment.open:
                continue
            try:
                if segment.is_gone():
                    segment.outlives = False
                    self._deleted_at = self._runtime.monotonic()
                    self._directory.write_anew(segment)
                    self._troubles.note("meter_agent.spool_written_anew", events=segment.open)
            except SpoolFullError:
                self._troubles.failed(OSError("a deleted file is not written anew: spool_bytes"))
            except OSError as error:
                self._troubles.failed(error)

    def _look_after_locks(self) -> None:
        prepared = () if self._own.prepared is None else (self._own.prepared,)
        for segment in (*self._own.segments, *prepared, *self._adopted.segments):
            try:
                segment.look_after_locks()
            except OSError as error:
                self._troubles.failed(error)

    def _is_deleted(self, segment: Segment | None) -> bool:
        if segment is None or segment.path is None:
            return False
        try:
            segment.look_whether_it_outlives()
        except OSError as error:
            self._troubles.failed(error)
            return False
        if not segment.outlives:
            self._deleted_at = self._runtime.monotonic()
            told = f"{segment.path} was deleted or moved away while in use"
            self._troubles.failed(FileNotFoundError(told))
        return not segment.outlives

    def _leave_memory(self) -> None:
        # The disk may be well again, and what is recorded from now on would survive.
        current = self._own.current
        if current is not None and current.path is None:
            self._make_next()
            with self._lock:
                if self._own.prepared is not None and self._is_open():
                    self._own.begin(HEADER_BYTES, self._lock)

    def _prepare(self) -> None:
        with self._lock:
            wanted = self._own.wants_preparation()
        if wanted:
            self._make_next()

    def _make_next(self) -> None:
        # Outside the lock, in which a caller of `record()` may be waiting.
        segment = self._supply.make_file()
        if segment is None:
            return
        with self._lock:
            if self._is_open() and self._own.prepared is None:
                self._own.prepared, segment = segment, None
        if segment is not None:
            self._supply.remove(segment)

    def _sync(self) -> None:
        with self._lock:
            self._own.count()
            progress = self._progress()
            segments = (*self._own.segments, *self._adopted.segments)
        if progress == self._synced:
            return
        try:
            for segment in segments:
                segment.sync()
            self._directory.sync()
            self._synced = progress
        except OSError as error:
            self._troubles.failed(error)
