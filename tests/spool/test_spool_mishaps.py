"""Mishaps around files: moved, linked, stale, closed in the wrong moment, interrupted."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from meter_agent._dropped import DROPPED_EVENTS_MAX, DroppedEvents
from meter_agent._ledger import DropReason
from meter_agent._runtime import SystemRuntime
from meter_agent._segment import Segment
from meter_agent._spool_directory import SpoolDirectory
from meter_agent.sandbox import Fault, Sandbox
from tests.conftest import MakeAgent, wait_until
from tests.spool.spools import MEBIBYTE, Spool, freeze, heir_of, take_all, values
from tests.virtual import VirtualRuntime


class TakesFirst:
    """A lock for which another thread was waiting, to take a batch."""

    def __init__(self, spool: Spool) -> None:
        self._buffer = spool.buffer
        self._lock: Any = spool.buffer._lock
        self.taken = 0

    def __enter__(self) -> bool:
        self._lock.__enter__()
        if not self.taken:
            self.taken = 1
            batch = self._buffer.take(100)
            assert batch is not None
            self.taken = batch.size
        return True

    def __exit__(self, *error: object) -> None:
        self._lock.__exit__(*error)


def test_what_is_taken_while_somebody_looks_whether_all_has_ended_has_not_ended(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path, VirtualRuntime())
    for n in range(10):
        spool.record("tokens", "cus_1", n)
    lock = spool.buffer._lock = TakesFirst(spool)  # type: ignore[assignment]
    assert not spool.buffer.is_drained
    assert lock.taken == 10


class LateThreads(SystemRuntime):
    """Threads that begin when they are let, as on a machine that has other things to do."""

    def __init__(self) -> None:
        super().__init__()
        self.may_begin = threading.Event()

    def start_thread(self, target: Callable[[], None], name: str) -> None:
        def begin() -> None:
            assert self.may_begin.wait(20)
            target()

        super().start_thread(begin, name)


@pytest.mark.parametrize("recorded", [0, 1])
def test_an_agent_that_is_closed_before_its_sender_has_begun_adopts_as_well(
    make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path, recorded: int
) -> None:
    dead = Spool(tmp_path, VirtualRuntime())
    dead.record("tokens", "cus_1", 1)
    dead.die()
    runtime = LateThreads()
    agent = make_agent(spool_dir=tmp_path, runtime=runtime)
    for _ in range(recorded):
        agent.record("tokens", "cus_1", 2)
    closing = threading.Thread(target=agent.close, args=[20])
    closing.start()
    flusher = agent._pipeline._flusher
    assert wait_until(agent, lambda: flusher.closing or not closing.is_alive())
    runtime.may_begin.set()
    closing.join(20)
    assert agent.stats().recovered == 1
    assert sandbox.totals()["accepted"] == 1 + recorded


def stale(*_: Any) -> Any:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_a_file_that_cannot_be_asked_for_any_more_does_not_keep_a_close_from_its_account(
    make_agent: MakeAgent, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.add_fault(Fault("status", status=503))
    failed = threading.Event()
    agent = make_agent(spool_dir=tmp_path, on_error=lambda _error: failed.set())
    agent.record("tokens", "cus_1", 1)
    assert failed.wait(20)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", stale)
        final = agent.close(0)
    assert final.balanced


def test_a_file_that_cannot_be_asked_for_any_more_kills_no_sender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, VirtualRuntime())
    spool.record("tokens", "cus_1", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", stale)
        spool.buffer.tend()
    assert len(take_all(spool.buffer)) == 1


def test_a_file_that_complains_when_it_is_closed_does_not_keep_the_others_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = VirtualRuntime()
    spool = Spool(tmp_path, runtime)
    for n in range(1500):  # two files, of which one is prepared in the caller's time
        spool.record("tokens", "cus_1", n)
    close = os.close

    def complain(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    spool.buffer.seal()
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", complain)
        spool.buffer.release()
    heir = Spool(tmp_path, runtime)
    heir.buffer.tend()
    assert heir.buffer.counts().recovered == 1500


@pytest.mark.parametrize("with_a_copy_in_its_place", [False, True])
def test_a_file_that_was_moved_away_is_not_said_to_be_left_in_the_spool(
    tmp_path: Path, with_a_copy_in_its_place: bool
) -> None:
    runtime = VirtualRuntime()
    spool = Spool(tmp_path / "spool", runtime)
    spool.buffer.tend()
    spool.record("tokens", "cus_1", 1)
    (tmp_path / "spool").rename(tmp_path / "elsewhere")
    if with_a_copy_in_its_place:
        shutil.copytree(tmp_path / "elsewhere", tmp_path / "spool")
    before = set((tmp_path / "spool").glob("*.segment"))
    runtime.advance(31.0)
    spool.buffer.tend()
    assert spool.buffer.counts().spool_failures == 1
    assert spool.record("tokens", "cus_1", 2)
    assert len({*(tmp_path / "spool").glob("*.segment")} - before) == 1


def test_an_event_that_was_handed_over_as_dropped_is_not_in_a_file_that_comes_back(
    tmp_path: Path,
) -> None:
    runtime = VirtualRuntime()
    dropped = DroppedEvents(wanted=True)
    spool = Spool(tmp_path / "spool", runtime, dropped=dropped)
    for n in range(DROPPED_EVENTS_MAX + 2):
        spool.record("tokens", "cus_1", n)
    (tmp_path / "spool").rename(tmp_path / "elsewhere")
    assert spool.buffer.seal() == DROPPED_EVENTS_MAX + 2
    spool.buffer.release()
    assert len(dropped) == DROPPED_EVENTS_MAX
    # What found no place was counted only, and the file is all that is left of it.
    heir = heir_of(tmp_path / "elsewhere", runtime)
    assert values(take_all(heir.buffer)) == [DROPPED_EVENTS_MAX, DROPPED_EVENTS_MAX + 1]


@pytest.mark.parametrize("got_as_far_as", ["taken", "frozen", "sent"])
def test_an_event_on_its_way_that_the_end_accounts_for_is_not_in_a_file_that_comes_back(
    tmp_path: Path, got_as_far_as: str
) -> None:
    runtime = VirtualRuntime()
    spool = Spool(tmp_path / "spool", runtime, dropped=DroppedEvents(wanted=True))
    spool.record("tokens", "cus_1", 1)
    batch = spool.buffer.take(100)
    assert batch is not None
    if got_as_far_as != "taken":
        freeze(spool.buffer, batch)
    if got_as_far_as == "sent":
        assert spool.buffer.begin_attempt(batch, batch.open)
    (tmp_path / "spool").rename(tmp_path / "elsewhere")
    spool.buffer.seal()
    assert spool.buffer.abandon() == [batch]
    spool.buffer.keep_abandoned(batch)
    assert batch.size == 1
    spool.buffer.release()
    spool.die()
    heir = heir_of(tmp_path / "elsewhere", runtime)
    assert take_all(heir.buffer) == {}


def test_an_event_that_was_handed_over_as_dropped_is_not_in_another_name_of_its_file(
    tmp_path: Path,
) -> None:
    dropped = DroppedEvents(wanted=True)
    runtime = VirtualRuntime()
    spool = Spool(tmp_path, runtime, dropped=dropped, overflow="drop_oldest", bytes_max=MEBIBYTE)
    spool.record("tokens", "cus_1", 0)
    (path,) = tmp_path.glob("*.segment")
    os.link(path, tmp_path / "second.segment")
    number = 1
    while not len(dropped):
        spool.record("tokens", "cus_1", number)
        number += 1
    handed_over = {json.loads(each.event)[3] for each in dropped.take(DROPPED_EVENTS_MAX)}
    assert 0 in handed_over
    spool.die()
    assert not handed_over & set(values(take_all(heir_of(tmp_path, runtime).buffer)))


def test_a_second_name_of_a_file_costs_its_owner_neither_the_lock_nor_the_file(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path, VirtualRuntime())
    spool.record("tokens", "cus_1", 1)
    (path,) = tmp_path.glob("*.segment")
    os.link(path, path.with_name(f"0{path.name[1:]}"))
    spool.buffer.tend()
    assert spool.buffer.counts().recovered == 0


def test_who_looks_after_the_disk_while_the_agent_closes_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = VirtualRuntime()
    tmp_path.chmod(0o770)
    spool = Spool(tmp_path, runtime)
    spool.record("tokens", "cus_1", 1)
    tmp_path.chmod(0o700)
    runtime.advance(6.0)
    made, go_on = threading.Event(), threading.Event()
    make = spool.buffer._supply.make_file

    def make_slowly(*arguments: Any) -> Any:
        segment = make(*arguments)
        made.set()
        assert go_on.wait(20)
        return segment

    monkeypatch.setattr(spool.buffer._supply, "make_file", make_slowly)
    sender = threading.Thread(target=spool.buffer.tend)
    sender.start()
    assert made.wait(20)
    spool.buffer.refuse(DropReason.CLOSED)
    spool.buffer.seal()
    spool.buffer.release()
    go_on.set()
    sender.join(20)
    assert list(tmp_path.glob("*.segment")) == []


def test_an_interrupt_at_any_line_of_the_making_of_a_file_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_twice: list[int] = []
    close = os.close

    def close_and_note(descriptor: int) -> None:
        # It may be somebody else's by then.
        try:
            close(descriptor)
        except OSError:
            closed_twice.append(descriptor)

    monkeypatch.setattr(os, "close", close_and_note)
    code = {
        SpoolDirectory._make_segment.__code__,
        Segment.__init__.__code__,
        Segment.take_charge.__code__,
    }
    left: list[tuple[int, str]] = []
    for line in range(1, 60):
        path = tmp_path / str(line)
        directory = SpoolDirectory(path, MEBIBYTE, VirtualRuntime())
        steps = [line]

        def trace(frame: FrameType, event: str, _argument: Any, steps: list[int] = steps) -> Any:
            if frame.f_code in code and event == "line":
                steps[0] -= 1
                if not steps[0]:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            directory.make_segment(65_536).remove()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        gc.collect()
        if path.exists():
            for segment, _ in directory.adopt():
                assert segment is not None
                segment.remove()  # an orphan like any other
            left += [(line, name) for name in os.listdir(path)]
    assert (left, closed_twice) == ([], [])
