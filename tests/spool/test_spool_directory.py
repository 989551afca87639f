"""Many processes in one directory: making, adopting, bounds, damage, trouble."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from meter_agent import _spool_format as form
from meter_agent._ledger import DropReason, Outcome
from meter_agent._spool_directory import SpoolDirectory, SpoolFullError
from tests.spool.spools import MEBIBYTE, Spool, take, take_all
from tests.virtual import VirtualRuntime


@pytest.fixture
def runtime() -> VirtualRuntime:
    return VirtualRuntime()


def segments(path: Path) -> list[Path]:
    return sorted(path.glob("*.segment"))


def left_by_a_dead_process(path: Path, runtime: VirtualRuntime, events: int = 10) -> Path:
    spool = Spool(path, runtime)
    for n in range(events):
        assert spool.record("tokens", "cus_1", n)
    spool.die()
    (segment,) = segments(path)
    return segment


def values(bodies: dict[str, bytes]) -> list[int]:
    return sorted(int(json.loads(body)["payload"]["value"]) for body in bodies.values())


def test_files_are_for_their_owner_alone(tmp_path: Path, runtime: VirtualRuntime) -> None:
    left_by_a_dead_process(tmp_path / "a" / "b", runtime)
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_nothing_is_made_before_the_first_event(tmp_path: Path, runtime: VirtualRuntime) -> None:
    Spool(tmp_path / "spool", runtime)
    assert not (tmp_path / "spool").exists()


def test_all_blocks_of_a_segment_are_allocated(tmp_path: Path, runtime: VirtualRuntime) -> None:
    status = left_by_a_dead_process(tmp_path, runtime).stat()
    assert status.st_blocks * 512 >= status.st_size == 65_536


def test_identifiers_are_the_same_after_a_crash(tmp_path: Path, runtime: VirtualRuntime) -> None:
    spool = Spool(tmp_path, runtime)
    for n in range(10):
        spool.record("tokens", "cus_1", n)
    before = {event.identifier: event.body for event in take(spool.buffer).open}
    spool.die()
    spool = Spool(tmp_path, runtime)
    spool.buffer.tend()
    assert take_all(spool.buffer) == before
    assert segments(tmp_path) == []


def test_a_segment_is_adopted_by_one_and_not_while_its_owner_lives(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    owner, other, third = (Spool(tmp_path, runtime) for _ in range(3))
    owner.record("tokens", "cus_1", 1)
    other.buffer.tend()
    assert other.buffer.counts().recovered == 0
    owner.die()
    runtime.advance(31.0)
    for spool in (other, third):
        spool.buffer.tend()
    assert [s.buffer.counts().recovered for s in (other, third)] == [1, 0]
    assert values(take_all(other.buffer)) == [1]


def test_an_orphan_is_looked_for_every_30_seconds(tmp_path: Path, runtime: VirtualRuntime) -> None:
    spool = Spool(tmp_path, runtime)
    spool.buffer.tend()
    left_by_a_dead_process(tmp_path, runtime)
    assert spool.buffer.seconds_until_tending() == 30.0
    runtime.advance(29.0)
    spool.buffer.tend()
    assert spool.buffer.counts().recovered == 0
    runtime.advance(1.0)
    spool.buffer.tend()
    assert spool.buffer.counts().recovered == 10


def test_all_processes_together_never_take_more_than_spool_bytes(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spools = [Spool(tmp_path, runtime, bytes_max=MEBIBYTE) for _ in range(5)]
    refused = 0
    for _ in range(8000):
        for spool in spools:
            refused += not spool.record("tokens", "cus_1", 1)
            spool.buffer.tend()
        runtime.advance(0.01)
        assert sum(path.stat().st_size for path in segments(tmp_path)) <= MEBIBYTE
    assert refused > 10_000
    counts = [spool.buffer.counts() for spool in spools]
    assert sum(count.dropped.get("overflow", 0) for count in counts) == refused
    assert sum(count.buffered for count in counts) == 40_000 - refused > 8_000


def test_two_hundred_short_workers_leave_no_empty_files(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    for _ in range(200):
        spool = Spool(tmp_path, runtime, bytes_max=64 * MEBIBYTE)
        assert spool.record("tokens", "cus_1", 1)
        spool.die()
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= 200 * 65_536
    heir = Spool(tmp_path, runtime, bytes_max=64 * MEBIBYTE)
    delivered: dict[str, bytes] = {}
    while segments(tmp_path):
        # Not all at once: each takes descriptors of the application.
        heir.buffer.tend()
        assert len(heir.buffer._recovered_line) <= 64
        delivered |= take_all(heir.buffer)
    assert len(delivered) == 200
    assert segments(tmp_path) == []


def test_room_that_is_made_is_used_again(tmp_path: Path, runtime: VirtualRuntime) -> None:
    spool = Spool(tmp_path, runtime, bytes_max=MEBIBYTE)
    for _ in range(3):
        held = 0
        while spool.record("tokens", "cus_1", 1):
            held += 1
        assert held > 8_000
        assert len(take_all(spool.buffer)) == held
        runtime.advance(1.0)


def test_the_oldest_make_room_for_the_newest(tmp_path: Path, runtime: VirtualRuntime) -> None:
    spool = Spool(tmp_path, runtime, bytes_max=MEBIBYTE, overflow="drop_oldest")
    for n in range(40_000):
        assert spool.record("tokens", "cus_1", n)
    counts = spool.buffer.counts()
    evicted = counts.dropped["overflow"]
    assert evicted + counts.buffered == counts.recorded == 40_000
    assert values(take_all(spool.buffer)) == list(range(evicted, 40_000))


def test_who_blocks_is_let_in_when_a_file_is_done(tmp_path: Path, runtime: VirtualRuntime) -> None:
    spool = Spool(
        tmp_path, runtime, bytes_max=MEBIBYTE, overflow="block", block_timeout_seconds=5.0
    )
    taken: dict[str, bytes] = {}
    runtime.on_wait = lambda: taken.update(take_all(spool.buffer))
    for n in range(40_000):
        assert spool.record("tokens", "cus_1", n)
    taken |= take_all(spool.buffer)
    assert values(taken) == list(range(40_000))


def test_who_blocks_in_vain_is_refused_in_time(tmp_path: Path, runtime: VirtualRuntime) -> None:
    spool = Spool(
        tmp_path, runtime, bytes_max=MEBIBYTE, overflow="block", block_timeout_seconds=5.0
    )
    began = runtime.monotonic()
    while spool.record("tokens", "cus_1", 1):
        pass
    assert runtime.monotonic() - began == pytest.approx(5.0)


# -- damage --------------------------------------------------------------------------------------


def heir_of(path: Path, runtime: VirtualRuntime) -> Spool:
    spool = Spool(path, runtime)
    spool.buffer.tend()
    return spool


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


def test_a_damaged_header_costs_nothing_because_the_name_says_it_too(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    for n in range(10):
        spool.record("tokens", "cus_1", n)
    before = {event.identifier for event in take(spool.buffer).open}
    spool.die()
    (segment,) = segments(tmp_path)
    content = bytearray(segment.read_bytes())
    for bit in range(8 * form.HEADER_BYTES):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        segment.write_bytes(damaged)
        heir = heir_of(tmp_path, runtime)
        assert {event.identifier for event in take(heir.buffer).open} == before
        heir.die()


def test_a_segment_of_a_later_version_is_left_alone(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    segment = left_by_a_dead_process(tmp_path, runtime)
    content = bytearray(segment.read_bytes())
    header = form.read_header(bytes(content))
    assert header is not None
    content[: form.HEADER_BYTES] = header._replace(version=form.VERSION + 1).to_bytes()
    segment.write_bytes(content)
    heir = heir_of(tmp_path, runtime)
    assert heir.buffer.counts().recovered == 0
    assert segment.read_bytes() == content
    assert "version 2" in heir.said[0][1]["error"]


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
    content[form.HEADER_BYTES + form.MARK_AT] ^= 1
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
    segment = spool.buffer._line[0]
    at = segment.read(0, segment.bytes).index(b'"cus_1",4]')
    segment._data[at] ^= 1
    assert values(take_all(spool.buffer)) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    counts = spool.buffer.counts()
    assert counts.dropped == {"damaged": 1}
    assert counts.settled[Outcome.DELIVERED] == 9
    assert (counts.recorded, counts.buffered, counts.in_flight) == (10, 0, 0)


# -- trouble -------------------------------------------------------------------------------------


def test_memory_takes_over_where_others_may_write_and_the_disk_when_it_is_mended(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    tmp_path.chmod(0o770)
    spool = Spool(tmp_path, runtime)
    for n in range(100):
        assert spool.record("tokens", "cus_1", n)
    assert segments(tmp_path) == []
    spool.buffer.tell_troubles()
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


def test_memory_is_bounded_as_well(tmp_path: Path, runtime: VirtualRuntime) -> None:
    spool = Spool(tmp_path / "file", runtime, memory_events=1000)
    (tmp_path / "file").write_text("no directory")
    held = 0
    while spool.record("tokens", "cus_1", 1):
        held += 1
    assert 1000 <= held < 10_000
    assert spool.buffer.counts().dropped == {"overflow": 1}


def test_a_failing_disk_is_not_asked_at_every_call(tmp_path: Path, runtime: VirtualRuntime) -> None:
    class Counting(SpoolDirectory):
        asked = 0

        def make_segment(self, segment_bytes: int) -> object:  # type: ignore[override]
            self.asked += 1
            raise OSError("the disk has gone")

    spool = Spool(tmp_path, runtime)
    directory = spool.buffer._directory = Counting(tmp_path, MEBIBYTE, runtime)
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


def test_a_damaged_piece_is_kept_only_where_there_is_room_for_it_and_its_reason(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    first = Spool(tmp_path, runtime)
    first.record("tokens", "cus_1", 1)
    first.die()
    (path,) = segments(tmp_path)
    with path.open("r+b") as file:
        file.seek(form.HEADER_BYTES + form.RECORD_OVERHEAD_BYTES)
        file.write(b"x")
    second = Spool(tmp_path, runtime, bytes_max=path.stat().st_size + 100)
    second.buffer.tend()
    assert second.buffer.counts().quarantined == 1
    assert not [file for file in tmp_path.rglob("quarantine/*") if file.is_file()]
    assert "the spool is full" in second.said[-1][1]["error"]


def test_a_full_spool_says_so(tmp_path: Path, runtime: VirtualRuntime) -> None:
    directory = SpoolDirectory(tmp_path / "spool", 100_000, runtime)
    directory.make_segment(65_536)
    with pytest.raises(SpoolFullError):
        directory.make_segment(65_536)
    assert len(segments(tmp_path / "spool")) == 1


def test_the_disk_is_asked_for_at_the_interval_of_syncs_and_only_for_something_new(
    tmp_path: Path, runtime: VirtualRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    spool = Spool(tmp_path, runtime, sync_seconds=2.0)
    spool.buffer.tend()
    assert spool.buffer.seconds_until_tending() == 30.0
    spool.record("tokens", "cus_1", 1)
    spool.buffer.tend()
    assert synced == []
    len(spool.buffer)
    assert spool.buffer.seconds_until_tending() == 2.0
    runtime.advance(2.0)
    spool.buffer.tend()
    assert len(synced) == 1
    runtime.advance(2.0)
    spool.buffer.tend()
    assert len(synced) == 1
    assert spool.buffer.seconds_until_tending() == 26.0


def test_a_file_that_is_gone_at_the_end_keeps_nothing_and_the_account_says_so(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    for n in range(10):
        spool.record("tokens", "cus_1", n)
    (segment,) = segments(tmp_path)
    segment.unlink()
    assert spool.buffer.seal() == 10
    spool.buffer.release()
    counts = spool.buffer.counts()
    assert (counts.dropped, counts.buffered) == ({"shutdown": 10}, 0)


def test_who_closes_has_nothing_to_tend(tmp_path: Path, runtime: VirtualRuntime) -> None:
    spool = Spool(tmp_path, runtime)
    spool.buffer.refuse(DropReason.CLOSED)
    assert spool.buffer.seconds_until_tending() is None


def test_a_segment_that_was_mostly_sent_is_not_looked_through_again_and_again(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(tmp_path, runtime)
    for n in range(100):
        spool.record("tokens", "cus_1", n)
    batch = take(spool.buffer, 90)
    spool.buffer.settle(batch, batch.open, Outcome.DELIVERED)
    spool.die()
    heir = heir_of(tmp_path, runtime)
    (segment,) = heir.buffer._recovered_line
    first = segment.oldest()
    assert first is not None
    assert segment.taken_through == first.offset
    assert values(take_all(heir.buffer)) == list(range(90, 100))


def test_agents_of_one_process_take_nothing_from_each_other(
    tmp_path: Path, runtime: VirtualRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Within a process a file lock can be taken twice. So one of them looks for orphans at every
    # step that the other one takes.
    other = Spool(tmp_path, runtime)
    for name in ("open", "posix_fallocate", "pwrite", "fstat"):
        call = getattr(os, name)
        looking: list[bool] = []

        def look_first(
            *arguments: Any, call: Any = call, looking: list[bool] = looking, **options: Any
        ) -> Any:
            result = call(*arguments, **options)
            if not looking:
                looking.append(True)
                runtime.advance(31.0)
                other.buffer.tend()
                looking.clear()
            return result

        with monkeypatch.context() as patch:
            patch.setattr(os, name, look_first)
            owner = Spool(tmp_path, runtime)
            assert owner.record("tokens", "cus_1", 1)
        assert len(take_all(owner.buffer)) == 1
        owner.die()
    assert other.buffer.counts().recovered == 0


def test_two_agents_of_one_process_adopt_an_orphan_once(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    left_by_a_dead_process(tmp_path, runtime)
    heirs = [Spool(tmp_path, runtime) for _ in range(8)]
    start = threading.Barrier(8)

    def adopt(heir: Spool) -> None:
        start.wait()
        heir.buffer.tend()

    threads = [threading.Thread(target=adopt, args=(heir,)) for heir in heirs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(heir.buffer.counts().recovered for heir in heirs) == 10
