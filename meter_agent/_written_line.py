"""The segments that this process writes, and the gate through which `record()` reaches the last."""

from __future__ import annotations

from collections.abc import Callable

from meter_agent._event_buffer import NEVER
from meter_agent._segment import Segment
from meter_agent._segment_line import SegmentLine
from meter_agent._segment_supply import SegmentSupply

__all__ = ["Gate", "WrittenLine"]

_USUAL_RECORD_BYTES = 80


def _no_room(_record: bytes) -> int:
    raise ValueError


def _nowhere() -> int:
    return 0


class Gate:
    """Where `record()` writes to, and how far before it looks up from its fast path."""

    __slots__ = ("alarm", "tell", "write")

    alarm: int
    tell: Callable[[], int]
    write: Callable[[bytes], int]

    def __init__(self) -> None:
        self.shut()

    def shut(self) -> None:
        """Every write finds no room."""
        self.write, self.tell, self.alarm = _no_room, _nowhere, NEVER

    def open(self, segment: Segment, lock: object) -> None:
        """Writes go to *segment*; *lock* is taken where there is no interpreter lock."""
        self.alarm = NEVER
        self.tell = segment.tell
        self.write = segment.writer(lock)

    def try_write(self, record: bytes) -> bool:
        """Append *record*; False: there is no room."""
        try:
            return bool(self.write(record))
        except ValueError:
            return False


class WrittenLine(SegmentLine):
    """The segments of this process in the order of their making; the last one is written to.

    Args:
        supply: Makes segments.
    """

    def __init__(self, supply: SegmentSupply) -> None:
        super().__init__(supply)
        self.gate = Gate()
        self.prepared: Segment | None = None
        """The next one, made before it is needed."""

    @property
    def current(self) -> Segment | None:
        """The one that is written to."""
        return self.segments[-1] if self.segments else None

    def count(self) -> None:
        """Look for records written since the last call."""
        for segment in self.segments:
            segment.count()

    def begin(self, bytes_min: int, lock: object) -> bool:
        """Write to another segment from now on. False: there is no room for one."""
        if self.prepared is not None and not self._is_fit(self.prepared, bytes_min):
            self.drop_prepared()
        if self.prepared is None:
            self.prepared = self._make(bytes_min)
        if self.prepared is None and self.give_back_current():
            self.prepared = self._make(bytes_min)
        segment = self.prepared
        if segment is None:
            return False
        self.add(segment)
        self.prepared = None
        self.gate.open(segment, lock)
        for older in self.segments[:-1]:
            older.seal()
        self.clear_away()
        return True

    def _is_fit(self, prepared: Segment, bytes_min: int) -> bool:
        # One in the line: a handler that raised came between the two lines of `begin()`.
        return prepared.bytes >= bytes_min and prepared not in self.segments

    def drop_prepared(self) -> None:
        """Delete the segment that was made before it is needed."""
        prepared, self.prepared = self.prepared, None
        if prepared is not None and prepared not in self.segments:
            self._supply.remove(prepared)

    def _make(self, bytes_min: int) -> Segment | None:
        memory_taken = sum(segment.bytes for segment in self.segments if segment.path is None)
        return self._supply.make(bytes_min, memory_taken=memory_taken)

    def give_back_current(self) -> bool:
        """Delete the current segment if every event in it has ended.

        That is room for another process, or for a smaller segment of this one.
        """
        self.count()
        current = self.current
        if current is None or current.open:
            return False
        self.shut()
        self.clear_away()
        self._supply.start_small()
        return True

    def shut(self) -> None:
        """Let nothing more in."""
        self.gate.shut()
        for segment in self.segments:
            segment.seal()

    def set_alarm(self, missing: int) -> None:
        """Have `record()` look up after about *missing* more events."""
        if self.segments:
            end = self.gate.tell()
            # A little early, because events differ in length: who finds that it was too early sets
            # it once more.
            ahead = 1 if missing <= 1 else int(missing * self._record_bytes() * 0.9)
            self.gate.alarm = end + ahead

    def _record_bytes(self) -> float:
        current = self.segments[-1]
        if not current.counted:
            return _USUAL_RECORD_BYTES
        return (current.written_through() - current.records_at) / current.counted

    def wants_preparation(self) -> bool:
        """Whether the current segment is half full and there is no next one yet."""
        current = self.current
        if current is None or self.prepared is not None:
            return False
        return current.written_through() >= current.bytes // 2

    def release(self) -> None:
        """Leave all files to whoever adopts them. What has been counted stays counted."""
        self.shut()
        self.clear_away()
        self.drop_prepared()
        super().release()

    def start_over(self) -> None:
        """Forget everything: in a child of `fork`, where the parent's locks are not touched."""
        self.gate.shut()
        prepared, self.prepared = self.prepared, None
        if prepared is not None:
            prepared.release()
        super().start_over()
