"""Where segments come from and go to: files of growing size, or memory where no file can be had.

A directory that is full and a disk that fails are left alone for a while, so that `record()` does
not ask them at every call.
"""

from __future__ import annotations

import mmap

from meter_agent._health import Room
from meter_agent._identifier import draw_prefix
from meter_agent._runtime import Runtime
from meter_agent._segment import Segment
from meter_agent._spool_directory import SpoolDirectory, SpoolFullError
from meter_agent._spool_header import HEADER_BYTES
from meter_agent._spool_troubles import SpoolTroubles

__all__ = ["SEGMENT_BYTES_MAX", "SEGMENT_BYTES_MIN", "SegmentSupply"]

SEGMENT_BYTES_MIN = 64 * 1024
SEGMENT_BYTES_MAX = 4 * 1024 * 1024
_REST_AFTER_FAILURE_SECONDS = 5.0
_REST_WHEN_FULL_SECONDS = 0.25
_MEMORY_BYTES_PER_EVENT = 256


class SegmentSupply:
    """Makes segments and deletes them.

    The first one of a process is small, and each is twice as large as the one before: many small
    processes shall not fill the directory with empty blocks.

    Args:
        runtime: Clocks and randomness.
        directory: Where the files are.
        troubles: Gets to know what fails.
        bytes_max: *spool_bytes*.
        memory_events: About how many events memory takes where no file can be had.
    """

    def __init__(
        self,
        runtime: Runtime,
        directory: SpoolDirectory,
        troubles: SpoolTroubles,
        *,
        bytes_max: int,
        memory_events: int,
    ) -> None:
        self._runtime = runtime
        self._directory = directory
        self._troubles = troubles
        self._bytes_max = bytes_max
        self._file_bytes_max = max(SEGMENT_BYTES_MIN, min(SEGMENT_BYTES_MAX, bytes_max // 8))
        self._memory_bytes_max = max(SEGMENT_BYTES_MIN, memory_events * _MEMORY_BYTES_PER_EVENT)
        self.start_over()

    def start_over(self) -> None:
        """Forget what was learned about the disk."""
        self.start_small()
        self._failed_until = self._full_until = float("-inf")

    def start_small(self) -> None:
        """Make the next segment the smallest, as in a new process."""
        self._next_bytes = SEGMENT_BYTES_MIN

    @property
    def makes_files(self) -> bool:
        """Whether the disk has not failed just now; it may be full."""
        return self._runtime.monotonic() >= self._failed_until

    @property
    def rests_until(self) -> float:
        """Until when, on the monotonic clock, no file is asked for."""
        return max(self._failed_until, self._full_until)

    def room(self) -> Room:
        """Return how much of *bytes_max* is taken, by the files of all processes together."""
        try:
            used = self._directory.bytes_reserved()
        except OSError:
            used = 0  # not there yet, or gone
        return Room(used, self._bytes_max, in_bytes=True)

    def make(self, bytes_min: int, *, memory_taken: int) -> Segment | None:
        """Return a segment, of memory if the disk fails; None: there is no room for one.

        *memory_taken* bytes of memory have been given out and are in use.
        """
        size = max(self._next_bytes, bytes_min)
        segment = self.make_file(bytes_min)
        if segment is None and not self.makes_files:
            return self._make_memory(min(size, self._memory_bytes_max - memory_taken), bytes_min)
        return segment

    def make_file(self, bytes_min: int = SEGMENT_BYTES_MIN) -> Segment | None:
        """Return a segment that outlives the process; None: not now."""
        now = self._runtime.monotonic()
        if now < self.rests_until:
            return None
        size = max(self._next_bytes, bytes_min)
        while True:
            try:
                segment = self._directory.make_segment(size)
            except SpoolFullError:
                if size <= max(bytes_min, SEGMENT_BYTES_MIN):
                    self._full_until = now + _REST_WHEN_FULL_SECONDS
                    return None
                size = max(bytes_min, SEGMENT_BYTES_MIN, size // 2)
            except Exception as error:  # noqa: BLE001 - whatever ails the disk, memory takes over
                self._failed_until = now + _REST_AFTER_FAILURE_SECONDS
                self._troubles.failed(error)
                return None
            else:
                self._next_bytes = min(self._file_bytes_max, 2 * size)
                return segment

    def _make_memory(self, size: int, bytes_min: int) -> Segment | None:
        if size < bytes_min:
            return None
        try:
            data = mmap.mmap(-1, size)
        except (OSError, MemoryError):
            return None
        data.seek(HEADER_BYTES)
        return Segment(draw_prefix(self._runtime), data)

    def remove(self, segment: Segment) -> None:
        """Delete *segment*, of which every event has ended: there may be room for another now."""
        try:
            segment.remove()
        except OSError as error:
            self._troubles.failed(error)
        self._full_until = float("-inf")
