"""Many processes in one directory: making and adopting."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from meter_agent._ledger import DropReason, Outcome
from tests.spool.spools import (
    Spool,
    heir_of,
    left_by_a_dead_process,
    segments,
    take,
    take_all,
    values,
)
from tests.virtual import VirtualRuntime


def test_files_are_for_their_owner_alone(tmp_path: Path, runtime: VirtualRuntime) -> None:
    left_by_a_dead_process(tmp_path / "a" / "b", runtime)
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_parents_that_are_made_on_the_way_are_private_too_whatever_the_umask(
    tmp_path: Path, runtime: VirtualRuntime
) -> None:
    before = os.umask(0)
    try:
        left_by_a_dead_process(tmp_path / "a" / "b" / "c", runtime)
    finally:
        os.umask(before)
    made = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}


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
    (segment,) = heir.buffer._adopted.segments
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
