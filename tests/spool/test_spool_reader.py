"""Segments looked at from outside: nobody notices, and nothing is lost by it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from meter_agent import _spool_format as form
from meter_agent import _spool_reader
from meter_agent._runtime import SystemRuntime
from meter_agent._segment_lock import living_owner
from meter_agent._segment_name import ForeignSegmentError
from meter_agent._spool_header import HEADER_BYTES, VERSION, read_header
from meter_agent._spool_reader import SegmentReading, SpoolReader
from tests.spool.owners import adopted_by_another_process, owner, record_one
from tests.spool.spools import Spool, take, take_all


def orphan(path: Path, events: int = 10) -> Path:
    spool = Spool(path, SystemRuntime())
    for n in range(events):
        assert spool.record("tokens", "cus_1", n)
    spool.die()
    (segment,) = path.glob("*.segment")
    return segment


def look(path: Path) -> SegmentReading:
    reader = SpoolReader(path)
    (name,) = reader.names()
    reading = reader.look(name)
    assert reading is not None
    return reading


def test_an_orphan_has_no_owner_and_its_events_have_the_identifiers_that_they_will_be_sent_under(
    tmp_path: Path,
) -> None:
    orphan(tmp_path)
    reading = look(tmp_path)
    assert reading.owner is None
    heir = Spool(tmp_path, SystemRuntime())
    heir.buffer.tend()
    identifiers = [reading.identifier(record.offset) for record in reading.records]
    assert identifiers == list(take_all(heir.buffer))


def test_a_living_owner_is_named_and_keeps_its_segment(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with owner(tmp_path) as process:
        for _ in range(3):
            reading = look(tmp_path)
            assert (reading.owner, len(reading.records)) == (process.pid, 10)
        heir = Spool(tmp_path, SystemRuntime())
        heir.buffer.tend()
        assert heir.buffer.counts().recovered == 0
        assert record_one(process)
        assert len(look(tmp_path).records) == 11


def test_a_reader_in_the_middle_of_a_segment_does_not_keep_an_adopter_away(tmp_path: Path) -> None:
    segment = orphan(tmp_path)
    descriptor = os.open(segment, os.O_RDONLY)
    try:
        assert living_owner(descriptor) is None
        assert adopted_by_another_process(tmp_path) == 10
    finally:
        os.close(descriptor)


def test_a_segment_of_this_very_process_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, SystemRuntime())
    spool.record("tokens", "cus_1", 1)
    reader = SpoolReader(tmp_path)
    (name,) = reader.names()

    def never(*_: object) -> int:
        raise AssertionError("it was opened")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", never)
        assert reader.look(name) is None
    spool.die()
    assert reader.look(name) is not None


def test_what_has_been_deleted_is_gone_also_in_the_middle_of_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = orphan(tmp_path)
    reader = SpoolReader(tmp_path)
    assert reader.look("no.segment") is None
    read_all = _spool_reader._read_all

    def read_and_delete(descriptor: int, size: int) -> bytes:
        segment.unlink()
        return read_all(descriptor, size)

    monkeypatch.setattr(_spool_reader, "_read_all", read_and_delete)
    assert reader.look(segment.name) is None


def test_how_far_each_event_has_come_is_in_its_mark(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SystemRuntime())
    for n in range(3):
        spool.record("tokens", "cus_1", n)
    batch = take(spool.buffer)
    spool.buffer.begin_attempt(batch, batch.open[:1])
    spool.die()
    marks = [form.read_mark(record.mark) for record in look(tmp_path).records]
    assert [mark is None for mark in marks] == [False, True, True]


def test_damage_in_an_orphan_is_damage_wherever_it_is(tmp_path: Path) -> None:
    segment = orphan(tmp_path)
    content = bytearray(segment.read_bytes())
    content[content.index(b'"cus_1",9]')] ^= 1
    segment.write_bytes(content)
    reading = look(tmp_path)
    assert len(reading.records) == 9
    assert [damage.offset for damage in reading.damages] == [reading.records[-1].end]
    assert reading.unfinished is None


def test_a_record_that_its_owner_is_just_writing_is_no_damage(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with owner(tmp_path, events=2) as process:
        (segment,) = tmp_path.glob("*.segment")
        end = look(tmp_path).records[-1].end
        process.send_signal(signal.SIGSTOP)
        with segment.open("r+b") as file:
            file.seek(end)
            file.write(form.RECORD_HEAD.pack(form.RECORD_MAGIC, 30, 0, 7) + b"[179")
        reading = look(tmp_path)
        assert len(reading.records) == 2
        assert reading.damages == ()
        assert reading.unfinished == form.Damage(end, end + 24)


def test_what_is_torn_in_one_reading_of_a_living_segment_and_whole_in_the_next_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    with owner(tmp_path, events=9):
        read_all = _spool_reader._read_all
        torn: list[int] = []

        def read_torn(descriptor: int, size: int) -> bytes:
            # The first page is read, then the owner writes, then the second page is read.
            data = bytearray(read_all(descriptor, size))
            if not torn:
                at = data.index(b'"cus_1",4]')
                data[at : at + 10] = bytes(10)
                torn.append(at)
            return bytes(data)

        monkeypatch.setattr(_spool_reader, "_read_all", read_torn)
        reading = look(tmp_path)
        assert torn
        assert (len(reading.records), reading.damages) == (9, ())


def test_damage_that_is_there_in_every_reading_of_a_living_segment_is_damage(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o700)
    with owner(tmp_path, events=9):
        (segment,) = tmp_path.glob("*.segment")
        at = segment.read_bytes().index(b'"cus_1",4]')
        with segment.open("r+b") as file:
            file.seek(at)
            file.write(b"?")
        reading = look(tmp_path)
        assert (len(reading.records), len(reading.damages)) == (8, 1)


def later_version(path: Path) -> None:
    content = bytearray(path.read_bytes())
    header = read_header(bytes(content))
    assert header is not None
    content[:HEADER_BYTES] = header._replace(version=VERSION + 1).to_bytes()
    path.write_bytes(content)


def foreign(path: Path) -> None:
    path.write_bytes(bytes(5000))
    path.rename(path.with_name("of somebody.segment"))


@pytest.mark.parametrize("change", [later_version, foreign])
def test_what_is_not_ours_is_not_read(tmp_path: Path, change: Any) -> None:
    change(orphan(tmp_path))
    with pytest.raises(ForeignSegmentError):
        look(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.truncate(path, 1 << 30)])
def test_what_is_no_segment_at_all_is_an_error_and_keeps_nobody_waiting(
    tmp_path: Path, make: Any
) -> None:
    path = orphan(tmp_path)
    if make in {os.mkfifo, os.mkdir}:
        path.unlink()
    make(path)
    with pytest.raises(OSError, match=r"regular|more than any"):
        look(tmp_path)


def test_reading_changes_nothing(tmp_path: Path) -> None:
    segment = orphan(tmp_path)
    segment.chmod(0o400)
    before = segment.read_bytes(), segment.stat().st_mtime_ns, os.listdir(tmp_path)
    look(tmp_path)
    assert (segment.read_bytes(), segment.stat().st_mtime_ns, os.listdir(tmp_path)) == before
