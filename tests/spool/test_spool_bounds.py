"""The bounds of the spool: on the disk, in memory, in time."""

from __future__ import annotations

from pathlib import Path

import pytest

from meter_agent._spool_directory import SpoolDirectory, SpoolFullError
from tests.spool.spools import (
    MEBIBYTE,
    Spool,
    left_by_a_dead_process,
    segments,
    take,
    take_all,
    values,
)
from tests.virtual import VirtualRuntime


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
        assert len(heir.buffer._adopted) <= 64
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


def test_who_is_called_in_vain_looks_again_and_calls_nobody_else(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    spool = Spool(
        tmp_path, runtime, bytes_max=MEBIBYTE, overflow="block", block_timeout_seconds=0.5
    )
    other = runtime.doorbell()
    calls: list[int] = []

    def call_in_vain() -> None:
        if not calls:
            spool.buffer._call_waiting(1)
            spool.buffer._waiting.append(other)
        calls.append(other.rung)

    while spool.record("tokens", "cus_1", 1):
        runtime.on_wait = call_in_vain
    assert len(calls) > 1
    assert not other.rung  # or the two would ring each other for ever


def test_memory_is_bounded_as_well(tmp_path: Path, runtime: VirtualRuntime) -> None:
    spool = Spool(tmp_path / "file", runtime, memory_events=1000)
    (tmp_path / "file").write_text("no directory")
    held = 0
    while spool.record("tokens", "cus_1", 1):
        held += 1
    assert 1000 <= held < 10_000
    assert spool.buffer.counts().dropped == {"overflow": 1}


def test_a_full_spool_says_so(tmp_path: Path, runtime: VirtualRuntime) -> None:
    directory = SpoolDirectory(tmp_path / "spool", 100_000, runtime)
    directory.make_segment(65_536)
    with pytest.raises(SpoolFullError):
        directory.make_segment(65_536)
    assert len(segments(tmp_path / "spool")) == 1


def full_spool(path: Path, runtime: VirtualRuntime) -> tuple[Spool, int]:
    """A spool without room for another event, and how many it holds."""
    spool, held = Spool(path, runtime, bytes_max=MEBIBYTE), 0
    while spool.record("tokens", "cus_1", -1):
        held += 1
    return spool, held


def test_the_oldest_make_room_also_where_they_are_a_dead_process_s(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    dead, left = full_spool(tmp_path, runtime)
    dead.die()
    heir = Spool(tmp_path, runtime, bytes_max=MEBIBYTE, overflow="drop_oldest")
    heir.buffer.tend()
    new = left // 2
    for n in range(new):
        assert heir.record("tokens", "cus_1", n)
    counts = heir.buffer.counts()
    assert (counts.recorded, counts.recovered) == (new, left)
    assert counts.dropped == {"overflow": new + left - counts.buffered}
    billed = values(take_all(heir.buffer))
    assert len(billed) == counts.buffered
    assert [n for n in billed if n >= 0] == list(range(new))


def test_what_a_dead_process_may_have_sent_makes_room_for_nobody(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    """It ends as delivered or uncertain; to count it as dropped could be untrue."""
    dead, left = full_spool(tmp_path, runtime)
    batch = take(dead.buffer)
    assert dead.buffer.begin_attempt(batch, batch.open)
    dead.die()
    heir = Spool(tmp_path, runtime, bytes_max=MEBIBYTE, overflow="drop_oldest")
    heir.buffer.tend()
    for _ in range(left):
        heir.record("tokens", "cus_1", 1)
    assert heir.buffer._adopted.evicted > 0
    delivered = take_all(heir.buffer)
    assert {event.identifier for event in batch.open} <= set(delivered)


def test_a_disk_that_fails_costs_no_adopted_event_its_place(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    left_by_a_dead_process(tmp_path, runtime, events=10)
    heir = Spool(tmp_path, runtime, overflow="drop_oldest", memory_events=1000)
    heir.buffer.tend()
    tmp_path.chmod(0o770)
    for n in range(100_000):
        assert heir.record("tokens", "cus_1", n)
    tmp_path.chmod(0o700)
    assert heir.buffer._adopted.waiting == 10
    assert heir.buffer._adopted.evicted == 0
    assert heir.buffer._own.evicted > 0
