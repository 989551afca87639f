"""Disks that fail, are no longer there, or are told to write now."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from meter_agent._ledger import DropReason, Outcome
from meter_agent._segment import Segment
from meter_agent._spool_directory import SpoolDirectory
from tests.spool.spools import (
    MEBIBYTE,
    Spool,
    heir_of,
    segments,
    take,
    take_all,
    values,
)
from tests.virtual import VirtualRuntime


def test_memory_takes_over_where_others_may_write_and_the_disk_when_it_is_mended(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    tmp_path.chmod(0o770)
    spool = Spool(tmp_path, runtime)
    for n in range(100):
        assert spool.record("tokens", "cus_1", n)
    assert segments(tmp_path) == []
    spool.buffer._troubles.tell()
    ((event, fields),) = spool.said
    assert event == "meter_agent.spool_failed"
    assert f"chmod 700 {tmp_path}" in fields["error"]
    assert spool.buffer.counts().spool_failures == 1
    tmp_path.chmod(0o700)
    runtime.advance(6.0)
    n = 100
    while not segments(tmp_path):
        assert spool.record("tokens", "cus_1", n)
        n += 1
    assert values(take_all(spool.buffer)) == list(range(n))
    assert spool.buffer.counts().recorded == n


def test_a_failing_disk_is_not_asked_at_every_call(tmp_path: Path, runtime: VirtualRuntime) -> None:
    class Counting(SpoolDirectory):
        asked = 0

        def make_segment(self, segment_bytes: int) -> object:  # type: ignore[override]
            self.asked += 1
            raise OSError("the disk has gone")

    spool = Spool(tmp_path, runtime)
    directory = spool.buffer._supply._directory = Counting(tmp_path, MEBIBYTE, runtime)
    for _ in range(20_000):
        spool.record("tokens", "cus_1", 1)
        runtime.advance(0.001)
    assert directory.asked <= 1 + 20 / 5


def test_what_waits_in_memory_is_dropped_at_the_end_and_counted(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    (tmp_path / "file").write_text("no directory")
    spool = Spool(tmp_path / "file", runtime)
    for n in range(10):
        assert spool.record("tokens", "cus_1", n)
    assert spool.buffer.seal() == 10
    spool.buffer.release()
    assert spool.buffer.counts().dropped == {"shutdown": 10}
    assert spool.buffer.counts().buffered == 0


def test_a_directory_that_vanishes_takes_nothing_from_who_writes(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    path = tmp_path / "spool"
    spool = Spool(path, runtime)
    for n in range(10):
        spool.record("tokens", "cus_1", n)
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    for n in range(10, 5000):
        assert spool.record("tokens", "cus_1", n)
    assert values(take_all(spool.buffer)) == list(range(5000))
    assert segments(path), "made again"


def test_the_directory_of_another_user_is_refused(tmp_path: Path, runtime: VirtualRuntime) -> None:
    directory = SpoolDirectory("/proc/self", MEBIBYTE, runtime)
    if os.geteuid() == 0:
        other = tmp_path / "other"
        other.mkdir(mode=0o700)
        os.chown(other, 12_345, 12_345)
        directory = SpoolDirectory(other, MEBIBYTE, runtime)
    with pytest.raises(OSError, match=r"belongs to user|Permission|not permitted|No such"):
        directory.make_segment(65_536)


def test_the_disk_is_asked_for_at_the_interval_of_syncs_and_only_for_something_new(
    tmp_path: Path, runtime: VirtualRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append("names" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "events")

    monkeypatch.setattr(os, "fsync", fsync)
    spool = Spool(tmp_path, runtime, sync_seconds=2.0)
    spool.buffer.tend()
    assert spool.buffer.seconds_until_tending() == 30.0
    spool.record("tokens", "cus_1", 1)
    spool.buffer.tend()
    assert synced == []
    len(spool.buffer)
    assert spool.buffer.seconds_until_tending() == 2.0
    for _ in range(2):
        runtime.advance(2.0)
        spool.buffer.tend()
        assert synced == ["events", "names"]
    assert spool.buffer.seconds_until_tending() == 26.0


def test_that_an_event_was_sent_and_ended_reaches_the_disk_as_events_do(
    tmp_path: Path, runtime: VirtualRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(os, "fsync", syncs.append)
    spool = Spool(tmp_path, runtime, sync_seconds=2.0)
    spool.record("tokens", "cus_1", 1)
    spool.record("tokens", "cus_1", 2)
    batch = take(spool.buffer, 1)
    for step in (
        lambda: None,
        lambda: spool.buffer.begin_attempt(batch, batch.open),
        lambda: spool.buffer.settle(batch, batch.open, Outcome.DELIVERED),
    ):
        step()
        before = len(syncs)
        runtime.advance(2.0)
        spool.buffer.tend()
        assert len(syncs) > before


@pytest.mark.parametrize("writable", [True, False])
def test_a_file_that_is_gone_at_the_end_is_written_anew_and_if_not_the_account_says_so(
    tmp_path: Path, runtime: VirtualRuntime, writable: bool
) -> None:
    spool = Spool(tmp_path, runtime)
    for n in range(10):
        spool.record("tokens", "cus_1", n)
    (segment,) = segments(tmp_path)
    segment.unlink()
    tmp_path.chmod(0o700 if writable else 0o770)  # others may write to it: it is not used
    assert spool.buffer.seal() == (0 if writable else 10)
    spool.buffer.release()
    counts = spool.buffer.counts()
    kept = 10 if writable else 0
    assert (counts.dropped.get("shutdown", 0), counts.buffered) == (10 - kept, kept)
    tmp_path.chmod(0o700)
    assert heir_of(tmp_path, runtime).buffer.counts().recovered == kept


def test_current_and_prepared_files_that_are_both_deleted_are_both_replaced(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    n = 0
    while len(segments(tmp_path)) < 2:
        assert spool.record("tokens", "cus_1", n)
        n += 1
        spool.buffer.tend()
    assert spool.buffer._own.prepared is not None
    for segment in segments(tmp_path):
        segment.unlink()
    runtime.advance(30.0)
    spool.buffer.tend()
    assert spool.record("tokens", "cus_1", n)
    spool.die()
    heir = heir_of(tmp_path, runtime)
    assert values(take_all(heir.buffer)) == list(range(n + 1))


def test_who_closes_while_the_disk_gets_well_leaves_no_file(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    tmp_path.chmod(0o770)
    spool = Spool(tmp_path, runtime)
    assert spool.record("tokens", "cus_1", 1)
    tmp_path.chmod(0o700)
    runtime.advance(6.0)
    make_segment = SpoolDirectory.make_segment

    def close_meanwhile(directory: SpoolDirectory, segment_bytes: int) -> Segment:
        segment = make_segment(directory, segment_bytes)
        spool.buffer.refuse(DropReason.CLOSED)
        return segment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpoolDirectory, "make_segment", close_meanwhile)
        spool.buffer.tend()
    assert segments(tmp_path) == []
    assert values(take_all(spool.buffer)) == [1]


def test_what_is_left_alone_is_told_although_another_file_cannot_be_opened(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    (tmp_path / "foreign.segment").write_bytes(bytes(100))
    (tmp_path / "0-loop.segment").symlink_to("0-loop.segment")
    spool = heir_of(tmp_path, runtime)
    assert [event for event, _ in spool.said] == [
        "meter_agent.spool_failed",
        "meter_agent.spool_file_left_alone",
    ]
