"""Processes that come between each other's steps: bounds hold, and nobody takes what has ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meter_agent._segment import Segment
from meter_agent._spool_directory import SpoolDirectory, SpoolFullError
from tests.spool.spools import Spool
from tests.virtual import VirtualRuntime

SEGMENT_BYTES = 65_536


def bytes_taken(path: Path) -> int:
    return sum(os.path.getsize(path / name) for name in os.listdir(path))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["open", "scandir", "fstat", "posix_fallocate", "pwrite"])
def test_of_two_that_reach_for_the_last_place_never_both_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    # The kernel sees no difference between two directories of one process and those of two.
    first, second = (
        SpoolDirectory(tmp_path, 2 * SEGMENT_BYTES - 1, VirtualRuntime()) for _ in range(2)
    )
    made: list[Segment] = []
    most_bytes = 0
    between = [False]

    def make(directory: SpoolDirectory) -> None:
        with contextlib.suppress(SpoolFullError):
            made.append(directory.make_segment(SEGMENT_BYTES))

    allocate = os.posix_fallocate

    def allocate_and_measure(descriptor: int, offset: int, size: int) -> None:
        nonlocal most_bytes
        allocate(descriptor, offset, size)
        most_bytes = max(most_bytes, bytes_taken(tmp_path))

    def come_between() -> None:
        if not between[0]:
            between[0] = True
            make(second)

    monkeypatch.setattr(os, "posix_fallocate", allocate_and_measure)
    call: Callable[..., Any] = getattr(os, step)

    def call_and_let_the_other_in(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            come_between()
        result = call(*arguments, **options)
        if when == "after":
            come_between()
        return result

    monkeypatch.setattr(os, step, call_and_let_the_other_in)
    make(first)
    monkeypatch.undo()
    assert between[0]
    assert most_bytes <= SEGMENT_BYTES
    assert len(made) == len(list(tmp_path.glob("*.segment"))) <= 1
    for segment in made:
        segment.remove()
    # Who drew back has left nothing behind that would keep the next one out.
    first.make_segment(SEGMENT_BYTES)


def test_a_segment_that_is_deleted_between_its_opening_and_its_locking_is_not_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An owner that evicts leaves the marks as they are: the file alone says that it has ended.
    evicting = Spool(tmp_path, VirtualRuntime())
    assert evicting.record("tokens", "cus_1", 1)
    evicting.die()
    (path,) = tmp_path.glob("*.segment")
    open_file = os.open

    def open_too_late(name: Any, *arguments: Any, **options: Any) -> int:
        descriptor = open_file(name, *arguments, **options)
        if name == path:
            path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", open_too_late)
    heir = Spool(tmp_path, VirtualRuntime())
    heir.buffer.tend()
    assert not path.exists()
    assert heir.buffer.counts().recovered == 0
