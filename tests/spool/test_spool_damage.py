"""Damaged files: each intact record is delivered, and the rest kept with a reason."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meter_agent import _spool_format as form
from meter_agent._ledger import Outcome
from meter_agent._spool_body import InvalidRecord, recorded_at
from meter_agent._spool_header import HEADER_BYTES, OWNER_AT, VERSION, read_header
from tests.spool.spools import (
    MEBIBYTE,
    Spool,
    heir_of,
    left_by_a_dead_process,
    segments,
    take,
    take_all,
    values,
)
from tests.virtual import VirtualRuntime


def test_a_damaged_record_costs_itself_and_is_kept_with_a_reason(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    segment = left_by_a_dead_process(tmp_path, runtime)
    content = bytearray(segment.read_bytes())
    at = content.index(b'"cus_1",4]')
    content[at] ^= 1
    segment.write_bytes(content)
    heir = heir_of(tmp_path, runtime)
    counts = heir.buffer.counts()
    assert (counts.recovered, counts.quarantined) == (9, 1)
    assert values(take_all(heir.buffer)) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    (kept,) = (tmp_path / "quarantine").glob("*.bytes")
    (why,) = (tmp_path / "quarantine").glob("*.json")
    facts = json.loads(why.read_text())
    assert facts["segment"] == segment.name
    assert kept.read_bytes() == bytes(content[facts["offset"] : facts["end"]])
    assert "intact" in facts["reason"]
    assert [event for event, _ in heir.said] == [
        "meter_agent.spool_recovered",
        "meter_agent.spool_damaged",
    ]


def test_a_file_cut_off_at_any_place_gives_what_is_whole(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    segment = left_by_a_dead_process(tmp_path, runtime, events=3)
    content = segment.read_bytes()
    end = content.rindex(b"]") + 1
    for length in range(end):
        path = tmp_path / str(length)
        path.mkdir(mode=0o700)
        (path / segment.name).write_bytes(content[:length])
        heir = heir_of(path, runtime)
        held = values(take_all(heir.buffer))
        assert held == list(range(len(held)))
        assert heir.buffer.counts().recovered == len(held)
        assert content[:length].count(b"]") >= len(held) >= content[:length].count(b"]\xff")
        assert segments(path) == []


@given(bit=st.integers(0, 8 * OWNER_AT - 1))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_segment_with_a_damaged_header_is_set_aside_and_bills_nobody(
    tmp_path: Path, bit: int
) -> None:
    runtime = VirtualRuntime()
    path = tmp_path / str(bit)
    shutil.rmtree(path, ignore_errors=True)
    segment = left_by_a_dead_process(path, runtime)
    content = bytearray(segment.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    segment.write_bytes(content)
    intact = read_header(bytes(content)) is not None  # the bit is one of the zeros between fields
    heir = heir_of(path, runtime)
    assert len(heir.buffer) == (10 if intact else 0)
    assert heir.buffer.counts().quarantined == (not intact)
    kept = [file.read_bytes() for file in (path / "quarantine").glob("*.bytes")]
    assert kept == ([] if intact else [bytes(content)])
    assert intact or "identifiers" in heir.said[-1][1]["error"]
    heir.die()


def test_a_copy_of_a_segment_under_another_name_whose_header_is_damaged_is_not_billed_again(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    segment = left_by_a_dead_process(tmp_path, runtime, events=300)
    copy = bytearray(segment.read_bytes())
    copy[20] ^= 1
    assert len(take_all(heir_of(tmp_path, runtime).buffer)) == 300
    segment.with_name(f"1795000000001-{'ab' * 10}-65536.segment").write_bytes(copy)
    runtime.advance(31.0)
    heir = heir_of(tmp_path, runtime)
    assert take_all(heir.buffer) == {}
    assert heir.buffer.counts().quarantined == 1
    assert segments(tmp_path) == []


def test_a_file_without_a_single_byte_of_content_is_deleted(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    segment = left_by_a_dead_process(tmp_path, runtime)
    segment.write_bytes(bytes(65_536))
    heir = heir_of(tmp_path, runtime)
    assert (heir.buffer.counts().quarantined, segments(tmp_path)) == (0, [])


def test_a_segment_of_a_later_version_is_left_alone(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    segment = left_by_a_dead_process(tmp_path, runtime)
    content = bytearray(segment.read_bytes())
    header = read_header(bytes(content))
    assert header is not None
    content[:HEADER_BYTES] = header._replace(version=VERSION + 1).to_bytes()
    segment.write_bytes(content)
    heir = heir_of(tmp_path, runtime)
    assert heir.buffer.counts().recovered == 0
    assert segment.read_bytes() == content
    assert f"version {VERSION + 1}" in heir.said[0][1]["error"]


def test_a_foreign_file_is_left_alone(tmp_path: Path, runtime: VirtualRuntime) -> None:
    tmp_path.chmod(0o700)
    for name, size in [("notes.txt", 5000), ("of somebody.segment", 5000), ("short.segment", 5)]:
        (tmp_path / name).write_bytes(b"\0" * size)
    heir = heir_of(tmp_path, runtime)
    assert heir.buffer.counts().recovered == 0
    assert len(list(tmp_path.iterdir())) == 3
    assert heir.record("tokens", "cus_1", 1)


def test_a_file_that_cannot_be_opened_does_not_keep_the_events_behind_it(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    left_by_a_dead_process(tmp_path, runtime)
    (tmp_path / "0.segment").mkdir()
    (tmp_path / "1.segment").symlink_to("/dev/null")
    heir = heir_of(tmp_path, runtime)
    assert heir.buffer.counts().recovered == 10
    assert heir.buffer.counts().spool_failures == 1
    assert "0.segment" in heir.said[-1][1]["error"]


def test_events_whose_mark_is_damaged_may_have_been_sent_long_ago(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    segment = left_by_a_dead_process(tmp_path, runtime, events=1)
    content = bytearray(segment.read_bytes())
    content[HEADER_BYTES + form.MARK_AT] ^= 1
    segment.write_bytes(content)
    batch = take(heir_of(tmp_path, runtime).buffer)
    ((wall, monotonic),) = batch.attempted.values()
    assert wall == 0.0
    assert runtime.monotonic() - monotonic == pytest.approx(runtime.clock.time())


def test_a_record_that_is_damaged_while_its_owner_lives_is_counted_as_dropped(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    for n in range(10):
        spool.record("tokens", "cus_1", n)
    assert len(spool.buffer) == 10
    segment = spool.buffer._own.segments[0]
    at = segment.read(0, segment.bytes).index(b'"cus_1",4]')
    segment._data[at] ^= 1
    assert values(take_all(spool.buffer)) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    counts = spool.buffer.counts()
    assert counts.dropped == {"damaged": 1}
    assert counts.settled[Outcome.DELIVERED] == 9
    assert (counts.recorded, counts.buffered, counts.in_flight) == (10, 0, 0)


def test_a_damaged_piece_is_kept_only_where_there_is_room_for_it_and_its_reason(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    first = Spool(tmp_path, runtime)
    first.record("tokens", "cus_1", 1)
    first.die()
    (path,) = segments(tmp_path)
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + form.RECORD_OVERHEAD_BYTES)
        file.write(b"x")
    second = Spool(tmp_path, runtime, bytes_max=path.stat().st_size + 100)
    second.buffer.tend()
    assert second.buffer.counts().quarantined == 1
    assert not [file for file in tmp_path.rglob("quarantine/*") if file.is_file()]
    assert "the spool is full" in second.said[-1][1]["error"]


@pytest.mark.parametrize(
    "body",
    [
        f"[{10**400},1,2,3]".encode(),
        f"[-{10**400},1,2,3]".encode(),
        f"[{'9' * 5000},1,2,3]".encode(),
        b"[1e999,1,2,3]",
        b"[NaN,1,2,3]",
        b'["1",1,2,3]',
        b"[[],1,2,3]",
        b"{}",
        b"[,",
        b"\x00",
    ],
    ids=lambda body: body[:9].decode(),
)
def test_a_record_whose_checksum_is_right_and_that_no_version_wrote_is_a_dead_letter(
    tmp_path: Path, runtime: VirtualRuntime, body: bytes
) -> None:
    segment = left_by_a_dead_process(tmp_path, runtime, events=1)
    content = segment.read_bytes()
    end = content.rindex(b"]") + 1
    record = form.RECORD_HEAD.pack(form.RECORD_MAGIC, len(body), 0, crc32(body)) + body
    segment.write_bytes(content[:end] + record + content[end + len(record) :])
    heir = heir_of(tmp_path, runtime)
    assert isinstance(recorded_at(body), float)
    counts = heir.buffer.counts()
    assert counts.recovered == 2
    assert counts.oldest_recorded_at is not None
    batch = heir.buffer.take(100)
    assert batch is not None
    invalid = [event for _, event in heir.buffer.recorded(batch)][1]
    assert isinstance(invalid, InvalidRecord) or invalid[0] != invalid[0] or body[:2] == b"[1"


@pytest.mark.parametrize("name", ["0", "copy"])
def test_a_second_name_of_a_segment_goes_with_it_and_its_events_are_billed_once(
    tmp_path: Path, runtime: VirtualRuntime, name: str
) -> None:
    spool = Spool(tmp_path, runtime)
    for n in range(10):
        assert spool.record("tokens", "cus_1", n)
    (segment,) = segments(tmp_path)
    os.link(segment, segment.with_name(f"{name}{segment.name[1:]}"))
    billed = values(take_all(spool.buffer))
    for _ in range(3):
        runtime.advance(31.0)
        spool.buffer.tend()
        billed += values(take_all(spool.buffer))
    assert billed == list(range(10))
    assert segments(tmp_path) == []


def test_a_segment_that_was_made_longer_takes_no_more_memory_than_it_had_bytes(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    segment = left_by_a_dead_process(tmp_path, runtime)
    os.truncate(segment, 1 << 28)
    tracemalloc.start()
    try:
        bodies = take_all(heir_of(tmp_path, runtime).buffer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert values(bodies) == list(range(10))
    assert peak < MEBIBYTE
    assert segments(tmp_path) == []
