"""What an attack on the spool found: interrupts, neighbours, descriptors, disks that come back."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from meter_agent import _segment_lock
from meter_agent import _spool_format as form
from meter_agent._segment import Segment
from meter_agent._spool_body import decode
from meter_agent._spool_directory import SpoolDirectory
from meter_agent._spool_header import HEADER_BYTES
from tests.spool.spools import MEBIBYTE, Spool, segments, take_all
from tests.virtual import VirtualRuntime


class Struck(Exception):  # noqa: N818 - what a signal handler raises
    pass


def test_an_interrupt_at_any_line_of_the_counting_loses_no_event(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    code = Segment.count.__code__
    recorded = struck = 0
    for line in range(60):
        for _ in range(5):
            assert spool.record("tokens", "cus_1", recorded)
            recorded += 1
        left = [line]

        def trace(frame: FrameType, event: str, _argument: Any, left: list[int] = left) -> Any:
            if frame.f_code is code and event == "line":
                if not left[0]:
                    raise Struck
                left[0] -= 1
            return trace if frame.f_code is code or event == "call" else None

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            spool.buffer.counts()
        except Struck:
            struck += 1
        finally:
            sys.settrace(before)
        counts = spool.buffer.counts()
        assert counts.recorded == counts.buffered == recorded
    assert struck > 5
    assert len(take_all(spool.buffer)) == recorded


def test_a_process_whose_events_have_all_ended_makes_room_for_itself(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    # A neighbour has everything but one small file.
    spool = Spool(tmp_path, runtime, bytes_max=MEBIBYTE)
    assert spool.record("tokens", "cus_1", 0)
    SpoolDirectory(tmp_path, MEBIBYTE, runtime).make_segment(MEBIBYTE - 65_536)
    for n in range(5000):
        assert spool.record("tokens", "cus_1", n)
        take_all(spool.buffer)


def test_a_process_at_rest_gives_its_file_back(tmp_path: Path, runtime: VirtualRuntime) -> None:
    spool = Spool(tmp_path, runtime)
    for n in range(700):
        spool.record("tokens", "cus_1", n)
    spool.buffer.tend()
    assert len(segments(tmp_path)) == 2, "one is prepared"
    take_all(spool.buffer)
    for _ in range(2):
        runtime.advance(31.0)
        spool.buffer.tend()
    assert segments(tmp_path) == []
    assert spool.record("tokens", "cus_1", 700)
    assert len(take_all(spool.buffer)) == 1
    assert spool.buffer.counts().recorded == 701


def test_events_that_wait_keep_their_file_however_long(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    spool.record("tokens", "cus_1", 1)
    for _ in range(5):
        runtime.advance(31.0)
        spool.buffer.tend()
    assert len(segments(tmp_path)) == 1
    assert len(take_all(spool.buffer)) == 1


def test_the_disk_is_used_again_as_soon_as_it_is_well(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    tmp_path.chmod(0o770)
    spool = Spool(tmp_path, runtime)
    assert spool.record("tokens", "cus_1", 1)
    spool.buffer.tend()
    assert spool.buffer.seconds_until_tending() == 5.0
    tmp_path.chmod(0o700)
    runtime.advance(5.0)
    spool.buffer.tend()
    assert spool.record("tokens", "cus_1", 2)
    spool.die()
    heir = Spool(tmp_path, runtime)
    heir.buffer.tend()
    assert heir.buffer.counts().recovered == 1


def test_a_file_that_was_deleted_in_use_is_noticed_told_and_replaced(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    spool.buffer.tend()
    spool.record("tokens", "cus_1", 1)
    segments(tmp_path)[0].unlink()
    runtime.advance(31.0)
    spool.buffer.tend()
    assert spool.buffer.counts().spool_failures == 1
    (_, failed), (event, written) = spool.said
    assert "deleted or moved away while in use" in failed["error"]
    assert (event, written["events"]) == ("meter_agent.spool_written_anew", 1)
    assert spool.record("tokens", "cus_1", 2)
    assert len(segments(tmp_path)) == 2
    assert len(take_all(spool.buffer)) == 2


def test_an_adopter_at_the_wrong_moment_is_no_trouble_of_the_disk(
    tmp_path: Path, runtime: VirtualRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, refusals = _segment_lock.lock, [False, False]
    monkeypatch.setattr(
        "meter_agent._spool_directory.lock", lambda fd: refusals.pop() if refusals else lock(fd)
    )
    spool = Spool(tmp_path, runtime)
    assert spool.record("tokens", "cus_1", 1)
    assert not refusals
    assert len(segments(tmp_path)) == 1
    assert spool.buffer.counts().spool_failures == 0


def test_a_segment_that_nobody_keeps_lets_go_of_its_file(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    directory = SpoolDirectory(tmp_path, MEBIBYTE, runtime)
    for _ in range(5):
        directory.make_segment(65_536)
    opened = {os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}
    assert not {path for path in opened if path.startswith(str(tmp_path))}
    assert len(list(directory.adopt())) == 5, "no claim is left behind"


def test_a_segment_that_was_never_finished_ends_in_silence() -> None:
    unfinished = Segment.__new__(Segment)
    unfinished.__del__()


@pytest.mark.parametrize("error", [OverflowError, RuntimeError, KeyError])
def test_a_name_whose_length_raises_is_an_invalid_event(
    tmp_path: Path, runtime: VirtualRuntime, error: type[Exception]
) -> None:
    class Name(str):
        __slots__ = ()

        def __len__(self) -> int:
            raise error

    class Thing:
        def __len__(self) -> int:
            raise error

    spool = Spool(tmp_path, runtime)
    for name in (Name("tokens"), Thing(), range(10**30)):
        assert spool.record(name, "cus_1", 1)  # type: ignore[arg-type]
        assert spool.record("tokens", name, 1)  # type: ignore[arg-type]
    assert spool.buffer.counts().recorded == 6


@pytest.mark.parametrize(
    "body",
    [
        b'{"recorded_at":1,"event":[],"rule":"r"}',
        b'{"recorded_at":1,"event":{},"rule":1}',
        b'{"recorded_at":1}',
        b"[1,2]",
        b'[1,"tokens","cus_1",1],',
        b'[1,"tokens","cus_1",1][1,"tokens","cus_2",2]',
        b"",
        b"7",
        b"\xff",
    ],
)
def test_a_body_that_is_not_ours_is_an_invalid_event_with_a_picture(body: bytes) -> None:
    event = decode(body)
    assert isinstance(event[1], dict)
    assert isinstance(event[2], str)


def test_another_thread_of_a_child_waits_until_the_child_has_started_over(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    buffer = spool.buffer
    assert spool.record("tokens", "cus_1", 1)
    belongs: list[bool] = []
    release = buffer._own.segments[0].release

    def look_and_release() -> None:
        belongs.append(buffer.belongs_to_this_process)
        release()

    buffer._own.segments[0].release = look_and_release  # type: ignore[method-assign]
    runtime.pid = 2
    thread = threading.Thread(target=buffer.start_over_after_fork)
    thread.start()
    thread.join()
    assert belongs == [False], "not before the parent's segments are out of reach"
    assert buffer.belongs_to_this_process


def test_a_write_that_was_held_up_finds_a_sealed_segment_closed(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    assert spool.record("tokens", "cus_1", 1)
    held_up = spool.buffer._own.gate.write
    spool.buffer.seal()
    with pytest.raises(ValueError):
        held_up(b"a record")
    assert len(spool.buffer) == 1


def test_a_record_written_while_its_segment_is_sealed_is_in_it(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    assert spool.record("tokens", "cus_1", 1)
    segment = spool.buffer._own.segments[0]
    record = segment.read(HEADER_BYTES, segment.written_through())

    class Mapping:
        """Lets somebody write between the question where the end is and the answer's use."""

        def __init__(self, data: mmap.mmap) -> None:
            self.data = data

        def __getattr__(self, name: str) -> Any:
            return getattr(self.data, name)

        def tell(self) -> int:
            end = self.data.tell()
            self.data.write(record)
            return end

    data = segment._data
    segment._data = Mapping(data)  # type: ignore[assignment]
    unpack = form.record_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(form, "record_bytes", lambda _data, *place: unpack(data, *place))
        segment.seal()
    segment._data = data
    assert len(take_all(spool.buffer)) == 2


def test_an_event_whose_segment_went_before_record_looked_up_was_recorded_once(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    assert spool.record("tokens", "cus_1", 1)
    gone = mmap.mmap(-1, 1)
    gone.close()
    spool.buffer._own.gate.tell = gone.tell
    wakes = len(spool.wakes)
    assert spool.record("tokens", "cus_1", 2)
    assert len(spool.wakes) == wakes + 1
    assert spool.buffer.counts().recorded == 2
